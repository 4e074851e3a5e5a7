"""What all kinds of things have in common: being used, waiting in turn, being woken.

The law: first come, first served, within what one command may do.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..errors import Code
from ..plugin import Failure, Moment, Result, SessionId
from ..replica import Replica
from ..session.machine import SessionTable
from .messages import Waiting, WokenLater
from .things import KINDS, Key, Row, Thing, Things

THINGS_MAX = 100_000
WAITS_PER_THING_MAX = 10_000
THINGS_PER_SESSION_MAX = 10_000

ROWS_PER_SESSION_MAX = 100_000
"""Waits, permits and leaderships of one session."""

STEP = 1_000
"""Waits served by one command."""

WOULD_BLOCK = Failure(Code.WOULD_BLOCK, "it is not to be had at once")
_NO_SESSION = Failure(Code.MALFORMED, "only a session waits or holds; open one first")
_SESSION_FULL = Failure(
    Code.BUSY, f"the session waits for or holds {ROWS_PER_SESSION_MAX} things; let some go"
)
_TOO_MANY_USED = Failure(Code.BUSY, f"the session uses {THINGS_PER_SESSION_MAX} names already")
_THINGS_FULL = Failure(Code.BUSY, f"{THINGS_MAX} names are in use; retry later")
_QUEUE_FULL = Failure(Code.BUSY, f"{WAITS_PER_THING_MAX} wait here already; retry later")


class Serving(Things):
    """How sessions come to use a thing, wait for it, and are woken."""

    def attach(self, replica: Replica) -> None:
        sessions = replica.machines["session"]
        assert isinstance(sessions, SessionTable)
        self._sessions = sessions

    def _used(self, moment: Moment, key: Key, new: Thing) -> Thing | Failure:
        """The thing of this name, made if need be, in use by the session."""
        session = moment.session
        if session == 0:
            return _NO_SESSION
        thing = self.things.get(key)
        uses = self.uses.get(session, {})
        if key in uses:
            assert thing is not None
            return thing
        if len(uses) >= THINGS_PER_SESSION_MAX:
            return _TOO_MANY_USED
        if thing is None:
            if len(self.things) >= THINGS_MAX:
                return _THINGS_FULL
            thing = new
        elif (thing.size, thing.bounded) != (new.size, new.bounded):
            return thing  # used by nobody who takes it for something else
        self.use(session, thing)
        return thing

    def _full(self, session: SessionId) -> Failure | None:
        return _SESSION_FULL if len(self.rows.get(session, ())) >= ROWS_PER_SESSION_MAX else None

    def _wait(self, moment: Moment, key: Key, value: bytes = b"") -> Result:
        if self._waiting(key) >= WAITS_PER_THING_MAX:
            return _QUEUE_FULL
        failure = self._full(moment.session)
        if failure is not None:
            return failure
        self.put(row_of(moment, key, 0, value))
        return Waiting(moment.number)

    def _waiting(self, key: Key) -> int:
        return len(self.queues.get(key, ()))

    def _next(self, key: Key, count: int, due: Callable[[Row], bool]) -> list[Row]:
        """The first waits, at most `count` and `STEP`, that are due and whose session lives."""
        alive = self._sessions.sessions
        found: list[Row] = []
        for row in self.queues.get(key, {}).values():
            if len(found) >= count or not due(row) or row.session not in alive:
                break
            if len(found) >= STEP:
                self.pending[key] = None
                break
            found.append(row)
        return found

    def _wake(self, moment: Moment, row: Row, token: int) -> None:
        self.put(msgspec.structs.replace(row, token=token))
        moment.tell(row.client, WokenLater(row.session, row.number, token))


def row_of(moment: Moment, key: Key, token: int, value: bytes = b"") -> Row:
    return Row(moment.number, moment.session, moment.client, *key, token, value)


def differ(key: Key, stored: str, given: str) -> Failure:
    text = f"the {KINDS[key[0]]} {key[1]!r} was made with {stored}, not with {given}"
    return Failure(Code.SETTINGS_DIFFER, text, (stored, given))
