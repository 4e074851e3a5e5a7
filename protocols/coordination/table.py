"""Semaphores, events, barriers, conditions, elections and fences in the control group.

The law: who waits is served first come, first served; nobody barges. What a session has goes with
it: its permits are free again, its leadership is over, its waits leave, and a barrier it waited at
is broken. A thing goes with the last session that used it, except a fence: it never forgets.

One command serves at most `STEP` waits; where that was too little the leader proposes `GoOn`. The
wait of a session that is ending is passed over by nobody: its end takes it away and goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import msgspec

from ..errors import Code
from ..plugin import Failure, Moment, Result, SessionId
from .messages import (
    BarrierState,
    BreakBarrier,
    Campaign,
    CheckFence,
    ClearEvent,
    ConditionState,
    Elected,
    ElectionState,
    EventState,
    FailedLater,
    FencePassed,
    GivePermits,
    GoOn,
    InspectBarrier,
    InspectCondition,
    InspectElection,
    InspectEvent,
    InspectSemaphore,
    Leave,
    Left,
    Notified,
    NotifyCondition,
    Passed,
    ResetBarrier,
    Resign,
    SetEvent,
    TakePermit,
    WaitBarrier,
    WaitCondition,
    WaitEvent,
    Waiting,
)
from .semaphores import Semaphores
from .serving import WAITS_PER_THING_MAX, WOULD_BLOCK, differ, row_of
from .things import (
    BARRIER,
    CONDITION,
    ELECTION,
    EVENT,
    SEMAPHORE,
    Key,
    Row,
    Thing,
    Things,
    chunks_of,
)

FENCES_MAX = 100_000

BROKEN = -1
"""The token of a wait at a barrier that broke."""

_FENCES_FULL = Failure(Code.BUSY, f"there are {FENCES_MAX} fences, and none is ever forgotten")
_BROKEN = Failure(Code.BROKEN_BARRIER, "the barrier is broken; reset it to use it again")
_NOT_LEADING = Failure(Code.NOT_HELD, "this session does not lead (any more)")
_LEFT = Left()


class CoordinationTable(Semaphores):
    """The state machine."""

    def __init__(self) -> None:
        super().__init__()
        self._apply: dict[type[Any], Callable[[Moment, Any], Result]] = {
            TakePermit: self._take_permit,
            GivePermits: self._give_permits,
            SetEvent: self._set_event,
            ClearEvent: self._clear_event,
            WaitEvent: self._wait_event,
            WaitBarrier: self._wait_barrier,
            BreakBarrier: self._break_barrier,
            ResetBarrier: self._reset_barrier,
            WaitCondition: self._wait_condition,
            NotifyCondition: self._notify,
            Campaign: self._campaign,
            Resign: self._resign,
            CheckFence: self._check_fence,
            Leave: self._leave,
            GoOn: self._go_on,
        }

    def apply(self, moment: Moment, operation: Any) -> Result:
        return self._apply[type(operation)](moment, operation)

    def query(self, moment: Moment, query: Any) -> Result:
        kind = type(query)
        if kind is InspectSemaphore:
            return self.semaphore_state(query.name)
        if kind is InspectEvent:
            return self._event_state((EVENT, query.name))
        if kind is InspectBarrier:
            return self._barrier_state((BARRIER, query.name))
        if kind is InspectCondition:
            return ConditionState(self._waiting((CONDITION, query.name)))
        if kind is InspectElection:
            return self.election_state(query.name)
        return Failure(Code.MALFORMED, "send this query in a frame of its own")

    def end_session(self, moment: Moment, session: SessionId, limit: int) -> int:
        doomed = list(islice(self.rows.get(session, {}).values(), limit))
        for row in doomed:
            self._let_go(moment, row)
        keys = list(islice(self.uses.get(session, {}), limit - len(doomed)))
        for key in keys:
            self.leave(session, key)
        return len(doomed) + len(keys)

    def cancel(self, moment: Moment, answered: Result) -> Failure | None:
        number = getattr(answered, "wait", getattr(answered, "permit", 0))
        if type(answered) is Elected:
            number = answered.leadership
        row = self.rows.get(moment.session, {}).get(number)
        if row is not None:
            self._remove(moment, row)
            if row.kind == CONDITION and row.token:
                # It was woken, and nobody is there to know: another is woken in its place.
                self._wake_more(moment, (CONDITION, row.name), 1)
        return None

    def news(self, moment: Moment, session: SessionId, number: int) -> Result | None:
        row = self.rows.get(session, {}).get(number)
        if row is None:
            return None
        if row.token == BROKEN:
            return _BROKEN
        return Elected(number, row.token) if row.token else Waiting(number)

    def snapshot(self) -> Iterable[bytes]:
        """The state as of the call, encoded while the chunks are taken."""
        return chunks_of(self.parts())

    def restore(self, chunk: bytes) -> None:
        self.take(chunk)

    def restored(self) -> None:
        self.settle()

    def size(self) -> int:
        """Records in the state."""
        rows = sum(map(len, self.rows.values())) + sum(map(len, self.uses.values()))
        return len(self.things) + rows + len(self.fences)

    def election_state(self, name: str) -> ElectionState:
        waiting = self._waiting((ELECTION, name))
        row = self._leader((ELECTION, name))
        if row is None:
            return ElectionState("", 0, b"", 0, waiting)
        client = self._sessions.name_of(row.session)
        return ElectionState(client, row.session, row.value, row.token, waiting)

    # Events and conditions

    def _set_event(self, moment: Moment, operation: SetEvent) -> Result:
        return self._flag_event(moment, operation.name, True)

    def _clear_event(self, moment: Moment, operation: ClearEvent) -> Result:
        return self._flag_event(moment, operation.name, False)

    def _flag_event(self, moment: Moment, name: str, flag: bool) -> Result:
        key = (EVENT, name)
        thing = self._used(moment, key, Thing(EVENT, name))
        if isinstance(thing, Failure):
            return thing
        if thing.flag != flag:
            self.things[key] = msgspec.structs.replace(thing, flag=flag)
            if flag:
                self._due(moment, key, moment.number)
        return self._event_state(key)

    def _wait_event(self, moment: Moment, operation: WaitEvent) -> Result:
        key = (EVENT, operation.name)
        thing = self._used(moment, key, Thing(EVENT, operation.name))
        if isinstance(thing, Failure):
            return thing
        if thing.flag or not operation.wait:
            return self._event_state(key)
        return self._wait(moment, key)

    def _event_state(self, key: Key) -> EventState:
        thing = self.things.get(key)
        return EventState(thing is not None and thing.flag, self._waiting(key))

    def _wait_condition(self, moment: Moment, operation: WaitCondition) -> Result:
        key = (CONDITION, operation.name)
        thing = self._used(moment, key, Thing(CONDITION, operation.name))
        return thing if isinstance(thing, Failure) else self._wait(moment, key)

    def _notify(self, moment: Moment, operation: NotifyCondition) -> Result:
        key = (CONDITION, operation.name)
        if key not in self.things:
            return Notified(0)  # nobody waits: there is nothing to make
        return Notified(self._wake_more(moment, key, operation.count))

    def _wake_more(self, moment: Moment, key: Key, count: int) -> int:
        """Wake so many (0: all) of those that are not to be woken already."""
        thing = self.things[key]
        waiting = [n for n in self.queues.get(key, ()) if n > thing.due]
        woken = waiting[:count] if count else waiting
        if woken:
            self._due(moment, key, woken[-1])
        return len(woken)

    def _due(self, moment: Moment, key: Key, due: int) -> None:
        """Wake all who wait by a number up to `due`, as many as one command may."""
        thing = msgspec.structs.replace(self.things[key], due=due, token=moment.number)
        self.things[key] = thing
        self._wake_due(moment, key)

    def _wake_due(self, moment: Moment, key: Key) -> None:
        thing = self.things[key]
        for row in self._next(key, WAITS_PER_THING_MAX, lambda row: row.number <= thing.due):
            self._wake(moment, row, thing.token)

    # Barriers

    def _wait_barrier(self, moment: Moment, operation: WaitBarrier) -> Result:
        thing = self._barrier(moment, operation.name, operation.parties)
        if isinstance(thing, Failure):
            return thing
        key = (BARRIER, thing.name)
        if thing.flag:
            return _BROKEN
        queue = self.queues.get(key, {})
        if len(queue) + 1 < thing.size:
            return self._wait(moment, key)
        for index, row in enumerate(list(queue.values())):
            self._wake(moment, row, index + 1)
        return Passed(thing.size - 1)

    def _break_barrier(self, moment: Moment, operation: BreakBarrier) -> Result:
        return self._end_round(moment, operation.name, operation.parties, broken=True)

    def _reset_barrier(self, moment: Moment, operation: ResetBarrier) -> Result:
        return self._end_round(moment, operation.name, operation.parties, broken=False)

    def _end_round(self, moment: Moment, name: str, parties: int, *, broken: bool) -> Result:
        thing = self._barrier(moment, name, parties)
        if isinstance(thing, Failure):
            return thing
        key = (BARRIER, name)
        self._fail_all(moment, key, broken=broken)
        return self._barrier_state(key)

    def _fail_all(self, moment: Moment, key: Key, *, broken: bool) -> None:
        self.things[key] = msgspec.structs.replace(self.things[key], flag=broken)
        for row in list(self.queues.get(key, {}).values()):
            self.put(msgspec.structs.replace(row, token=BROKEN))
            moment.tell(row.client, FailedLater(row.session, row.number, _BROKEN))

    def _barrier(self, moment: Moment, name: str, parties: int) -> Thing | Failure:
        key = (BARRIER, name)
        thing = self._used(moment, key, Thing(BARRIER, name, size=parties))
        if isinstance(thing, Failure) or thing.size == parties:
            return thing
        return differ(key, f"{thing.size} parties", f"{parties} parties")

    def _barrier_state(self, key: Key) -> BarrierState:
        thing = self.things.get(key)
        if thing is None:
            return BarrierState(0, 0, False)
        return BarrierState(thing.size, self._waiting(key), thing.flag)

    # Elections and fences

    def _campaign(self, moment: Moment, operation: Campaign) -> Result:
        key = (ELECTION, operation.name)
        thing = self._used(moment, key, Thing(ELECTION, operation.name))
        if isinstance(thing, Failure):
            return thing
        if key in self.held or key in self.queues:
            return self._wait(moment, key, operation.value) if operation.wait else WOULD_BLOCK
        failure = self._full(moment.session)
        if failure is not None:
            return failure
        self.put(row_of(moment, key, moment.number, operation.value))
        return Elected(moment.number, moment.number)

    def _resign(self, moment: Moment, operation: Resign) -> Result:
        row = self._leader((ELECTION, operation.name))
        if row is None or (row.session, row.number) != (moment.session, operation.leadership):
            return _NOT_LEADING
        self._remove(moment, row)
        return _LEFT

    def _leader(self, key: Key) -> Row | None:
        for of_session in self.held.get(key, {}).values():
            return next(iter(of_session.values()))
        return None

    def _elect(self, moment: Moment, key: Key) -> None:
        if key not in self.held:
            for row in self._next(key, 1, lambda _: True):
                self._wake(moment, row, moment.number)

    def _check_fence(self, moment: Moment, operation: CheckFence) -> Result:
        name, token = operation.name, operation.token
        highest = self.fences.get(name)
        if highest is None and len(self.fences) >= FENCES_MAX:
            return _FENCES_FULL
        if highest is not None and token < highest:
            text = f"the fence {name!r} has seen token {highest}; {token} is of an earlier holder"
            return Failure(Code.STALE_TOKEN, text, (str(highest),))
        self.fences[name] = token
        return FencePassed()

    # The end of things

    def _leave(self, moment: Moment, operation: Leave) -> Result:
        row = self.rows.get(moment.session, {}).get(operation.wait)
        if row is not None:
            self._remove(moment, row)
        return _LEFT

    def _remove(self, moment: Moment, row: Row) -> None:
        """Take a row away, and serve those who come after it."""
        key = (row.kind, row.name)
        self.strike(row)
        if row.kind == SEMAPHORE and row.token:
            thing = self.things[key]
            self.things[key] = msgspec.structs.replace(thing, free=thing.free + 1)
        self._serve(moment, key)

    def _let_go(self, moment: Moment, row: Row) -> None:
        """Take a row of an ended session away."""
        self._remove(moment, row)
        if row.kind == BARRIER and not row.token:
            self._fail_all(moment, (BARRIER, row.name), broken=True)

    def _serve(self, moment: Moment, key: Key) -> None:
        if key[0] == SEMAPHORE:
            self._permit(moment, key)
        elif key[0] == ELECTION:
            self._elect(moment, key)
        elif key[0] in (EVENT, CONDITION):
            self._wake_due(moment, key)

    def _go_on(self, moment: Moment, operation: GoOn) -> Result:
        key = (operation.kind, operation.name)
        if self.pending.pop(key, True) is None and key in self.things:
            self._serve(moment, key)
        return _LEFT

    def check(self) -> None:
        """Every invariant of the law, from the state."""
        alive, ending = self._sessions.sessions, self._sessions.ending
        fresh = Things()
        for chunk in self.snapshot():
            fresh.take(chunk)
        fresh.settle()
        for name in ("things", "rows", "uses", "fences", "users", "queues", "held"):
            assert getattr(self, name) == getattr(fresh, name), name
        assert all(list(queue) == sorted(queue) for queue in self.queues.values())
        for session in (*self.uses, *self.rows):
            assert session in alive or session in ending
        for rows in self.rows.values():
            for row in rows.values():
                assert row.session in self.users[row.kind, row.name], "what waits or holds, uses"
        for key, thing in self.things.items():
            assert self.users[key], f"{key}: in use by nobody"
            held = sum(map(len, self.held.get(key, {}).values()))
            if key[0] == SEMAPHORE:
                assert thing.free >= 0
                assert not thing.bounded or thing.free + held == thing.size
            if key[0] == BARRIER:
                assert self._waiting(key) < thing.size and not (thing.flag and key in self.queues)
            if key[0] == ELECTION:
                assert held <= 1
            queue = self.queues.get(key)
            if queue and key not in self.pending:
                first = next(iter(queue.values()))
                free = thing.free > 0 or (key[0] == ELECTION and not held)
                assert first.session not in alive or not (free or first.number <= thing.due)
