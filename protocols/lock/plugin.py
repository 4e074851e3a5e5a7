"""Locks on one node: requests are checked, deadlocks swept for, deferred locks opened.

The law: only the leader looks at deadlines and at the whole graph, and it only proposes; the table
looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..checking import BAD_NAME, Checking, Checks, name_is_good, refuse_name
from ..errors import Code
from ..plugin import CONTROL, Failure, GroupId, Internal, Message, NodeId
from .messages import (
    MESSAGES,
    Acquire,
    AcquireAll,
    BreakDeadlock,
    Downgrade,
    ForceRelease,
    Release,
    SetDetection,
    Upgrade,
    Watch,
)
from .owners import CLAIMS_PER_OWNER_MAX, ENQUEUE
from .sweep import Sweep
from .table import LockTable
from .watching import Watchers

DETECTIONS = ("both", "enqueue", "sweep")
"""Where deadlocks are looked for: when somebody begins to wait, by the leader's sweep, or both."""

OPENINGS_MAX = 8
"""Deferred locks opened by one entry; each may grant 1,000 waits."""

BREAKS_MAX = 8
"""Deadlocks broken by one entry; each may let go 1,000 locks."""

LOCK_DELAY_MAX_US = 3_600_000_000

_BAD_DELAY = Failure(Code.MALFORMED, "lock_delay must be from 0 seconds to 1 hour")
_BAD_NAMES = Failure(
    Code.MALFORMED, f"ask for 1 to {CLAIMS_PER_OWNER_MAX} locks at once, each of them once"
)


def _check_acquire(operation: Acquire) -> Failure | None:
    if not 0 <= operation.lock_delay_us <= LOCK_DELAY_MAX_US:
        return _BAD_DELAY
    return None if name_is_good(operation.name) else BAD_NAME


def _check_acquire_all(operation: AcquireAll) -> Failure | None:
    names = operation.names
    if not 0 <= operation.lock_delay_us <= LOCK_DELAY_MAX_US:
        return _BAD_DELAY
    if not 1 <= len(names) <= CLAIMS_PER_OWNER_MAX or len(dict.fromkeys(names)) < len(names):
        return _BAD_NAMES
    return None if all(name_is_good(name) for name in names) else BAD_NAME


class LockPlugin(Checking):
    """See `messages.py` for what it is asked and answers.

    `detection` is one of `DETECTIONS`. What counts is what the table says, the same on every
    node: a leader that was told otherwise has it changed when it takes office."""

    name = "lock"
    version = 1
    messages: Sequence[type[Message]] = MESSAGES
    checks: ClassVar[Checks] = {
        Acquire: _check_acquire,
        AcquireAll: _check_acquire_all,
        Release: refuse_name,
        Upgrade: refuse_name,
        Downgrade: refuse_name,
        ForceRelease: refuse_name,
    }

    def __init__(self, detection: str = "both") -> None:
        super().__init__()
        self._mode = DETECTIONS.index(detection)
        self._sweep = Sweep()
        self._breaks: list[BreakDeadlock] = []
        """Deadlocks found and not proposed yet."""
        self._watchers = Watchers()

    def machine(self, group: GroupId) -> LockTable | None:
        return LockTable() if group == CONTROL else None

    def on_failed(self, group: GroupId, token: Any, failure: Failure) -> None:
        if token is self._batch:
            self._sweep.repeat(self.port.now())
        super().on_failed(group, token, failure)

    def on_read(self, group: GroupId, token: Any) -> None:
        query = token.operations[0]
        if len(token.operations) == 1 and type(query) is Watch and query.linger_us > 0:
            self._watchers.admit(self.port, self._table(), token, query)
        else:
            super().on_read(group, token)

    def on_leader(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        super().on_leader(group, leader, term)
        if group == CONTROL:
            self._sweep.forget()
            self._breaks.clear()

    def deadline(self) -> float | None:
        watched = self._watchers.deadline(self._table(), self.port.now())
        if not self._may_propose():
            return watched
        wanted = [at for at in (self._wanted_at(), watched) if at is not None]
        return min(wanted) if wanted else None

    def _wanted_at(self) -> float | None:
        """When this leader wants to propose something or go on with its sweep."""
        table, now = self._table(), self.port.now()
        if self._breaks or table.detection != self._mode:
            return max(self._retry_at, now)
        wanted: list[float] = []
        if table.detection != ENQUEUE and (swept := self._sweep.deadline(table, now)) is not None:
            wanted.append(swept)
        deadline_us = table.next_deferral_us()
        if deadline_us is not None:
            # Log time may move slower than the clock: then it is looked at again.
            left_us = deadline_us - self.port.log_time_us(CONTROL)
            wanted.append(now + max(0, left_us) / 1e6)
        return max(self._retry_at, min(wanted)) if wanted else None

    def on_deadline(self) -> None:
        table, now = self._table(), self.port.now()
        self._watchers.serve(self.port, table)
        if not self._may_propose() or now < self._retry_at:
            return
        if table.detection != ENQUEUE:
            self._breaks += self._sweep.go_on(table, table.alive, now)
        proposals: list[Internal] = []
        proposals += table.openable(self.port.log_time_us(CONTROL), OPENINGS_MAX)
        proposals += self._breaks[:BREAKS_MAX]
        del self._breaks[:BREAKS_MAX]
        if table.detection != self._mode:
            proposals.append(SetDetection(self._mode))
        self._propose(proposals)

    def flush(self) -> None:
        notes = self._table().notes
        if notes:
            if self._leads():
                for note in notes:
                    self.port.note(note)
            notes.clear()

    def status(self) -> dict[str, Any]:
        table = self._table()
        return {
            "held": len(table.holders),
            "contended": len(table.waits),
            "waits": sum(map(len, table.waits.values())),
            "deferred": len(table.deferred),
            "transactions": sum(map(len, table.transactions.values())),
            "deadlock_detection": DETECTIONS[table.detection],
            "deadlocks": table.deadlocks,
            "sweeps": self._sweep.count,
            "victims": [
                {"time_us": time_us, "owner": owner, "cycle": cycle}
                for time_us, owner, cycle in table.victims
            ],
        }

    def _table(self) -> LockTable:
        table = self.port.machine(CONTROL)
        assert isinstance(table, LockTable)
        return table


__all__ = ["DETECTIONS", "LockPlugin", "name_is_good"]
