"""A world of real engines in simulated time, from one seed.

The law: one seed and one set of options give one run, event by event, on every machine and under
every hash seed. All chance comes from `random.Random`s seeded by the seed and a purpose, so that
one purpose drawing more does not disturb another; all time is the world's.

A run has two phases. In the first, faults strike (`simulation/faults.py`) while clients work, and
after every event nothing may have happened that must never happen (`simulation/invariants.py`).
Then the faults stop, and within bounded time all that should happen must: one leader, equal logs
and states, every operation answered, no lock held and nobody waiting.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from ..bus.codec import Codec
from ..protocols.plugin import CONTROL, Plugin
from ..protocols.raft.settings import Settings
from ..protocols.registry import builtin
from .assembly import bus_codec
from .engine import Engine
from .simulation.clients import Clients
from .simulation.counter import Counter, Tally
from .simulation.faults import Faults
from .simulation.invariants import Invariants
from .simulation.membership import Membership
from .simulation.network import Network, draw_weather
from .simulation.node import SimulatedNode
from .simulation.shadow import Violation

EVENTS_TOLD = 200
"""How many of the last events a failure tells."""

LIVENESS_S = 30.0
"""After the faults have stopped everything must have come right within this."""

POLL_S = 0.1
EVENTS_MAX = 2_000_000


class Options(msgspec.Struct, frozen=True):
    """What is asked of a world. `groups` 0 and `faults` "" let the seed choose; else `faults` are
    kinds with commas between them, and come thick and fast."""

    seconds: float = 10.0
    nodes: int = 3
    groups: int = 0
    faults: str = ""

    def arguments(self) -> str:
        """As arguments of `coterie simulate`; only what differs from the defaults."""
        default = Options()
        return "".join(
            f" --{field} {value}"
            for field in self.__struct_fields__
            if (value := getattr(self, field)) != getattr(default, field)
        )


class Drawn(msgspec.Struct):
    """What the seed chooses for a world."""

    groups: int
    encode: bool
    sync_s: float
    segment_bytes: int
    forgetful: bool
    detection: str
    """Where deadlocks are looked for; "" where nobody gets into one."""


def draw_detection(source: random.Random) -> str:
    """Every third world has transactions, which sooner or later wait for each other."""
    return source.choice(("both", "enqueue", "sweep")) if source.random() < 0.33 else ""


def draw_settings(source: random.Random, groups: int) -> Settings:
    """Every third world has bounds so small that they are met all the time."""
    snapshots = draw_snapshots(source)
    if source.random() < 0.67:
        return Settings(partitions=groups - 1, return_s=2.0, founding_s=0.2, **snapshots)
    return Settings(
        partitions=groups - 1,
        return_s=1.0,
        founding_s=0.2,
        election_timeout_min_s=source.choice((0.1, 0.15)),
        election_timeout_max_s=source.choice((0.3, 0.6)),
        tick_s=0.5,
        entry_bytes=source.choice((100, 1_000)),
        append_bytes=source.choice((1, 300, 3_000)),
        window_messages=source.choice((1, 2, 8)),
        window_bytes=source.choice((300, 3_000)),
        uncommitted_bytes=source.choice((500, 5_000)),
        apply_operations=source.choice((1, 8)),
        promotion_entries=4,
        **snapshots,
    )


def draw_snapshots(source: random.Random) -> dict[str, Any]:
    """In most worlds logs are forgotten, and states saved and compared, all the time."""
    if source.random() < 0.2:
        return {}
    return {
        "tail_bytes": source.choice((0, 300, 5_000)),
        "snapshot_bytes": source.choice((300, 2_000)),
        "snapshot_operations": source.choice((5, 50, 250_000)),
        "piece_bytes": source.choice((64, 500, 262_144)),
        "piece_window": source.choice((1, 4)),
        "incoming_snapshots": source.choice((1, 2)),
        "incoming_idle_s": 1.0,
        "fetches": source.choice((1, 8)),
        "digest_operations": source.choice((20, 200)),
    }


class Summary(msgspec.Struct):
    """What happened in a run that kept every promise."""

    seed: int
    events: int
    simulated_s: float
    elections: int
    entries: int
    operations: int
    frames: int
    faults: dict[str, int]
    torn: int
    counts: dict[str, int]
    """Snapshots taken, installed from a leader, gone on with under another leader; states found
    to be the majority's."""


class Failed(Exception):
    """A promise was broken. The text tells the seed, how to replay it, and the last events."""

    def __init__(self, seed: int, options: Options, at_s: float, cause: str, story: str) -> None:
        super().__init__(
            f"{story}\nseed {seed} failed at {at_s:.6f} s: {cause}\n"
            f"replay: coterie simulate --seed {seed}{options.arguments()}"
        )
        self.seed = seed
        self.cause = cause


