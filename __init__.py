"""coterie: locks, queues and a cache for Python, replicated by Raft over a few ZeroMQ nodes.

The law: importing this package costs nothing. Every public name is loaded when it is first used,
so that a program that only takes a lock never loads the node, its HTTP server or its terminal.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clients.aio import AsyncClient as AsyncClient
    from .clients.election import Leader as Leader
    from .clients.errors import BadName as BadName
    from .clients.errors import BrokenBarrier as BrokenBarrier
    from .clients.errors import Busy as Busy
    from .clients.errors import CorruptLog as CorruptLog
    from .clients.errors import CoterieError as CoterieError
    from .clients.errors import Deadlock as Deadlock
    from .clients.errors import Empty as Empty
    from .clients.errors import Full as Full
    from .clients.errors import Indeterminate as Indeterminate
    from .clients.errors import LockLost as LockLost
    from .clients.errors import PermissionDenied as PermissionDenied
    from .clients.errors import SessionExpired as SessionExpired
    from .clients.errors import StaleLease as StaleLease
    from .clients.errors import StaleToken as StaleToken
    from .clients.errors import Timeout as Timeout
    from .clients.errors import TooLarge as TooLarge
    from .clients.errors import Unavailable as Unavailable
    from .clients.fence import Fence as Fence
    from .clients.grant import Grant as Grant
    from .clients.inspection import LockEvent as LockEvent
    from .clients.inspection import LockInfo as LockInfo
    from .clients.inspection import Wait as Wait
    from .clients.lock import AsyncLock as AsyncLock
    from .clients.lock import Lock as Lock
    from .clients.sync import Client as Client
    from .clients.transaction import AsyncTransaction as AsyncTransaction
    from .clients.transaction import Transaction as Transaction
    from .nodes.local import LocalCluster as LocalCluster

_ERRORS = (
    "BadName", "BrokenBarrier", "Busy", "CorruptLog", "CoterieError", "Deadlock", "Empty", "Full",
    "Indeterminate", "LockLost", "PermissionDenied", "SessionExpired", "StaleLease", "StaleToken",
    "Timeout", "TooLarge", "Unavailable",
)  # fmt: skip

_HOMES = {
    "AsyncClient": ".clients.aio",
    "AsyncLock": ".clients.lock",
    "AsyncTransaction": ".clients.transaction",
    "Client": ".clients.sync",
    "Fence": ".clients.fence",
    "Grant": ".clients.grant",
    "Leader": ".clients.election",
    "LocalCluster": ".nodes.local",
    "Lock": ".clients.lock",
    "LockEvent": ".clients.inspection",
    "LockInfo": ".clients.inspection",
    "Transaction": ".clients.transaction",
    "Wait": ".clients.inspection",
    **dict.fromkeys(_ERRORS, ".clients.errors"),
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0.dev0"


if not TYPE_CHECKING:  # a type checker would take it for leave to use any name

    def __getattr__(name: str) -> object:
        """Load a public name from its home at its first use (PEP 562)."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home, __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
