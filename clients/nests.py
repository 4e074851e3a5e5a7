"""The locks that each thread or task took by `with`: its nest, an owner in the wait-for graph.

The law: a nest is the lock it began with and all that were taken while one of them was held; what
is asked for next is asked for in its name, so that the cluster sees threads and tasks that wait
for each other in a circle. A nest whose locks are lost is over.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from weakref import WeakKeyDictionary

from .core_records import Session
from .grant import Grant


class Nests:
    """The nests of one client."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._of_task: WeakKeyDictionary[asyncio.Task[Any], list[Grant]] = WeakKeyDictionary()

    def of_thread(self) -> list[Grant]:
        """The nest of the calling thread."""
        nest: list[Grant] | None = getattr(self._of_thread, "nest", None)
        if nest is None:
            nest = self._of_thread.nest = []
        return nest

    def of_task(self, task: asyncio.Task[Any] | None) -> list[Grant]:
        """The nest of a task of the client's loop."""
        if task is None:
            return []
        nest = self._of_task.get(task)
        if nest is None:
            nest = self._of_task[task] = []
        return nest


def owner_of(nest: list[Grant] | None) -> tuple[int, Session | None]:
    """In whose name to ask for the next lock, and the session that this owner lives in; 0 if the
    lock begins a nest."""
    if nest:
        for grant in reversed(list(nest)):
            if not grant.lost:
                return grant._owner, grant._session
    return 0, None
