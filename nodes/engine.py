"""The engine: plugins, groups and deadlines of one node, in turns.

The law: no I/O, no clock. Whoever drives the engine (`process.py` with sockets and a disk,
`simulator.py` with an event heap) calls `begin(now)`, hands in what came, and takes the effects
with `end()`. Within a turn time stands still, and nothing leaves before its end: then one write to
the log, and per peer and plugin one list of messages.

What the driver owes: `effects.cluster`, if set, is on disk before any other effect is carried out;
`durable(n)` is called only when the records of write n and of all writes before it are on disk; a
write that fails ends the node. Sends and the write may go in parallel: answers that count on a
write are held back by raft itself until it is durable.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ..protocols.errors import Code
from ..protocols.log_plugin import LogPlugin
from ..protocols.plugin import (
    CONTROL,
    ClientId,
    Command,
    Failure,
    GroupId,
    Hint,
    Message,
    Moment,
    NodeId,
    Plugin,
    Query,
    Request,
    Result,
    StateMachine,
    WriteNumber,
)
from ..protocols.records import Identity, Member, Record, Snapshot
from ..protocols.replica import Replica

ROUTES_MAX = 100_000
"""Clients whose way back is remembered, for hints; the least recently heard is forgotten."""


class Effects(msgspec.Struct):
    """What a turn wants done."""

    records: list[Record] = []
    write_number: WriteNumber = 0
    messages: dict[tuple[NodeId, str], list[Message]] = {}
    answers: list[tuple[Request, Sequence[Result]]] = []
    hints: list[tuple[Any, str, list[Hint]]] = []
    published: list[tuple[str, bytes, Message]] = []
    led: list[tuple[GroupId, NodeId | None, int]] = []
    """(group, leader, term) of what changed, to be told."""
    notes: list[str] = []
    cluster: int | None = None
    stop: Failure | None = None
    disk_tasks: list[tuple[str, tuple[Any, ...]]] = []
    """Calls of `LogPort` that the disk answers later: name and arguments."""


class Engine:
    """One node. `log` is the plugin that owns the log; `plugins` are all the others.

    `introductions` are the messages heeded from a node whose incarnation is not the recorded one.
    """

    def __init__(
        self,
        identity: Identity,
        plugins: Sequence[Plugin],
        log: LogPlugin,
        replicas: Mapping[GroupId, Replica],
        introductions: tuple[type[Message], ...],
        seed: int,
    ) -> None:
        self.identity = identity
        self.log = log
        self.replicas = replicas
        self.now = 0.0
        self.dropped: dict[str, int] = {}
        self.proposals = self.reads = 0
        """Commands proposed and reads asked for by plugins, for figures."""
        self._introductions = introductions
        self._plugins: dict[str, Plugin] = {plugin.name: plugin for plugin in plugins}
        self._plugins[log.name] = log
        self._others = tuple(plugins)
        self._hint_owner = {
            message: plugin.name
            for plugin in plugins
            for message in plugin.messages
            if issubclass(message, Hint)
        }
        self._routes: OrderedDict[ClientId, Any] = OrderedDict()
        self._write_number = 0
        self._effects = _no_effects()
        self._seed = seed
        self.describe: Callable[[], dict[str, Any]] = self.status
        """What the node tells of itself; its process adds what only it knows."""
        self.refusing: Failure | None = None
        """While set (full or slow disk), clients' operations get this answer, not their queries."""

    def start(self, now: float) -> Effects:
        """Start the plugins; their first effects."""
        self.begin(now)
        for name, plugin in self._plugins.items():
            # A source of its own per plugin: one drawing more does not disturb the others.
            plugin.start(EnginePort(self, name, random.Random(f"{self._seed}/{name}")))
        return self.end()

    def begin(self, now: float) -> None:
        """A turn begins. `now`: seconds, monotonic, counting suspended time."""
        self.now = max(self.now, now)

    def receive(
        self,
        sender: NodeId,
        incarnation: int,
        to_incarnation: int,
        plugin: str,
        messages: Sequence[Message],
        *,
        foreign: bool = False,
    ) -> None:
        """Messages of one frame from a peer; `foreign`: not under our cluster's id (one of the two
        belongs to none yet)."""
        receiver = self._plugins.get(plugin)
        if receiver is None:
            self._drop("unknown_plugin")
            return
        stranger = (
            foreign
            or to_incarnation not in (0, self.identity.incarnation)
            or self.log.recorded_incarnation(sender) not in (None, 0, incarnation)
        )
        for message in messages:
            if stranger and not isinstance(message, self._introductions):
                self._drop("stranger")
                continue
            receiver.on_message(sender, message)

    def ask(self, request: Request) -> None:
        """A client's frame."""
        if request.client and request.route is not None:
            self._routes[request.client] = request.route
            self._routes.move_to_end(request.client)
            if len(self._routes) > ROUTES_MAX:
                self._routes.popitem(last=False)
        if not request.operations:
            return
        plugin = self._plugins.get(request.plugin)
        if plugin is None or plugin is self.log:
            failure = Failure(
                Code.UNKNOWN_PLUGIN,
                f"node {self.identity.node} has no plugin {request.plugin!r}; install it on every"
                " node",
            )
        elif request.group not in self.replicas:
            failure = Failure(Code.UNKNOWN_GROUP, f"no group {request.group} on this node")
        elif self.refusing is not None and not isinstance(request.operations[0], Query):
            failure = self.refusing
        else:
            plugin.on_request(request)
            return
        self._effects.answers.append((request, [failure] * len(request.operations)))

    def durable(self, write_number: WriteNumber) -> None:
        """The records of all writes up to this one are on disk."""
        self.log.on_durable(write_number)

    def end(self) -> Effects:
        """The turn ends: deadlines, then flush. The effects are the caller's."""
        for plugin in self._plugins.values():
            deadline = plugin.deadline()
            if deadline is not None and deadline <= self.now:
                plugin.on_deadline()
        for plugin in self._others:
            plugin.flush()
        self.log.flush()
        effects, self._effects = self._effects, _no_effects()
        return effects

    def deadline(self) -> float | None:
        """When a turn is wanted though nothing came; None: not before something comes."""
        deadlines = [d for p in self._plugins.values() if (d := p.deadline()) is not None]
        return min(deadlines) if deadlines else None

    def check(self) -> None:
        """Assert the invariants of all plugins and machines."""
        for plugin in self._plugins.values():
            plugin.check()
        for replica in self.replicas.values():
            replica.check()

    def status(self) -> dict[str, Any]:
        """What each plugin says of itself, by name."""
        plugins = {name: plugin.status() for name, plugin in self._plugins.items()}
        return {
            "node": self.identity.node,
            "cluster": self.identity.cluster,
            "proposals": self.proposals,
            "reads": self.reads,
            **plugins,
        }

    def _drop(self, cause: str) -> None:
        self.dropped[cause] = self.dropped.get(cause, 0) + 1

    def _tell(self, client: ClientId, hint: Hint) -> None:
        route = self._routes.get(client)
        if route is None:
            self._drop("hint_without_route")
            return
        plugin = self._hint_owner[type(hint)]
        hints = self._effects.hints
        if hints and hints[-1][0] == route and hints[-1][1] == plugin:
            hints[-1][2].append(hint)
        else:
            hints.append((route, plugin, [hint]))


