"""The coordination family on one node: requests are checked, long steps go on.

The law: an election's watcher is held back only at the leader, and for no longer than it asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from ..checking import Checking, Checks, name_is_good, refuse_name
from ..errors import Code
from ..plugin import CONTROL, Failure, GroupId, Message, Request
from .messages import (
    MESSAGES,
    BreakBarrier,
    Campaign,
    CheckFence,
    ClearEvent,
    GivePermits,
    GoOn,
    InspectElection,
    NotifyCondition,
    ResetBarrier,
    Resign,
    SetEvent,
    TakePermit,
    WaitBarrier,
    WaitCondition,
    WaitEvent,
)
from .table import CoordinationTable

VALUE_MAX = 2**31 - 1
"""Permits of a semaphore."""

COUNT_MAX = 1_000
"""Permits given back at once."""

PARTIES_MAX = 1_000
TOKEN_MAX = 2**63 - 1
VALUE_BYTES_MAX = 64 * 1024
LINGER_MAX_US = 2_000_000

STEPS_MAX = 8
"""Things that go on by one entry; each serves 1,000 waits."""

WATCHERS_MAX = 1_000
"""Questions that wait here; more are answered at once."""

_BAD_VALUE = Failure(Code.MALFORMED, f"a semaphore has from 0 to {VALUE_MAX} permits")
_BAD_COUNT = Failure(Code.MALFORMED, f"give back 1 to {COUNT_MAX} permits at once")
_BAD_PARTIES = Failure(Code.MALFORMED, f"a barrier has 1 to {PARTIES_MAX} parties")
_BAD_NUMBER = Failure(Code.MALFORMED, "a count is not negative")
_BAD_TOKEN = Failure(Code.MALFORMED, "a token is a positive integer of 63 bits")
_TOO_LARGE = Failure(Code.TOO_LARGE, f"a candidate's value has at most {VALUE_BYTES_MAX} bytes")


def _within(field: str, least: int, most: int, failure: Failure) -> Callable[[Any], Failure | None]:
    """The check of a name and one number."""

    def check(operation: Any) -> Failure | None:
        if not least <= getattr(operation, field) <= most:
            return failure
        return refuse_name(operation)

    return check


def _check_give(operation: GivePermits) -> Failure | None:
    if not 1 <= operation.count <= COUNT_MAX:
        return _BAD_COUNT
    return _within("value", 0, VALUE_MAX, _BAD_VALUE)(operation)


def _check_campaign(operation: Campaign) -> Failure | None:
    return _TOO_LARGE if len(operation.value) > VALUE_BYTES_MAX else refuse_name(operation)


class _Watcher(msgspec.Struct):
    request: Request
    name: str
    after: int
    until_s: float


class CoordinationPlugin(Checking):
    """See `messages.py` for what it is asked and answers."""

    name = "coordination"
    version = 1
    messages: Sequence[type[Message]] = MESSAGES
    checks: ClassVar[Checks] = {
        TakePermit: _within("value", 0, VALUE_MAX, _BAD_VALUE),
        GivePermits: _check_give,
        SetEvent: refuse_name,
        ClearEvent: refuse_name,
        WaitEvent: refuse_name,
        WaitBarrier: _within("parties", 1, PARTIES_MAX, _BAD_PARTIES),
        BreakBarrier: _within("parties", 1, PARTIES_MAX, _BAD_PARTIES),
        ResetBarrier: _within("parties", 1, PARTIES_MAX, _BAD_PARTIES),
        WaitCondition: refuse_name,
        NotifyCondition: _within("count", 0, VALUE_MAX, _BAD_NUMBER),
        Campaign: _check_campaign,
        Resign: refuse_name,
        CheckFence: _within("token", 1, TOKEN_MAX, _BAD_TOKEN),
    }

    def __init__(self) -> None:
        super().__init__()
        self._watchers: list[_Watcher] = []
        self._told = 0

    def machine(self, group: GroupId) -> CoordinationTable | None:
        return CoordinationTable() if group == CONTROL else None

    def on_read(self, group: GroupId, token: Any) -> None:
        query = token.operations[0]
        if (
            len(token.operations) == 1
            and type(query) is InspectElection
            and query.linger_us > 0
            and len(self._watchers) < WATCHERS_MAX
            and name_is_good(query.name)
        ):
            until_s = self.port.now() + min(query.linger_us, LINGER_MAX_US) / 1e6
            self._watchers.append(_Watcher(token, query.name, query.after, until_s))
            self._tell_watchers()
        else:
            super().on_read(group, token)

    def deadline(self) -> float | None:
        wanted = [watcher.until_s for watcher in self._watchers]
        if self._table().pending and self._may_propose():
            wanted.append(max(self._retry_at, self.port.now()))
        return min(wanted) if wanted else None

    def on_deadline(self) -> None:
        if not self._may_propose() or self.port.now() < self._retry_at:
            return
        pending = list(self._table().pending)[:STEPS_MAX]
        self._propose([GoOn(kind, name) for kind, name in pending])

    def flush(self) -> None:
        if self._watchers and (
            self._table().leaderships != self._told
            or self.port.now() >= min(watcher.until_s for watcher in self._watchers)
        ):
            self._tell_watchers()

    def status(self) -> dict[str, Any]:
        table = self._table()
        return {"names": len(table.things), "fences": len(table.fences)}

    def _tell_watchers(self) -> None:
        """Answer those whose election has another leader, and those who have waited enough."""
        table, now, waiting = self._table(), self.port.now(), []
        for watcher in self._watchers:
            state = table.election_state(watcher.name)
            if state.token == watcher.after and now < watcher.until_s:
                waiting.append(watcher)
            else:
                self.port.reply(watcher.request, [state])
        self._watchers, self._told = waiting, table.leaderships

    def _table(self) -> CoordinationTable:
        table = self.port.machine(CONTROL)
        assert isinstance(table, CoordinationTable)
        return table
