"""Real nodes killed, paused and wiped while clients take locks."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from contention import go_on, under_load
from processes import DEADLINE_S, script, until
from processes import coterie as coterie_command

import coterie
from coterie.nodes.ask import NodeAsker, located
from coterie.nodes.demo import PYTHON, Act
from coterie.nodes.local import NodeNotRunning
from coterie.protocols.session.messages import Locate, Located

NODES = range(3)


@pytest.fixture
def whole(cluster: coterie.LocalCluster) -> Iterator[coterie.LocalCluster]:
    """The cluster of the session; made whole again afterwards."""
    yield cluster
    heal(cluster)


def heal(cluster: coterie.LocalCluster) -> None:
    def one(index: int) -> None:
        try:
            cluster.resume(index)
        except NodeNotRunning:
            cluster.restart(index)

    with ThreadPoolExecutor(len(NODES)) as pool:
        list(pool.map(one, NODES))
    until(lambda: agreed(cluster), "all nodes agree on a leader again")


def locate(cluster: coterie.LocalCluster) -> list[Located]:
    with NodeAsker() as asker:
        return list(located(asker.ask(cluster.endpoints, Locate())).values())


def agreed(cluster: coterie.LocalCluster) -> bool:
    answers = locate(cluster)
    leaders = {answer.leader for answer in answers}
    return len(answers) == len(NODES) and len(leaders) == 1 and "" not in leaders


def kill_all(cluster: coterie.LocalCluster) -> None:
    with ThreadPoolExecutor(len(NODES)) as pool:
        list(pool.map(cluster.kill, NODES))


def test_two_holders_and_a_token_that_falls_would_be_seen() -> None:
    act = Act()
    act.enter("orders", "one", 7)
    act.leave("orders")
    act.enter("orders", "two", 8)
    assert (act.overlaps, act.not_rising) == (0, 0)
    act.enter("orders", "three", 9)
    assert (act.overlaps, act.not_rising) == (1, 0)
    act.leave("orders")
    act.enter("orders", "four", 9)
    assert (act.overlaps, act.not_rising) == (1, 1)
    kept = act.promises()
    assert [promise for promise, held in kept.items() if held] == ["no client saw an error"]


def test_clients_go_on_when_the_leader_is_killed(whole: coterie.LocalCluster) -> None:
    async def trouble(act: Act) -> None:
        for _ in range(2):
            leader = await asyncio.to_thread(whole.leader)
            await asyncio.to_thread(whole.kill, leader)
            await go_on(act)
            await asyncio.to_thread(whole.restart, leader)

    under_load(whole, trouble)


def test_clients_go_on_when_the_leader_is_stopped(whole: coterie.LocalCluster) -> None:
    async def trouble(act: Act) -> None:
        leader = await asyncio.to_thread(whole.leader)
        await asyncio.to_thread(whole.stop, leader)
        await go_on(act)

    under_load(whole, trouble)


def test_a_paused_leader_is_replaced_and_steps_down(whole: coterie.LocalCluster) -> None:
    async def trouble(act: Act) -> None:
        leader = await asyncio.to_thread(whole.leader)
        await asyncio.to_thread(whole.pause, leader)
        await go_on(act)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 2.0  # the others' grants go on while it sleeps
        while loop.time() < until_s:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(whole.resume, leader)
        # From its first answer on it may say that it leads only if it does: in the last term.
        for _ in range(20):
            answers = await asyncio.to_thread(locate, whole)
            term = max(answer.term for answer in answers)
            claims = [a for a in answers if a.leader == a.node and a.term == term]
            assert len(claims) <= 1
            await go_on(act)

    under_load(whole, trouble)
    until(lambda: agreed(whole), "it follows the new leader")


def test_locks_outlive_the_death_of_all_nodes(whole: coterie.LocalCluster) -> None:
    """Ten times over: what was granted is held after all were killed, and nothing granted twice."""
    tokens = [0]
    with (
        whole.client(session_ttl=60.0, timeout=30.0) as holder,
        whole.client(session_ttl=60.0, timeout=30.0) as other,
    ):
        held = holder.lock("held")
        assert held.acquire()
        for _ in range(10):
            loop = other.lock("loop")
            assert loop.acquire()
            tokens.append(loop.token)
            kill_all(whole)
            heal(whole)
            loop.release()
            assert not held.lost
            assert not other.lock("held").acquire(blocking=False)
        token = held.token
        held.release()
        after = other.lock("held")
        assert after.acquire(timeout=DEADLINE_S)
        assert after.token > token
        after.release()
    assert tokens == sorted(set(tokens))


def test_clients_go_on_after_all_were_killed(whole: coterie.LocalCluster) -> None:
    async def trouble(act: Act) -> None:
        for _ in range(2):
            await asyncio.to_thread(kill_all, whole)
            await asyncio.to_thread(heal, whole)
            await go_on(act)

    under_load(whole, trouble)


def test_a_wiped_node_comes_back_and_counts_again() -> None:
    """It lost its disk: under a new incarnation it is filled, and then the quorum can be it."""
    with coterie.LocalCluster(3) as cluster:
        before = {member.node: member.incarnation for member in locate(cluster)[0].members}

        async def trouble(act: Act) -> None:
            wiped = (await asyncio.to_thread(cluster.leader) + 1) % 3
            name = f"node{wiped + 1}"
            await asyncio.to_thread(cluster.kill, wiped)
            shutil.rmtree(cluster.data_dir / name)
            await asyncio.to_thread(cluster.restart, wiped)

            def votes_again() -> bool:
                return len(locate(cluster)) == 3 and all(
                    member.voter and member.incarnation != before[name]
                    for answer in locate(cluster)
                    for member in answer.members
                    if member.node == name
                )

            await asyncio.to_thread(until, votes_again, "the wiped node votes again")
            await asyncio.to_thread(cluster.kill, (wiped + 1) % 3)
            await go_on(act)

        under_load(cluster, trouble)


def test_the_ten_lines_of_the_demo_run(tmp_path: Path) -> None:
    assert len(PYTHON.splitlines()) == 10
    with script(PYTHON, tmp_path) as program:
        said, _ = program.communicate(timeout=DEADLINE_S)
        assert program.returncode == 0
    first, second = said.splitlines()
    assert int(second.split()[1]) > int(first.split()[1])


def test_the_demo_keeps_every_promise(tmp_path: Path) -> None:
    done = coterie_command("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 overlaps; last tokens" in done.stdout
    assert done.stdout.count("  kept    ") == 8
    assert PYTHON in done.stdout
    assert "\x1b" not in done.stdout  # no terminal, no colours
