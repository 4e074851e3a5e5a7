"""What there is by a name, who uses it, and who holds or awaits what: the state and its indexes.

The law: `things`, `rows`, `uses` and `fences` are the state; every index is derived from them and
equal on all replicas, in its order too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from ..plugin import ClientId, SessionId

SEMAPHORE, EVENT, BARRIER, CONDITION, ELECTION = range(5)
"""Kinds; each has names of its own."""

KINDS = ("semaphore", "event", "barrier", "condition", "election")

Key: TypeAlias = tuple[int, str]
"""Kind and name."""

ROWS_MAX = 1_000
"""Rows in one chunk of a snapshot."""


class Thing(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is there by a name. `size`: the permits a semaphore was made with, the parties of a
    barrier. `free`: permits in nobody's hands. `flag`: an event is set, a barrier is broken.
    `due`: waits of an event or condition up to this number are to be woken, by `token`."""

    kind: int
    name: str
    size: int = 0
    bounded: bool = False
    free: int = 0
    flag: bool = False
    due: int = 0
    token: int = 0


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one operation of a session left: a wait while `token` is 0; then a permit, a
    leadership, or a wait that was woken, or (-1) broken, and of which its client has not yet said
    that it knows."""

    number: int
    session: SessionId
    client: ClientId
    kind: int
    name: str
    token: int = 0
    value: bytes = b""


class Things:
    """The state and its indexes; they change together, and only here."""

    def __init__(self) -> None:
        self.leaderships = 0
        """Counts the changes of leaders since this node started."""
        self.clear()

    def clear(self) -> None:
        self.things: dict[Key, Thing] = {}
        self.rows: dict[SessionId, dict[int, Row]] = {}
        """By session, in order of number."""
        self.uses: dict[SessionId, dict[Key, None]] = {}
        self.fences: dict[str, int] = {}
        """The highest token seen."""
        self.users: dict[Key, dict[SessionId, None]] = {}
        self.queues: dict[Key, dict[int, Row]] = {}
        """Who waits, in order of number, which is the order they came in."""
        self.held: dict[Key, dict[SessionId, dict[int, Row]]] = {}
        """Permits and leaderships."""
        self.pending: dict[Key, None] = {}
        """Things with waits that are due, but were too many for one command."""

    def put(self, row: Row) -> None:
        """Add a row, or put it in place of that of the same number."""
        key = (row.kind, row.name)
        rows = self.rows.setdefault(row.session, {})
        if row.number in rows:
            self._unlink(rows[row.number])
        rows[row.number] = row
        self._link(key, row)

    def strike(self, row: Row) -> None:
        self._unlink(row)
        rows = self.rows[row.session]
        del rows[row.number]
        if not rows:
            del self.rows[row.session]

    def use(self, session: SessionId, thing: Thing) -> None:
        """The session uses this; it may be new, or changed."""
        key = (thing.kind, thing.name)
        self.things[key] = thing
        self.uses.setdefault(session, {})[key] = None
        self.users.setdefault(key, {})[session] = None

    def leave(self, session: SessionId, key: Key) -> None:
        """The session uses this no more, and has nothing of it; the last one takes it along."""
        uses, users = self.uses[session], self.users[key]
        del uses[key], users[session]
        if not uses:
            del self.uses[session]
        if not users:
            del self.users[key], self.things[key]
            self.pending.pop(key, None)

    def held_by(self, key: Key, session: SessionId) -> list[Row]:
        """Permits or leaderships of a session, oldest first."""
        return list(self.held.get(key, {}).get(session, {}).values())

    def _link(self, key: Key, row: Row) -> None:
        if row.token == 0:
            self.queues.setdefault(key, {})[row.number] = row
        elif row.kind in (SEMAPHORE, ELECTION):
            self.leaderships += row.kind == ELECTION
            of_session = self.held.setdefault(key, {}).setdefault(row.session, {})
            late = bool(of_session) and next(reversed(of_session)) > row.number
            of_session[row.number] = row
            if late:
                self.held[key][row.session] = dict(sorted(of_session.items()))

    def _unlink(self, row: Row) -> None:
        key = (row.kind, row.name)
        if row.token == 0:
            queue = self.queues[key]
            del queue[row.number]
            if not queue:
                del self.queues[key]
        elif row.kind in (SEMAPHORE, ELECTION):
            self.leaderships += row.kind == ELECTION
            held = self.held[key]
            del held[row.session][row.number]
            if not held[row.session]:
                del held[row.session]
            if not held:
                del self.held[key]

    # Snapshots

    def parts(self) -> list[Sequence[object]]:
        """A shallow copy of the state: things, uses, rows, fences."""
        return [
            list(self.things.values()),
            [(session, *key) for session, keys in self.uses.items() for key in keys],
            [row for rows in self.rows.values() for row in rows.values()],
            list(self.fences.items()),
        ]

    def take(self, chunk: bytes) -> None:
        """One chunk, into what had nothing but those before."""
        part, rows = msgspec.msgpack.decode(chunk)
        for row in rows:
            if part == 0:
                thing = Thing(*row)
                self.things[thing.kind, thing.name] = thing
            elif part == 1:
                session, kind, name = row
                self.uses.setdefault(session, {})[kind, name] = None
            elif part == 2:
                number, session = row[:2]
                self.rows.setdefault(session, {})[number] = Row(*row)
            else:
                self.fences[row[0]] = row[1]

    def settle(self) -> None:
        """Make the indexes once all chunks were taken."""
        for session, keys in self.uses.items():
            for key in keys:
                self.users.setdefault(key, {})[session] = None
        everything = [row for rows in self.rows.values() for row in rows.values()]
        for row in sorted(everything, key=lambda row: row.number):
            self._link((row.kind, row.name), row)
        for key, thing in self.things.items():
            queue = self.queues.get(key)
            if queue and next(iter(queue)) <= thing.due:
                self.pending[key] = None


def chunks_of(parts: list[Sequence[object]]) -> Iterable[bytes]:
    """The state as chunks of bytes; restored in their order they give the identical ones."""
    for part, rows in enumerate(parts):
        for start in range(0, len(rows), ROWS_MAX):
            yield msgspec.msgpack.encode((part, rows[start : start + ROWS_MAX]))
