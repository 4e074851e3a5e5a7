"""A cluster for the client's pure core: the real replica and plugins' machines, no network.

A frame of the client is decoded as a node would and applied at once by whoever leads; its answers
come back as frames, hints after answers. A test says which of them are lost, repeated or late.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from coterie.bus.codec import Ask, Codec, Vocabulary
from coterie.bus.frame import Kind
from coterie.clients.core import Call, Core
from coterie.clients.vocabulary import codec_for
from coterie.protocols.commands import CommandCodec
from coterie.protocols.errors import Code
from coterie.protocols.lock.messages import Acquire, Release
from coterie.protocols.plugin import CONTROL, Command, Failure, Query
from coterie.protocols.records import COMMANDS, Entry, Member
from coterie.protocols.registry import Registry, builtin
from coterie.protocols.replica import MEMORYLESS, Replica
from coterie.protocols.session.messages import (
    GONE,
    GRANTED,
    WAITING,
    KeepAlive,
    Locate,
    Located,
    Pulse,
    Pulsed,
)

CLUSTER = 77
ENDPOINTS = ["tcp://n1", "tcp://n2", "tcp://n3"]
Frames = list[tuple[str, bytes]]


class Cluster:
    """Three nodes with one log. `leader` is an endpoint, or None while there is none."""

    def __init__(self) -> None:
        registry = Registry(builtin())
        roles = registry.vocabularies()
        self.codec = Codec({name: Vocabulary(**spoken) for name, spoken in roles.items()})
        log_codec = CommandCodec(registry.messages())
        self.replica = Replica(CONTROL, registry.machines(CONTROL), log_codec)
        self.leader: str | None = ENDPOINTS[0]
        self.term = 1
        self.time_us = 0
        self.asks: list[tuple[str, str, Ask[Any]]] = []
        self.refuse: Callable[[str, Any], Failure | None] = lambda plugin, operation: None
        self.dead: list[str] = []
        self.keeps_alive = True
        self.hints: dict[int, list[bytes]] = {}
        """By client; `Driven.hear` takes them, else they are lost."""

    def elect(self, endpoint: str | None) -> None:
        self.leader = endpoint
        self.term += 1

    def handle(self, endpoint: str, frame: bytes) -> list[bytes]:
        """What the node at `endpoint` answers."""
        if endpoint in self.dead:
            return []
        plugin, _, ask = self.codec.decode(frame, CLUSTER, (Kind.ASK,), first_contact=True)
        assert isinstance(ask, Ask)
        self.asks.append((endpoint, plugin, ask))
        results = self._results(endpoint, plugin, ask)
        frames = self.codec.encode_answer(plugin, CLUSTER, 0, ask.sequences, results)
        for client, hint in self.replica.take_hints():
            told = self.codec.encode_tell("lock", CLUSTER, [hint])
            if client == ask.client:
                frames += told
            else:
                self.hints.setdefault(client, []).extend(told)
        return frames

    def locks(self) -> dict[str, int]:
        """How many hold or wait, by lock."""
        table: Any = self.replica.machines["lock"]
        names = {**table.holders, **table.waits}
        return {n: len(table.holders.get(n, ())) + len(table.waits.get(n, ())) for n in names}

    def expire_everything(self) -> None:
        """Log time passes every deadline, and the leader says so."""
        sessions: Any = self.replica.machines["session"]
        self.time_us += 3_700_000_000
        due = sessions.due(self.time_us, 100)
        self._apply(Command("session", 0, 0, 0, 0, [MEMORYLESS] * len(due), due))

    def _results(self, endpoint: str, plugin: str, ask: Ask[Any]) -> list[Any]:
        if type(ask.operations[0]) is Locate:
            return [self._located(endpoint)]
        if endpoint != self.leader:
            named = (f"n{self.leader[-1]}",) if self.leader else ()
            return [Failure(Code.NOT_LEADER, "", named)] * len(ask.operations)
        refusals = [self.refuse(plugin, operation) for operation in ask.operations]
        if any(refusals):
            return [refusal or Failure(Code.BUSY) for refusal in refusals]
        if isinstance(ask.operations[0], Pulse):
            return [self._pulsed(ask, ask.operations[0])]
        if isinstance(ask.operations[0], Query):
            machine = self.replica.machines[plugin]
            return [machine.query(self.replica.moment, query) for query in ask.operations]
        return self._apply(self._command(plugin, ask, ask.sequences, ask.operations))

    def _command(
        self, plugin: str, ask: Ask[Any], sequences: list[int], operations: list[Any]
    ) -> Command:
        bound = ask.not_after_us
        return Command(
            plugin, ask.client, ask.session, ask.done_below, bound, sequences, operations
        )

    def _apply(self, command: Command) -> list[Any]:
        entry = Entry(self.replica.applied + 1, self.term, self.time_us, COMMANDS)
        return self.replica.apply(entry, [command])[0]

    def _located(self, endpoint: str) -> Located:
        node = f"n{endpoint[-1]}"
        leader = f"n{self.leader[-1]}" if self.leader else ""
        members = tuple(Member(f"n{e[-1]}", 1, True, e) for e in ENDPOINTS)
        return Located(CLUSTER, node, leader, self.term, self.time_us, members)

    def _pulsed(self, ask: Ask[Any], pulse: Pulse) -> Any:
        kept = False
        if pulse.keep_alive and self.keeps_alive:
            command = self._command("session", ask, [MEMORYLESS], [KeepAlive()])
            kept = not isinstance(self._apply(command)[0], Failure)
        sessions: Any = self.replica.machines["session"]
        alive = sessions.alive(ask.session, ask.client)
        news = []
        for plugin, number in pulse.waits:
            machine = self.replica.machines[plugin]
            found = machine.news(self.replica.moment, ask.session, number) if alive else None
            token = getattr(found, "token", 0)
            news.append((GONE if found is None else GRANTED if token else WAITING, token))
        leader = f"n{self.leader[-1]}" if self.leader else ""
        return Pulsed(alive, kept and alive, leader, self.term, self.time_us, tuple(news))


class Driven:
    """A core with a clock of its own, connected to a cluster.

    `lose(endpoint, frame)` true: a frame to a node is lost; `lose_answer` the same on its way
    back. `sent` keeps every frame that left.
    """

    def __init__(self, cluster: Cluster, seed: int = 1, **settings: Any) -> None:
        self.cluster = cluster
        self.now = 1_000.0
        self.core = Core(ENDPOINTS, codec_for([]), random.Random(seed), **settings)
        self.done: list[Call] = []
        self.sent: Frames = []
        self.lose: Callable[[str, bytes], bool] = lambda endpoint, frame: False
        self.lose_answer: Callable[[str, bytes], bool] = lambda endpoint, frame: False

    def exchange(self) -> None:
        """Frames go back and forth until there is nothing more to say at this instant."""
        while frames := self.core.flush(self.now):
            for endpoint, frame in frames:
                self.sent.append((endpoint, frame))
                if not self.lose(endpoint, frame):
                    self.arrive(endpoint, frame)
        self.done.extend(self.core.take_completed())

    def arrive(self, endpoint: str, frame: bytes) -> None:
        for answer in self.cluster.handle(endpoint, frame):
            if not self.lose_answer(endpoint, answer):
                self.core.receive(endpoint, answer, self.now)

    def hear(self) -> None:
        """The hints for this client arrive."""
        for frame in self.cluster.hints.pop(self.core.client, []):
            self.core.receive(self.cluster.leader or ENDPOINTS[0], frame, self.now)
        self.exchange()

    def pass_time(self, seconds: float) -> None:
        """Let every deadline of the core come in its turn."""
        end = self.now + seconds
        while (deadline := self.core.deadline()) is not None and deadline <= end:
            self._move_to(max(self.now + 0.001, deadline))
            self.core.on_deadline(self.now)
            self.exchange()
        self._move_to(end)

    def _move_to(self, now: float) -> None:
        if self.cluster.leader is not None:
            self.cluster.time_us += round((now - self.now) * 1e6)
        self.now = now

    def acquire(self, name: str, *, wait: bool = True, timeout: float | None = None) -> Call:
        call = Call("lock", Acquire(name, wait=wait), waits=wait)
        call.deadline = None if timeout is None else self.now + timeout
        self.core.submit(call, self.now)
        self.exchange()
        return call

    def release(self, call: Call) -> Call:
        assert isinstance(call.operation, Acquire)
        released = Call("lock", Release(call.operation.name, call.result.grant))
        released.session = call.session
        self.core.submit(released, self.now)
        self.exchange()
        return released

    def cancel(self, call: Call) -> None:
        self.core.cancel(call, self.now)
        self.exchange()
