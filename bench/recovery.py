"""`coterie bench recovery`: what a long life costs a node: its disk, and how soon it serves again.

The law: the nodes die by SIGKILL, so nothing is put in order before. A node serves when it has
applied all that was committed when it was started; all of them, when a client has taken a lock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import click
import msgspec

from ..clients.aio import AsyncClient
from ..clients.errors import Unavailable
from ..nodes.ask import NodeAsker
from ..nodes.local import LocalCluster
from .clusters import WAIT_S, Disk, NoQuorum, caught_up, described, disk_of

NODES = 3
TASKS = 1_024
MEBIBYTE = 1024 * 1024


class Recovery(msgspec.Struct, frozen=True):
    """`one_s`: from the start of one node until it had caught up; `all_s`: from the start of all
    nodes until a client had taken a lock. `memory_bytes` are of each node after the load."""

    operations: int
    ops_per_s: float
    durability: str
    disks: list[Disk]
    memory_bytes: list[int]
    one_s: float
    all_s: float


async def operate(client: AsyncClient, operations: int, tell: Callable[[int], None]) -> None:
    """So many acquires and releases, by tasks with locks of their own."""
    left = operations

    async def one(task: int) -> None:
        nonlocal left
        lock = client.lock(f"bench/{task}")
        while left > 0:
            left -= 2
            await lock.acquire()
            await lock.release()

    async def report() -> None:
        while True:
            tell(operations - left)
            await asyncio.sleep(1.0)

    reporting = asyncio.create_task(report())
    try:
        await asyncio.gather(*(one(task) for task in range(TASKS)))
    finally:
        reporting.cancel()


async def load(cluster: LocalCluster, operations: int, tell: Callable[[int], None]) -> None:
    async with cluster.async_client(name="bench", timeout=WAIT_S) as client:
        await operate(client, operations, tell)


def measure(
    cluster: LocalCluster, operations: int, durability: str, tell: Callable[[int], None]
) -> Recovery:
    """Load the cluster, then kill one node, then all of them."""
    began = time.perf_counter()
    asyncio.run(load(cluster, operations, tell))
    rate = operations / (time.perf_counter() - began)
    with NodeAsker() as asker:
        said = described(asker, cluster.endpoints)
    memory = [said[endpoint]["process"]["memory_bytes"] for endpoint in cluster.endpoints]
    disks = [disk_of(cluster.data_dir / f"node{n + 1}") for n in range(NODES)]
    follower = (cluster.leader() + 1) % NODES
    cluster.kill(follower)
    one_s = restart(cluster, [follower], lambda: caught_up(cluster.endpoints, follower))
    with ThreadPoolExecutor(NODES) as pool:
        list(pool.map(cluster.kill, range(NODES)))

    def take() -> None:
        with cluster.client(timeout=WAIT_S) as client, client.lock("bench/after"):
            pass

    all_s = restart(cluster, list(range(NODES)), take)
    return Recovery(
        operations, round(rate, 1), durability, disks, memory, round(one_s, 3), round(all_s, 3)
    )


def restart(cluster: LocalCluster, indexes: list[int], serve: Callable[[], None]) -> float:
    """Start nodes together; how long until `serve` has returned."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(indexes)) as pool:
        list(pool.map(cluster.restart, indexes))
    serve()
    return time.perf_counter() - began


@click.command()
@click.option(
    "--operations",
    default=5_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Acquires and releases before the nodes are killed.",
)
@click.option(
    "--durability",
    default="fsync",
    show_default=True,
    type=click.Choice(["fsync", "relaxed"]),
    help="How the nodes write their log.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recovery(operations: int, durability: str, as_json: bool) -> None:
    """Kill nodes with many operations behind them; show how soon they serve again."""

    def tell(done: int) -> None:
        if not as_json and sys.stderr.isatty():
            click.echo(f"\r{done:,} of {operations:,} operations ", nl=False, err=True)

    try:
        with LocalCluster(nodes=NODES, env={"COTERIE_DURABILITY": durability}) as cluster:
            found = measure(cluster, operations, durability, tell)
    except Unavailable as error:
        raise NoQuorum(str(error)) from error
    click.echo(json.dumps(msgspec.to_builtins(found)) if as_json else in_words(found))


def in_words(found: Recovery) -> str:
    lines = [f"{found.operations:,} operations at {found.ops_per_s:,.0f}/s, {found.durability}"]
    for number, (disk, memory) in enumerate(zip(found.disks, found.memory_bytes, strict=True), 1):
        lines.append(
            f"  node{number}: log {disk.log_bytes / MEBIBYTE:.1f} MiB in {disk.segments} segments, "
            f"{disk.snapshots} snapshots of {disk.snapshot_bytes / MEBIBYTE:.1f} MiB, "
            f"memory {memory / MEBIBYTE:.0f} MiB"
        )
    lines += [
        f"a node that was killed had caught up {found.one_s:.2f} s after its start",
        f"after all were killed a client had a lock {found.all_s:.2f} s after their start",
    ]
    return "\n".join(lines)
