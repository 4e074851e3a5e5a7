"""Locks on one node: requests are checked here, before they reach the log.

The law: what is refused here would mean nothing in any state of the table, so a copy of it is
refused by every node alike.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import Code
from ..plugin import (
    CONTROL,
    Command,
    Failure,
    GroupId,
    Message,
    NodeId,
    Operation,
    Query,
    Replicated,
    Request,
    Result,
)
from ..replica import MEMORYLESS
from .messages import MESSAGES, NAME_BYTES_MAX, Acquire, Release
from .table import LockTable

OPENINGS_MAX = 8
"""Deferred locks opened by one entry; each may grant 1,000 waits."""

LOCK_DELAY_MAX_US = 3_600_000_000

RETRY_S = 0.1
"""How long a leader waits before it proposes again what was refused."""

_BAD_NAME = Failure(
    Code.BAD_NAME,
    f"a name has 1 to {NAME_BYTES_MAX} bytes of UTF-8, no control characters, and is not . or ..",
)
_BAD_DELAY = Failure(Code.MALFORMED, "lock_delay must be from 0 seconds to 1 hour")


class _Checked(msgspec.Struct):
    """A request some of whose operations were refused: the others are on their way."""

    request: Request
    refused: dict[int, Failure]

    def merge(self, results: Sequence[Result]) -> list[Result]:
        rest = iter(results)
        count = len(self.request.operations)
        return [self.refused[n] if n in self.refused else next(rest) for n in range(count)]


class LockPlugin(Replicated):
    """See `messages.py` for what it is asked and answers."""

    name = "lock"
    version = 1
    messages: Sequence[type[Message]] = MESSAGES

    def __init__(self) -> None:
        self._batch: object | None = None
        """The token of the proposed openings that were neither applied nor refused yet."""
        self._retry_at = 0.0

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
            kind = type(operation)
            if kind is Acquire or kind is Release:
                failure = _refusal(operation)
                if failure is not None:
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

    def on_leader(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        if group == CONTROL:
            # What was proposed in another term is settled by the log, whoever tells of it.
            self._batch = None

    def deadline(self) -> float | None:
        if self._batch is not None or self.port.leader(CONTROL)[0] != self.port.node:
            return None
        deadline_us = self._table().next_deferral_us()
        if deadline_us is None:
            return None
        # Log time may move slower than the clock: then it is looked at again.
        left_us = deadline_us - self.port.log_time_us(CONTROL)
        return max(self._retry_at, self.port.now() + max(0, left_us) / 1e6)

    def on_deadline(self) -> None:
        if self.deadline() is None or self.port.now() < self._retry_at:
            return
        openings = self._table().openable(self.port.log_time_us(CONTROL), OPENINGS_MAX)
        if openings:
            self._batch = object()
            command = Command(self.name, 0, 0, 0, 0, [MEMORYLESS] * len(openings), openings)
            self.port.propose(CONTROL, command, self._batch)

    def status(self) -> dict[str, Any]:
        table = self._table()
        return {
            "held": len(table.holders),
            "contended": len(table.waits),
            "waits": sum(map(len, table.waits.values())),
            "deferred": len(table.deferred),
        }

    def _propose_rest(self, request: Request, refused: dict[int, Failure]) -> None:
        command = self.command(request)
        kept = [n for n in range(len(request.operations)) if n not in refused]
        command.sequences = [command.sequences[n] for n in kept]
        command.operations = [command.operations[n] for n in kept]
        if command.principals:
            command.principals = [command.principals[n] for n in kept]
        self.port.propose(CONTROL, command, _Checked(request, refused))

    def _refuse(self, request: Request, failure: Failure) -> None:
        self.port.reply(request, [failure] * len(request.operations))

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


def _refusal(operation: Operation | Query) -> Failure | None:
    if type(operation) is Acquire:
        if not 0 <= operation.lock_delay_us <= LOCK_DELAY_MAX_US:
            return _BAD_DELAY
        return None if name_is_good(operation.name) else _BAD_NAME
    assert type(operation) is Release
    return None if name_is_good(operation.name) else _BAD_NAME
