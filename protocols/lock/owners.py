"""Owners: transactions and nests, their end, and the deadlocks they get into.

The law: a victim is the highest id of a cycle that stands, at the moment it is named. It loses
everything by that very command, which lets all go before it grants anything. It stays known as a
victim, so that nothing it asked for meanwhile is granted, until its client says that it knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..errors import Code
from ..plugin import Failure, Moment, Result, SessionId
from .claims import Claim, Edge, Owner, Transaction
from .deadlock import Cycle, Search, blocks, may_be_in_cycle, owner_id, victim_of
from .granting import Granting
from .messages import (
    Abort,
    AbortedLater,
    BeginTransaction,
    Begun,
    BreakDeadlock,
    Commit,
    Ended,
    Released,
    SetDetection,
)

CLAIMS_PER_SESSION_MAX = 100_000
"""Grants, waits and transactions of one session."""

CLAIMS_PER_OWNER_MAX = 1_000
"""Grants and waits of one transaction, or of one nest: all of them are let go by one command."""

BACKWARDS_MAX = 1_000
"""Waits looked at to see whether a search is worth while."""

SEARCH_MAX = 10_000
"""Steps of the search for deadlocks by one command; what it would have found the sweep finds."""

CYCLE_TOLD_MAX = 64
"""Edges of a cycle that are told."""

VICTIMS_KEPT = 10
NOTES_KEPT = 100

BOTH, ENQUEUE, SWEEP = 0, 1, 2
"""Where deadlocks are looked for: when somebody begins to wait, and by the leader's sweep."""

RELEASED = Released()
NO_SESSION = Failure(Code.MALFORMED, "a lock is held by a session; open one first")
SESSION_FULL = Failure(
    Code.BUSY, f"the session has {CLAIMS_PER_SESSION_MAX} grants and waits; release some"
)
OWNER_FULL = Failure(
    Code.BUSY, f"it has {CLAIMS_PER_OWNER_MAX} locks, the most for one transaction or nest"
)
NO_OWNER = Failure(Code.NOT_HELD, "the transaction, or the lock this one is nested in, has ended")
_ENDED = Ended()


def deadlock(cycle: Iterable[Edge]) -> Failure:
    """What a victim is answered."""
    told = tuple(str(part) for edge in cycle for part in edge)
    text = "chosen to break a deadlock: all its locks are gone; abort, and begin anew"
    return Failure(Code.DEADLOCK, text, told)


