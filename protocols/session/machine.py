"""The session table of the control group.

The law: a session ends by an entry of the log and by nothing else: its client's `EndSession`, a
newer `OpenSession` of that client, or an `ExpireSession` that names a deadline which still stands
and which log time has reached. Once it ended it is dead for good: its window is gone, so nothing
of it is applied any more, and what it held is let go in bounded steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ..commands import Window
from ..errors import Code
from ..plugin import ClientId, Failure, Moment, Result, SessionId
from ..replica import NO_PRINCIPAL, Replica
from .messages import (
    EmptySession,
    EndSession,
    ExpireSession,
    KeepAlive,
    KeptAlive,
    ListSessions,
    OpenSession,
    SessionEnded,
    SessionList,
    SessionOpened,
)

SESSIONS_MAX = 100_000
"""Sessions of a cluster, those still being emptied included."""

TTL_MIN_US, TTL_MAX_US = 1_000_000, 3_600_000_000
"""A session lives from one second to one hour without contact."""

STEP = 1_000
"""Things of an ended session let go by one command."""

EXPIRY_STEP = 64
"""The same for an expiry, of which one entry carries many."""

LIST_BYTES_MAX = 512 * 1024
"""About how much a `SessionList` may weigh: it must fit a frame."""

_CHUNK = 1_000
_BUSY = Failure(Code.BUSY, f"the cluster has {SESSIONS_MAX} sessions; close some and retry")
_MISDIRECTED = Failure(Code.PERMISSION_DENIED, "the session belongs to another client")
_EXPIRED = Failure(Code.SESSION_EXPIRED, "the session has ended; open a new one")
_ENDED = SessionEnded()


class Session(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A living session; `number` is the operation number that opened it."""

    number: SessionId
    client: ClientId
    attempt: int
    ttl_us: int
    deadline_us: int
    name: str


