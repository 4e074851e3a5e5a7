"""What every object checks of its arguments, before anything is sent.

The law: what `threading` refuses is refused with the same exception.
"""

from __future__ import annotations

import threading

from ..protocols.lock.plugin import name_is_good
from .errors import BadName


def check_name(name: str, kind: str = "lock") -> None:
    """Raise TypeError or `BadName` for what is no name."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a {kind} is a string, not {name!r}")
    if not name_is_good(name):
        raise BadName(
            f"{name!r} is no name: use 1 to 255 bytes of UTF-8 without control characters, "
            "not . or .."
        )


def check_timeout(blocking: bool, timeout: float) -> None:
    """What `threading.Lock.acquire` refuses. Raises ValueError or OverflowError."""
    if not blocking and timeout != -1:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    if timeout != -1 and not timeout >= 0:
        raise ValueError("timeout value must be a non-negative number")


def bounded(timeout: float | None) -> float:
    """A wait's bound as the core takes it: -1 for none; below 0 is over at once, as in
    `threading.Event.wait`. Raises OverflowError."""
    if timeout is None:
        return -1
    check_timeout(True, max(timeout, 0.0))
    return max(timeout, 0.0)
