"""The lock table of the control group: shared and exclusive locks, first come, first served.

The law: holders of a lock are one exclusive grant or any number of shared ones; a request waits
behind every earlier one that waits for the same lock, so nobody barges and no writer starves. A
free lock that nobody waits for leaves no state.

Tokens. An *era* of a lock is one exclusive grant, or a run of shared grants without a gap; its
token is the operation number of the command that began it. Within one command things are let go
for one session only, and nothing granted by that command belongs to it (the session that ends is
dead and is passed over; `Release` and `Cancel` let go one grant). So a command begins at most one
era per lock, and as operation numbers rise, so do the tokens of a lock: strictly from each
exclusive holder to the next, for ever, whether the lock was free in between or not.

Deferral. A lock in `deferred` grants nothing until the leader proposes `OpenLock`: after the
lock delay of a holder that expired, or because one command may grant only 1,000 waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

from ..errors import Code
from ..plugin import ClientId, Failure, Moment, Result, SessionId
from ..replica import Replica
from ..session.machine import SessionTable
from .inspection import graph, inspect, list_locks
from .messages import (
    Acquire,
    Granted,
    GrantedLater,
    Graph,
    Inspect,
    ListLocks,
    OpenLock,
    Queued,
    Release,
    Released,
)

LOCKS_MAX = 1_000_000
"""Locks held or deferred at once."""

WAITS_PER_LOCK_MAX = 10_000
HOLDERS_PER_LOCK_MAX = 10_000

CLAIMS_PER_SESSION_MAX = 100_000
"""Grants and waits of one session."""

STEP = 1_000
"""Waits granted by one command."""

_CHUNK = 1_000
_WOULD_BLOCK = Failure(Code.WOULD_BLOCK, "the lock is held or waited for")
_NOT_HELD = Failure(Code.NOT_HELD, "this grant is not held (any more)")
_NO_SESSION = Failure(Code.MALFORMED, "a lock is held by a session; open one first")
_SESSION_FULL = Failure(
    Code.BUSY, f"the session has {CLAIMS_PER_SESSION_MAX} grants and waits; release some"
)
_LOCK_FULL = Failure(
    Code.BUSY, f"{WAITS_PER_LOCK_MAX} wait for this lock or hold it already; retry later"
)
_TABLE_FULL = Failure(Code.BUSY, f"{LOCKS_MAX} locks are held; release some and retry")
_RELEASED = Released()


class Claim(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A grant, or a wait while `token` is 0. `number` (of the Acquire) names it."""

    number: int
    session: SessionId
    client: ClientId
    name: str
    shared: bool
    owner: int
    lock_delay_us: int
    token: int


