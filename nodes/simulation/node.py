"""One simulated node: a real engine on a real log, a simulated disk and clock under them.

The law: the engine cannot tell. Turns, the inbox and the log's writer do what `process.py` does
with sockets and a thread: what came is drained, one turn's effects leave together, and whatever
queued up while the log was being synced is its next batch.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...bus.codec import Ask, PeerFrame
from ...bus.frame import Kind, Malformed
from ...protocols.errors import Code
from ...protocols.plugin import CONTROL, Request
from ...protocols.records import Entry, GroupId, Identity, Record, StateRecord
from ..assembly import assemble
from ..engine import Effects, Engine
from ..keeping import Keeping
from ..log import Log
from ..log_writer import TOLD_S
from ..snapshots import SnapshotStore
from .disk import SimulatedDisk

if TYPE_CHECKING:
    from ..simulator import World

FRAMES_A_TURN = 256
INBOX_FRAMES = 4_000
TURN_S, FRAME_S = 0.000_05, 0.000_02
"""What a turn and a frame cost, in simulated time."""

FIRST_SEGMENT_BYTES = 8 * 1024

PEER, CLIENT = (Kind.PEER,), (Kind.ASK,)


class Frame(NamedTuple):
    """A frame that is passed on undecoded: most worlds do so, since it is faster."""

    plugin: str
    cluster: int
    envelope: Any


class ForgetfulLog(Log):
    """Gives no entry that the snapshot replaced, as if its segments had been removed at once:
    peers that lag must be sent the snapshot."""

    def read(self, group: GroupId, first: int, bytes_max: int) -> list[Entry]:
        snapshot = self.snapshot(group)
        if snapshot is not None and first <= snapshot.index:
            return []
        return super().read(group, first, bytes_max)


class SimulatedNode:
    """`life` counts the starts of this node: events meant for an earlier one find nobody."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.random = random.Random(f"{world.seed}/node/{name}")
        self.disk = SimulatedDisk(
            random.Random(f"{world.seed}/disk/{name}"), self.random.getrandbits(62) + 1
        )
        self.snapshot_disk = SimulatedDisk(random.Random(f"{world.seed}/snapshots/{name}"), 0)
        # Machines were switched on at different times, and no two quartzes are the same.
        self._clock_offset_s = self.random.uniform(1.0, 100_000.0)
        self._clock_rate = 1.0 + self.random.uniform(-0.01, 0.01)
        self.sync_s = world.drawn.sync_s
        self.slow_until_s = 0.0
        self.paused_until_s = 0.0
        self.fail_in = ""
        self.life = 0
        self.in_flight: list[Record] = []
        self.engine: Engine | None = None
        self.log: Log | None = None
        self._clear()

    def _clear(self) -> None:
        self._inbox: deque[Any] = deque()
        self._writes: list[tuple[int, Sequence[Record]]] = []
        self._writing = False
        self._durable = 0
        self._jobs: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._told: tuple[int, float] = (0, 0.0)
        self._wake_s = float("inf")
        self._busy_until_s = 0.0

    @property
    def up(self) -> bool:
        return self.engine is not None

    @property
    def paused(self) -> bool:
        return self.world.now < self.paused_until_s

    def leads(self, group: int = CONTROL) -> bool:
        """It thinks it leads the group."""
        return self.engine is not None and self.engine.log.leader(group)[0] == self.name

    def clock(self) -> float:
        return self._clock_offset_s + self.world.now * self._clock_rate

    def start(self) -> None:
        """The process starts on what its disk holds."""
        world = self.world
        self.life += 1
        self._clear()
        self.paused_until_s = 0.0
        self.log = (ForgetfulLog if world.drawn.forgetful else Log)(
            self.disk,
            node=self.name,
            incarnation=self.disk.incarnation,
            segment_bytes=world.drawn.segment_bytes,
            first_segment_bytes=FIRST_SEGMENT_BYTES,
        )
        recovered = self.log.open()
        self.disk.settle()
        store = SnapshotStore(self.snapshot_disk)
        store.clean({g: state.snapshot for g, state in recovered.items() if state.snapshot})
        self.snapshot_disk.settle()
        world.invariants.recovered(self, recovered)
        self.in_flight = []
        identity = Identity(self.disk.cluster, self.name, self.disk.incarnation)
        engine = assemble(
            identity,
            world.plugins(),
            world.settings,
            world.membership.configured_for(self),
            recovered,
            self.random.getrandbits(62),
            store.open,
        )
        self.engine = engine
        self._keeping = Keeping(
            store,
            self.log,
            execute=self._execute,
            clock=lambda: float("inf"),  # one chunk in a turn
            schedule=lambda: self._schedule(world.now),
            on_full=self._on_fault,
            on_failed=self._on_fault,
        )
        world.note("start", self.name, f"incarnation {self.disk.incarnation}")
        effects = engine.start(self.clock())
        world.invariants.turned(self, effects)
        self._carry_out(effects)
        self._schedule(world.now + TURN_S)

    def crash(self, *, power: bool = True) -> None:
        """Power is lost: memory is gone, and what of the last write reached the disk is drawn. Or
        only the process ends: the next one reads what this one wrote, synced or not."""
        assert self.engine is not None and self.log is not None
        self.world.note("crash" if power else "kill", self.name, "")
        self.world.tally(self.engine)
        if self.log.wants_segment and self.random.random() < 0.5:
            self.log.prepare()
        self.engine = self.log = None
        self.life += 1
        self._clear()
        for disk in (self.disk, self.snapshot_disk):
            if power:
                self.world.torn += disk.crash()
            else:
                disk.kill()

    def wipe(self) -> None:
        """The node is down and its disk is replaced: an empty directory, a new incarnation."""
        assert self.engine is None
        self.world.note("wipe", self.name, "")
        self.disk = SimulatedDisk(
            random.Random(self.random.getrandbits(62)), self.random.getrandbits(62) + 1
        )
        self.snapshot_disk = SimulatedDisk(random.Random(self.random.getrandbits(62)), 0)
        self.world.invariants.wiped(self)

    def pause(self, until: float) -> None:
        """The process stops; frames pile up, writes under way complete."""
        self.world.note("pause", self.name, f"until {until:.6f}")
        self.paused_until_s = until
        self._schedule(until)

    def resume(self) -> None:
        if self.paused:
            self.paused_until_s = self.world.now
            self._schedule(self.world.now)

    def receive(self, sender: str, frame: Any) -> None:
        """A frame has arrived at the node's sockets."""
        if self.engine is None or len(self._inbox) >= INBOX_FRAMES:
            return
        self._inbox.append((sender, frame))
        self._schedule(self.world.now)

    # Turns

    def _schedule(self, at: float) -> None:
        at = max(at, self._busy_until_s, self.paused_until_s)
        if at < self._wake_s:
            self._wake_s = at
            self.world.at(at, self._turn, self.life, at)

    def _turn(self, life: int, at: float) -> None:
        if life != self.life or at != self._wake_s:
            return  # of a life that ended, or a wake that an earlier one made needless
        self._wake_s = float("inf")
        world, engine = self.world, self.engine
        if engine is None:
            return
        if world.now < self.paused_until_s:
            self._schedule(self.paused_until_s)
            return
        engine.begin(self.clock())
        if self._durable:
            engine.durable(self._durable)
            self._durable = 0
        self._keeping.tell(engine)
        inbox = self._inbox
        frames = min(len(inbox), FRAMES_A_TURN)
        for _ in range(frames):
            self._take(engine, *inbox.popleft())
        effects = engine.end()
        self._busy_until_s = world.now + TURN_S + frames * FRAME_S
        world.invariants.turned(self, effects)
        self._carry_out(effects)
        if self.engine is None:
            return
        self._keeping.work(world.now)
        if inbox or self._durable:
            self._schedule(world.now)
        resume = self._keeping.deadline()
        if resume is not None:
            self._schedule(resume)
        deadline = engine.deadline()
        if deadline is not None:
            # A microsecond late rather than early: the clock's arithmetic rounds.
            due = (deadline - self._clock_offset_s) / self._clock_rate + 1e-6
            self._schedule(max(due, world.now))

    def _take(self, engine: Engine, sender: str, frame: Any) -> None:
        ours = engine.identity.cluster
        if type(frame) is Frame:
            plugin, theirs, envelope = frame
            if theirs and ours and theirs != ours:
                return
        else:
            kinds = PEER if frame[3] == Kind.PEER else CLIENT
            try:
                plugin, theirs, envelope = self.world.codec.decode(
                    frame, ours, kinds, first_contact=True
                )
            except Malformed as malformed:
                assert malformed.reason == "cluster", malformed
                return
        if type(envelope) is PeerFrame:
            engine.receive(
                envelope.sender,
                envelope.incarnation,
                envelope.to_incarnation,
                plugin,
                envelope.messages,
                foreign=theirs != ours,
            )
        else:
            assert type(envelope) is Ask
            engine.ask(
                Request(
                    plugin,
                    envelope.client,
                    envelope.session,
                    envelope.group,
                    envelope.done_below,
                    envelope.not_after_us,
                    envelope.sequences,
                    envelope.operations,
                    sender,
                    principals=envelope.principals,
                )
            )

    # Effects

    def _carry_out(self, effects: Effects) -> None:
        world = self.world
        if effects.cluster is not None:
            self.disk.cluster = effects.cluster
        if effects.stop is not None:
            if effects.stop.code is not Code.REMOVED or self.name in world.membership.wanted:
                world.fail(f"{self.name} stopped: {effects.stop.text}")
            world.membership.end(self)
            return
        leaving = self._frames(effects)
        if self.fail_in and self._fails_in(effects):
            # Power is lost between two effects: some frames are out, no write has begun.
            self.fail_in = ""
            leaving = leaving[: self.random.randint(0, len(leaving))]
            self._leave(leaving)
            self.crash()
            world.faults.crashed_in_turn(self)
            return
        if effects.records:
            self._writes.append((effects.write_number, effects.records))
            if not self._writing:
                self._write()
        if effects.disk_tasks:
            self._keeping.carry_out(effects.disk_tasks)
        self._leave(leaving)

    def _fails_in(self, effects: Effects) -> bool:
        if self.fail_in == "turn":
            return True
        if self.fail_in == "write":
            return bool(effects.records)
        return any(isinstance(record, StateRecord) for record in effects.records)

    def _leave(self, leaving: list[tuple[str, Any]]) -> None:
        send, at = self.world.network.send, self.world.now + TURN_S
        for to, frame in leaving:
            send(at, self.name, to, frame)

    def _frames(self, effects: Effects) -> list[tuple[str, Any]]:
        assert self.engine is not None
        identity, log = self.engine.identity, self.engine.log
        cluster = identity.cluster
        codec, leaving = self.world.codec, []
        for (to, plugin), messages in effects.messages.items():
            heard = log.recorded_incarnation(to) or 0
            if self.world.drawn.encode:
                frames: Sequence[Any] = codec.encode_peer(
                    plugin, cluster, self.name, identity.incarnation, heard, messages
                )
            else:
                envelope = PeerFrame(self.name, identity.incarnation, heard, messages)
                frames = (Frame(plugin, cluster, envelope),)
            leaving += [(to, frame) for frame in frames]
        for request, results in effects.answers:
            for answer in codec.encode_answer(
                request.plugin, cluster, request.group, request.sequences, results
            ):
                leaving.append((request.route, answer))
        for route, plugin, hints in effects.hints:
            leaving += [(route, frame) for frame in codec.encode_tell(plugin, cluster, hints)]
        return leaving

    # The log's writer

    def _write(self) -> None:
        assert self.log is not None
        writes, self._writes = self._writes, []
        self._writing = True
        records = self.in_flight = [record for write in writes for record in write[1]]
        self.log.write(self.log.encode(records))
        draw = self.random.random()
        seconds = self.sync_s * (0.5 + draw)
        if draw < 0.01 or self.world.now < self.slow_until_s:
            seconds += self.random.random() * 0.5
        self.world.at(self.world.now + seconds, self._written, self.life, writes[-1][0])

    def _written(self, life: int, number: int) -> None:
        if life != self.life or self.log is None:
            return
        self.disk.settle()
        self.world.invariants.durable(self, self.in_flight)
        self.in_flight = []
        if self.log.wants_segment:
            self.log.prepare()
            self.disk.settle()
        self._shorten()
        self._writing = False
        self._durable = number
        if self._writes:
            self._write()
        self._schedule(self.world.now)

    def _shorten(self) -> None:
        """What `LogWriter` does for a log that is too long; here segments are removed at once."""
        assert self.log is not None
        oldest, now = self.log.oldest, self.world.now
        if oldest != self._told[0] or now >= self._told[1] + TOLD_S:
            groups = self.log.pinning()
            if groups:
                self._told = oldest, now
                self._keeping.on_long(groups)
        if self.log.release():
            self.disk.settle()
            self.log.remove_released()
            self.disk.settle()

    # The disk's other work

    def _execute(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self._jobs.append((job, done))
        if len(self._jobs) == 1:
            self._begin_job()

    def _begin_job(self) -> None:
        """The first job is begun now, and its caller hears of it when it has taken its time."""
        result = self._jobs[0][0]()
        seconds = self.sync_s * self.random.random()
        if self.world.now < self.slow_until_s:
            seconds += self.random.random() * 0.5
        self.world.at(self.world.now + seconds, self._end_job, self.life, result)

    def _end_job(self, life: int, result: Any) -> None:
        if life != self.life:
            return
        self.snapshot_disk.settle()
        self._jobs[0][1](result)
        self._jobs.popleft()
        if self._jobs:
            self._begin_job()

    def _on_fault(self, error: Exception) -> None:
        self.world.fail(f"{self.name}: {error}")
