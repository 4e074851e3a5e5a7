"""The queue protocol: replicated, fenced, at least once."""