class SessionTable:
    """The state machine. Give it its replica by `attach` before anything is applied."""

    def __init__(self) -> None:
        self.sessions: dict[SessionId, Session] = {}
        self.by_client: dict[ClientId, SessionId] = {}
        self.ending: dict[SessionId, bool] = {}
        """Ended sessions whose things are not all let go; true if they expired."""
        self.ended = self.expired_ever = 0
        """Sessions ended by clients and by deadlines, for figures: no part of the state."""
        # One (deadline, session) per session, at or before its real deadline: derived, so that
        # a keep-alive costs nothing here.
        self._heap: list[tuple[int, SessionId]] = []
        self._apply: dict[type[Any], Callable[[Moment, Any], Result]] = {
            KeepAlive: self._keep_alive,
            OpenSession: self._open,
            EndSession: self._end_by_client,
            ExpireSession: self._expire,
            EmptySession: self._empty,
        }

    def attach(self, replica: Replica) -> None:
        self.replica = replica

    def release(self) -> list[Any]:
        return [self.sessions, self.by_client, self._heap]

    def apply(self, moment: Moment, operation: Any) -> Result:
        return self._apply[type(operation)](moment, operation)

    def query(self, moment: Moment, query: Any) -> Result:
        if type(query) is not ListSessions:
            return Failure(Code.MALFORMED, "send this query in a frame of its own")
        listed: list[tuple[int, str, int]] = []
        size = 0
        for session in self.sessions.values():
            left_ms = max(0, session.deadline_us - moment.time_us) // 1000
            listed.append((session.number, session.name, left_ms))
            size += 24 + len(session.name.encode())
            if len(listed) == 10_000 or size > LIST_BYTES_MAX:
                break
        return SessionList(tuple(listed))

    def end_session(self, moment: Moment, session: SessionId, limit: int) -> int:
        return 0

    def cancel(self, moment: Moment, answered: Result) -> None:
        """No operation of sessions can be undone: they are repeatable instead."""

    def news(self, moment: Moment, session: SessionId, number: int) -> Result | None:
        return None

    def alive(self, session: SessionId, client: ClientId) -> bool:
        found = self.sessions.get(session)
        return found is not None and found.client == client

    def expired(self, session: SessionId) -> bool:
        """While an ended session is let go: whether it expired, or was ended by its client."""
        return self.ending.get(session, False)

    def name_of(self, session: SessionId) -> str:
        found = self.sessions.get(session)
        return found.name if found is not None else ""

    def next_deadline_us(self) -> int | None:
        """The earliest deadline in log time; None without sessions."""
        self._settle()
        return self._heap[0][0] if self._heap else None

    def due(self, time_us: int, limit: int) -> list[ExpireSession]:
        """At most `limit` sessions whose deadline is at or before `time_us`; earliest first."""
        found: list[ExpireSession] = []
        while len(found) < limit:
            self._settle()
            if not self._heap or self._heap[0][0] > time_us:
                break
            deadline_us, session = heapq.heappop(self._heap)
            found.append(ExpireSession(session, deadline_us))
        for expiry in found:
            # Still there until the expiry is applied; the proposal may be lost.
            heapq.heappush(self._heap, (expiry.deadline_us, expiry.session))
        return found

    def snapshot(self) -> Iterable[bytes]:
        """Sessions and ending sessions as of the call, encoded while the chunks are taken."""
        return _chunks(list(self.sessions.values()), list(self.ending.items()))

    def restore(self, chunk: bytes) -> None:
        sessions, ending = _decode(chunk)
        for session in sessions:
            self.sessions[session.number] = session
            self.by_client[session.client] = session.number
            heapq.heappush(self._heap, (session.deadline_us, session.number))
        self.ending.update(ending)

    def restored(self) -> None:
        """Nothing is left to do: what is derived grew with the chunks."""

    def size(self) -> int:
        return len(self.sessions) + len(self.ending)

    def check(self) -> None:
        windows = self.replica.windows
        assert list(self.sessions) == list(windows), "each session has its window"
        assert len(self.by_client) == len(self.sessions)
        for number, session in self.sessions.items():
            assert session.number == number
            assert self.by_client[session.client] == number
            assert windows[number].client == session.client
            assert number not in self.ending
        heap = {session: deadline_us for deadline_us, session in self._heap}
        for number, session in self.sessions.items():
            assert heap[number] <= session.deadline_us, "no deadline is looked at too late"

    def _open(self, moment: Moment, operation: OpenSession) -> Result:
        if not TTL_MIN_US <= operation.ttl_us <= TTL_MAX_US:
            return Failure(Code.MALFORMED, "session_ttl must be from 1 second to 1 hour")
        client = moment.principal or moment.client
        older = self.by_client.get(client)
        if older is not None:
            session = self.sessions[older]
            if operation.attempt == session.attempt:
                return SessionOpened(older, session.ttl_us)
            if operation.attempt < session.attempt:
                return Failure(Code.STALE_REQUEST, "this client has opened a newer session since")
            self._end(moment, older, expired=False, limit=STEP)
        if len(self.sessions) + len(self.ending) >= SESSIONS_MAX:
            return _BUSY
        number, deadline_us = moment.number, moment.time_us + operation.ttl_us
        self.sessions[number] = Session(
            number, client, operation.attempt, operation.ttl_us, deadline_us, operation.name
        )
        self.by_client[client] = number
        self.replica.windows[number] = Window(client=client, answers={})
        if len(self._heap) > 2 * len(self.sessions) + STEP:
            self._rebuild_heap()
        else:
            heapq.heappush(self._heap, (deadline_us, number))
        return SessionOpened(number, operation.ttl_us)

    def _keep_alive(self, moment: Moment, operation: KeepAlive) -> Result:
        session = self.sessions.get(moment.session)
        if session is None:
            return NO_PRINCIPAL if moment.principal else _EXPIRED
        self.sessions[session.number] = Session(
            session.number,
            session.client,
            session.attempt,
            session.ttl_us,
            moment.time_us + session.ttl_us,
            session.name,
        )
        return KeptAlive(session.ttl_us)

    def _end_by_client(self, moment: Moment, operation: EndSession) -> Result:
        own = moment.session if moment.principal else 0
        session = self.sessions.get(operation.session or own)
        if session is not None:
            if session.client != (moment.principal or moment.client):
                return _MISDIRECTED
            self._end(moment, session.number, expired=False, limit=STEP)
        return _ENDED

    def _expire(self, moment: Moment, operation: ExpireSession) -> Result:
        session = self.sessions.get(operation.session)
        if (
            session is not None
            and session.deadline_us == operation.deadline_us
            and session.deadline_us <= moment.time_us
        ):
            self._end(moment, session.number, expired=True, limit=EXPIRY_STEP)
        return _ENDED

    def _empty(self, moment: Moment, operation: EmptySession) -> Result:
        if operation.session in self.ending:
            self._let_go(moment, operation.session, STEP)
        return _ENDED

    def _end(self, moment: Moment, number: SessionId, *, expired: bool, limit: int) -> None:
        session = self.sessions.pop(number)
        del self.by_client[session.client]
        del self.replica.windows[number]
        self.ending[number] = expired
        if expired:
            self.expired_ever += 1
        else:
            self.ended += 1
        self._let_go(moment, number, limit)

    def _let_go(self, moment: Moment, number: SessionId, limit: int) -> None:
        """One step; the session leaves `ending` with the last thing of it."""
        left = limit
        for machine in self.replica.machines.values():
            left -= machine.end_session(moment, number, left)
            if left <= 0:
                return
        del self.ending[number]

    def _settle(self) -> None:
        """Bring the earliest real deadline to the top of the heap."""
        heap, sessions = self._heap, self.sessions
        while heap:
            deadline_us, number = heap[0]
            session = sessions.get(number)
            if session is None:
                heapq.heappop(heap)
            elif session.deadline_us != deadline_us:
                heapq.heapreplace(heap, (session.deadline_us, number))
            else:
                return

    def _rebuild_heap(self) -> None:
        self._heap = [(session.deadline_us, number) for number, session in self.sessions.items()]
        heapq.heapify(self._heap)


_Chunk = tuple[list[Session], list[tuple[SessionId, bool]]]
_decode = msgspec.msgpack.Decoder(_Chunk).decode


def _chunks(sessions: list[Session], ending: list[tuple[SessionId, bool]]) -> Iterable[bytes]:
    for start in range(0, len(sessions), _CHUNK):
        yield msgspec.msgpack.encode((sessions[start : start + _CHUNK], ()))
    for start in range(0, len(ending), _CHUNK):
        yield msgspec.msgpack.encode(((), ending[start : start + _CHUNK]))
