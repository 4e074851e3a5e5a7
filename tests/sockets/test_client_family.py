"""Transactions and the family of locks by both clients against real nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from processes import DEADLINE_S, until

import coterie

names = (f"family/{number}" for number in count())


@pytest.fixture
def name() -> str:
    """A name nobody else uses."""
    return next(names)


@pytest.fixture
def client(cluster: coterie.LocalCluster) -> Iterator[coterie.Client]:
    with cluster.client(name="first") as client:
        yield client


@pytest.fixture
def other(cluster: coterie.LocalCluster) -> Iterator[coterie.Client]:
    with cluster.client(name="second") as client:
        yield client


def side_by_side(*functions: Callable[[], object]) -> None:
    """Run functions on threads of their own, to their end."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_transaction_gives_all_back_at_its_end(client: coterie.Client, name: str) -> None:
    with client.transaction() as t:
        one = t.lock(f"{name}/a", shared=True)
        assert t.lock(f"{name}/a") == t.lock(f"{name}/a") != one
        both = t.lock_all([f"{name}/b", f"{name}/a", f"{name}/c"])
        assert [grant.name for grant in both] == [f"{name}/b", f"{name}/a", f"{name}/c"]
        assert len(client.locks(name)) == 3
    assert client.locks(name) == []
    with pytest.raises(RuntimeError, match="has ended"):
        t.lock(name)
    t.abort()
    with pytest.raises(KeyError), client.transaction() as t:
        t.lock(name)
        raise KeyError
    assert client.locks(name) == []


