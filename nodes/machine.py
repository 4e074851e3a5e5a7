"""What the machine tells a node: the clock, and what the process takes of it.

The law: nothing decides by the wall clock. Time is monotonic, and counts on while the machine is
suspended where the system can tell (Linux: CLOCK_BOOTTIME).
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic_s() -> float:
    """Seconds, monotonic; on Linux time spent suspended counts too."""
    return time.clock_gettime(_CLOCK)


def resident_bytes() -> int:
    """Resident memory now where /proc tells it, else the peak (getrusage)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor_s() -> float:
    """Processor time this process has taken."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
