"""A node: engine, simulator, log, process, local cluster, commands."""
