"""Locks on one node: requests are checked here, before they reach the log.

The law: what is refused here would mean nothing in any state of the table, so a copy of it is
refused by every node alike.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..errors import Code
from ..plugin import (
    CONTROL,
    Command,
    Failure,
    GroupId,
    Internal,
    Message,
    NodeId,
    Operation,
    Query,
    Replicated,
    Request,
    Result,
)
from ..replica import MEMORYLESS
from .messages import (
    MESSAGES,
    NAME_BYTES_MAX,
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

RETRY_S = 0.1
"""How long a leader waits before it proposes again what was refused."""

_BAD_NAME = Failure(
    Code.BAD_NAME,
    f"a name has 1 to {NAME_BYTES_MAX} bytes of UTF-8, no control characters, and is not . or ..",
)
_BAD_DELAY = Failure(Code.MALFORMED, "lock_delay must be from 0 seconds to 1 hour")
_BAD_NAMES = Failure(
    Code.MALFORMED, f"ask for 1 to {CLAIMS_PER_OWNER_MAX} locks at once, each of them once"
)


class _Checked(msgspec.Struct):
    """A request some of whose operations were refused: the others are on their way."""

    request: Request
    refused: dict[int, Failure]

    def merge(self, results: Sequence[Result]) -> list[Result]:
        rest = iter(results)
        count = len(self.request.operations)
        return [self.refused[n] if n in self.refused else next(rest) for n in range(count)]


class LockPlugin(Replicated):
    """See `messages.py` for what it is asked and answers.

    `detection` is one of `DETECTIONS`. What counts is what the table says, the same on every
    node: a leader that was told otherwise has it changed when it takes office."""

    name = "lock"
    version = 1
    messages: Sequence[type[Message]] = MESSAGES

    def __init__(self, detection: str = "both") -> None:
        self._mode = DETECTIONS.index(detection)
        self._batch: object | None = None
        """The token of what was proposed and neither applied nor refused yet."""
        self._retry_at = 0.0
        self._sweep = Sweep()
        self._breaks: list[BreakDeadlock] = []
        """Deadlocks found and not proposed yet."""
        self._watchers = Watchers()

    def machine(self, group: GroupId) -> LockTable | None:
        return LockTable() if group == CONTROL else None

    def on_request(self, request: Request) -> None:
        operations = request.operations
        if not operations:
            self.port.reply(request, [])
            return
        if request.group != CONTROL:
            self._refuse(request, Failure(Code.MALFORMED, "locks live in group 0"))
            return
        refused: dict[int, Failure] = {}
        for position, operation in enumerate(operations):
            refuse = _REFUSALS.get(type(operation))
            if refuse is not None and (failure := refuse(operation)) is not None:
                refused[position] = failure
        if not refused:
            super().on_request(request)
        elif len(refused) == len(operations):
            self.port.reply(request, list(refused.values()))
        elif any(isinstance(operation, Query) for operation in operations):
            super().on_request(request)
        else:
            self._propose_rest(request, refused)

    def on_applied(self, group: GroupId, token: Any, results: Sequence[Result]) -> None:
        if type(token) is Request:
            self.port.reply(token, results)
        elif type(token) is _Checked:
            self.port.reply(token.request, token.merge(results))
        elif token is self._batch:
            self._batch = None

    def on_failed(self, group: GroupId, token: Any, failure: Failure) -> None:
        if type(token) is Request:
            self._refuse(token, failure)
        elif type(token) is _Checked:
            count = len(token.request.operations) - len(token.refused)
            self.port.reply(token.request, token.merge([failure] * count))
        elif token is self._batch:
            self._batch = None
            self._retry_at = self.port.now() + RETRY_S
            self._sweep.repeat(self._retry_at)

    def on_read(self, group: GroupId, token: Any) -> None:
        query = token.operations[0]
        if len(token.operations) == 1 and type(query) is Watch and query.linger_us > 0:
            self._watchers.admit(self.port, self._table(), token, query)
        else:
            super().on_read(group, token)

    def on_leader(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        if group == CONTROL:
            # What was proposed in another term is settled by the log, whoever tells of it.
            self._batch = None
            self._sweep.forget()
            self._breaks.clear()

    def deadline(self) -> float | None:
        watched = self._watchers.deadline(self._table(), self.port.now())
        if self._batch is not None or not self._leads():
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
        self._watchers.serve(self.port, self._table())
        if self._batch is not None or not self._leads() or self.port.now() < self._retry_at:
            return
        table = self._table()
        if table.detection != ENQUEUE:
            self._breaks += self._sweep.go_on(table, table.alive, self.port.now())
        proposals: list[Internal] = []
        proposals += table.openable(self.port.log_time_us(CONTROL), OPENINGS_MAX)
        proposals += self._breaks[:BREAKS_MAX]
        del self._breaks[:BREAKS_MAX]
        if table.detection != self._mode:
            proposals.append(SetDetection(self._mode))
        if proposals:
            self._batch = object()
            command = Command(self.name, 0, 0, 0, 0, [MEMORYLESS] * len(proposals), proposals)
            self.port.propose(CONTROL, command, self._batch)

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

    def _propose_rest(self, request: Request, refused: dict[int, Failure]) -> None:
        command = self.command(request)
        kept = [n for n in range(len(request.operations)) if n not in refused]
        command.sequences = [command.sequences[n] for n in kept]
        command.operations = [command.operations[n] for n in kept]
        self.port.propose(CONTROL, command, _Checked(request, refused))

    def _refuse(self, request: Request, failure: Failure) -> None:
        self.port.reply(request, [failure] * len(request.operations))

    def _leads(self) -> bool:
        return self.port.leader(CONTROL)[0] == self.port.node

    def _table(self) -> LockTable:
        table = self.port.machine(CONTROL)
        assert isinstance(table, LockTable)
        return table


def name_is_good(name: str) -> bool:
    """1 to 255 bytes of UTF-8, no control characters, and not "." or ".."."""
    if name.isascii():
        return 0 < len(name) <= NAME_BYTES_MAX and name.isprintable() and name not in (".", "..")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return size <= NAME_BYTES_MAX and all(unicodedata.category(c) != "Cc" for c in name)


def _refuse_acquire(operation: Acquire) -> Failure | None:
    if not 0 <= operation.lock_delay_us <= LOCK_DELAY_MAX_US:
        return _BAD_DELAY
    return None if name_is_good(operation.name) else _BAD_NAME


def _refuse_acquire_all(operation: AcquireAll) -> Failure | None:
    names = operation.names
    if not 0 <= operation.lock_delay_us <= LOCK_DELAY_MAX_US:
        return _BAD_DELAY
    if not 1 <= len(names) <= CLAIMS_PER_OWNER_MAX or len(dict.fromkeys(names)) < len(names):
        return _BAD_NAMES
    return None if all(name_is_good(name) for name in names) else _BAD_NAME


def _refuse_name(operation: Any) -> Failure | None:
    return None if name_is_good(operation.name) else _BAD_NAME


_REFUSALS: dict[type[Operation | Query], Callable[[Any], Failure | None]] = {
    Acquire: _refuse_acquire,
    AcquireAll: _refuse_acquire_all,
    Release: _refuse_name,
    Upgrade: _refuse_name,
    Downgrade: _refuse_name,
    ForceRelease: _refuse_name,
}
