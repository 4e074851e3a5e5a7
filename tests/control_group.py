"""A control group without a cluster: the real replica, driven entry by entry through its bytes,
and a port whose log is that replica."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from coterie.protocols.commands import CommandCodec
from coterie.protocols.plugin import (
    CONTROL,
    Command,
    Failure,
    Hint,
    Internal,
    Message,
    Moment,
    Operation,
    Plugin,
    Request,
    Result,
    StateMachine,
)
from coterie.protocols.records import COMMANDS, NOOP, Entry, Member
from coterie.protocols.registry import Registry, builtin
from coterie.protocols.replica import MEMORYLESS, Replica
from coterie.protocols.session.messages import OpenSession, SessionOpened

TTL_US = 10_000_000


class ControlGroup:
    """One replica of group 0 (or of a partition) and the log that feeds it."""

    def __init__(self, *more: Plugin, group: int = CONTROL) -> None:
        registry = Registry([*builtin(), *more])
        self.codec = CommandCodec(registry.messages())
        self.replica = Replica(group, registry.machines(group), self.codec)
        self.log: list[Entry] = []
        self.time_us = 1_000_000
        self.sequences: dict[int, int] = {}

    @property
    def sessions(self) -> Any:
        return self.replica.machines["session"]

    @property
    def locks(self) -> Any:
        return self.replica.machines["lock"]

    def apply(self, *commands: Command) -> list[list[Result]]:
        payload = self.codec.encode(commands)
        return self.feed(Entry(len(self.log) + 1, 1, self.time_us, COMMANDS, payload))

    def tick(self) -> None:
        self.feed(Entry(len(self.log) + 1, 1, self.time_us, NOOP))

    def feed(self, entry: Entry) -> list[list[Result]]:
        self.log.append(entry)
        replies = self.replica.apply(entry)
        self.replica.check()
        return replies

    def one(
        self,
        plugin: str,
        operation: Operation | Internal,
        *,
        client: int = 0,
        session: int = 0,
        sequence: int = MEMORYLESS,
        done_below: int = 0,
        not_after_us: int = 0,
    ) -> Result:
        numbers: Sequence[int] = [sequence]
        command = Command(plugin, client, session, done_below, not_after_us, numbers, [operation])
        ((result,),) = self.apply(command)
        return result

    def open(self, client: int, *, attempt: int = 1, ttl_us: int = TTL_US, name: str = "") -> int:
        result = self.one("session", OpenSession(attempt, ttl_us, name), client=client)
        assert isinstance(result, SessionOpened), result
        return result.session

    def ask(self, session: int, operation: Operation, plugin: str = "lock") -> Any:
        """An operation under the next sequence of a session."""
        sequence = self.sequences[session] = self.sequences.get(session, 0) + 1
        client = self.sessions.sessions[session].client
        return self.one(plugin, operation, client=client, session=session, sequence=sequence)


class DirectPort:
    """A port on a `ControlGroup`: what is proposed is applied by `commit`, or refused by `fail`."""

    def __init__(self, group: ControlGroup, plugin: Any) -> None:
        self.node = "node1"
        self.random = random.Random(1)
        self.group = group
        self.plugin = plugin
        self.leading = True
        self.clock = 100.0
        self.answers: list[tuple[Request, Sequence[Result]]] = []
        self.proposals: list[tuple[Command, Any]] = []
        self.reads: list[Any] = []
        self.notes: list[str] = []
        plugin.start(self)

    def now(self) -> float:
        return self.clock

    def send(self, to: str, message: Message) -> None:
        raise AssertionError("nothing is sent between nodes here")

    def publish(self, topic: bytes, message: Message) -> None:
        raise AssertionError("nothing is published here")

    def tell(self, client: int, hint: Hint) -> None:
        raise AssertionError("hints come from the machines here")

    def reply(self, request: Request, results: Sequence[Result]) -> None:
        assert len(results) == len(request.operations)
        self.answers.append((request, results))

    def propose(self, group: int, command: Command, token: Any) -> None:
        assert group == CONTROL
        self.proposals.append((command, token))

    def read(self, group: int, token: Any) -> None:
        self.reads.append(token)

    def machine(self, group: int) -> StateMachine:
        return self.group.replica.machines[self.plugin.name]

    def moment(self, group: int) -> Moment:
        return self.group.replica.moment

    def leader(self, group: int) -> tuple[str | None, int]:
        return ("node1" if self.leading else "node2"), 7

    def groups(self) -> Sequence[int]:
        return [CONTROL]

    def log_time_us(self, group: int) -> int:
        return self.group.time_us

    def members(self) -> Sequence[Member]:
        return (Member("node1", 1, True),)

    def cluster(self) -> int:
        return 42

    def describe(self) -> dict[str, Any]:
        return {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def commit(self) -> None:
        proposals, self.proposals = self.proposals, []
        replies = self.group.apply(*[command for command, _ in proposals])
        for (_, token), results in zip(proposals, replies, strict=True):
            self.plugin.on_applied(CONTROL, token, results)

    def fail(self, failure: Failure) -> None:
        proposals, self.proposals = self.proposals, []
        for _, token in proposals:
            self.plugin.on_failed(CONTROL, token, failure)

    def confirm_reads(self) -> None:
        reads, self.reads = self.reads, []
        for token in reads:
            self.plugin.on_read(CONTROL, token)

    def request(
        self,
        operations: Sequence[Any],
        *,
        client: int = 7,
        session: int = 0,
        first: int = 1,
        group: int = CONTROL,
    ) -> Request:
        numbers = range(first, first + len(operations))
        name = self.plugin.name
        request = Request(name, client, session, group, 0, 0, list(numbers), operations)
        self.plugin.on_request(request)
        return request

    def answered(self) -> list[Any]:
        """The results of the only answer since this was last asked."""
        ((_, results),) = self.answers
        self.answers = []
        return list(results)


def restore(machine: StateMachine, chunks: Iterable[bytes]) -> None:
    """Bring an empty machine to the state of a snapshot."""
    for chunk in chunks:
        machine.restore(chunk)
    machine.restored()