class EnginePort:
    """The port of one plugin (`LogPort` in full; only raft calls the part beyond `Port`)."""

    def __init__(self, engine: Engine, plugin: str, source: random.Random) -> None:
        self.node = engine.identity.node
        self.random = source
        self._engine = engine
        self._plugin = plugin

    def now(self) -> float:
        return self._engine.now

    def send(self, to: NodeId, message: Message) -> None:
        self._engine._effects.messages.setdefault((to, self._plugin), []).append(message)

    def publish(self, topic: bytes, message: Message) -> None:
        self._engine._effects.published.append((self._plugin, topic, message))

    def reply(self, request: Request, results: Sequence[Result]) -> None:
        self._engine._effects.answers.append((request, results))

    def tell(self, client: ClientId, hint: Hint) -> None:
        self._engine._tell(client, hint)

    def propose(self, group: GroupId, command: Command, token: Any) -> None:
        self._engine.proposals += 1
        self._engine.log.propose(self._plugin, group, command, token)

    def read(self, group: GroupId, token: Any) -> None:
        self._engine.reads += 1
        self._engine.log.read(self._plugin, group, token)

    def machine(self, group: GroupId) -> StateMachine:
        return self._engine.replicas[group].machines[self._plugin]

    def moment(self, group: GroupId) -> Moment:
        return self._engine.replicas[group].moment

    def leader(self, group: GroupId) -> tuple[NodeId | None, int]:
        return self._engine.log.leader(group)

    def groups(self) -> Sequence[GroupId]:
        return sorted(self._engine.replicas)

    def log_time_us(self, group: GroupId) -> int:
        return self._engine.log.log_time_us(group)

    def members(self) -> Sequence[Member]:
        configuration = self._engine.log.configuration()
        return configuration.members if configuration is not None else ()

    def cluster(self) -> int:
        return self._engine.identity.cluster

    def describe(self) -> dict[str, Any]:
        return self._engine.describe()

    def note(self, text: str) -> None:
        self._engine._effects.notes.append(text)

    def persist(self, records: Sequence[Record]) -> WriteNumber:
        engine = self._engine
        if not engine._effects.records:
            engine._write_number += 1
            engine._effects.write_number = engine._write_number
        engine._effects.records.extend(records)
        return engine._write_number

    def applied(self, plugin: str, group: GroupId, token: Any, results: Sequence[Result]) -> None:
        self._engine._plugins[plugin].on_applied(group, token, results)

    def readable(self, plugin: str, group: GroupId, token: Any) -> None:
        self._engine._plugins[plugin].on_read(group, token)

    def failed(self, plugin: str, group: GroupId, token: Any, failure: Failure) -> None:
        self._engine._plugins[plugin].on_failed(group, token, failure)

    def led(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        self._engine._effects.led.append((group, leader, term))
        for plugin in self._engine._others:
            plugin.on_leader(group, leader, term)

    def joined(self, cluster: int) -> None:
        engine = self._engine
        engine.identity = msgspec.structs.replace(engine.identity, cluster=cluster)
        engine._effects.cluster = cluster

    def save(self, group: GroupId, index: int, term: int, stream: Iterator[bytes]) -> None:
        self._disk("save", group, index, term, stream)

    def digest(self, group: GroupId, index: int, stream: Iterator[bytes]) -> None:
        self._disk("digest", group, index, stream)

    def fetch(self, group: GroupId, first: int, bytes_max: int) -> None:
        self._disk("fetch", group, first, bytes_max)

    def fetch_snapshot(self, group: GroupId, snapshot: Snapshot, offset: int, size: int) -> None:
        self._disk("fetch_snapshot", group, snapshot, offset, size)

    def drop(self, group: GroupId) -> None:
        self._disk("drop", group)

    def _disk(self, task: str, *arguments: Any) -> None:
        self._engine._effects.disk_tasks.append((task, arguments))

    def stop(self, failure: Failure) -> None:
        self._engine._effects.stop = failure


def machines_of(plugins: Sequence[Plugin], group: GroupId) -> dict[str, StateMachine]:
    """Fresh machines of the plugins placed in a group."""
    placement = "control" if group == CONTROL else "partitioned"
    machines = {}
    for plugin in plugins:
        machine = plugin.machine(group) if plugin.placement == placement else None
        if machine is not None:
            machines[plugin.name] = machine
    return machines


def _no_effects() -> Effects:
    return Effects(
        records=[],
        messages={},
        answers=[],
        hints=[],
        published=[],
        led=[],
        notes=[],
        disk_tasks=[],
    )
