"""Numbers for threads and tasks: owners in the wait-for graph.

The law: a number is given once and to one thread or task, also when the system gives the identity
of one that ended to another; it means something within one client only.
"""

from __future__ import annotations

import asyncio
import threading
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary


class Owners:
    """Draws numbers from 1."""

    def __init__(self) -> None:
        self._count = count(1)
        self._thread = threading.local()
        self._tasks: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()

    def of_thread(self) -> int:
        """The number of the calling thread."""
        number: int | None = getattr(self._thread, "number", None)
        if number is None:
            number = self._thread.number = next(self._count)
        return number

    def of_task(self, task: asyncio.Task[Any] | None) -> int:
        """The number of a task of the client's loop."""
        if task is None:
            return 0
        number = self._tasks.get(task)
        if number is None:
            number = self._tasks[task] = next(self._count)
        return number
