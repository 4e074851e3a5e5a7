"""Locks under contention while something is done to the cluster: what must hold whatever happens.

The clients are in this process, so two holders at once would be seen here, and so would a token
that does not rise (`Act` and `contend` of the demo).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from processes import DEADLINE_S

import coterie
from coterie.nodes.demo import Act, contenders


async def go_on(act: Act) -> None:
    """Wait until every lock was granted a few more times."""
    goals = {name: lock.grants + 3 for name, lock in act.locks.items()}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while any(act.locks[name].grants < goal for name, goal in goals.items()):
        assert loop.time() < deadline, f"the locks do not go on: {act}"
        assert not act.errors, act.errors
        await asyncio.sleep(0.01)


def under_load(cluster: coterie.LocalCluster, trouble: Callable[[Act], Awaitable[None]]) -> Act:
    """Do something to the cluster while 32 tasks contend for locks; check what they saw."""
    act = Act()

    async def run() -> None:
        async with contenders(act, cluster):
            await go_on(act)
            await trouble(act)
            await go_on(act)

    asyncio.run(run())
    assert act.overlaps == 0
    assert act.not_rising == 0
    assert act.errors == []
    return act


class Holder:
    """A client that holds locks from now on: what was acknowledged must not be lost."""

    def __init__(self, cluster: coterie.LocalCluster, count: int) -> None:
        self._client = cluster.client(name="holder", session_ttl=60.0, timeout=DEADLINE_S)
        self._locks = [self._client.lock(f"held/{number}") for number in range(count)]
        for lock in self._locks:
            assert lock.acquire(timeout=DEADLINE_S)
        self._tokens = [lock.token for lock in self._locks]

    def check(self, cluster: coterie.LocalCluster) -> None:
        """Everything is held still, by the same tokens; when it is let go, tokens rise."""
        with cluster.client(name="other", timeout=DEADLINE_S) as other:
            listed = {info.name: info.token for info in other.locks("held/")}
            held = list(zip(self._locks, self._tokens, strict=True))
            assert listed == {lock.name: token for lock, token in held}
            for lock, token in held:
                assert not lock.lost
                assert not other.lock(lock.name).acquire(blocking=False)
                lock.release()
                with other.lock(lock.name) as grant:
                    assert grant.token > token

    def close(self) -> None:
        self._client.close()
