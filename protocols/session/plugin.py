"""Sessions, the pulse and the location of the leader, on one node.

The law: only the leader looks at deadlines, in log time, and it only proposes: what it proposes
names the deadline it saw, and the table checks again when the entry is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import Code
from ..placement.machine import PlacementTable
from ..plugin import (
    CONTROL,
    Command,
    Failure,
    GroupId,
    Internal,
    Message,
    NodeId,
    Replicated,
    Request,
    Result,
)
from ..replica import MEMORYLESS
from .machine import SessionTable
from .messages import (
    FAILED,
    GONE,
    GRANTED,
    MESSAGES,
    WAITING,
    Describe,
    Described,
    EmptySession,
    KeepAlive,
    KeptAlive,
    Locate,
    Located,
    OpenSession,
    Pulse,
    Pulsed,
)

EXPIRIES_MAX = 256
"""Expiries proposed in one entry."""

EMPTYINGS_MAX = 8
"""Steps of ended sessions proposed in one entry; each lets go up to 1,000 things."""

WAITS_MAX = 1_000
"""Waits asked about by one pulse."""

FAILURES_MAX = 16
"""Failed waits told by one pulse: a failure may tell a long story."""

NAME_BYTES_MAX = 255

RETRY_S = 0.1
"""How long a leader waits before it proposes again what was refused."""


class SessionPlugin(Replicated):
    """See `messages.py` for what it is asked and answers."""

    name = "session"
    version = 1
    messages: Sequence[type[Message]] = MESSAGES

    def __init__(self) -> None:
        self._batch: object | None = None
        """The token of the proposed expiries that were neither applied nor refused yet."""
        self._retry_at = 0.0
        self._led_at = -1.0
        self._led_here: tuple[tuple[int, int, int], ...] = ()

    def machine(self, group: GroupId) -> SessionTable | None:
        return SessionTable() if group == CONTROL else None

    def on_request(self, request: Request) -> None:
        operations = request.operations
        if not operations:
            self.port.reply(request, [])
        elif request.group != CONTROL:
            self._refuse(request, Failure(Code.MALFORMED, "sessions live in group 0"))
        elif all(type(one) is Locate for one in operations):
            self.port.reply(request, [self._located()] * len(operations))
        elif type(operations[0]) is Describe and len(operations) == 1:
            self.port.reply(request, [Described(msgspec.json.encode(self.port.describe()))])
        elif any(type(one) is Pulse for one in operations):
            self._on_pulse(request)
        else:
            for one in operations:
                if type(one) is OpenSession and not _name_is_good(one.name):
                    text = f"a client's name has at most {NAME_BYTES_MAX} bytes of UTF-8"
                    self._refuse(request, Failure(Code.BAD_NAME, text))
                    return
            super().on_request(request)

    def on_applied(self, group: GroupId, token: Any, results: Sequence[Result]) -> None:
        if not isinstance(token, Request):
            if token is self._batch:
                self._batch = None
        elif type(token.operations[0]) is not Pulse:
            self.port.reply(token, results)
        elif type(results[0]) is KeptAlive:
            self.port.reply(token, [self._pulsed(token, kept_alive=True)])
        elif _is_expired(results[0]):
            self.port.reply(token, [self._pulsed(token, kept_alive=False)])
        else:
            self.port.reply(token, results)

    def on_read(self, group: GroupId, token: Any) -> None:
        if type(token.operations[0]) is Pulse:
            self.port.reply(token, [self._pulsed(token, kept_alive=False)])
            return
        table, moment = self._table(), self.port.moment(CONTROL)
        self.port.reply(
            token,
            [
                self._located() if type(query) is Locate else table.query(moment, query)
                for query in token.operations
            ],
        )

    def on_failed(self, group: GroupId, token: Any, failure: Failure) -> None:
        if isinstance(token, Request):
            super().on_failed(group, token, failure)
        elif token is self._batch:
            self._batch = None
            self._retry_at = self.port.now() + RETRY_S

    def on_leader(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        if group == CONTROL:
            # What was proposed in another term is settled by the log, whoever tells of it.
            self._batch = None

    def deadline(self) -> float | None:
        if self._batch is not None or not self._leads():
            return None
        table = self._table()
        if table.ending:
            return max(self._retry_at, self.port.now())
        deadline_us = table.next_deadline_us()
        if deadline_us is None:
            return None
        # Log time may move slower than the clock: then it is looked at again.
        left_us = deadline_us - self.port.log_time_us(CONTROL)
        return max(self._retry_at, self.port.now() + max(0, left_us) / 1e6)

    def on_deadline(self) -> None:
        if self._batch is not None or not self._leads() or self.port.now() < self._retry_at:
            return
        table = self._table()
        proposals: list[Internal] = [
            EmptySession(session)
            for session, _ in zip(table.ending, range(EMPTYINGS_MAX))  # noqa: B905
        ]
        proposals += table.due(self.port.log_time_us(CONTROL), EXPIRIES_MAX)
        if proposals:
            self._batch = object()
            numbers = [MEMORYLESS] * len(proposals)
            command = Command(self.name, 0, 0, 0, 0, numbers, proposals)
            self.port.propose(CONTROL, command, self._batch)

    def status(self) -> dict[str, Any]:
        table = self._table()
        return {
            "sessions": len(table.sessions),
            "ending": len(table.ending),
            "ended": table.ended,
            "expired": table.expired_ever,
        }

    def _on_pulse(self, request: Request) -> None:
        pulse = request.operations[0]
        if len(request.operations) != 1 or type(pulse) is not Pulse:
            self._refuse(request, Failure(Code.MALFORMED, "a pulse is sent in a frame of its own"))
        elif len(pulse.principals) not in (0, len(pulse.waits)):
            text = "a pulse names a principal for each wait or for none"
            self._refuse(request, Failure(Code.MALFORMED, text))
        elif len(pulse.waits) > WAITS_MAX:
            text = f"a pulse asks about at most {WAITS_MAX} waits; send several"
            self._refuse(request, Failure(Code.MALFORMED, text))
        elif pulse.keep_alive and request.session:
            command = self.command(request)
            command.sequences, command.operations = [MEMORYLESS], [KeepAlive()]
            self.port.propose(CONTROL, command, request)
        else:
            self.port.read(CONTROL, request)

    def _pulsed(self, request: Request, *, kept_alive: bool) -> Result:
        pulse = request.operations[0]
        assert isinstance(pulse, Pulse)
        table = self._table()
        alive = table.alive(request.session, request.client)
        machines, moment = table.replica.machines, self.port.moment(CONTROL)
        news: list[tuple[int, int]] = []
        failures: list[tuple[int, Failure]] = []
        tokens: list[tuple[int, tuple[int, ...]]] = []
        principals = pulse.principals or (0,) * len(pulse.waits)
        for place, (plugin, number) in enumerate(pulse.waits):
            machine = machines.get(plugin)
            if machine is None:
                return Failure(Code.UNKNOWN_PLUGIN, f"no plugin {plugin!r} has waits here")
            principal = principals[place]
            session = table.by_client.get(principal, 0) if principal else request.session
            found = machine.news(moment, session, number) if alive else None
            together: tuple[int, ...] | None = getattr(found, "tokens", None)
            if type(found) is Failure:
                if len(failures) < FAILURES_MAX:
                    failures.append((place, found))
                    news.append((FAILED, 0))
                else:
                    news.append((WAITING, 0))
                continue
            if together is not None:
                tokens.append((place, together))
            # Of the answers to a wait only a grant carries a token.
            token = together[0] if together else getattr(found, "token", 0)
            news.append((GONE if found is None else GRANTED if token else WAITING, token))
        leader, term = self.port.leader(CONTROL)
        return Pulsed(
            alive=alive,
            kept_alive=kept_alive and alive,
            leader=leader or "",
            term=term,
            log_time_us=self.port.log_time_us(CONTROL),
            news=tuple(news),
            members=tuple(self.port.members()),
            failures=tuple(failures),
            tokens=tuple(tokens),
            led=self._led(),
            partitions=self._partitions(),
        )

    def _led(self) -> tuple[tuple[int, int, int], ...]:
        """The groups led here, with term and log time; of many pulses in a turn found once."""
        port = self.port
        if self._led_at != port.now():
            self._led_at = port.now()
            leaders = {group: port.leader(group) for group in port.groups()}
            self._led_here = tuple(
                (group, term, port.log_time_us(group))
                for group, (leader, term) in leaders.items()
                if leader == port.node
            )
        return self._led_here

    def _partitions(self) -> int:
        machine = self._table().replica.machines.get("placement")
        return len(machine.groups) if isinstance(machine, PlacementTable) else 0

    def _located(self) -> Located:
        port = self.port
        leader, term = port.leader(CONTROL)
        cluster = port.cluster()
        return Located(
            cluster=cluster,
            node=port.node,
            leader=leader or "",
            term=term,
            log_time_us=port.log_time_us(CONTROL),
            members=tuple(port.members()),
            settled=cluster != 0,
            led=self._led(),
            partitions=self._partitions(),
        )

    def _refuse(self, request: Request, failure: Failure) -> None:
        self.port.reply(request, [failure] * len(request.operations))

    def _leads(self) -> bool:
        return self.port.leader(CONTROL)[0] == self.port.node

    def _table(self) -> SessionTable:
        table = self.port.machine(CONTROL)
        assert isinstance(table, SessionTable)
        return table


def _name_is_good(name: str) -> bool:
    return len(name.encode("utf-8", "replace")) <= NAME_BYTES_MAX and name.isprintable()


def _is_expired(result: Result) -> bool:
    return isinstance(result, Failure) and result.code is Code.SESSION_EXPIRED
