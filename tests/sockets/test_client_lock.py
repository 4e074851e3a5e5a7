"""Locks by the asynchronous and the synchronous client against real nodes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count, pairwise

import pytest
from processes import DEADLINE_S, until

import coterie
from coterie.clients.inspection import LockInfo

names = (f"test/{number}" for number in count())


@pytest.fixture
def name() -> str:
    """A lock nobody else uses."""
    return next(names)


@pytest.fixture
def client(cluster: coterie.LocalCluster) -> Iterator[coterie.Client]:
    with cluster.client(name="first") as client:
        yield client


@pytest.fixture
def other(cluster: coterie.LocalCluster) -> Iterator[coterie.Client]:
    with cluster.client(name="second") as client:
        yield client


def info(client: coterie.Client, name: str) -> LockInfo | None:
    found = [lock for lock in client.locks(name) if lock.name == name]
    return found[0] if found else None


@asynccontextmanager
async def two(
    cluster: coterie.LocalCluster,
) -> AsyncIterator[tuple[coterie.AsyncClient, coterie.AsyncClient]]:
    async with cluster.async_client() as one, cluster.async_client() as another:
        yield one, another


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.005)


async def waiting(client: coterie.AsyncClient, name: str) -> int:
    return sum(len(lock.waiters) for lock in await client.locks(name))


def test_with_gives_a_grant(client: coterie.Client, name: str) -> None:
    lock = client.lock(name)
    with lock as grant:
        assert grant
        assert (grant.name, grant.mode, grant.lost) == (name, "exclusive", False)
        assert (lock.token, lock.lost) == (grant.token, False)
        grant.ensure_held()
        lock.ensure_held()
        with pytest.raises(AttributeError):
            grant.token = 1  # type: ignore[misc]
        found = info(client, name)
        assert found is not None
        assert [holder.client for holder in found.holders] == ["first"]
        assert found.token == grant.token
        assert found.holders[0].session == client.session_id
    assert not lock.locked()
    with pytest.raises(RuntimeError):
        _ = lock.token


def test_tokens_rise(client: coterie.Client, other: coterie.Client, name: str) -> None:
    tokens = []
    for turn in range(20):
        with (client, other)[turn % 2].lock(name) as grant:
            tokens.append(grant.token)
    assert all(before < after for before, after in pairwise(tokens))


def test_acquire_honours_threading_lock(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    lock, theirs = client.lock(name), other.lock(name)
    assert lock.acquire() is True
    assert theirs.acquire(False) is False
    assert theirs.acquire(blocking=False) is False
    assert theirs.acquire(timeout=0) is False
    assert theirs.acquire(timeout=0.05) is False
    assert theirs.acquire(True, 0.05) is False
    assert lock.locked() is theirs.locked() is True
    assert lock.release() is None
    assert lock.locked() is theirs.locked() is False
    for refused in (lock, threading.Lock()):
        with pytest.raises(RuntimeError):
            refused.release()
        with pytest.raises(ValueError):
            refused.acquire(False, 1)
        with pytest.raises(ValueError):
            refused.acquire(True, -2)
        with pytest.raises(OverflowError):
            refused.acquire(True, threading.TIMEOUT_MAX * 2)
    found = info(client, name)
    assert found is None


def test_with_raises_timeout_by_the_locks_own_bound(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    with client.lock(name):
        late = pytest.raises(coterie.Timeout, match=r"was not had in 0\.05 s")
        with late, other.lock(name, timeout=0.05):
            pytest.fail("two holders")
        found = info(client, name)
        assert found is not None and found.waiters == []


def test_bad_names_and_delays_are_refused_here(client: coterie.Client) -> None:
    for bad in ("", ".", "..", "a\nb", "x" * 256):
        with pytest.raises(coterie.BadName):
            client.lock(bad)
    with pytest.raises(ValueError, match="lock_delay"):
        client.lock("a", lock_delay=-1.0)
    assert client.lock("ü" * 127).name == "ü" * 127


def test_first_come_first_served(cluster: coterie.LocalCluster, name: str) -> None:
    async def run() -> list[int]:
        order: list[int] = []

        async def take(lock: coterie.AsyncLock, number: int) -> None:
            async with lock:
                order.append(number)

        async with two(cluster) as clients:
            async with clients[0].lock(name):
                tasks = []
                for number in range(6):
                    lock = clients[number % 2].lock(name)
                    tasks.append(asyncio.create_task(take(lock, number)))

                    async def queued(wanted: int = number + 1) -> bool:
                        return await waiting(clients[0], name) == wanted

                    await eventually(queued)
            await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == list(range(6))


def test_shared_holders_share_a_token(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    with client.lock(name, shared=True) as one, other.lock(name, shared=True) as two:
        assert one.token == two.token and one.mode == "shared"
        assert client.lock(name).acquire(False) is False
    with client.lock(name) as after:
        assert after.token > one.token


def test_one_lock_object_held_by_many_tasks(cluster: coterie.LocalCluster, name: str) -> None:
    async def run() -> None:
        async with cluster.async_client() as client:
            lock = client.lock(name, shared=True)
            inside = asyncio.Barrier(8)

            async def hold() -> int:
                async with lock as grant:
                    await inside.wait()
                    assert lock.token == grant.token
                    return grant.token

            assert len(set(await asyncio.gather(*(hold() for _ in range(8))))) == 1
            assert await client.locks(name) == []

    asyncio.run(run())


def test_another_thread_may_release(client: coterie.Client, name: str) -> None:
    lock = client.lock(name)
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join(DEADLINE_S)
    assert not lock.locked()


def test_the_wait_graph_names_the_claims(
    client: coterie.Client, other: coterie.Client, name: str
) -> None:
    with client.lock(name):
        thread = threading.Thread(target=other.lock(name).acquire)
        thread.start()
        until(lambda: (found := info(client, name)) and found.waiters, "a waiter")
        found = info(client, name)
        assert found is not None
        edges = [edge for edge in client.wait_graph() if edge.name == name]
        assert edges == [(found.waiters[0].number, found.holders[0].number, name)]
    thread.join(DEADLINE_S)


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_cancel_at_every_await_leaves_nothing(
    cluster: coterie.LocalCluster, name: str, turns: int
) -> None:
    """A task cancelled after any number of turns of its loop, in acquire or release, in a lock
    that is free or held."""

    async def run() -> None:
        async with two(cluster) as (client, other):
            assert await client.locks(name) == []  # connected: turns count from the acquire
            for held in (False, True):
                holder = other.lock(name)
                if held:
                    await holder.acquire()

                async def take() -> None:
                    async with client.lock(name):
                        await asyncio.sleep(0)

                task = asyncio.create_task(take())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if held:
                    await holder.release()

                async def free() -> bool:
                    return await other.locks(name) == []

                await eventually(free)

    asyncio.run(run())


def test_cancel_just_when_granted_leaves_nothing(cluster: coterie.LocalCluster, name: str) -> None:
    """The answer and the cancellation meet in one turn."""

    async def run() -> None:
        async with cluster.async_client() as client:
            await client.locks()
            shell = client._shell
            task = asyncio.create_task(client.lock(name).acquire())
            told = shell._complete

            def complete(core: object) -> None:
                told(core)  # type: ignore[arg-type]
                if core.session is not None and not core.session.open:  # type: ignore[attr-defined]
                    task.cancel()

            shell._complete = complete  # type: ignore[assignment, method-assign]
            await asyncio.wait([task])
            assert task.cancelled()

            async def free() -> bool:
                return await client.locks(name) == []

            await eventually(free)

    asyncio.run(run())


def test_a_body_that_raises_releases(client: coterie.Client, name: str) -> None:
    with pytest.raises(KeyError), client.lock(name):
        raise KeyError("the body's")
    assert not client.lock(name).locked()


def test_a_closed_client_says_so(cluster: coterie.LocalCluster, name: str) -> None:
    client = cluster.client()
    lock = client.lock(name)
    lock.acquire()
    client.close()
    client.close()
    for use in (lock.acquire, lock.locked, client.locks, client.status):
        with pytest.raises(coterie.CoterieError, match="closed"):
            use()
    unused = cluster.client()
    unused.close()
    with pytest.raises(coterie.CoterieError, match="closed"):
        unused.locks()


def test_close_frees_at_once_and_wakes_waiters(
    cluster: coterie.LocalCluster, client: coterie.Client, name: str
) -> None:
    closing = cluster.client()
    closing.lock(name).acquire()
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            closing.lock(name).acquire()
        except coterie.CoterieError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: (found := info(client, name)) and found.waiters, "a waiter")
    closing.close()
    thread.join(DEADLINE_S)
    assert len(raised) == 1
    assert client.lock(name).acquire(False)
    assert client.session_id is not None and closing.session_id is None


def test_a_client_of_two_loops_is_refused(cluster: coterie.LocalCluster) -> None:
    client = cluster.async_client()
    asyncio.run(client.locks())
    with pytest.raises(coterie.CoterieError, match="event loop"):
        asyncio.run(client.locks())


def test_status_tells_who_leads(cluster: coterie.LocalCluster, client: coterie.Client) -> None:
    status = client.status()
    assert status["leader"] == f"node{cluster.leader() + 1}"
    assert [node["answers"] for node in status["nodes"]] == [True] * 3


def test_one_endpoint_is_enough(cluster: coterie.LocalCluster, name: str) -> None:
    for endpoint in cluster.endpoints:
        with coterie.Client(endpoint) as client, client.lock(name) as grant:
            assert grant.token > 0


def test_no_cluster_is_unavailable() -> None:
    with coterie.Client("tcp://127.0.0.1:9", timeout=0.5) as client:
        with pytest.raises(coterie.Unavailable, match="0 of 1 nodes answer"):
            client.lock("a").acquire(False)
        with pytest.raises(ConnectionError):
            client.locks()
        assert client.lock("a").acquire(timeout=0.05) is False
        assert client.status()["leader"] is None