class World:
    """One run. `tell` is given a line for every event, if wanted (`--trace`)."""

    def __init__(
        self,
        seed: int,
        options: Options | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.options = options or Options()
        self.now = 0.0
        self.events = 0
        self.torn = 0
        self.counts = dict.fromkeys(("taken", "installed", "resumed", "compared"), 0)
        """Crashes that struck while a disk was writing."""
        self._tell = tell
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._story: deque[tuple[float, str, str, Any]] = deque(maxlen=EVENTS_TOLD)
        source = random.Random(f"{seed}/world")
        self.drawn = Drawn(
            groups=self.options.groups or source.choice((1, 1, 2, 4)),
            encode=source.random() < 0.125,
            sync_s=source.choice((0.0003, 0.002, 0.01)),
            segment_bytes=source.choice((1_024, 2_048, 8_192, 65_536)),
            forgetful=source.random() < 0.5,
            detection=draw_detection(random.Random(f"{seed}/detection")),
        )
        self.settings = draw_settings(source, self.drawn.groups)
        self.codec: Codec = bus_codec(self.plugins())
        self.invariants = Invariants(check_every=8)
        names = [f"node{number + 1}" for number in range(self.options.nodes)]
        self.network = Network(
            random.Random(f"{seed}/network"),
            draw_weather(source),
            self.at,
            self._deliver,
            self.options.seconds + LIVENESS_S / 2,
            names,
        )
        self.nodes = {name: SimulatedNode(self, name) for name in names}
        self.membership = Membership(self, names)
        self.faults = Faults(self)
        self.clients = Clients(self)

    def plugins(self) -> list[Plugin]:
        """Fresh instances for one node: what is shipped, and the counters."""
        return [*builtin(self.drawn.detection or "both"), Counter(), Tally()]

    def run(self) -> Summary:
        """Both phases. Raises `Failed`."""
        try:
            source = random.Random(f"{self.seed}/start")
            for node in self.nodes.values():
                self.at(source.random() * 0.3, node.start)
            self.clients.start()
            self.membership.start()
            self.at(0.5 + source.random(), self.faults.start)
            self._run_until(self.options.seconds)
            self.note("phase", "world", "the faults stop")
            self.faults.heal()
            self.clients.finish()
            self.membership.finish()
            unsettled = "not begun"
            while unsettled:
                if self.now >= self.options.seconds + LIVENESS_S:
                    raise Violation(f"not come right within {LIVENESS_S:g} s: {unsettled}")
                self._run_until(self.now + POLL_S)
                unsettled = self._unsettled()
            self._judge()
        except Exception as error:
            cause = (
                str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
            )
            raise Failed(self.seed, self.options, self.now, cause, self.story()) from error
        return Summary(
            self.seed,
            self.events,
            self.now,
            self.invariants.elections,
            sum(len(entries) for entries in self.invariants.committed.values()),
            self.clients.completed + self.membership.completed,
            self.network.sent,
            self.faults.counts,
            self.torn,
            self.counts,
        )

    # Time

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action` at `time`; those of one time in the order they were asked for."""
        self._order += 1
        heapq.heappush(self._heap, (max(time, self.now), self._order, action, arguments))

    def _run_until(self, end: float) -> None:
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.now, _, action, arguments = pop(heap)
            self.events += 1
            action(*arguments)
        if self.events > EVENTS_MAX:
            raise Violation(f"{self.events} events: something goes round in circles")
        self.now = end

    def _deliver(self, sender: str, to: str, frame: Any) -> None:
        self.note("frame", to, frame)
        node = self.nodes.get(to)
        if node is not None:
            node.receive(sender, frame)
        elif not self.membership.receive(to, frame):
            self.clients.receive(sender, to, frame)

    # What is told

    def note(self, kind: str, who: str, what: Any) -> None:
        """Remember an event; it is put into words only when somebody asks."""
        note = (self.now, kind, who, what)
        self._story.append(note)
        if self._tell is not None:
            self._tell(_line(*note))

    def story(self) -> str:
        """The last events."""
        return "\n".join(_line(*note) for note in self._story)

    def fail(self, cause: str) -> None:
        raise Violation(cause)

    # What the faults ask

    def client_names(self) -> list[str]:
        return self.clients.names()

    def crash_client(self, source: random.Random) -> None:
        self.clients.crash(source)

    # The second phase

    def _unsettled(self) -> str:
        """What has not come right yet; "" when all has."""
        nodes = [self.nodes[name] for name in self.membership.wanted]
        engines = [node.engine for node in nodes if node.engine is not None]
        if len(engines) < len(nodes):
            return "a node is down"
        beliefs = [engine.log.leader(CONTROL) for engine in engines]
        if beliefs[0][0] is None or any(belief != beliefs[0] for belief in beliefs):
            return f"group 0 has no leader on whom all agree: {beliefs}"
        applied = [engine.replicas[CONTROL].applied for engine in engines]
        if min(applied) != max(applied):
            return f"group 0: applied {applied}"
        return self.membership.unsettled() or self.clients.unfinished(engines[0])

    def tally(self, engine: Engine) -> None:
        """Add what an engine that comes to its end has counted."""
        raft: Any = engine.log
        for of in (raft.turn.snapshots, raft.turn.digests):
            for name in self.counts:
                self.counts[name] += getattr(of, name, 0)

    def _judge(self) -> None:
        for node in self.nodes.values():
            assert node.engine is not None
            self.tally(node.engine)
            node.engine.check()
            for group in node.engine.replicas:
                self.invariants.compare_state(node, group)
            self.clients.check_total(node.engine)
        self.membership.judge_totals()


def _line(time: float, kind: str, who: str, what: Any) -> str:
    return f"{time:12.6f} {kind:6} {who:8} {what}"


def simulate(
    seed: int, options: Options | None = None, tell: Callable[[str], None] | None = None
) -> Summary:
    """Run one world to its end. Raises `Failed`."""
    return World(seed, options, tell).run()
