"""Measuring a cluster, and what it is measured against."""
