"""Who gets a lock next: grants, upgrades, deferrals, and the record of what happened.

The law: the first wait is granted as soon as it can be, with the shared ones that follow it. What
waits for several locks at once is granted when all of them are free for it; until then it keeps
its place, and only those who could share the lock with it go before it. One command grants at most
`STEP` waits; a lock for which that was too little is deferred, and opened by the next entry.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from ..plugin import Moment, SessionId
from ..replica import Replica
from ..session.machine import SessionTable
from .claims import Claim, ClaimIndex
from .messages import GrantedAllLater, GrantedLater, OpenLock

HOLDERS_PER_LOCK_MAX = 10_000

STEP = 1_000
"""Waits granted by one command."""

EVENTS_MAX = 1_000
"""Events that can be told to those who watch."""

Event: TypeAlias = tuple[str, Claim]
"""What happened, and the claim as it was then."""


class Granting(ClaimIndex):
    """`deferred` and `revision` are state; the events are derived from what was applied here."""

    def __init__(self) -> None:
        super().__init__()
        self._budget = STEP

    def clear(self) -> None:
        super().clear()
        self.deferred: dict[str, int] = {}
        """Locks that grant nothing now, with the log time at which they may be opened."""
        self.revision = 0
        """Counts the events."""
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._deferrals: list[tuple[int, str]] = []
        self._obstacles: dict[int, int] = {}
        """By group: the member that kept it from being granted when last looked at."""

    def attach(self, replica: Replica) -> None:
        sessions = replica.machines["session"]
        assert isinstance(sessions, SessionTable)
        self._sessions = sessions

    @property
    def alive(self) -> Mapping[SessionId, object]:
        """The sessions that have not ended."""
        return self._sessions.sessions

    def deadlines_pending(self) -> bool:
        return bool(self.deferred)

    def next_deferral_us(self) -> int | None:
        """When the next deferred lock may be opened, in log time; None if there is none."""
        self._settle_deferrals()
        return self._deferrals[0][0] if self._deferrals else None

    def openable(self, time_us: int, limit: int) -> list[OpenLock]:
        """At most `limit` deferred locks whose time has come; earliest first."""
        found: list[OpenLock] = []
        while len(found) < limit:
            self._settle_deferrals()
            if not self._deferrals or self._deferrals[0][0] > time_us:
                break
            deadline_us, name = first = heapq.heappop(self._deferrals)
            while self._deferrals and self._deferrals[0] == first:
                heapq.heappop(self._deferrals)  # put off, opened and put off until the same time
            found.append(OpenLock(name, deadline_us))
        for opening in found:
            heapq.heappush(self._deferrals, (opening.deadline_us, opening.name))
        return found

    def _record(self, kind: str, claim: Claim) -> None:
        self.revision += 1
        self.events.append((kind, claim))

    def _drop(self, claim: Claim, kind: str) -> None:
        """Let a grant or wait go; `_advance` its lock once the command has let go of all."""
        self.strike(claim)
        if claim.group and not claim.token:
            self._obstacles.pop(claim.group, None)
        self._record(kind if claim.token else "withdrawn", claim)

    def _advance_all(self, moment: Moment, names: Iterable[str]) -> None:
        for name in names:
            if name in self.waits or name in self.upgrading:
                self._advance(moment, name)

    def _advance(self, moment: Moment, name: str) -> None:
        """Grant what can be granted of a lock."""
        if name in self.deferred:
            return
        pending = self.upgrading.get(name)
        if pending is not None:
            self._advance_upgrade(moment, next(iter(pending.values())))
            return
        while name in self.waits:
            granted, group = self._next(moment, name)
            if granted:
                self._grant(moment, name, granted)
            if group is None:
                return
            self._grant_group(moment, group)

    def _next(self, moment: Moment, name: str) -> tuple[list[Claim], Claim | None]:
        """The waits that can be granted now, and after them the group, if one is ready."""
        alive = self._sessions.sessions
        holders = self.holders.get(name)
        held = len(holders) if holders else 0
        granted: list[Claim] = []
        passed = False
        if holders and not next(iter(holders.values())).shared:
            return granted, None
        for wait in self.waits[name].values():
            if wait.session not in alive:
                break  # passed over by nobody: its end withdraws it, and goes on here
            if not wait.shared and (held or granted or passed):
                break
            if held + len(granted) >= HOLDERS_PER_LOCK_MAX:
                break
            if len(granted) >= self._budget:
                self._defer(name, moment.time_us)
                break
            if wait.group:
                if self._ready(moment, wait):
                    return granted, wait
                if not wait.shared:
                    break
                passed = True
                continue
            granted.append(wait)
            if not wait.shared:
                break
        return granted, None

    def _grant(self, moment: Moment, name: str, granted: list[Claim]) -> None:
        token = self._era(moment, name)
        for wait in granted:
            self._hold(wait, token)
            moment.tell(wait.client, GrantedLater(wait.session, wait.number, token))
        self._budget -= len(granted)

    def _hold(self, wait: Claim, token: int) -> None:
        claim = Claim(
            wait.number,
            wait.session,
            wait.client,
            wait.name,
            wait.shared,
            wait.owner,
            wait.lock_delay_us,
            token,
            wait.group,
            asks=wait.asks,
        )
        self.put(claim)
        self._record("granted", claim)

    def _era(self, moment: Moment, name: str) -> int:
        """The token of who gets the lock now: that of those who hold it already, or a new one."""
        holders = self.holders.get(name)
        return next(iter(holders.values())).token if holders else moment.number

    def _grantable_first(self, wait: Claim) -> bool:
        """Whether a wait could be granted if nothing but its lock counted."""
        return wait.session in self._sessions.sessions and self._grantable(wait)

    # Upgrades

    def _advance_upgrade(self, moment: Moment, claim: Claim) -> None:
        if len(self.holders[claim.name]) == 1 and claim.session in self._sessions.sessions:
            self._make_exclusive(moment, claim, claim.upgrade)
            told = GrantedLater(claim.session, claim.upgrade, moment.number)
            moment.tell(claim.client, told)

    def _make_exclusive(self, moment: Moment, claim: Claim, upgrade: int) -> Claim:
        upgraded = converted(claim, False, moment.number, upgrade, claim.token)
        self.put(upgraded)
        self._record("upgraded", upgraded)
        return upgraded

    # Groups

    def _ready(self, moment: Moment, wait: Claim) -> bool:
        """Whether all that was asked for together with this wait can be granted."""
        claims = self.claims[wait.session]
        obstacle = claims.get(self._obstacles.get(wait.group, wait.group))
        if obstacle is not None and not self._grantable(obstacle):
            return False
        members = self.members(claims[wait.group])
        if self._budget < min(len(members), STEP):
            self._defer(wait.name, moment.time_us)
            return False
        for member in members:
            if not self._grantable(member):
                self._obstacles[wait.group] = member.number
                return False
        return True

    def _grantable(self, wait: Claim) -> bool:
        """Whether nothing stands before this wait of a group."""
        name = wait.name
        if name in self.deferred or name in self.upgrading:
            return False
        holders = self.holders.get(name)
        if holders:
            shared = wait.shared and next(iter(holders.values())).shared
            if not shared or len(holders) >= HOLDERS_PER_LOCK_MAX:
                return False
        for earlier in self.waits[name].values():
            if earlier.number == wait.number:
                return True
            if not (wait.shared and earlier.shared):
                return False
        return False

    def _grant_group(self, moment: Moment, wait: Claim) -> None:
        members = self.members(self.claims[wait.session][wait.group])
        tokens = tuple(self._era(moment, member.name) for member in members)
        for member, token in zip(members, tokens, strict=True):
            self._hold(member, token)
        self._obstacles.pop(wait.group, None)
        self._budget -= len(members)
        moment.tell(wait.client, GrantedAllLater(wait.session, wait.group, tokens))

    # Deferrals

    def _defer(self, name: str, deadline_us: int) -> None:
        self.deferred[name] = deadline_us
        if len(self._deferrals) > 2 * len(self.deferred) + STEP:
            self._rebuild_deferrals()
        else:
            heapq.heappush(self._deferrals, (deadline_us, name))

    def _settle_deferrals(self) -> None:
        """Drop what was opened or put off since from the top of the heap."""
        heap = self._deferrals
        while heap and self.deferred.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)

    def _rebuild_deferrals(self) -> None:
        self._deferrals = [(deadline_us, name) for name, deadline_us in self.deferred.items()]
        heapq.heapify(self._deferrals)


def converted(claim: Claim, shared: bool, token: int, upgrade: int, before: int) -> Claim:
    return Claim(
        claim.number,
        claim.session,
        claim.client,
        claim.name,
        shared,
        claim.owner,
        claim.lock_delay_us,
        token,
        claim.group,
        upgrade,
        before,
        claim.asks,
    )
