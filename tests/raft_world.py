"""A small world of real Raft plugins, for tests that deliver messages by hand.

Time moves only when told; a message waits in `world.wire` until it is delivered or dropped; a
write is durable when `sync` says so. A crash loses whatever was not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from coterie.protocols.commands import CommandCodec, Window
from coterie.protocols.plugin import (
    Command,
    Failure,
    Hint,
    Message,
    Moment,
    Operation,
    Request,
    Result,
    StateMachine,
)
from coterie.protocols.raft.group import Group, Role
from coterie.protocols.raft.membership import encode
from coterie.protocols.raft.messages import Introduce, Introduced
from coterie.protocols.raft.plugin import Raft
from coterie.protocols.raft.settings import Settings
from coterie.protocols.records import (
    COMMANDS,
    CONFIGURATION,
    NOOP,
    Configuration,
    DropRecord,
    Entry,
    EntryRecord,
    GroupState,
    Identity,
    Member,
    Record,
    Snapshot,
    SnapshotRecord,
    StateRecord,
)
from coterie.protocols.replica import Replicas
from coterie.protocols.restoring import restore

CLUSTER = 77
PLUGINS = (("note", 1), ("raft", 1))


class Note(Operation, frozen=True, tag=0):
    """Append a text to the list."""

    text: str


class Noted(Result, frozen=True, tag=1):
    count: int


class Notes:
    """The state machine of the tests: a list of texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def apply(self, moment: Moment, operation: Note) -> Result:
        self.texts.append(operation.text)
        moment.tell(7, Hint())
        return Noted(len(self.texts))

    def query(self, moment: Moment, query: Any) -> Result:
        return Noted(len(self.texts))

    def end_session(self, moment: Moment, session: int, limit: int) -> int:
        return 0

    def cancel(self, moment: Moment, answered: Result) -> None: ...

    def news(self, moment: Moment, session: int, number: int) -> Result | None:
        return None

    def snapshot(self) -> Iterable[bytes]:
        return [text.encode() for text in self.texts]

    def restore(self, chunk: bytes) -> None:
        self.texts.append(chunk.decode())

    def restored(self) -> None: ...

    def size(self) -> int:
        return len(self.texts)

    def check(self) -> None: ...


@dataclass
class Disk:
    """What of a node survives: records in order; those after `synced` are lost in a crash."""

    records: list[list[Record]] = field(default_factory=list)
    synced: int = 0
    cluster: int = 0
    snapshots: dict[tuple[int, Snapshot], bytes] = field(default_factory=dict)
    removed: dict[int, int] = field(default_factory=dict)
    """Per group the index up to which entries are gone with their segments."""

    def read(self, group: int, first: int, bytes_max: int) -> list[Entry]:
        """The entries on disk from `first` on, as `Log.read` gives them."""
        written: dict[int, Entry] = {}
        last = 0
        for batch in self.records[: self.synced]:
            for record in batch:
                if isinstance(record, EntryRecord) and record.group == group:
                    index = record.entry.index
                    for above in range(index, last + 1):
                        written.pop(above, None)
                    written[index], last = record.entry, index
        found: list[Entry] = []
        while first > self.removed.get(group, 0) and first in written and bytes_max > 0:
            found.append(written[first])
            bytes_max -= 32 + len(written[first].payload)
            first += 1
        return found

    def recover(self) -> dict[int, GroupState]:
        states: dict[int, GroupState] = {}
        for batch in self.records:
            for record in batch:
                state = states.setdefault(record.group, GroupState(entries=[]))
                if isinstance(record, StateRecord):
                    state.term, state.vote = record.term, record.vote
                    state.commit, state.floor = record.commit, record.floor
                elif isinstance(record, DropRecord):
                    state.entries, state.snapshot, state.commit = [], None, 0
                elif isinstance(record, SnapshotRecord):
                    index = record.snapshot.index
                    kept = any(
                        (entry.index, entry.term) == (index, record.snapshot.term)
                        for entry in state.entries
                    )
                    after = [entry for entry in state.entries if entry.index > index]
                    state.entries = after if kept else []
                    state.snapshot, state.commit = record.snapshot, max(state.commit, index)
                else:
                    entry = record.entry
                    while state.entries and state.entries[-1].index >= entry.index:
                        state.entries.pop()
                    state.entries.append(entry)
        return states


