"""Plugins of the control group that check what they are asked, and propose things themselves.

The law: what is refused here would mean nothing in any state of the machine, so a copy of it is
refused by every node alike. What a leader proposes on its own account names what it saw; at most
one such batch is under way.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import msgspec

from .errors import Code
from .plugin import (
    CONTROL,
    Command,
    Failure,
    GroupId,
    Internal,
    NodeId,
    Query,
    Replicated,
    Request,
    Result,
)
from .replica import MEMORYLESS

RETRY_S = 0.1
"""How long a leader waits before it proposes again what was refused."""

NAME_BYTES_MAX = 255

Checks: TypeAlias = Mapping[type[Any], Callable[[Any], Failure | None]]

BAD_NAME = Failure(
    Code.BAD_NAME,
    f"a name has 1 to {NAME_BYTES_MAX} bytes of UTF-8, no control characters, and is not . or ..",
)


def name_is_good(name: str) -> bool:
    """1 to 255 bytes of UTF-8, no control characters, and not "." or ".."."""
    if name.isascii():
        return 0 < len(name) <= NAME_BYTES_MAX and name.isprintable() and name not in (".", "..")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return size <= NAME_BYTES_MAX and all(unicodedata.category(c) != "Cc" for c in name)


def refuse_name(operation: Any) -> Failure | None:
    """The check of a request of which only the name can be wrong."""
    return None if name_is_good(operation.name) else BAD_NAME


class _Checked(msgspec.Struct):
    """A request some of whose operations were refused: the others are on their way."""

    request: Request
    refused: dict[int, Failure]

    def merge(self, results: Sequence[Result]) -> list[Result]:
        rest = iter(results)
        count = len(self.request.operations)
        return [self.refused[n] if n in self.refused else next(rest) for n in range(count)]


class Checking(Replicated):
    """`checks`: by type, what finds a request's fault, if it has one."""

    checks: ClassVar[Checks] = {}

    def __init__(self) -> None:
        self._batch: object | None = None
        """The token of what was proposed and neither applied nor refused yet."""
        self._retry_at = 0.0

    def on_request(self, request: Request) -> None:
        operations = request.operations
        if not operations:
            self.port.reply(request, [])
            return
        if request.group != CONTROL:
            self._refuse(request, Failure(Code.MALFORMED, f"{self.name} lives in group 0"))
            return
        refused: dict[int, Failure] = {}
        for position, operation in enumerate(operations):
            check = self.checks.get(type(operation))
            if check is not None and (failure := check(operation)) is not None:
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

    def _leads(self) -> bool:
        return self.port.leader(CONTROL)[0] == self.port.node

    def _may_propose(self) -> bool:
        """Whether this node leads and has nothing of its own under way."""
        return self._batch is None and self._leads()

    def _propose(self, proposals: Sequence[Internal]) -> None:
        """Propose on the leader's own account, if there is anything."""
        if proposals:
            self._batch = object()
            numbers = [MEMORYLESS] * len(proposals)
            self.port.propose(
                CONTROL, Command(self.name, 0, 0, 0, 0, numbers, proposals), self._batch
            )

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
