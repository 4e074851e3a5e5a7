"""The clock a client's deadlines are read from.

The law: it never goes back and counts the time a machine was suspended, where the system offers
such a clock: a laptop that slept has lost its locks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

if sys.platform == "linux":
    now: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
elif sys.platform == "darwin":
    now = partial(time.clock_gettime, time.CLOCK_MONOTONIC)  # counts suspension there
else:
    now = time.monotonic
