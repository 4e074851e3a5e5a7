"""Snapshots and a log that stays short, with real nodes, real disks and small segments.

Each test has a cluster of its own, since its nodes are killed.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from contention import Holder, go_on, under_load
from processes import DEADLINE_S, script, until

import coterie
from coterie.bench.clusters import caught_up, disk_of, sizes
from coterie.nodes.administration import Administration
from coterie.nodes.ask import NodeAsker, find_leader
from coterie.nodes.demo import Act
from coterie.nodes.verify import verify_log, verify_snapshot
from coterie.protocols.session.messages import ListSessions, SessionList

NODES = range(3)
SEGMENT = 1024 * 1024
SMALL = {"COTERIE_SEGMENT_BYTES": str(SEGMENT)}
SEGMENTS_MAX = 6
BEYOND_MEMORY = 24
"""So many segments are more than the 16 MiB of entries that a leader has in memory to send."""

PAIR_BYTES = 500
"""An acquire and a release of a lock with a long name take at least so much of the log."""


async def write(cluster: coterie.LocalCluster, segments: int) -> None:
    """Let the log grow by so many segments."""
    left = segments * SEGMENT // PAIR_BYTES

    async def one(client: coterie.AsyncClient, task: int) -> None:
        nonlocal left
        lock = client.lock(f"churn/{task}/".ljust(240, "x"))
        while left > 0:
            left -= 1
            await lock.acquire()
            await lock.release()

    async with cluster.async_client(name="churn", timeout=DEADLINE_S) as client:
        await asyncio.gather(*(one(client, task) for task in range(128)))


def directory(cluster: coterie.LocalCluster, node: int) -> Path:
    return cluster.data_dir / f"node{node + 1}"


def compacted(cluster: coterie.LocalCluster, node: int) -> bool:
    """The first segment is gone, and there are few."""
    disk = disk_of(directory(cluster, node))
    return (
        disk.segments <= SEGMENTS_MAX and not (directory(cluster, node) / "log/0001.wal").exists()
    )


def await_compacted(cluster: coterie.LocalCluster, *nodes: int) -> None:
    def all_are() -> bool:
        return all(compacted(cluster, node) for node in nodes or NODES)

    until(all_are, "the logs are short")


def on_all(cluster: coterie.LocalCluster, what: str) -> None:
    """kill, stop or restart all nodes together."""
    with ThreadPoolExecutor(len(NODES)) as pool:
        list(pool.map(getattr(cluster, what), NODES))


def terms(cluster: coterie.LocalCluster) -> dict[str, dict[str, int]]:
    """The term of every group on every node."""
    with Administration(cluster.endpoints) as administration:
        return {
            node: {group: state["term"] for group, state in said["raft"]["groups"].items()}
            for node, said in administration.described().items()
        }


def test_the_data_stay_bounded_and_all_is_there_after_a_restart(tmp_path: Path) -> None:
    """Twelve groups were idle since the first day and pin nothing; their votes survive."""
    with coterie.LocalCluster(3, data_dir=tmp_path / "data", env=SMALL) as cluster:
        holder = Holder(cluster, 50)
        try:
            for _ in range(3):
                asyncio.run(write(cluster, 8))
                await_compacted(cluster)
            before = terms(cluster)
            assert all(len(groups) == 13 for groups in before.values())
            on_all(cluster, "kill")
            for node in NODES:
                verified(directory(cluster, node))
            on_all(cluster, "restart")
            until(lambda: len(terms(cluster)) == 3, "all nodes answer")
            for node, groups in terms(cluster).items():
                assert all(term >= before[node][group] for group, term in groups.items())
            holder.check(cluster)
        finally:
            holder.close()


def verified(data: Path) -> None:
    """What a kill left behind is whole."""
    assert len(verify_log(data).groups) == 13
    snapshots = sorted((data / "snapshots").glob("*.snapshot"))
    assert snapshots
    assert all(verify_snapshot(path).named for path in snapshots)


@pytest.mark.parametrize("lost", ["disk", "time"])
def test_a_follower_is_filled_by_a_snapshot_under_load(lost: str) -> None:
    """It lost its disk, or was away while the others forgot what it lacks. Then its vote counts:
    with another one dead it is the majority."""
    with coterie.LocalCluster(3, env=SMALL) as cluster:
        holder = Holder(cluster, 50)
        follower = (cluster.leader() + 1) % 3
        others = [node for node in NODES if node != follower]

        async def trouble(act: Act) -> None:
            await asyncio.to_thread(cluster.kill, follower)
            await write(cluster, BEYOND_MEMORY)
            await asyncio.to_thread(await_compacted, cluster, *others)
            if lost == "disk":
                await asyncio.to_thread(shutil.rmtree, directory(cluster, follower))
            await asyncio.to_thread(cluster.restart, follower)
            await asyncio.to_thread(caught_up, cluster.endpoints, follower)
            assert sizes(directory(cluster, follower) / "snapshots", ".snapshot")
            await asyncio.to_thread(until, lambda: votes(cluster, follower), "it votes")
            await asyncio.to_thread(cluster.kill, others[0])
            await go_on(act)

        try:
            under_load(cluster, trouble)
            holder.check(cluster)
        finally:
            holder.close()


def votes(cluster: coterie.LocalCluster, node: int) -> bool:
    with Administration(cluster.endpoints) as administration:
        row = administration.member(f"node{node + 1}")
        return row is not None and row.voter


def test_kills_while_the_log_is_made_shorter() -> None:
    """All nodes die again and again in the midst of snapshots and removals; nothing is lost."""
    with coterie.LocalCluster(3, env=SMALL) as cluster:
        holder = Holder(cluster, 50)

        async def trouble(act: Act) -> None:
            writing = asyncio.create_task(write(cluster, 40))
            for _ in range(5):
                await asyncio.to_thread(until, lambda: busy(cluster), "a snapshot is written")
                await asyncio.to_thread(on_all, cluster, "kill")
                await asyncio.to_thread(on_all, cluster, "restart")
                await go_on(act)
            await writing

        try:
            under_load(cluster, trouble)
            await_compacted(cluster)
            holder.check(cluster)
        finally:
            holder.close()


def busy(cluster: coterie.LocalCluster) -> bool:
    return any(sizes(directory(cluster, node) / "snapshots", ".unfinished") for node in NODES)


LEFT_BEHIND = """
import coterie, sys
client = coterie.Client({endpoints!r}, name="left behind", session_ttl=60.0)
assert client.lock("left behind").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def left_ms(cluster: coterie.LocalCluster) -> int:
    """How long the session of the program above still has, by log time."""
    with NodeAsker() as asker:
        found = find_leader(asker, cluster.endpoints)
        if found is None:
            return 0
        endpoint, leader = found
        answer = asker.ask([endpoint], ListSessions(), cluster=leader.cluster).get(endpoint)
    if not isinstance(answer, SessionList):
        return 0
    return next((left for _, name, left in answer.sessions if name == "left behind"), 0)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restart_of_all_keeps_what_is_left_of_a_session(how: str, tmp_path: Path) -> None:
    """It neither begins anew with its full 60 s nor ends before its time."""
    with coterie.LocalCluster(3, env=SMALL) as cluster:
        with script(LEFT_BEHIND.format(endpoints=cluster.endpoints), tmp_path) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "held\n"
            program.send_signal(signal.SIGKILL)
        until(lambda: 0 < left_ms(cluster) < 50_000, "ten seconds of it have passed")
        before = left_ms(cluster)
        on_all(cluster, how)
        on_all(cluster, "restart")
        until(lambda: left_ms(cluster), "the session is there")
        assert 30_000 < left_ms(cluster) <= before + 5_000
        with cluster.client(timeout=DEADLINE_S) as client:
            assert client.lock("left behind").locked()
