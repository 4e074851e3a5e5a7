"""The lock table of the control group: shared and exclusive locks, first come, first served.

The law: holders of a lock are one exclusive grant or any number of shared ones; a request waits
behind every earlier one that it cannot share the lock with, so nobody barges and no writer
starves. Only a grant to be upgraded goes before those who wait, and while it waits nobody else
gets to share the lock. A free lock that nobody waits for leaves no state.

Tokens. An *era* of a lock is one exclusive grant (or upgrade), or a run of shared grants without a
gap; its token is the operation number of the command that began it. A command first lets go all
that it lets go, then grants. So it begins at most one era per lock, and as operation numbers rise,
so do the tokens of a lock: strictly from each exclusive holder to the next, for ever, whether the
lock was free in between or not. A downgrade goes on in its own era.

Deferral. A lock in `deferred` grants nothing until the leader proposes `OpenLock`: after the
lock delay of a holder that expired, or because one command may grant only 1,000 waits.

Deadlocks. A cycle of owners that wait for each other is closed by somebody beginning to wait, or
to be upgraded; never by a grant, since who gets a lock is who was next already. So it is looked
for there and then, and the highest owner id of it dies (see `deadlock.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from msgspec.structs import replace

from ..errors import Code
from ..plugin import Failure, Moment, Result, SessionId
from . import inspection
from .claims import Claim, Owner
from .conversions import NOT_HELD, WAITED_FOR, WOULD_BLOCK, Converting
from .deadlock import Search, owner_id
from .granting import HOLDERS_PER_LOCK_MAX, STEP
from .messages import (
    Abort,
    Acquire,
    AcquireAll,
    BeginTransaction,
    Begun,
    BreakDeadlock,
    Commit,
    Converted,
    Downgrade,
    ForceRelease,
    ForceReleased,
    Granted,
    GrantedAll,
    LostLater,
    OpenLock,
    Queued,
    Release,
    SetDetection,
    Upgrade,
    Withdraw,
)
from .owners import (
    CLAIMS_PER_OWNER_MAX,
    CLAIMS_PER_SESSION_MAX,
    NO_OWNER,
    NO_SESSION,
    OWNER_FULL,
    RELEASED,
    SESSION_FULL,
    deadlock,
)
from .snapshot import give, take

LOCKS_MAX = 1_000_000
"""Locks held or deferred at once."""

WAITS_PER_LOCK_MAX = 10_000

_OTHER_MODE = Failure(
    Code.SETTINGS_DIFFER, "the session has this lock in the other mode; release it first"
)
_HELD_ALREADY = Failure(Code.MALFORMED, "one of the locks is held or waited for already")
_LOCK_FULL = Failure(
    Code.BUSY, f"{WAITS_PER_LOCK_MAX} wait for this lock or hold it already; retry later"
)
_TABLE_FULL = Failure(Code.BUSY, f"{LOCKS_MAX} locks are held; release some and retry")


class LockTable(Converting):
    """The state machine."""

    def __init__(self) -> None:
        super().__init__()
        self._apply: dict[type[Any], Callable[[Moment, Any], Result]] = {
            Acquire: self._acquire,
            AcquireAll: self._acquire_all,
            Release: self._release,
            Withdraw: self._withdraw,
            BeginTransaction: self._begin,
            Commit: self._commit,
            Abort: self._abort,
            Upgrade: self._upgrade,
            Downgrade: self._downgrade,
            ForceRelease: self._force,
            OpenLock: self._open,
            SetDetection: self._set_detection,
            BreakDeadlock: self._break,
        }

    def apply(self, moment: Moment, operation: Any) -> Result:
        self._budget = STEP
        if self.shared:
            self.unshare(moment.session)
        return self._apply[type(operation)](moment, operation)

    def query(self, moment: Moment, query: Any) -> Result:
        return inspection.answer(self, query, self._sessions.name_of)

    def end_session(self, moment: Moment, session: SessionId, limit: int) -> int:
        if self.shared:
            self.unshare(session)
        claims = self.claims.get(session)
        if claims is None:
            return 0
        self._budget = STEP
        expired = self._sessions.expired(session)
        doomed = list(islice(claims.values(), limit))
        for claim in doomed:
            self._drop(claim, "expired" if expired else "released")
            if expired and claim.token and claim.lock_delay_us:
                deadline_us = moment.time_us + claim.lock_delay_us
                self._defer(claim.name, max(deadline_us, self.deferred.get(claim.name, 0)))
        self._advance_all(moment, {claim.name: None for claim in doomed})
        ended = list(islice(self.transactions.get(session, {}).values(), limit - len(doomed)))
        for transaction in ended:
            self.expel(transaction)
        if not claims and session not in self.transactions:
            del self.claims[session]
        return len(doomed) + len(ended)

    def cancel(self, moment: Moment, answered: Result) -> Failure | None:
        self._budget = STEP
        if type(answered) is Granted or type(answered) is GrantedAll:
            return self._undo(moment, answered.grant)
        if type(answered) is Queued:
            return self._undo(moment, answered.wait)
        if type(answered) is Converted and answered.upgrade:
            return self._undo(moment, answered.upgrade)
        if type(answered) is Begun:
            self._end_owner(moment, answered.transaction)
        return None

    def news(self, moment: Moment, session: SessionId, number: int) -> Result | None:
        claim = self.claims.get(session, {}).get(number) or self.upgrades.get(number)
        if claim is None or claim.session != session:
            return self._failure(session, number)
        if not claim.token or (claim.upgrading and claim.upgrade == number):
            return Queued(number)
        if claim.group == number:
            tokens = tuple(member.token for member in self.members(claim))
            return GrantedAll(number, tokens)
        return Granted(number, claim.token)

    # Acquire

    def _acquire(self, moment: Moment, operation: Acquire) -> Result:
        session = moment.session
        once = operation.once and not operation.owner
        if once and (session, operation.name) in self.once:
            return self._ask_again(moment, operation)
        claims = self.claims.get(session)
        if claims is None:
            if session == 0:
                return NO_SESSION
            claims = self.claims[session] = {}
        elif len(claims) >= CLAIMS_PER_SESSION_MAX:
            return SESSION_FULL
        owner = None
        if operation.owner:
            owner = self.owner(session, operation.owner)
            refused = NO_OWNER if owner is None else self._refused(moment, owner, operation)
            if refused is not None:
                return refused
        name, number, shared = operation.name, moment.number, operation.shared
        holders = self.holders.get(name)
        if (name in self.waits or name in self.deferred or name in self.upgrading) and not (
            shared and self._may_pass(name)
        ):
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
        if once:
            claim = replace(claim, asks=1)
            self.once[session, name] = number
        holders[number] = claims[number] = claim
        if owner is not None:
            self._own(owner, claim)
        self.revision += 1
        self.events.append(("granted", claim))
        return Granted(number, token)

    def _wait(self, moment: Moment, operation: Acquire, claims: dict[int, Claim]) -> Result:
        if not operation.wait:
            return WOULD_BLOCK
        name, number = operation.name, moment.number
        waiting = self.waits.get(name)
        if waiting is None:
            waiting = self.waits[name] = {}
        elif len(waiting) >= WAITS_PER_LOCK_MAX:
            return _LOCK_FULL
        claim = Claim(
            number,
            moment.session,
            moment.client,
            name,
            operation.shared,
            operation.owner,
            operation.lock_delay_us,
            0,
            asks=int(operation.once and not operation.owner),
        )
        waiting[number] = claims[number] = claim
        if claim.asks:
            self.once[claim.session, name] = number
        self.revision += 1
        self.events.append(("waiting", claim))
        if operation.owner:
            self._own(self.owners[operation.owner], claim)
            return self._resolve(moment, operation.owner, number) or Queued(number)
        return Queued(number)

    def _ask_again(self, moment: Moment, operation: Acquire) -> Result:
        """The session has a claim of this lock: one more counts on it. How it stands."""
        claim = self.claims[moment.session][self.once[moment.session, operation.name]]
        if claim.shared != operation.shared:
            return _OTHER_MODE
        if not claim.token and not operation.wait:
            return WOULD_BLOCK
        self.put(replace(claim, client=moment.client, asks=claim.asks + 1))
        return Granted(claim.number, claim.token) if claim.token else Queued(claim.number)

    def _acquire_all(self, moment: Moment, operation: AcquireAll) -> Result:
        session, names, first = moment.session, operation.names, moment.number
        if session == 0:
            return NO_SESSION
        claims = self.claims.setdefault(session, {})
        if len(claims) + len(names) > CLAIMS_PER_SESSION_MAX:
            return SESSION_FULL
        if operation.owner:
            refused = self._refused_all(session, operation)
            if refused is not None:
                return refused
        free = all(self._is_free(name, operation.shared) for name in names)
        if not free and not operation.wait:
            return WOULD_BLOCK
        if free and len(self.holders) + len(self.deferred) + len(names) > LOCKS_MAX:
            return _TABLE_FULL
        if not free and any(len(self.waits.get(n, ())) >= WAITS_PER_LOCK_MAX for n in names):
            return _LOCK_FULL
        moment.number += len(names) - 1  # each grant has a number of its own
        tokens: list[int] = []
        for number, name in enumerate(names, first):
            tokens.append(self._era(moment, name) if free else 0)
            owner = operation.owner or (first if number > first else 0)
            claim = Claim(
                number,
                session,
                moment.client,
                name,
                operation.shared,
                owner,
                operation.lock_delay_us,
                tokens[-1],
                first,
            )
            self.put(claim)
            if number == owner_id(claim):
                self.nest(claim)
            self._record("granted" if free else "waiting", claim)
        if free:
            return GrantedAll(first, tuple(tokens))
        return self._resolve(moment, operation.owner or first, first) or Queued(first)

    def _is_free(self, name: str, shared: bool) -> bool:
        """Whether a request that comes now is granted at once."""
        if name in self.deferred or name in self.upgrading:
            return False
        if name in self.waits and not (shared and self._may_pass(name)):
            return False
        holders = self.holders.get(name)
        if holders is None:
            return True
        first = next(iter(holders.values()))
        return shared and first.shared and len(holders) < HOLDERS_PER_LOCK_MAX

    def _may_pass(self, name: str) -> bool:
        """Whether a request may share a lock before all who wait for it: they would share it too,
        but wait for other locks beside."""
        if name in self.deferred or name in self.upgrading:
            return False
        alive = self._sessions.sessions
        waiting = self.waits[name].values()
        return all(wait.shared and wait.group and wait.session in alive for wait in waiting)

    def _refused(self, moment: Moment, owner: Owner, operation: Acquire) -> Result | None:
        """How an acquire within an owner ends before the lock is looked at, if it does."""
        transaction = owner.transaction
        if transaction is not None:
            if transaction.cycle:
                return deadlock(transaction.cycle)
            numbers = owner.names.get(operation.name)
            if numbers is not None:
                number = numbers[0]  # of a transaction there is one
                claim = owner.claims[number]
                if not claim.token:
                    return WAITED_FOR
                if operation.shared:
                    return Converted(number, claim.token, claim.shared)
                return self._convert(moment, claim, operation.wait)
        return OWNER_FULL if len(owner.claims) >= CLAIMS_PER_OWNER_MAX else None

    def _refused_all(self, session: SessionId, operation: AcquireAll) -> Result | None:
        owner = self.owner(session, operation.owner)
        if owner is None:
            return NO_OWNER
        if owner.transaction is not None and owner.transaction.cycle:
            return deadlock(owner.transaction.cycle)
        if len(owner.claims) + len(operation.names) > CLAIMS_PER_OWNER_MAX:
            return OWNER_FULL
        return _HELD_ALREADY if any(name in owner.names for name in operation.names) else None

    # Release

    def _release(self, moment: Moment, operation: Release) -> Result:
        name = operation.name
        number = operation.grant or self.once.get((moment.session, name), 0)
        holders = self.holders.get(name)
        claims = self.claims.get(moment.session)
        if holders is None or claims is None or number not in claims or number not in holders:
            if operation.grant and self._waits_for(moment.session, name, number):
                self._undo(moment, number)
                return RELEASED
            return NOT_HELD
        claim = claims[number]
        if operation.token and operation.token != claim.token:
            return NOT_HELD
        if self.owners or claim.upgrade or claim.asks:
            self.strike(claim)
        else:
            del claims[number]
            if len(holders) == 1:
                del self.holders[name]
            else:
                del holders[number]
        self.revision += 1
        self.events.append(("released", claim))
        if name in self.waits or name in self.upgrading:
            self._advance(moment, name)
        return RELEASED

    def _waits_for(self, session: SessionId, name: str, number: int) -> bool:
        claim = self.claims.get(session, {}).get(number) or self.upgrades.get(number)
        return claim is not None and (claim.session, claim.name) == (session, name)

    def _withdraw(self, moment: Moment, operation: Withdraw) -> Result:
        return self._undo(moment, operation.wait) or RELEASED

    def _force(self, moment: Moment, operation: ForceRelease) -> Result:
        name, name_of = operation.name, self._sessions.name_of
        holders = list(islice(self.holders.get(name, {}).values(), STEP))
        for claim in holders:
            self._drop(claim, "forced")
            moment.tell(claim.client, LostLater(claim.session, claim.number, name))
        self._advance_all(moment, (name,))
        taken = tuple((name_of(c.session), c.session, c.number) for c in holders)
        if taken:
            by = name_of(moment.session) or f"client {moment.client:x}"
            of = ", ".join(f"{who!r} (session {session})" for who, session, _ in taken[:8])
            self.notes.append(f"lock {name!r} was taken by force from {of} by {by!r}")
        return ForceReleased(taken)

    def _open(self, moment: Moment, operation: OpenLock) -> Result:
        name, deadline_us = operation.name, operation.deadline_us
        if self.deferred.get(name) == deadline_us and deadline_us <= moment.time_us:
            del self.deferred[name]
            self._advance_all(moment, (name,))
        return RELEASED

    # Snapshots

    def snapshot(self) -> Iterable[bytes]:
        return give(self)

    def restore(self, chunk: bytes) -> None:
        take(self, chunk)

    def restored(self) -> None:
        self.settle()
        self._rebuild_deferrals()

    def size(self) -> int:
        """Records in the state."""
        claims = sum(map(len, self.claims.values())) + len(self.claims)
        return claims + len(self.deferred) + sum(map(len, self.transactions.values()))

    def check(self) -> None:
        """Every invariant of the law, from the state."""
        self.check_indexes(self._sessions.sessions, self._sessions.ending)
        for holding in self.holders.values():
            assert len(holding) == 1 or all(claim.shared for claim in holding.values())
            assert len({claim.token for claim in holding.values()}) == 1, "one era, one token"
        for name, waiting in self.waits.items():
            assert list(waiting) == sorted(waiting), "first come, first served"
            for wait in waiting.values():
                if not self._grantable_first(wait):
                    break
                assert wait.group, f"{name}: the first wait could be granted"
                members = self.members(self.claims[wait.session][wait.group])
                ready = all(self._grantable(member) for member in members)
                assert not ready, f"{name}: what waits for several locks could be granted"
        for name, pending in self.upgrading.items():
            ready = len(self.holders[name]) == 1 and name not in self.deferred
            first = next(iter(pending.values()))
            assert not ready or first.session not in self._sessions.sessions, f"{name}: upgrade"
        if not self.overlooked:
            cycle = Search(self, self.alive, self.owners).go_on(10**9)
            # An owner that asks again for what it waits for may yet come to wait for itself.
            assert cycle is None or len(cycle) == 1, f"a deadlock stays: {cycle}"
        deferrals = set(self._deferrals)
        assert all((deadline, name) in deferrals for name, deadline in self.deferred.items())