class Port:
    """A `LogPort` that records effects."""

    def __init__(self, world: World, node: str) -> None:
        self.world = world
        self.node = node
        self.random = random.Random(f"{world.seed}/{node}")
        self.applied_results: dict[Any, Sequence[Result]] = {}
        self.read_tokens: list[Any] = []
        self.failures: dict[Any, Failure] = {}
        self.leaders: list[tuple[int, str | None, int]] = []
        self.told: list[tuple[int, Hint]] = []
        self.stopped: Failure | None = None
        self.writes = 0

    @property
    def disk(self) -> Disk:
        return self.world.disks[self.node]

    def now(self) -> float:
        return self.world.time

    def send(self, to: str, message: Message) -> None:
        self.world.wire.append(Letter(self.node, to, message))

    def publish(self, topic: bytes, message: Message) -> None:
        raise AssertionError("raft publishes nothing")

    def reply(self, request: Request, results: Sequence[Result]) -> None:
        self.applied_results["reply"] = results

    def tell(self, client: int, hint: Hint) -> None:
        self.told.append((client, hint))

    def propose(self, group: int, command: Command, token: Any) -> None:
        raise AssertionError("raft proposes nothing through its port")

    def read(self, group: int, token: Any) -> None:
        raise AssertionError("raft reads nothing through its port")

    def machine(self, group: int) -> StateMachine:
        raise KeyError(group)

    def moment(self, group: int) -> Moment:
        raise KeyError(group)

    def leader(self, group: int) -> tuple[str | None, int]:
        return self.world.nodes[self.node].leader(group)

    def groups(self) -> Sequence[int]:
        return list(self.world.nodes[self.node].groups)

    def log_time_us(self, group: int) -> int:
        return self.world.nodes[self.node].log_time_us(group)

    def members(self) -> Sequence[Member]:
        return ()

    def persist(self, records: Sequence[Record]) -> int:
        self.disk.records.append(list(records))
        self.writes += 1
        self.note("writes " + ", ".join(map(describe_record, records)))
        self.pending.append(self.writes)
        return self.writes

    pending: list[int]
    tasks: list[tuple[str, tuple[Any, ...]]]
    """What the disk was asked for beside writes, and has not answered."""

    def save(self, group: int, index: int, term: int, stream: Iterator[bytes]) -> None:
        self.note(f"saves a snapshot of {index}/{term}")
        self.tasks.append(("save", (group, index, term, stream)))

    def digest(self, group: int, index: int, stream: Iterator[bytes]) -> None:
        self.tasks.append(("digest", (group, index, stream)))

    def fetch(self, group: int, first: int, bytes_max: int) -> None:
        self.note(f"reads entries from {first} on")
        self.tasks.append(("fetch", (group, first, bytes_max)))

    def fetch_snapshot(self, group: int, snapshot: Snapshot, offset: int, size: int) -> None:
        self.tasks.append(("fetch_snapshot", (group, snapshot, offset, size)))

    def drop(self, group: int) -> None:
        self.tasks.append(("drop", (group,)))

    def applied(self, plugin: str, group: int, token: Any, results: Sequence[Result]) -> None:
        assert token not in self.applied_results
        self.note(f"answers {token}: {len(results)} applied")
        self.applied_results[token] = results

    def readable(self, plugin: str, group: int, token: Any) -> None:
        self.note(f"answers read {token}")
        self.read_tokens.append(token)

    def failed(self, plugin: str, group: int, token: Any, failure: Failure) -> None:
        assert token not in self.failures and token not in self.applied_results
        self.note(f"refuses {token}: {failure.code.name}")
        self.failures[token] = failure

    def led(self, group: int, leader: str | None, term: int) -> None:
        self.note(f"leader of group {group} in term {term}: {leader or 'nobody'}")
        self.leaders.append((group, leader, term))

    def joined(self, cluster: int) -> None:
        self.note("joined the cluster")
        self.disk.cluster = cluster

    def stop(self, failure: Failure) -> None:
        self.note(f"stops: {failure.text}")
        self.stopped = failure

    def note(self, event: str) -> None:
        self.world.trace.append(f"  {self.node} {event}")


@dataclass
class Letter:
    sender: str
    to: str
    message: Message

    def __str__(self) -> str:
        return f"{self.sender} -> {self.to} {describe(self.message)}"


KINDS = {NOOP: "noop", COMMANDS: "commands", CONFIGURATION: "configuration"}


def describe_entry(entry: Entry) -> str:
    return f"{entry.index}/{entry.term} {KINDS[entry.kind]}"


