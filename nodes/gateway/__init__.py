"""The HTTP face of a node: a client of the cluster like any other, on the node's loop."""
