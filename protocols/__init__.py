"""The plugin interface, the error codes, and the protocols as pure state machines."""
