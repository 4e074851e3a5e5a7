"""Which nodes the cluster has, which groups they hold, and how the groups get there."""
