"""Semaphores, events, barriers, conditions, elections, fences in the control group."""
