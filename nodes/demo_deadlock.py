"""The demo's second act: two transactions into a deadlock, drawn and resolved.

The law: the circle is one in the cluster, not one told to it: each holds a lock the other asks
for. What is promised is looked at: one victim, the younger, told at once with the circle; the other
has both its locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .local import LocalCluster

if TYPE_CHECKING:
    from ..clients.aio import AsyncClient

AT_ONCE_S = 2.0
WAIT_S = 10.0


@dataclass
class Deadlocked:
    """What was seen of the two transactions."""

    ids: list[int] = field(default_factory=list)
    victims: list[int] = field(default_factory=list)
    went_on: list[int] = field(default_factory=list)
    cycle: list[tuple[int, int, str]] = field(default_factory=list)
    told_s: float = 0.0
    left: int = 0
    """Edges of the wait-for graph when all was over."""

    def promises(self) -> dict[str, bool]:
        """Each promise in words, and whether it was kept."""
        one_each = len(self.victims) == len(self.went_on) == 1
        return {
            "of two that wait for each other the younger is the victim, at once": one_each
            and self.victims == [max(self.ids)]
            and self.told_s < AT_ONCE_S,
            "the victim is told the circle": {edge[0] for edge in self.cycle} == set(self.ids),
            "the other has both its locks, and nobody waits": one_each and self.left == 0,
        }


async def take_both(
    seen: Deadlocked, client: AsyncClient, names: tuple[str, str], meet: asyncio.Barrier
) -> None:
    """One transaction: a lock, a meeting with the other, and the other's lock."""
    from ..clients.errors import Deadlock

    asked_at = 0.0
    try:
        async with client.transaction() as transaction:
            seen.ids.append(transaction.id)
            await transaction.lock(names[0])
            await meet.wait()
            asked_at = time.monotonic()
            await transaction.lock(names[1], timeout=WAIT_S)
            seen.went_on.append(transaction.id)
    except Deadlock as deadlock:
        seen.victims.append(transaction.id)
        seen.cycle = deadlock.cycle
        seen.told_s = time.monotonic() - asked_at


async def play(seen: Deadlocked, cluster: LocalCluster, write: Callable[[str], object]) -> None:
    """Let two transactions take two locks in opposite order, and draw what happens."""
    write("\nTwo transactions: one takes left, then right; the other right, then left.\n")
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(cluster.async_client(name=name))
            for name in ("demo-one", "demo-two")
        ]
        meet = asyncio.Barrier(2)
        orders = (("left", "right"), ("right", "left"))
        await asyncio.gather(
            *(
                take_both(seen, client, names, meet)
                for client, names in zip(clients, orders, strict=True)
            )
        )
        seen.left = len(await clients[0].wait_graph())
    for line in drawn(seen):
        write(line + "\n")


def drawn(seen: Deadlocked) -> list[str]:
    """The circle as text."""
    lines = [
        f"  transaction {waiter} --waits for {name}, held by--> transaction {holder}"
        for waiter, holder, name in seen.cycle
    ]
    lines += [
        f"  transaction {victim} got Deadlock after {seen.told_s * 1000:.0f} ms; its locks are free"
        for victim in seen.victims
    ]
    return lines + [f"  transaction {other} has both" for other in seen.went_on]
