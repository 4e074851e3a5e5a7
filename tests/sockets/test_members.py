"""Nodes that come and go while the cluster serves: as a program does it, and as an operator types.

Each test that adds, removes or kills has a cluster of its own.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from contention import Holder, go_on, under_load
from processes import coterie as command
from processes import free_base, processes_of, running, until

import coterie
from coterie.nodes.administration import Administration
from coterie.nodes.demo import Act
from coterie.protocols.placement.messages import MemberRow

MOVED_S = 90.0
"""Partitions move one after the other, at a bounded rate."""


def rows(cluster: coterie.LocalCluster) -> dict[str, MemberRow]:
    with Administration(cluster.endpoints) as administration:
        return {row.node: row for row in administration.members()}


def settled(cluster: coterie.LocalCluster) -> bool:
    """The partitions are founded, and all are where they should be."""
    with Administration(cluster.endpoints) as administration:
        ring = administration.ring()
        return ring.partitions > 0 and ring.remaining == 0


def await_settled(cluster: coterie.LocalCluster) -> None:
    until(lambda: settled(cluster), "all partitions are where they should be", MOVED_S)


# A program


def test_a_node_that_is_added_counts_and_takes_its_share() -> None:
    with coterie.LocalCluster(3) as cluster:
        await_settled(cluster)
        index = cluster.add_node()
        assert index == 3
        assert len(cluster.endpoints) == 4
        assert rows(cluster)["node4"].voter
        await_settled(cluster)
        found = rows(cluster)
        assert {name: len(row.holds) for name, row in found.items()} == {
            name: len(row.groups) for name, row in found.items()
        }
        # 12 partitions, three copies each, over four nodes, none above 1.25 times its share.
        assert sum(len(row.holds) for row in found.values()) == 36
        assert 6 <= len(found["node4"].holds) <= 12
        assert all(len(row.holds) <= 12 for row in found.values())
        # It really holds them: with one of the others gone, its vote is needed in some group.
        cluster.kill(0)
        for group in range(13):
            assert cluster.leader(group) != 0


def test_the_number_of_a_removed_node_is_never_used_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with coterie.LocalCluster(3, data_dir=data) as cluster:
        with cluster.client() as client, client.lock("before"):
            cluster.remove_node(1)
        assert len(cluster.endpoints) == 2
        assert processes_of(data / "node2") == []
        for use in (cluster.pid, cluster.kill, cluster.restart, cluster.remove_node):
            with pytest.raises(IndexError, match="node 1 was removed"):
                use(1)
        assert cluster.add_node() == 3
        assert set(rows(cluster)) == {"node1", "node3", "node4"}
        endpoints = cluster.endpoints
        assert cluster.leader() in (0, 2, 3)
    with pytest.raises(ValueError, match="a cluster of 3"):
        coterie.LocalCluster(4, data_dir=data).start()
    with coterie.LocalCluster(3, data_dir=data) as cluster:
        assert cluster.endpoints == endpoints
        assert processes_of(data / "node2") == []
        assert cluster.add_node() == 4
        with cluster.client() as client, client.lock("after") as grant:
            assert grant.token
    assert processes_of(tmp_path) == []


def test_a_dead_node_can_be_removed_and_the_last_one_cannot() -> None:
    with coterie.LocalCluster(3) as cluster:
        cluster.kill(2)
        cluster.remove_node(2)
        assert set(rows(cluster)) == {"node1", "node2"}
        leader = cluster.leader()
        cluster.remove_node(leader)  # and it is the one that leads
        (left,) = {0, 1} - {leader}
        assert cluster.leader() == left
        with cluster.client() as client, client.lock("alone"):
            pass
        with pytest.raises(ValueError, match="the last one"):
            cluster.remove_node(left)


def test_from_one_to_three_to_five_and_back_under_load() -> None:
    """Every node of the beginning goes, the leader among them; no lock is held twice, no grant is
    lost, no client sees an error."""
    with coterie.LocalCluster(1) as cluster:
        holder = Holder(cluster, 20)

        async def trouble(act: Act) -> None:
            for _ in range(4):
                await asyncio.to_thread(cluster.add_node)
                await go_on(act)
            assert sum(row.voter for row in (await asyncio.to_thread(rows, cluster)).values()) == 5
            for index in (0, 1):
                await asyncio.to_thread(cluster.remove_node, index)
                await go_on(act)

        try:
            under_load(cluster, trouble)
            await_settled(cluster)
            assert set(rows(cluster)) == {"node3", "node4", "node5"}
            holder.check(cluster)
        finally:
            holder.close()


@pytest.mark.parametrize("role", ["leader", "newcomer", "all"])
def test_a_kill_while_a_node_joins(role: str) -> None:
    """Whoever dies when the change is half done: it is done or goes on, and nothing is lost."""
    with coterie.LocalCluster(3) as cluster, ThreadPoolExecutor(4) as pool:
        holder = Holder(cluster, 5)

        async def trouble(act: Act) -> None:
            leader = await asyncio.to_thread(cluster.leader)
            adding = asyncio.to_thread(cluster.add_node)
            added = asyncio.create_task(adding)
            await asyncio.to_thread(until, lambda: "node4" in rows(cluster), "it is recorded")
            killed = {"leader": [leader], "newcomer": [3], "all": [0, 1, 2, 3]}[role]
            await asyncio.to_thread(lambda: list(pool.map(lambda i: kill(cluster, i), killed)))
            for index in killed:
                if index != 3:
                    await asyncio.to_thread(cluster.restart, index)
            try:
                await added
            except coterie.Unavailable:
                assert 3 in killed  # it was given up, and is taken out again
                assert await asyncio.to_thread(cluster.add_node) == 4
            await go_on(act)

        try:
            under_load(cluster, trouble)
            await_settled(cluster)
            assert len([row for row in rows(cluster).values() if row.state == "member"]) == 4
            holder.check(cluster)
        finally:
            holder.close()


def kill(cluster: coterie.LocalCluster, index: int) -> None:
    """Kill a node as soon as it runs."""

    def killed() -> bool:
        try:
            cluster.kill(index)
        except Exception:
            return False
        return True

    until(killed, f"node {index} is killed")


# An operator


@pytest.fixture(scope="module")
def three() -> Iterator[coterie.LocalCluster]:
    """Three nodes whose members do not change."""
    with coterie.LocalCluster(3) as cluster:
        await_settled(cluster)
        yield cluster


def typed(cluster: coterie.LocalCluster, directory: Path, *arguments: object) -> tuple[int, str]:
    done = command(
        *arguments, cwd=directory, deadline_s=MOVED_S, COTERIE_ENDPOINTS=",".join(cluster.endpoints)
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_status_shows_the_ring(three: coterie.LocalCluster, tmp_path: Path) -> None:
    code, said = typed(three, tmp_path, "status")
    assert code == 0
    assert "12 partitions, 3 copies each, are in their places" in said
    lines = said.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("GROUP  SHOULD HOLD"))
    groups = [line.split() for line in lines[start + 1 : start + 13]]
    assert [int(cells[0]) for cells in groups] == list(range(1, 13))
    for cells in groups:
        assert sorted(cells[1:4]) == sorted(cells[4:7]) == ["node1", "node2", "node3"]
        assert cells[7] in cells[1:4]
    code, said = typed(three, tmp_path, "status", "--json")
    ring = json.loads(said)["ring"]
    assert ring["remaining"] == 0
    assert [row["group"] for row in ring["groups"]] == list(range(1, 13))
    assert all(row["leader"] in row["should_hold"] for row in ring["groups"])


def test_members_are_listed(three: coterie.LocalCluster, tmp_path: Path) -> None:
    code, said = typed(three, tmp_path, "member", "ls")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == ["NODE", "node1", "node2", "node3"]
    code, said = typed(three, tmp_path, "member", "ls", "--json")
    found: dict[str, Any] = json.loads(said)
    assert [row["node"] for row in found["members"]] == ["node1", "node2", "node3"]
    assert all(row["state"] == "member" and row["voter"] for row in found["members"])


def test_a_leadership_is_handed_over(three: coterie.LocalCluster, tmp_path: Path) -> None:
    for group in ("0", "7"):
        for name in ("node1", "node2", "node3"):
            assert typed(three, tmp_path, "leader", "transfer", group, name)[0] == 0
            assert f"node{three.leader(int(group)) + 1}" == name
    assert typed(three, tmp_path, "leader", "transfer", "node1") == (0, "node1 leads group 0\n")
    code, said = typed(three, tmp_path, "leader", "transfer", "node1", "--json")
    assert (code, json.loads(said)["leader"]) == (0, "node1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("leader", "transfer", "node9"), "node9"),
        (("leader", "transfer", "zero", "node1"), "a group's number"),
        (("member", "remove", "node9"), "there are node1, node2, node3"),
        (("member", "add", "node4", "somewhere"), "HOST:PORT"),
        (("member", "add", "node 4", "127.0.0.1:7004"), "a name is"),
        (("member", "add", "node1", "127.0.0.1:7004"), "node1"),
        (("node", "--join", "127.0.0.1:7001"), "--name"),
        (("node", "--name", "n4", "--join", "127.0.0.1:7001", "--bind", "0.0.0.0"), "--advertise"),
    ],
)
def test_what_has_no_meaning_exits_64(
    three: coterie.LocalCluster, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, told = typed(three, tmp_path, *arguments)
    assert code == 64, told
    assert said in told


def test_a_node_that_does_not_run_is_waited_for_in_vain(tmp_path: Path) -> None:
    port = free_base(1)
    address = f"127.0.0.1:{port}"
    with coterie.LocalCluster(1) as cluster:
        await_settled(cluster)
        code, said = typed(cluster, tmp_path, "member", "add", "node2", address)
        assert code == 0
        assert (
            f"coterie node --name node2 --join {cluster.endpoints[0][6:]} --bind {address}" in said
        )
        code, said = typed(
            cluster, tmp_path, "member", "add", "node2", address, "--wait", "--timeout", "0.5"
        )
        assert code == 75
        assert "not heard of yet" in said
        # Nobody waits for it either: the one node goes on alone, and lets it go again.
        assert cluster.leader() == 0
        assert typed(cluster, tmp_path, "member", "remove", "node2", "--wait")[0] == 0
        assert set(rows(cluster)) == {"node1"}


def test_without_a_cluster_it_exits_69(tmp_path: Path) -> None:
    port = free_base(1)
    for arguments in (
        ("member", "ls"),
        ("leader", "transfer", "node1"),
        ("node", "--name", "node4", "--join", f"127.0.0.1:{port}", "--bind", "127.0.0.1:7004"),
    ):
        done = command(*arguments, cwd=tmp_path, COTERIE_ENDPOINTS=f"tcp://127.0.0.1:{port}")
        assert done.returncode == 69, done.stderr
        assert "coterie status" in done.stderr


def test_a_fourth_node_by_hand_beside_three_that_up_runs(tmp_path: Path) -> None:
    """As docs/membership.md says it: start, join, wait, restart, remove."""
    port = free_base(4)
    fourth = tmp_path / "fourth"
    fourth.mkdir()
    join = ["node", "--name", "node4", "--join", f"127.0.0.1:{port},127.0.0.1:{port + 1}"]
    join += ["--bind", f"127.0.0.1:{port + 3}"]

    def typed(*arguments: object) -> str:
        done = command(
            *arguments,
            cwd=tmp_path,
            deadline_s=MOVED_S,
            COTERIE_ENDPOINTS=f"tcp://127.0.0.1:{port}",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def members() -> dict[str, dict[str, Any]]:
        return {row["node"]: row for row in json.loads(typed("member", "ls", "--json"))["members"]}

    command("up", "--port", port, "--detach", cwd=tmp_path)
    try:
        with running(*join, cwd=fourth) as node:
            until(lambda: members().get("node4", {}).get("voter"), "it votes")
            said = typed("member", "add", "node4", f"127.0.0.1:{port + 3}", "--wait")
            share = len(members()["node4"]["holds"])
            assert f"node4 has joined and holds its share: {share} partitions" in said
            assert share >= 6
            node.send_signal(signal.SIGTERM)
            assert node.wait(30) == 0
        # Started again it is the same member, whether or not anybody answers.
        before = members()["node4"]["incarnation"]
        assert (fourth / "coterie-data" / "node4" / "peers").exists()
        with running(*join, cwd=fourth) as node:
            until(lambda: "4 of 4 nodes answer" in typed("status"), "it is back")
            assert members()["node4"]["incarnation"] == before
            assert "no member any more" in typed("member", "remove", "node4", "--wait")
            assert sorted(members()) == ["node1", "node2", "node3"]
            assert typed("lock", "x", "--", "true") == ""
            assert node.wait(30) == 76
        # With the data of a node that was removed it comes to nothing, and says so.
        with running(*join, cwd=fourth) as node:
            assert node.wait(30) == 76
        assert "this node was removed from its cluster" in (fourth / "output").read_text()
        assert sorted(members()) == ["node1", "node2", "node3"]
    finally:
        command("down", cwd=tmp_path)
