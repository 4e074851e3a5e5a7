"""`coterie bench snapshot`: what a large snapshot costs everybody else.

The law: the state is what clients hold; the snapshot comes when the log is long enough, as it would
anywhere. Others take and release locks at a steady pace meanwhile, in a process of their own; a
follower that lost everything is then filled under the same load.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import NamedTuple

import click
import msgspec

from ..clients.aio import AsyncClient
from ..clients.errors import Unavailable
from ..clients.lock import AsyncLock
from ..nodes.ask import NodeAsker
from ..nodes.counters import BOUNDS_S
from ..nodes.local import LocalCluster
from ..protocols.plugin import CONTROL
from .clusters import NoQuorum, caught_up, described, sizes
from .probe import Pace, Probe, Seen

NODES = 3
SESSION_LOCKS = 50_000
"""A session holds 100,000 locks at most."""

TASKS_EACH = 128
RECORD_BYTES = 20
"""What a lock takes in a snapshot beside its name."""

MEBIBYTE = 1024 * 1024
SESSION_TTL_S = 60.0
TIMEOUT_S = 60.0
WAIT_S = 300.0
CHURN_RATE, CHURN_TASKS = 5_000.0, 64
"""Operations per second, and tasks, that make the log long enough for the next snapshot."""

LOOK_S = 0.01

LONG = bisect_left(BOUNDS_S, 0.02) + 1
"""The first bucket of turns longer than 20 ms."""


class Phase(msgspec.Struct, frozen=True):
    """What the others saw in some time: operations, p99 and the longest one in milliseconds."""

    seconds: float
    operations: int
    p99_ms: float
    max_ms: float


class Cost(msgspec.Struct, frozen=True):
    """`turn_ms_max`: the longest turn of each node since it was started, `turn_ms_before` before
    the snapshot. `long_turns`: how many took more than 20 ms after that, of each node.
    `leader_changes` from the beginning of the snapshot to the end."""

    durability: str
    locks: int
    snapshot_bytes: int
    before: Phase
    snapshot: Phase
    filling: Phase
    filled_s: float
    turn_ms_before: list[float]
    turn_ms_max: list[float]
    long_turns: list[int]
    leader_changes: int
    memory_bytes: list[int]


class Holders:
    """Sessions that hold more and more locks with long names."""

    def __init__(self, clients: list[AsyncClient], name_bytes: int) -> None:
        self._clients = clients
        self._name_bytes = name_bytes
        self._locks: list[AsyncLock] = []

    def __len__(self) -> int:
        return len(self._locks)

    async def take(self, count: int) -> None:
        """Take locks until so many are held."""

        async def one(client: AsyncClient) -> None:
            while len(self._locks) < count:
                lock = client.lock(self._name("state", len(self._locks)))
                self._locks.append(lock)
                await lock.acquire()

        await asyncio.gather(*(one(client) for client in self._clients for _ in range(TASKS_EACH)))

    async def churn(self, until: Callable[[], bool]) -> None:
        """Write to the log at a steady pace, with names as long, and hold nothing more."""
        done, began = 0, time.monotonic()

        async def one(client: AsyncClient, task: int) -> None:
            nonlocal done
            lock = client.lock(self._name("churn", task))
            while not until():
                if done > (time.monotonic() - began) * CHURN_RATE:
                    await asyncio.sleep(0.005)
                    continue
                done += 2
                await lock.acquire()
                await lock.release()

        await asyncio.gather(*(one(self._clients[0], task) for task in range(CHURN_TASKS)))

    def _name(self, kind: str, number: int) -> str:
        return f"{kind}/{number:012}/".ljust(self._name_bytes, "x")


class Snapshots:
    """When the nodes were writing a large snapshot of group 0, seen from their files."""

    def __init__(self, cluster: LocalCluster, least_bytes: int) -> None:
        self._directories = [cluster.data_dir / f"node{n + 1}" / "snapshots" for n in range(NODES)]
        self._least = least_bytes
        self._ended = threading.Event()
        self.since = [0.0] * NODES
        """When each node last began one."""
        self.times: list[tuple[float, float]] = []
        """From when to when."""
        self.finished = [False] * NODES
        self.bytes = 0

    def watch(self) -> None:
        """Look until `end`."""
        while not self._ended.wait(LOOK_S):
            for node in range(NODES):
                self._look(node, time.monotonic())

    def end(self) -> None:
        self._ended.set()

    def _look(self, node: int, now: float) -> None:
        writing = bool(sizes(self._directories[node], ".unfinished"))
        if writing and not self.since[node]:
            self.since[node] = now
        elif not writing and self.since[node]:
            largest = max(sizes(self._directories[node], ".snapshot"), default=0)
            if largest >= self._least:
                self.times.append((self.since[node], now))
                self.finished[node] = True
                self.bytes = max(self.bytes, largest)
            self.since[node] = 0.0


@contextmanager
def watching(snapshots: Snapshots) -> Iterator[None]:
    thread = threading.Thread(target=snapshots.watch)
    thread.start()
    try:
        yield
    finally:
        snapshots.end()
        thread.join()


class Turns(NamedTuple):
    """The longest turn of each node in ms, how many were longer than 20 ms, when it was started;
    the term of group 0, and the memory of each node."""

    longest_ms: list[float]
    long: list[int]
    pids: list[int]
    term: int
    memory_bytes: list[int]

    def long_since(self, before: Turns) -> list[int]:
        """Long turns after that; of a node that was started since, all."""
        both = zip(self.long, before.long, self.pids, before.pids, strict=True)
        return [now - then * (pid == old) for now, then, pid, old in both]


def turns(cluster: LocalCluster) -> Turns:
    with NodeAsker() as asker:
        said = described(asker, cluster.endpoints)
    present = [said[endpoint] for endpoint in cluster.endpoints if endpoint in said]
    processes = [node["process"] for node in present]
    return Turns(
        [process["turn"]["ms_max"] for process in processes],
        [sum(process["turn"]["buckets"][LONG:]) for process in processes],
        [process["pid"] for process in processes],
        max(node["raft"]["groups"][str(CONTROL)]["term"] for node in present),
        [process["memory_bytes"] for process in processes],
    )


async def measure(
    cluster: LocalCluster,
    state_bytes: int,
    name_bytes: int,
    pace: Pace,
    durability: str,
    tell: Callable[[str], None],
) -> Cost:
    """Fill, wait for the snapshot under load, then fill a follower that was wiped."""
    goal = state_bytes // (name_bytes + RECORD_BYTES) + 1
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                cluster.async_client(name="h", session_ttl=SESSION_TTL_S, timeout=TIMEOUT_S)
            )
            for _ in range(goal // SESSION_LOCKS + 1)
        ]
        holders = Holders(clients, name_bytes)
        tell(f"{goal:,} locks of {name_bytes} bytes")
        await holders.take(goal)
        for node in range(NODES):
            await asyncio.to_thread(caught_up, cluster.endpoints, node)
        probe = stack.enter_context(Probe(pace))
        snapshots = Snapshots(cluster, state_bytes)
        stack.enter_context(watching(snapshots))
        tell("until the next snapshot")
        began = time.monotonic()
        before = await asyncio.to_thread(turns, cluster)
        deadline = began + WAIT_S
        await holders.churn(lambda: all(snapshots.finished) or time.monotonic() > deadline)
        if not all(snapshots.finished):
            raise Unavailable(f"no snapshot of {state_bytes:,} bytes within {WAIT_S:g} s")
        tell("a follower that was wiped")
        wiped_at, filled_at = await asyncio.to_thread(wipe, cluster)
        after = await asyncio.to_thread(turns, cluster)
        seen = await asyncio.to_thread(probe.stop)
    first = min(start for start, _ in snapshots.times)
    last = max(end for _, end in snapshots.times)
    return Cost(
        durability, len(holders), snapshots.bytes, phase(seen, began, first),
        phase(seen, first, last), phase(seen, wiped_at, filled_at), round(filled_at - wiped_at, 2),
        before.longest_ms, after.longest_ms, after.long_since(before), after.term - before.term,
        after.memory_bytes,
    )  # fmt: skip


def wipe(cluster: LocalCluster) -> tuple[float, float]:
    """Kill a follower, remove its data, start it: when it started and when it had caught up."""
    follower = (cluster.leader() + 1) % NODES
    cluster.kill(follower)
    shutil.rmtree(cluster.data_dir / f"node{follower + 1}")
    began = time.monotonic()
    cluster.restart(follower)
    caught_up(cluster.endpoints, follower)
    return began, time.monotonic()


def phase(seen: Seen, start: float, end: float) -> Phase:
    operations, p99_ms, max_ms = seen.between(start, end)
    return Phase(round(end - start, 2), operations, p99_ms, max_ms)


@click.command()
@click.option(
    "--state-mib", default=100, show_default=True, type=click.IntRange(1), help="Size of the state."
)
@click.option(
    "--name-bytes",
    default=240,
    show_default=True,
    type=click.IntRange(24, 255),
    help="Length of the locks' names: with short ones there are more locks.",
)
@click.option(
    "--tasks",
    default=128,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Tasks of the others, each with a lock of its own.",
)
@click.option(
    "--rate",
    default=1_000.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Operations per second of the others, all together.",
)
@click.option(
    "--durability",
    default="fsync",
    show_default=True,
    type=click.Choice(["fsync", "relaxed"]),
    help="How the nodes write their log.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def snapshot(
    state_mib: int, name_bytes: int, tasks: int, rate: float, durability: str, as_json: bool
) -> None:
    """Make a large state; show what its snapshot and a follower's filling cost the others."""

    def tell(text: str) -> None:
        if not as_json and sys.stderr.isatty():
            click.echo(f"… {text}", err=True)

    try:
        with LocalCluster(nodes=NODES, env={"COTERIE_DURABILITY": durability}) as cluster:
            pace = Pace(list(cluster.endpoints), tasks, rate)
            state_bytes = state_mib * MEBIBYTE
            found = asyncio.run(measure(cluster, state_bytes, name_bytes, pace, durability, tell))
    except Unavailable as error:
        raise NoQuorum(str(error)) from error
    click.echo(json.dumps(msgspec.to_builtins(found)) if as_json else in_words(found))


def in_words(found: Cost) -> str:
    def said(name: str, phase: Phase) -> str:
        return (
            f"  {name:<26}{phase.seconds:>8.2f} s {phase.operations:>9,} operations   "
            f"p99 {phase.p99_ms:>8.2f} ms   max {phase.max_ms:>8.2f} ms"
        )

    longest, before = max(found.turn_ms_max), max(found.turn_ms_before)
    memory = " ".join(f"{size / MEBIBYTE:.0f}" for size in found.memory_bytes)
    return "\n".join(
        [
            f"a snapshot of {found.snapshot_bytes / MEBIBYTE:.1f} MiB, {found.locks:,} locks held, "
            f"{found.durability}; the others:",
            said("before", found.before),
            said("while it was written", found.snapshot),
            said("while a node was filled", found.filling),
            f"longest turn {longest:.1f} ms (before the snapshot {before:.1f} ms), after that "
            f"{sum(found.long_turns)} longer than 20 ms, {found.leader_changes} leader changes, "
            f"memory {memory} MiB",
            f"a follower that was wiped had caught up {found.filled_s:.2f} s after its start",
        ]
    )