class LockTable:
    """The state machine. `claims` and `deferred` are the state, the rest is derived from them."""

    def __init__(self) -> None:
        self.claims: dict[SessionId, dict[int, Claim]] = {}
        """By session, in order of number. A session stays until it ends, even without claims."""
        self.deferred: dict[str, int] = {}
        """Locks that grant nothing now, with the log time at which they may be opened."""
        self.holders: dict[str, dict[int, Claim]] = {}
        self.waits: dict[str, dict[int, Claim]] = {}
        """By lock, in order of number, which is the order they came in."""
        self._deferrals: list[tuple[int, str]] = []
        self._unsorted: dict[tuple[bool, str], None] = {}
        # Sessions whose claims a snapshot under way still refers to: copied before they change.
        self._shared: dict[SessionId, None] = {}
        self._sharers = 0
        self._apply: dict[type[Any], Callable[[Moment, Any], Result]] = {
            Acquire: self._acquire,
            Release: self._release,
            OpenLock: self._open,
        }

    def attach(self, replica: Replica) -> None:
        sessions = replica.machines["session"]
        assert isinstance(sessions, SessionTable)
        self._sessions = sessions

    def release(self) -> list[Any]:
        return [self.claims, self.holders, self.waits, self.deferred, self._deferrals]

    def apply(self, moment: Moment, operation: Any) -> Result:
        return self._apply[type(operation)](moment, operation)

    def query(self, moment: Moment, query: Any) -> Result:
        kind, name_of = type(query), self._sessions.name_of
        if kind is Inspect:
            return inspect(self.holders, self.waits, query.name, name_of)
        if kind is ListLocks:
            return list_locks(self.holders, self.waits, query, name_of)
        assert kind is Graph, query
        return graph(self.holders, self.waits)

    def end_session(self, moment: Moment, session: SessionId, limit: int) -> int:
        if self._shared:
            self._unshare(session)
        claims = self.claims.get(session)
        if claims is None:
            return 0
        expired = self._sessions.expired(session)
        doomed = list(islice(claims.values(), limit))
        for claim in doomed:
            self._let_go(moment, claims, claim, expired=expired)
        if not claims:
            del self.claims[session]
        return len(doomed)

    def cancel(self, moment: Moment, answered: Result) -> None:
        if type(answered) is Granted:
            number = answered.grant
        elif type(answered) is Queued:
            number = answered.wait
        else:
            return
        if self._shared:
            self._unshare(moment.session)
        claims = self.claims.get(moment.session)
        claim = claims.get(number) if claims else None
        if claims and claim is not None:
            self._let_go(moment, claims, claim, expired=False)

    def news(self, moment: Moment, session: SessionId, number: int) -> Result | None:
        claim = self.claims.get(session, {}).get(number)
        if claim is None:
            return None
        return Granted(number, claim.token) if claim.token else Queued(number)

    def deadlines_pending(self) -> bool:
        return bool(self.deferred)

    def next_deferral_us(self) -> int | None:
        """When the next deferred lock may be opened, in log time; None if there is none."""
        self._settle()
        return self._deferrals[0][0] if self._deferrals else None

    def openable(self, time_us: int, limit: int) -> list[OpenLock]:
        """At most `limit` deferred locks whose time has come; earliest first."""
        found: list[OpenLock] = []
        while len(found) < limit:
            self._settle()
            if not self._deferrals or self._deferrals[0][0] > time_us:
                break
            deadline_us, name = first = heapq.heappop(self._deferrals)
            while self._deferrals and self._deferrals[0] == first:
                heapq.heappop(self._deferrals)  # put off, opened and put off until the same time
            found.append(OpenLock(name, deadline_us))
        for opening in found:
            heapq.heappush(self._deferrals, (opening.deadline_us, opening.name))
        return found

    def snapshot(self) -> Iterable[bytes]:
        """The state as of the call, encoded while the chunks are taken. To copy a million claims
        takes longer than a turn may: those of a session are copied when they change before that."""
        self._shared = dict.fromkeys(self.claims)
        self._sharers += 1
        return self._encode(list(self.claims.items()), list(self.deferred.items()))

    def _encode(
        self, claims: list[tuple[SessionId, dict[int, Claim]]], deferred: list[tuple[str, int]]
    ) -> Iterator[bytes]:
        yield from _chunks(claims, deferred)
        self._sharers -= 1
        if not self._sharers:
            self._shared = {}

    def _unshare(self, session: SessionId) -> None:
        """The session's claims are about to change: a snapshot keeps them as they were."""
        if session in self._shared:
            del self._shared[session]
            self.claims[session] = self.claims[session].copy()

    def restore(self, chunk: bytes) -> None:
        deferred, rows = _decode(chunk)
        for name, deadline_us in deferred:
            self.deferred[name] = deadline_us
            heapq.heappush(self._deferrals, (deadline_us, name))
        for session, held in rows:
            claims = self.claims.setdefault(session, {})
            for claim in held:
                claims[claim.number] = claim
                index = self.holders if claim.token else self.waits
                beside = index.setdefault(claim.name, {})
                if beside and next(reversed(beside)) > claim.number:
                    self._unsorted[claim.token > 0, claim.name] = None
                beside[claim.number] = claim

    def restored(self) -> None:
        """Claims came session by session; those of one lock stand in order of number."""
        for granted, name in self._unsorted:
            index = self.holders if granted else self.waits
            index[name] = dict(sorted(index[name].items()))
        self._unsorted = {}

    def size(self) -> int:
        return sum(map(len, self.claims.values())) + len(self.claims) + len(self.deferred)

    def check(self) -> None:
        """Every invariant of the law, from the state."""
        flat = {n: claim for claims in self.claims.values() for n, claim in claims.items()}
        indexed: dict[int, Claim] = {}
        for index, granted in ((self.holders, True), (self.waits, False)):
            for name, claims in index.items():
                assert claims, f"{name}: nothing is left when nobody holds or waits"
                for number, claim in claims.items():
                    assert (claim.number, claim.name, claim.token > 0) == (number, name, granted)
                indexed.update(claims)
        assert indexed == flat, "the indexes hold the claims of the sessions and nothing else"
        for session, claims in self.claims.items():
            assert list(claims) == sorted(claims)
            assert session in self._sessions.sessions or session in self._sessions.ending
        for holding in self.holders.values():
            assert len(holding) == 1 or all(claim.shared for claim in holding.values())
            assert len({claim.token for claim in holding.values()}) == 1, "one era, one token"
        for name, waiting in self.waits.items():
            assert list(waiting) == sorted(waiting), "first come, first served"
            head = next(iter(waiting.values()))
            assert not self._grantable(name, head), f"{name}: the first wait could be granted"
        pending = set(self._deferrals)
        assert all((deadline, name) in pending for name, deadline in self.deferred.items())

    def _acquire(self, moment: Moment, operation: Acquire) -> Result:
        session = moment.session
        if self._shared:
            self._unshare(session)
        claims = self.claims.get(session)
        if claims is None:
            if session == 0:
                return _NO_SESSION
            claims = self.claims[session] = {}
        elif len(claims) >= CLAIMS_PER_SESSION_MAX:
            return _SESSION_FULL
        name, number, shared = operation.name, moment.number, operation.shared
        holders = self.holders.get(name)
        if name in self.waits or name in self.deferred:
            return self._wait(moment, operation, claims)
        if holders is None:
            if len(self.holders) + len(self.deferred) >= LOCKS_MAX:
                return _TABLE_FULL
            token = number
            holders = self.holders[name] = {}
        elif shared and (first := next(iter(holders.values()))).shared:
            if len(holders) >= HOLDERS_PER_LOCK_MAX:
                return _LOCK_FULL
            token = first.token
        else:
            return self._wait(moment, operation, claims)
        claim = Claim(
            number,
            session,
            moment.client,
            name,
            shared,
            operation.owner,
            operation.lock_delay_us,
            token,
        )
        holders[number] = claims[number] = claim
        return Granted(number, token)

    def _wait(self, moment: Moment, operation: Acquire, claims: dict[int, Claim]) -> Result:
        if not operation.wait:
            return _WOULD_BLOCK
        name, number = operation.name, moment.number
        waiting = self.waits.get(name)
        if waiting is None:
            waiting = self.waits[name] = {}
        elif len(waiting) >= WAITS_PER_LOCK_MAX:
            return _LOCK_FULL
        waiting[number] = claims[number] = Claim(
            number,
            moment.session,
            moment.client,
            name,
            operation.shared,
            operation.owner,
            operation.lock_delay_us,
            0,
        )
        return Queued(number)

    def _release(self, moment: Moment, operation: Release) -> Result:
        name, number = operation.name, operation.grant
        if self._shared:
            self._unshare(moment.session)
        holders = self.holders.get(name)
        claims = self.claims.get(moment.session)
        if holders is None or claims is None or number not in claims or number not in holders:
            return _NOT_HELD
        del claims[number]
        if len(holders) == 1:
            del self.holders[name]
        else:
            del holders[number]
        if name in self.waits:
            self._advance(moment, name)
        return _RELEASED

    def _let_go(
        self, moment: Moment, claims: dict[int, Claim], claim: Claim, *, expired: bool
    ) -> None:
        """Release a grant or withdraw a wait, and grant what it kept from being granted."""
        name = claim.name
        index = self.holders if claim.token else self.waits
        beside = index[name]
        del claims[claim.number], beside[claim.number]
        if not beside:
            del index[name]
        if expired and claim.token and claim.lock_delay_us:
            deadline_us = moment.time_us + claim.lock_delay_us
            self._defer(name, max(deadline_us, self.deferred.get(name, 0)))
        if name in self.waits:
            self._advance(moment, name)

    def _advance(self, moment: Moment, name: str) -> None:
        """Grant the first wait and, if it is shared, the shared ones that follow it."""
        waiting = self.waits[name]
        granted: list[Claim] = []
        for wait in islice(waiting.values(), STEP + 1):
            if granted and not (wait.shared and granted[0].shared):
                break
            if not self._grantable(name, wait, len(granted)):
                break
            granted.append(wait)
        if len(granted) > STEP:
            granted.pop()
            self._defer(name, moment.time_us)
        if granted:
            self._grant(moment, name, granted)

    def _grantable(self, name: str, wait: Claim, more: int = 0) -> bool:
        """Whether the first wait can be granted, `more` shared ones being granted before it. The
        wait of a dead session is passed over by nobody: its end withdraws it, and goes on here."""
        if name in self.deferred or wait.session not in self._sessions.sessions:
            return False
        holders = self.holders.get(name)
        if holders is None:
            return True
        first = next(iter(holders.values()))
        return wait.shared and first.shared and len(holders) + more < HOLDERS_PER_LOCK_MAX

    def _grant(self, moment: Moment, name: str, granted: list[Claim]) -> None:
        waiting, holders = self.waits[name], self.holders.get(name)
        if holders is None:
            token = moment.number
            holders = self.holders[name] = {}
        else:
            token = next(iter(holders.values())).token
        for wait in granted:
            number, session = wait.number, wait.session
            if self._shared:
                self._unshare(session)
            del waiting[number]
            holders[number] = self.claims[session][number] = Claim(
                number,
                session,
                wait.client,
                name,
                wait.shared,
                wait.owner,
                wait.lock_delay_us,
                token,
            )
            moment.tell(wait.client, GrantedLater(session, number, token))
        if not waiting:
            del self.waits[name]

    def _defer(self, name: str, deadline_us: int) -> None:
        self.deferred[name] = deadline_us
        if len(self._deferrals) > 2 * len(self.deferred) + STEP:
            self._rebuild_deferrals()
        else:
            heapq.heappush(self._deferrals, (deadline_us, name))

    def _open(self, moment: Moment, operation: OpenLock) -> Result:
        name, deadline_us = operation.name, operation.deadline_us
        if self.deferred.get(name) == deadline_us and deadline_us <= moment.time_us:
            del self.deferred[name]
            if name in self.waits:
                self._advance(moment, name)
        return _RELEASED

    def _settle(self) -> None:
        """Drop what was opened or put off since from the top of the heap."""
        heap = self._deferrals
        while heap and self.deferred.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)

    def _rebuild_deferrals(self) -> None:
        self._deferrals = [(deadline_us, name) for name, deadline_us in self.deferred.items()]
        heapq.heapify(self._deferrals)


_Rows = list[tuple[SessionId, list[Claim]]]
_decode = msgspec.msgpack.Decoder(tuple[list[tuple[str, int]], _Rows]).decode


def _chunks(
    claims: list[tuple[SessionId, dict[int, Claim]]], deferred: list[tuple[str, int]]
) -> Iterator[bytes]:
    for start in range(0, len(deferred), _CHUNK):
        yield msgspec.msgpack.encode((deferred[start : start + _CHUNK], ()))
    rows: _Rows = []
    count = 0
    for session, held in claims:
        left = iter(held.values())
        for _ in range(0, max(1, len(held)), _CHUNK):
            piece = list(islice(left, _CHUNK))
            rows.append((session, piece))
            count += 1 + len(piece)
            if count >= _CHUNK:
                yield msgspec.msgpack.encode(((), rows))
                rows, count = [], 0
    if rows:
        yield msgspec.msgpack.encode(((), rows))
