"""Those who watch the locks: their questions wait at the leader until there is something to tell.

The law: nothing is kept for a watcher but its question. An answer says up to which revision it
tells; whoever asks from there on, here or at another leader, misses nothing.
"""

from __future__ import annotations

import msgspec

from ..plugin import CONTROL, Port, Request
from .messages import LockEvents, Watch
from .table import LockTable

LINGER_MAX_US = 2_000_000

PAUSE_S = 0.05
"""Who waits is told at most so often: a busy table has much to look through."""

WATCHERS_MAX = 1_000
"""Questions that wait here; more are answered at once, with nothing."""


class _Watcher(msgspec.Struct):
    """A question that waits; nothing for it was found up to `seen`."""

    request: Request
    prefix: str
    seen: int
    until_s: float


class Watchers:
    """The questions that wait, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: list[_Watcher] = []
        self._seen = 0
        self._next_s = 0.0

    def deadline(self, table: LockTable, now: float) -> float | None:
        """When it wants `serve`."""
        if not self._waiting:
            return None
        if table.revision != self._seen:
            return max(self._next_s, now)
        return min(watcher.until_s for watcher in self._waiting)

    def admit(self, port: Port, table: LockTable, request: Request, query: Watch) -> None:
        """Answer a question, or let it wait."""
        linger_s = min(query.linger_us, LINGER_MAX_US) / 1e6
        if len(self._waiting) >= WATCHERS_MAX:
            linger_s = 0.0
        watcher = _Watcher(request, query.prefix, query.after, port.now() + linger_s)
        if not self._told(port, table, watcher):
            if not self._waiting:
                self._seen = table.revision
            self._waiting.append(watcher)

    def serve(self, port: Port, table: LockTable) -> None:
        """Answer those for whom there is something, and those who have waited long enough."""
        now = port.now()
        deadline = self.deadline(table, now)
        if deadline is None or deadline > now:
            return
        self._next_s, self._seen = now + PAUSE_S, table.revision
        waiting, self._waiting = self._waiting, []
        self._waiting = [one for one in waiting if not self._told(port, table, one)]

    def _told(self, port: Port, table: LockTable, watcher: _Watcher) -> bool:
        found = table.query(port.moment(CONTROL), Watch(watcher.prefix, watcher.seen))
        assert isinstance(found, LockEvents)
        watcher.seen = found.revision
        if not found.events and found.complete and port.now() < watcher.until_s:
            return False
        port.reply(watcher.request, [found])
        return True