def digest_of(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def describe_record(record: Record) -> str:
    if isinstance(record, EntryRecord):
        return describe_entry(record.entry)
    if isinstance(record, SnapshotRecord):
        return f"snapshot {record.snapshot.index}/{record.snapshot.term}"
    if isinstance(record, DropRecord):
        return f"no copy of group {record.group}"
    assert isinstance(record, StateRecord)
    return f"term {record.term} vote {record.vote or 'nobody'}"


def describe(message: Message) -> str:
    """A message in words; what is zero, empty or the same all over is left out."""
    words = [type(message).__name__]
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if name == "entries":
            words += [f"[{describe_entry(entry)}]" for entry in value]
        elif name == "snapshot":
            words.append(f"{value.index}/{value.term} of {value.size} bytes")
        elif name == "data":
            words.append(f"data={len(value)}" if value else "question")
        elif name == "digest":
            continue  # it is what the state is; the tests of states look at it
        elif name == "member":
            words.append(f"{value.node}#{value.incarnation}")
        elif name in ("cluster", "founding"):
            words += [name] * bool(value)
        elif value and name not in ("time_us", "plugins"):
            words.append(name if value is True else f"{name}={value}")
    return " ".join(words)


class World:
    """Nodes n1 … and the wire between them. By default the cluster is founded already."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        groups: int = 1,
        seed: int = 1,
        founded: bool = True,
        settings: Settings | None = None,
        learners: Sequence[str] = (),
    ) -> None:
        self.seed = seed
        self.time = 1000.0
        self.settings = settings or Settings()
        self.groups = groups
        self.wire: list[Letter] = []
        self.disks: dict[str, Disk] = {}
        self.nodes: dict[str, Raft] = {}
        self.ports: dict[str, Port] = {}
        self.incarnations: dict[str, int] = {}
        self.plugins: dict[str, tuple[tuple[str, int], ...]] = {}
        self.trace: list[str] = []
        self.autosync = True
        self.in_turn = ""
        self.cut: Callable[[Letter], bool] = lambda letter: False
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.configured = [Member(name, 0, True) for name in self.names]
        for number, name in enumerate(self.names, start=1):
            self.incarnations[name] = 100 + number
            self.disks[name] = Disk()
        if founded:
            members = tuple(
                Member(name, self.incarnations[name], name not in learners) for name in self.names
            )
            self.found(members)
        for name in self.names:
            self.boot(name)

    def found(self, members: tuple[Member, ...]) -> None:
        payload = encode(Configuration(CLUSTER, members, PLUGINS))
        for disk in self.disks.values():
            batch: list[Record] = []
            for group in range(self.groups):
                batch.append(StateRecord(group, 1, "", 0))
                batch.append(EntryRecord(group, Entry(1, 1, 0, CONFIGURATION, payload)))
            disk.records.append(batch)
            disk.cluster, disk.synced = CLUSTER, 1

    # --- nodes ------------------------------------------------------------------------------

    def boot(self, name: str) -> Raft:
        disk = self.disks[name]
        identity = Identity(disk.cluster, name, self.incarnations[name])
        codec = CommandCodec({"note": (Note, Noted)})

        def machines(group: int) -> dict[str, StateMachine]:
            return {"note": Notes()}

        replicas = Replicas(machines, codec, self.settings.digest_operations)
        recovered = disk.recover()
        for group in sorted({0, *(group for group, state in recovered.items() if state.held)}):
            replica = replicas[group] = replicas.make(group)
            snapshot = recovered[group].snapshot if group in recovered else None
            if snapshot is not None:
                restore(replica, [disk.snapshots[group, snapshot]])
        raft = Raft(
            identity, self.settings, replicas, recovered, self.configured,
            self.plugins.get(name, PLUGINS),
        )  # fmt: skip
        port = self.ports[name] = Port(self, name)
        port.pending, port.tasks = [], []
        port.writes = 0
        self.nodes[name] = raft
        raft.start(port)
        self.flush(name)
        return raft

    def crash(self, name: str) -> None:
        """The process ends; what was not durable is gone."""
        disk = self.disks[name]
        del disk.records[disk.synced :]
        del self.nodes[name]

    def restart(self, name: str) -> Raft:
        if name in self.nodes:
            self.crash(name)
        return self.boot(name)

    def wipe(self, name: str, incarnation: int) -> Raft:
        """The disk is lost; the node comes back empty under another incarnation."""
        self.nodes.pop(name, None)
        self.disks[name] = Disk()
        self.incarnations[name] = incarnation
        return self.boot(name)

    def group(self, name: str, group: int = 0) -> Group:
        return self.nodes[name].groups[group]

    def write_log(self, name: str, terms: Sequence[int], term: int | None = None) -> None:
        """Give a node a log of no-ops with these terms (the first is its founding entry)."""
        disk = self.disks[name]
        batch: list[Record] = [StateRecord(0, term or terms[-1], "", 0)]
        for index, number in enumerate(terms[1:], start=2):
            batch.append(EntryRecord(0, Entry(index, number, 0, NOOP)))
        del disk.records[1:]
        disk.records.append(batch)
        disk.synced = len(disk.records)
        self.restart(name)

    # --- events -----------------------------------------------------------------------------

    @contextmanager
    def one_turn(self, name: str) -> Iterator[None]:
        """What is done inside reaches the node within one turn."""
        self.in_turn = name
        yield
        self.in_turn = ""
        self.flush(name)

    def flush(self, name: str) -> None:
        """End turns of a node until it has nothing more to do at once."""
        if name == self.in_turn:
            return
        raft, port = self.nodes[name], self.ports[name]
        for _ in range(100):
            raft.flush()
            if self.autosync:
                self.sync(name, flush=False)
            raft.check()
            if self.autosync and self.work(name, flush=False):
                continue
            if not (raft.more or raft.turn.records or self._unsettled(raft)):
                break
        assert port.stopped is not None or not raft.more

    @staticmethod
    def _unsettled(raft: Raft) -> bool:
        return any(
            (group.role is Role.LEADER and (group.acknowledged or group.heartbeat_due))
            or group.replica.applied < group.commit
            for group in raft.groups.values()
        )

    def sync(self, name: str, *, flush: bool = True) -> None:
        """All writes of a node become durable."""
        port = self.ports[name]
        if port.pending:
            self.disks[name].synced = len(self.disks[name].records)
            number, port.pending = port.pending[-1], []
            self.nodes[name].on_durable(number)
            if flush:
                self.flush(name)

    def work(self, name: str, *, flush: bool = True) -> int:
        """The disk of a node does what it was asked for beside writes; how much that was."""
        port = self.ports[name]
        tasks, port.tasks = port.tasks, []
        for task, arguments in tasks:
            getattr(self, f"_{task}")(self.nodes[name], self.disks[name], *arguments)
        if flush and tasks:
            self.flush(name)
        return len(tasks)

    @staticmethod
    def _save(
        raft: Raft, disk: Disk, group: int, index: int, term: int, stream: Iterator[bytes]
    ) -> None:
        data = b"".join(stream)
        snapshot = Snapshot(index, term, len(data), digest_of(data))
        disk.snapshots[group, snapshot] = data
        raft.on_saved(group, snapshot)

    @staticmethod
    def _digest(raft: Raft, disk: Disk, group: int, index: int, stream: Iterator[bytes]) -> None:
        raft.on_digested(group, index, digest_of(b"".join(stream)))

    @staticmethod
    def _fetch(raft: Raft, disk: Disk, group: int, first: int, bytes_max: int) -> None:
        raft.on_fetched(group, first, disk.read(group, first, bytes_max))

    @staticmethod
    def _fetch_snapshot(
        raft: Raft, disk: Disk, group: int, snapshot: Snapshot, offset: int, size: int
    ) -> None:
        data = disk.snapshots.get((group, snapshot), b"")[offset : offset + size]
        raft.on_snapshot_fetched(group, snapshot, offset, data)

    @staticmethod
    def _drop(raft: Raft, disk: Disk, group: int) -> None:
        for key in [key for key in disk.snapshots if key[0] == group]:
            del disk.snapshots[key]

    def compact(self, name: str, group: int = 0) -> Snapshot:
        """Have a node snapshot a group, and forget all its entries up to there."""
        self.nodes[name].turn.snapshots.want(self.group(name, group))
        self.flush(name)
        snapshot = self.group(name, group).snapshot
        assert snapshot is not None
        self.disks[name].removed[group] = snapshot.index
        return snapshot

    def misdeliver_nothing(self) -> None:
        """Drop what is sent to another incarnation than the one there, as the engine does."""

        def meant_for_another(letter: Letter) -> bool:
            if isinstance(letter.message, Introduce | Introduced):
                return False
            member = self.group(letter.sender).members.get(letter.to)
            return member is not None and member.incarnation not in (
                0,
                self.incarnations[letter.to],
            )

        self.cut = meant_for_another

    def heed_incarnations(self) -> None:
        """Drop what the engine drops: frames of an incarnation that is not the recorded one."""

        def stranger(letter: Letter) -> bool:
            if isinstance(letter.message, Introduce | Introduced):
                return False
            recorded = self.nodes[letter.to].recorded_incarnation(letter.sender)
            return recorded not in (None, 0, self.incarnations[letter.sender])

        self.cut = lambda letter: letter.to in self.nodes and stranger(letter)

    def hand(self, sender: str, to: str, message: Message) -> None:
        """Deliver one message now, as the engine would."""
        raft = self.nodes.get(to)
        if raft is None:
            return
        raft.on_message(sender, message)
        self.flush(to)

    def deliver(self, number: int | None = None, **only: Any) -> int:
        """Deliver what is on the wire now (not what that causes), or only some of it:
        `sender`, `to`, `kind`. Returns how many."""
        taken, kept = [], []
        for letter in self.wire:
            fits = self.matches(letter, **only) and (number is None or len(taken) < number)
            (taken if fits else kept).append(letter)
        self.wire = kept
        for letter in taken:
            if self.cut(letter):
                self.trace.append(f"lost: {letter}")
            else:
                self.trace.append(str(letter))
                self.hand(letter.sender, letter.to, letter.message)
        return len(taken)

    @staticmethod
    def matches(
        letter: Letter, sender: str | None = None, to: str | None = None,
        kind: type[Message] | None = None,
    ) -> bool:  # fmt: skip
        return (
            sender in (None, letter.sender)
            and to in (None, letter.to)
            and (kind is None or type(letter.message) is kind)
        )

    def drop(self, **only: Any) -> int:
        lost = [letter for letter in self.wire if self.matches(letter, **only)]
        self.wire = [letter for letter in self.wire if not self.matches(letter, **only)]
        self.trace += [f"lost: {letter}" for letter in lost]
        return len(lost)

    def on_wire(self, **only: Any) -> list[Letter]:
        return [letter for letter in self.wire if self.matches(letter, **only)]

    def settle(self) -> None:
        """Deliver until the wire is silent."""
        for _ in range(1000):
            if not self.deliver():
                return
        raise AssertionError("the wire never falls silent")

    def advance(self, seconds: float, *, deliver: bool = True) -> None:
        """Move time, waking whoever has a deadline on the way, in its order."""
        end = self.time + seconds
        for _ in range(100_000):
            due = [
                (at, name)
                for name, raft in self.nodes.items()
                if (at := raft.deadline()) is not None and at <= end
            ]
            if not due:
                break
            at, name = min(due)
            self.time = max(self.time, at)
            self.nodes[name].on_deadline()
            self.flush(name)
            if deliver:
                self.settle()
        self.time = end

    def fire(self, name: str, group: int = 0) -> None:
        """Let the election timer of one node run out."""
        found = self.group(name, group)
        assert found.deadline != float("inf"), f"{name} has no election timer"
        self.time = max(self.time, found.deadline)
        self.nodes[name].on_deadline()
        self.flush(name)

    def elect(self, name: str, group: int = 0) -> int:
        """Make a node leader by its own election timeout; its term."""
        if self.group(name, group).role is Role.LEADER:
            return self.group(name, group).term
        heard = max(self.group(other, group).heard_at for other in self.nodes)
        self.time = max(self.time, heard + self.settings.election_timeout_min_s)
        self.fire(name, group)
        self.settle()
        assert self.group(name, group).role is Role.LEADER, self.group(name, group).role
        return self.group(name, group).term

    def beat(self, name: str) -> None:
        """One heartbeat of a leader."""
        raft = self.nodes[name]
        self.time = max(self.time, raft.turn.next_beat)
        raft.on_deadline()
        self.flush(name)

    # --- clients ----------------------------------------------------------------------------

    def propose(self, name: str, *texts: str, token: Any = None, group: int = 0) -> Any:
        """Propose notes in one command within one turn; the token is the first text."""
        token = texts[0] if token is None else token
        command = Command("note", 0, 0, 0, 0, [-1] * len(texts), [Note(t) for t in texts])
        self.nodes[name].propose("note", group, command, token)
        self.flush(name)
        return token

    def read(self, name: str, token: Any, group: int = 0) -> None:
        self.nodes[name].read("note", group, token)
        self.flush(name)

    def texts(self, name: str, group: int = 0) -> list[str]:
        notes: Any = self.group(name, group).replica.machines["note"]
        texts: list[str] = notes.texts
        return texts

    def turn_off_promotion(self) -> None:
        """Learners stay learners, as nodes that no settings name do."""
        for raft in self.nodes.values():
            raft.turn.configured = ()

    def notes_time(self, name: str, group: int = 0) -> int:
        return self.group(name, group).replica.time_us

    def remember_client(self, name: str, group: int = 0) -> None:
        """Something at this node waits for log time to pass."""
        self.group(name, group).replica.windows[1] = Window(answers={})

    def terms(self, name: str, group: int = 0) -> list[int]:
        return [entry.term for entry in self.group(name, group).log.entries]

    def leaders(self, group: int = 0) -> list[str]:
        return [n for n, raft in self.nodes.items() if raft.groups[group].role is Role.LEADER]
