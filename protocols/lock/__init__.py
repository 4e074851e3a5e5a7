"""Locks in the control group: shared and exclusive, FIFO, fenced. See `table.py` for the law."""