def test_a_lock_of_a_transaction_that_is_not_had_in_time(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    with other.lock(f"{name}/b"), client.transaction() as t:
        t.lock(f"{name}/a")
        for timeout in (0, 0.05):
            with pytest.raises(coterie.Timeout):
                t.lock(f"{name}/b", timeout=timeout)
            with pytest.raises(coterie.Timeout):
                t.lock_all([f"{name}/b", f"{name}/c"], timeout=timeout)
        assert [lock.name for lock in client.locks(name)] == [f"{name}/a", f"{name}/b"]
        assert not any(lock.waiters for lock in client.locks(name))


def test_the_younger_of_two_transactions_is_the_victim(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    meet = threading.Barrier(2)
    told: list[tuple[int, coterie.Deadlock]] = []
    went_on: list[int] = []

    def take(by: coterie.Client, first: str, second: str) -> None:
        try:
            with by.transaction() as t:
                grant = t.lock(first)
                meet.wait(DEADLINE_S)
                t.lock(second)
                went_on.append(t.id)
        except coterie.Deadlock as deadlock:
            assert grant.lost
            told.append((t.id, deadlock))

    a, b = f"{name}/a", f"{name}/b"
    side_by_side(lambda: take(client, a, b), lambda: take(other, b, a))
    [(victim, deadlock)] = told
    assert victim > went_on[0]
    assert sorted((waiter, holder) for waiter, holder, _ in deadlock.cycle) == [
        (went_on[0], victim),
        (victim, went_on[0]),
    ]
    assert client.locks(name) == client.wait_graph() == []


def test_run_repeats_the_victim_with_its_first_id(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    meet = threading.Barrier(2)
    ids: dict[str, list[int]] = {"first": [], "second": []}

    def move(by: coterie.Client, first: str, second: str) -> None:
        def both(t: coterie.Transaction) -> None:
            ids[by.name].append(t.id)
            t.lock(first)
            if len(ids[by.name]) == 1:
                meet.wait(DEADLINE_S)
            t.lock(second)

        by.run(both)

    a, b = f"{name}/a", f"{name}/b"
    side_by_side(lambda: move(client, a, b), lambda: move(other, b, a))
    repeated = [seen for seen in ids.values() if len(seen) > 1]
    assert len(repeated) == 1 and len(set(repeated[0])) == 1
    with pytest.raises(ValueError):
        client.run(lambda t: None, attempts=0)


def test_threads_that_nest_locks_are_in_the_graph(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    meet = threading.Barrier(2)
    told: list[coterie.Deadlock] = []

    def nest(by: coterie.Client, first: str, second: str) -> None:
        try:
            with by.lock(first):
                meet.wait(DEADLINE_S)
                with by.rlock(second):
                    pass
        except coterie.Deadlock as deadlock:
            told.append(deadlock)

    a, b = f"{name}/a", f"{name}/b"
    side_by_side(lambda: nest(client, a, b), lambda: nest(other, b, a))
    assert len(told) == 1 and "LockLost" in told[0].__notes__[0]
    assert client.locks(name) == []
    with client.lock(a), other.lock(b):
        pass  # who was a victim begins anew


def test_tasks_that_nest_locks_are_in_the_graph(cluster: coterie.LocalCluster, name: str) -> None:
    async def run() -> None:
        async with cluster.async_client() as client:
            meet = asyncio.Barrier(2)

            async def nest(first: str, second: str) -> None:
                async with client.lock(first):
                    await meet.wait()
                    async with client.lock(second):
                        pass

            a, b = f"{name}/a", f"{name}/b"
            async with asyncio.timeout(DEADLINE_S):
                ended = await asyncio.gather(nest(a, b), nest(b, a), return_exceptions=True)
            assert sum(isinstance(one, coterie.Deadlock) for one in ended) == 1
            assert await client.locks(name) == []

    asyncio.run(run())


PROGRAM = """
import sys, coterie
first, second = sys.argv[1:]
with coterie.Client() as c:
    try:
        with c.transaction() as t:
            t.lock(first)
            print("holds", flush=True)
            sys.stdin.readline()
            t.lock(second)
        print("both")
    except coterie.Deadlock:
        print("deadlock")
"""


def test_two_programs_in_a_circle(cluster: coterie.LocalCluster, name: str) -> None:
    environment = {**os.environ, "COTERIE_ENDPOINTS": ",".join(cluster.endpoints)}
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"{name}/{first}", f"{name}/{second}"],
            cwd="/",
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first, second in ("ab", "ba")
    ]
    try:
        for program in programs:
            assert program.stdout is not None and program.stdout.readline() == "holds\n"
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        said = [program.communicate(timeout=DEADLINE_S)[0] for program in programs]
        assert sorted(said) == ["both\n", "deadlock\n"]
    finally:
        for program in programs:
            program.kill()


HOLDER = """
import sys, coterie
name = sys.argv[1]
with coterie.Client(session_ttl=1.0) as c:
    lock = c.lock(name)
    lock.acquire()
    token = lock.token
    print(token, flush=True)
    sys.stdin.readline()
    try:
        c.fence(name).check(token)
        print("written", lock.lost)
    except coterie.StaleToken:
        print("refused", lock.lost)
"""


def test_a_holder_stopped_past_its_ttl_writes_no_more(
    cluster: coterie.LocalCluster, client: coterie.Client, name: str
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, name],
        cwd="/",
        env={**os.environ, "COTERIE_ENDPOINTS": ",".join(cluster.endpoints)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        token = int(holder.stdout.readline())
        holder.send_signal(signal.SIGSTOP)
        with client.lock(name, timeout=DEADLINE_S) as grant:
            assert grant.token > token
            client.fence(name).check(grant.token)
            holder.send_signal(signal.SIGCONT)
            said, _ = holder.communicate("\n", timeout=DEADLINE_S)
        assert said == "refused True\n"
    finally:
        holder.kill()
        holder.wait()


def test_a_cancel_at_every_await_of_a_transaction_leaves_nothing(
    cluster: coterie.LocalCluster, name: str
) -> None:
    async def run() -> None:
        async with cluster.async_client() as client:

            async def take() -> None:
                async with client.transaction() as t:
                    await t.lock(f"{name}/a")
                    await t.lock_all([f"{name}/b", f"{name}/c"])

            for turns in range(60):
                task = asyncio.create_task(take())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                async with asyncio.timeout(DEADLINE_S):
                    while await client.locks(name):
                        await asyncio.sleep(0.005)

    asyncio.run(run())


def test_upgrade_and_downgrade(client: coterie.Client, other: coterie.Client, name: str) -> None:
    lock, theirs = client.lock(name, shared=True), other.lock(name, shared=True)
    with lock as grant:
        upgraded = lock.upgrade()
        assert upgraded.mode == "exclusive" and upgraded.token > grant.token == grant.token
        assert lock.token == upgraded.token and not theirs.acquire(False)
        assert lock.upgrade() == upgraded
        assert lock.downgrade().mode == "shared"
        assert theirs.acquire(False)
        with pytest.raises(coterie.Timeout, match="still shared"):
            lock.upgrade(timeout=0.05)
        assert lock.downgrade().mode == "shared" and not lock.lost
        theirs.release()
    assert client.locks(name) == []


def test_a_lock_taken_away_is_lost(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    told = threading.Event()
    lock = client.lock(name)
    with pytest.raises(coterie.LockLost, match="taken away"), lock as grant:
        grant.on_lost(told.set)
        assert other.force_release(name) is True
        assert told.wait(DEADLINE_S) and grant.lost
    assert other.force_release(name) is False


def test_watching_tells_what_happens(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    with client.lock(f"{name}/a"):
        events = other.watch_locks(name)
        first = next(events)
        assert (first.kind, first.name, first.client) == ("listed", f"{name}/a", "first")
    assert next(events).kind == "released"
    with client.lock(f"{name}/b") as grant:
        seen = next(events)
        assert (seen.kind, seen.name, seen.token) == ("granted", f"{name}/b", grant.token)


def test_an_election_has_one_leader_and_is_observed(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    election, theirs = client.election(name), other.election(name)
    assert election.leader() is None
    seen = theirs.observe()
    assert next(seen) is None
    with election as grant:
        assert election.leader() == next(seen) == ("first", b"", grant.token)
        with pytest.raises(coterie.Timeout):
            theirs.campaign(b"x", timeout=0)
        with pytest.raises(RuntimeError):
            election.campaign()
    assert theirs.campaign(b"x").token > grant.token
    assert election.leader() == coterie.Leader("second", b"x", theirs.leader().token)  # type: ignore[union-attr]
    other.close()
    until(lambda: election.leader() is None, "the leader is gone with its session")
    with pytest.raises(RuntimeError):
        election.resign()


def test_settings_of_first_use_stay(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    assert client.semaphore(name, 3).acquire()
    with pytest.raises(ValueError, match="3"):
        other.semaphore(name, 4).acquire()


def test_a_permit_goes_with_its_session(
    cluster: coterie.LocalCluster, client: coterie.Client, name: str
) -> None:
    ours = client.semaphore(name)
    with cluster.client() as third:
        assert third.semaphore(name).acquire()
        assert not ours.acquire(False)
    assert ours.acquire(timeout=DEADLINE_S)


def test_a_condition_between_two_clients(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    ready: list[int] = []
    ours, theirs = client.condition(client.rlock(name)), other.condition(other.lock(name))
    with pytest.raises(RuntimeError):
        ours.notify()

    def change() -> None:
        with theirs:
            ready.append(1)
            theirs.notify_all()

    with ours:
        assert ours.wait(0.05) is False
        thread = threading.Thread(target=change)
        thread.start()
        assert ours.wait_for(lambda: ready, DEADLINE_S) == [1]
        assert client.lock(name).locked()
    thread.join(DEADLINE_S)


def test_a_fence_in_the_cluster_refuses_a_late_write(
    cluster: coterie.LocalCluster, client: coterie.Client, name: str
) -> None:
    with cluster.client(session_ttl=1.0) as paused:
        first = paused.lock(name)
        first.acquire()
        old = first.token
        client.fence(name).check(old)
        client.force_release(name)
        with client.lock(name) as grant:
            client.fence(name).check(grant.token)
        with pytest.raises(coterie.StaleToken):
            paused.fence(name).check(old)
        client.fence(name).check(grant.token)


def coterie_locks(cluster: coterie.LocalCluster, *arguments: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "coterie", "locks", *arguments],
        cwd="/",
        env={**os.environ, "COTERIE_ENDPOINTS": ",".join(cluster.endpoints)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    return run.returncode, run.stdout + run.stderr


def test_the_terminal_draws_the_graph_and_takes_a_lock_away(
    cluster: coterie.LocalCluster, client: coterie.Client, other: coterie.Client, name: str
) -> None:
    with client.transaction() as t, other.transaction() as waiting:
        t.lock(name)
        thread = threading.Thread(target=waiting.lock, args=(name,), daemon=True)
        thread.start()
        until(lambda: len(client.wait_graph()) == 1, "one waits for the other")
        code, graph = coterie_locks(cluster, "graph", "--dot")
        edge = f'"transaction second#{waiting.id}" -> "transaction first#{t.id}"'
        assert code == 0 and f'  {edge} [label="{name}"];' in graph
        code, said = coterie_locks(cluster, "release", name)
        assert code == 0 and name in said
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        with pytest.raises(coterie.LockLost):
            t.commit()
    code, said = coterie_locks(cluster, "release", name)
    assert code == 1 and "nobody holds" in said
