"""`coterie bench failover`: how long clients wait when the leader dies, and what they wait for.

The law: a gap is what a client saw, the longest time between two completed operations from one kill
until the killed node has caught up again; nothing that happens in between is left out. The time in
which the others had a new leader stands beside it: the rest is the client's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from statistics import median

import click
import msgspec

from ..clients.aio import AsyncClient
from ..clients.errors import Unavailable
from ..nodes.ask import NodeAsker, leader_among, located
from ..nodes.local import LocalCluster
from ..protocols.session.messages import Locate
from .clusters import WAIT_S, NoQuorum, caught_up

NODES = 3
LOOK_S = 0.002
"""Between two looks at who leads."""

HEAD = ("kill", "node", "longest gap", "began after", "of one task", "new leader", "caught up")


class Kill(msgspec.Struct, frozen=True):
    """What one kill cost. `gap_ms`: the longest time in which no task completed an operation,
    `gap_at_ms` after the signal; `task_gap_ms`: in which one task completed none; `leader_ms`:
    from the signal until a survivor led; `caught_up_s`: from the restart of the node until it had
    applied what the others had."""

    node: str
    gap_ms: float
    gap_at_ms: float
    task_gap_ms: float
    leader_ms: float
    caught_up_s: float


class Gaps:
    """The longest times between completed operations, of all tasks together and of each alone."""

    def __init__(self, tasks: int, now: float) -> None:
        self.done = [0] * tasks
        """Completed operations by task."""
        self._last = [now] * tasks
        self._last_of_all = now
        self._longest = self._longest_of_all = self.began = 0.0
        """`began`: when the longest gap of all began."""

    def completed(self, task: int, now: float) -> None:
        """Task number `task` completed an operation at `now`."""
        self._longest = max(self._longest, now - self._last[task])
        if now - self._last_of_all > self._longest_of_all:
            self._longest_of_all, self.began = now - self._last_of_all, self._last_of_all
        self._last[task] = self._last_of_all = now
        self.done[task] += 1

    def take(self, now: float) -> tuple[float, float]:
        """The longest gap of all and of one task since last asked, those under way included."""
        found = (
            max(self._longest_of_all, now - self._last_of_all),
            max(self._longest, now - min(self._last)),
        )
        self._longest = self._longest_of_all = 0.0
        return found


async def operate(client: AsyncClient, task: int, gaps: Gaps) -> None:
    """Take and release a lock of its own until cancelled."""
    lock = client.lock(f"bench/{task}")
    while True:
        await lock.acquire()
        gaps.completed(task, time.perf_counter())
        await lock.release()
        gaps.completed(task, time.perf_counter())


class Failover:
    """Kills of the leader of one cluster, one after the other, under load."""

    def __init__(
        self, cluster: LocalCluster, signal: str, gaps: Gaps, load: Sequence[asyncio.Task[None]]
    ) -> None:
        self._load = load
        self._cluster = cluster
        self._end = {"KILL": cluster.kill, "TERM": cluster.stop}[signal]
        self._gaps = gaps

    async def kill(self) -> Kill:
        """End the leader, and start it again once every task has gone on."""
        cluster, gaps = self._cluster, self._gaps
        leader = await asyncio.to_thread(cluster.leader)
        await self._all_go_on()
        gaps.take(time.perf_counter())
        began = time.perf_counter()
        watching = asyncio.create_task(asyncio.to_thread(self._led_again, leader))
        await asyncio.to_thread(self._end, leader)
        leader_s = await watching - began
        await self._all_go_on()
        restarted = time.perf_counter()
        await asyncio.to_thread(cluster.restart, leader)
        await asyncio.to_thread(caught_up, cluster.endpoints, leader)
        caught_up_s = time.perf_counter() - restarted
        gap_s, task_gap_s = gaps.take(time.perf_counter())
        return Kill(
            f"node{leader + 1}",
            round(gap_s * 1000, 1),
            round((gaps.began - began) * 1000, 1),
            round(task_gap_s * 1000, 1),
            round(leader_s * 1000, 1),
            round(caught_up_s, 3),
        )

    async def _all_go_on(self) -> None:
        """Wait until every task has completed an acquire and a release begun after now."""
        goals = [done + 3 for done in self._gaps.done]
        deadline = time.perf_counter() + WAIT_S
        while any(done < goal for done, goal in zip(self._gaps.done, goals, strict=True)):
            for task in self._load:
                if task.done():
                    task.result()  # only an error ends it
            if time.perf_counter() > deadline:
                raise NoQuorum(f"the clients do not go on for {WAIT_S:g} s after a kill")
            await asyncio.sleep(0.005)

    def _led_again(self, killed: int) -> float:
        """The moment (of `time.perf_counter`) at which a survivor said that it leads."""
        endpoints = list(self._cluster.endpoints)
        del endpoints[killed]
        deadline = time.perf_counter() + WAIT_S
        with NodeAsker() as asker:
            while time.perf_counter() < deadline:
                if leader_among(located(asker.ask(endpoints, Locate())).values()) is not None:
                    return time.perf_counter()
                time.sleep(LOOK_S)
        raise NoQuorum(f"no node leads for {WAIT_S:g} s after a kill")


async def measure(
    cluster: LocalCluster, tasks: int, kills: int, signal: str, tell: Callable[[int, Kill], None]
) -> list[Kill]:
    """Load the cluster and end its leader again and again; `tell` is called after each."""
    gaps = Gaps(tasks, time.perf_counter())
    found = []
    async with cluster.async_client(name="bench", timeout=WAIT_S) as client:
        load = [asyncio.create_task(operate(client, task, gaps)) for task in range(tasks)]
        try:
            failover = Failover(cluster, signal, gaps, load)
            for number in range(1, kills + 1):
                found.append(await failover.kill())
                tell(number, found[-1])
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
    return found


@click.command()
@click.option(
    "--kills", default=20, show_default=True, type=click.IntRange(1, 10_000), help="How many."
)
@click.option(
    "--signal",
    default="KILL",
    show_default=True,
    type=click.Choice(["KILL", "TERM"]),
    help="KILL: it dies at once. TERM: it hands its leadership over first.",
)
@click.option(
    "--tasks",
    default=16,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Tasks that take and release, each a lock of its own.",
)
@click.option(
    "--durability",
    default="fsync",
    show_default=True,
    type=click.Choice(["fsync", "relaxed"]),
    help="How the nodes write their log.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def failover(kills: int, signal: str, tasks: int, durability: str, as_json: bool) -> None:
    """Kill the leader again and again; show the longest gap a client saw each time."""

    def tell(number: int, kill: Kill) -> None:
        if not as_json:
            cells = (
                number, kill.node, f"{kill.gap_ms:,.0f} ms", f"{kill.gap_at_ms:,.0f} ms",
                f"{kill.task_gap_ms:,.0f} ms", f"{kill.leader_ms:,.0f} ms",
                f"{kill.caught_up_s:.1f} s",
            )  # fmt: skip
            click.echo(row(cells))

    if not as_json:
        click.echo(row(HEAD))
    try:
        with LocalCluster(nodes=NODES, env={"COTERIE_DURABILITY": durability}) as cluster:
            found = asyncio.run(measure(cluster, tasks, kills, signal, tell))
    except Unavailable as error:
        raise NoQuorum(str(error)) from error
    show(found, signal, tasks, durability, as_json)


def show(found: Sequence[Kill], signal: str, tasks: int, durability: str, as_json: bool) -> None:
    """Print the median and the worst of all kills."""
    columns = {name: [getattr(kill, name) for kill in found] for name in Kill.__struct_fields__[1:]}
    figures = {
        name: {"median": round(median(values), 3), "max": max(values)}
        for name, values in columns.items()
    }
    if as_json:
        head = {"signal": signal, "tasks": tasks, "nodes": NODES, "durability": durability}
        kills = [msgspec.to_builtins(kill) for kill in found]
        click.echo(json.dumps({**head, **figures, "kills": kills}))
        return
    gap, leader = figures["gap_ms"], figures["leader_ms"]
    click.echo(
        f"\nlongest gap: median {gap['median']:,.0f} ms, max {gap['max']:,.0f} ms; a new leader "
        f"after: median {leader['median']:,.0f} ms, max {leader['max']:,.0f} ms\n"
        f"{len(found)} SIG{signal} to the leader of {NODES} nodes, {tasks} tasks, {durability}"
    )


def row(cells: Sequence[object]) -> str:
    """One line of the table."""
    return "  ".join(str(cell).rjust(len(head)) for cell, head in zip(cells, HEAD, strict=True))
