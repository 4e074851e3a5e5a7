"""A fence in front of a resource: stale holders stay outside.

The law: once a token was seen, no lower one passes again. Guards a resource of this process.
"""

from __future__ import annotations

import threading

from .errors import StaleToken


class Fence:
    """Remembers the highest fencing token seen; thread-safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._highest = 0
        self._mutex = threading.Lock()

    def check(self, token: int) -> None:
        """Let `token` pass if none higher was seen; an equal one passes. Raises `StaleToken`."""
        with self._mutex:
            if token < self._highest:
                raise StaleToken(
                    f"token {token} is stale at {self.name!r}: {self._highest} was seen; "
                    "another holder came after, take the lock anew"
                )
            self._highest = token

    def __repr__(self) -> str:
        return f"Fence({self.name!r}, highest={self._highest})"