class Owning(Granting):
    """`detection` is state; what is counted and noted is derived from what was applied here."""

    def clear(self) -> None:
        super().clear()
        self.detection = BOTH
        self.overlooked = False
        """Whether a deadlock may have been left to the sweep since this node started."""
        self.deadlocks = 0
        """Victims since this node started."""
        self.victims: deque[tuple[int, int, tuple[Edge, ...]]] = deque(maxlen=VICTIMS_KEPT)
        """The last of them: log time, owner, cycle."""
        self.notes: deque[str] = deque(maxlen=NOTES_KEPT)
        """Lines for the log of the node that leads."""

    def owner(self, session: SessionId, number: int) -> Owner | None:
        """The owner of this id, if it is of this session; a grant becomes one by being named."""
        owner = self.owners.get(number)
        if owner is not None:
            return owner if owner.session == session else None
        claim = self.claims[session].get(number)
        return self.nest(claim) if claim is not None and not claim.owner else None

    def _begin(self, moment: Moment, operation: BeginTransaction) -> Result:
        session, number = moment.session, moment.number
        if session == 0:
            return NO_SESSION
        claims = self.claims.setdefault(session, {})
        if len(claims) + len(self.transactions.get(session, ())) >= CLAIMS_PER_SESSION_MAX:
            return SESSION_FULL
        first = operation.first
        if 0 < first < number and first not in self.owners and first not in claims:
            number = first
        self.enroll(Transaction(number, session, moment.client, True))
        return Begun(number)

    def _commit(self, moment: Moment, operation: Commit) -> Result:
        transaction = self.transactions.get(moment.session, {}).get(operation.transaction)
        if transaction is None or not transaction.begun:
            return Failure(Code.NOT_HELD, "the transaction has ended")
        self._end_owner(moment, transaction.number)
        return deadlock(transaction.cycle) if transaction.cycle else _ENDED

    def _abort(self, moment: Moment, operation: Abort) -> Result:
        self._end_owner(moment, operation.owner)
        return _ENDED

    def _end_owner(self, moment: Moment, number: int) -> None:
        """Let go all that an owner of this session has."""
        owner = self.owners.get(number)
        if owner is not None and owner.session == moment.session:
            claims = list(owner.claims.values())
        else:
            claim = self.claims.get(moment.session, {}).get(number)
            claims = [claim] if claim is not None and not claim.owner else []
        for claim in claims:
            self._drop(claim, "released")
        transaction = self.transactions.get(moment.session, {}).get(number)
        if transaction is not None:
            self.expel(transaction)
        self._advance_all(moment, {claim.name: None for claim in claims})

    # Deadlocks

    def _failure(self, session: SessionId, number: int) -> Failure | None:
        """How a wait of this number ended, if it was a victim's."""
        victim = self.failed.get(number)
        return deadlock(victim.cycle) if victim and victim.session == session else None

    def _set_detection(self, moment: Moment, operation: SetDetection) -> Result:
        self.detection = operation.mode
        self.overlooked |= operation.mode == SWEEP
        return RELEASED

    def _resolve(self, moment: Moment, root: int, asking: int) -> Result | None:
        """Break the deadlocks that an owner closed by beginning to wait. `asking`: the number of
        what it asked for; its answer if it is a victim itself."""
        if self.detection == SWEEP:
            return None
        answer: Result | None = None
        names: dict[str, None] = {}
        while answer is None and self._may_be_in_cycle(root):
            search = Search(self, self._sessions.sessions, [root])
            cycle = search.go_on(SEARCH_MAX)
            if cycle is None:
                self.overlooked |= not search.finished
                break
            failure = self._sacrifice(moment, cycle, names, asking)
            if owner_id(victim_of(cycle)) == root:
                answer = failure
        self._advance_all(moment, names)
        return answer

    def _may_be_in_cycle(self, root: int) -> bool:
        owner = self.owners.get(root)
        waits = owner is not None and bool(owner.waits)
        return waits and may_be_in_cycle(self, root, BACKWARDS_MAX)

    def _sacrifice(
        self, moment: Moment, cycle: Cycle, names: dict[str, None], asking: int
    ) -> Failure:
        """Let go all of a victim, to be granted to others later; `names` collects the locks."""
        victim = victim_of(cycle)
        number, session, client = owner_id(victim), victim.session, victim.client
        owner = self.owner_of(victim)
        claims = [victim] if owner is None else list(owner.claims.values())
        edges = tuple(
            (owner_id(wait), owner_id(claim), wait.name) for wait, claim in cycle[:CYCLE_TOLD_MAX]
        )
        waits = {claim.asked: None for claim in claims if not claim.token or claim.upgrading}
        waits.pop(asking, None)
        for claim in claims:
            self._drop(claim, "aborted")
            names[claim.name] = None
        known = self.transactions.get(session, {}).get(number)
        begun = known is not None and known.begun
        self.enroll(Transaction(number, session, client, begun, tuple(waits), edges))
        failure = deadlock(edges)
        moment.tell(client, AbortedLater(session, number, tuple(waits), failure))
        self.deadlocks += 1
        self.victims.append((moment.time_us, number, edges))
        story = ", ".join(f"{w} waits for {h} by {name!r}" for w, h, name in edges)
        self.notes.append(f"deadlock broken: {number} of {len(cycle)} aborted ({story})")
        return failure

    def _break(self, moment: Moment, operation: BreakDeadlock) -> Result:
        """Break a deadlock that the sweep found, if it still stands."""
        cycle = [found for edge in operation.edges if (found := self._standing(*edge)) is not None]
        following = [*cycle[1:], *cycle[:1]]
        if len(cycle) == len(operation.edges) > 0 and all(
            (owner_id(claim), claim.session) == (owner_id(after), after.session)
            for (_, claim), (after, _) in zip(cycle, following, strict=True)
        ):
            names: dict[str, None] = {}
            self._sacrifice(moment, cycle, names, 0)
            self._advance_all(moment, names)
        return RELEASED

    def _standing(self, name: str, number: int, other: int) -> tuple[Claim, Claim] | None:
        """The claims of an edge, if it stands."""
        waiting, holders = self.waits.get(name, {}), self.holders.get(name, {})
        wait = waiting.get(number) or self.upgrading.get(name, {}).get(number)
        claim = holders.get(other) or waiting.get(other)
        if wait is None or claim is None or wait.session not in self._sessions.sessions:
            return None
        own = owner_id(wait) == owner_id(claim)
        return (wait, claim) if blocks(claim, wait) and (claim.token or not own) else None
