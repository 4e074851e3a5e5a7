"""`coterie demo`: a cluster loses its leader before your eyes and keeps its promises.

The law: it shows what happens, with the same library a program uses; nothing is staged. What it
promises it checks itself: two holders at once would be seen here, in one process, and a token that
does not rise too. It exits 0 only if every promise held.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from . import demo_deadlock
from .local import LocalCluster

if TYPE_CHECKING:
    from ..clients.aio import AsyncClient

LOCKS = ("orders", "invoices", "stock", "mail")
CLIENTS, TASKS_EACH = 4, 8
BEFORE_S, AFTER_S = 2.5, 2.5
HOLD_S = 0.005
GAP_MAX_S = 5.0
"""Longer than this without any grant is a promise not kept."""

PYTHON = """\
import coterie

with coterie.LocalCluster(nodes=3) as cluster, cluster.client() as c:
    with c.lock("orders/42") as grant:
        print("token", grant.token)
    cluster.kill(cluster.leader())
    with c.lock("orders/42") as grant:
        print("token", grant.token, "granted without that leader")
    with c.transaction() as t:
        t.lock_all(["left", "right"])
"""


@dataclass
class LockSeen:
    """What was seen of one lock: who holds it now, its last token, and how often it was granted."""

    holder: str = ""
    token: int = 0
    grants: int = 0


@dataclass
class Act:
    """What was seen of all locks. Times are of `time.monotonic`."""

    locks: dict[str, LockSeen] = field(default_factory=lambda: {n: LockSeen() for n in LOCKS})
    overlaps: int = 0
    not_rising: int = 0
    errors: list[str] = field(default_factory=list)
    killed_at: float = 0.0
    granted_at: float = 0.0
    gap_s: float = 0.0
    """The longest time without any grant since the leader was killed."""
    succeeded: bool = False
    went_on: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first grant after there is another leader."""
    headline: str = "three nodes start …"

    @property
    def grants(self) -> int:
        return sum(lock.grants for lock in self.locks.values())

    def enter(self, name: str, who: str, token: int) -> None:
        """A grant came into the hands of `who`."""
        seen, now = self.locks[name], time.monotonic()
        self.overlaps += bool(seen.holder)
        self.not_rising += token <= seen.token
        if self.killed_at:
            self.gap_s = max(self.gap_s, now - max(self.granted_at, self.killed_at))
        if self.succeeded:
            self.went_on.set()
        self.granted_at = now
        seen.holder, seen.token, seen.grants = who, token, seen.grants + 1

    def leave(self, name: str) -> None:
        self.locks[name].holder = ""

    def promises(self) -> dict[str, bool]:
        """Each promise in words, and whether it was kept."""
        went_on = self.went_on.is_set() and self.gap_s < GAP_MAX_S
        return {
            "at no time did two hold the same lock": self.overlaps == 0,
            "the tokens of each lock rise strictly": self.not_rising == 0,
            f"the locks went on within {GAP_MAX_S:g} s": went_on,
            "no client saw an error": not self.errors,
            "every lock was granted again and again": all(
                lock.grants > 1 for lock in self.locks.values()
            ),
        }


class Table:
    """The live table: repainted in place on a terminal, a line now and then elsewhere."""

    def __init__(self, act: Act, write: Callable[[str], object], terminal: bool) -> None:
        self._act = act
        self._write = write
        self._terminal = terminal
        self._lines = 0
        self._began = time.monotonic()

    async def run(self) -> None:
        """Paint until cancelled."""
        while True:
            self.paint()
            await asyncio.sleep(0.1 if self._terminal else 0.5)

    def paint(self) -> None:
        act, elapsed = self._act, time.monotonic() - self._began
        if not self._terminal:
            counted = f"{act.grants:6} grants  {act.overlaps} overlaps"
            self._write(f"{elapsed:5.1f} s  {counted}  {act.headline}\n")
            return
        lines = [
            f"{elapsed:5.1f} s  {act.headline}",
            "",
            f"  {'LOCK':10}{'HELD BY':12}{'TOKEN':>10}{'GRANTS':>10}",
        ]
        for name, lock in act.locks.items():
            lines.append(f"  {name:10}{lock.holder:12}{lock.token:>10}{lock.grants:>10}")
        lines += ["", f"  overlaps {act.overlaps}   tokens out of order {act.not_rising}"]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self._write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        self._lines = len(lines)


async def contend(act: Act, client: AsyncClient, name: str, who: str) -> None:
    """Take and release a lock until cancelled."""
    lock = client.lock(name)
    while True:
        try:
            async with lock as grant:
                act.enter(name, who, grant.token)
                try:
                    await asyncio.sleep(HOLD_S)
                finally:
                    act.leave(name)
        except Exception as error:
            act.errors.append(f"{who}: {error!r}")
            return


@contextlib.asynccontextmanager
async def contenders(act: Act, cluster: LocalCluster) -> AsyncIterator[None]:
    """32 tasks of 4 clients, 8 for each lock, while the block runs."""
    async with contextlib.AsyncExitStack() as stack:
        tasks: list[asyncio.Task[Any]] = []
        for number in range(CLIENTS):
            name = f"demo{number + 1}"
            client = await stack.enter_async_context(cluster.async_client(name=name))
            for task in range(TASKS_EACH):
                lock = LOCKS[task % len(LOCKS)]
                tasks.append(asyncio.create_task(contend(act, client, lock, f"{name}.{task + 1}")))
        try:
            yield
        finally:
            for running in tasks:
                running.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def play(act: Act, cluster: LocalCluster) -> None:
    """The act: contend, kill the leader, see the locks go on, start the node again."""
    async with contenders(act, cluster):
        act.headline = (
            f"{CLIENTS * TASKS_EACH} clients want {len(LOCKS)} locks; each holds one 5 ms"
        )
        await asyncio.sleep(BEFORE_S)
        leader = await asyncio.to_thread(cluster.leader)
        act.headline = f"kill -9 of node{leader + 1}, the leader"
        act.killed_at = time.monotonic()
        await asyncio.to_thread(cluster.kill, leader)
        successor = await asyncio.to_thread(cluster.leader)
        act.succeeded = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(act.went_on.wait(), GAP_MAX_S)
        await asyncio.sleep(AFTER_S / 2)
        act.headline = (
            f"node{successor + 1} leads; the locks stood still for {act.gap_s * 1000:.0f} ms; "
            f"node{leader + 1} starts again"
        )
        await asyncio.to_thread(cluster.restart, leader)
        await asyncio.sleep(AFTER_S / 2)


async def perform(act: Act, cluster: LocalCluster, write: Callable[[str], object]) -> None:
    """The act under its table."""
    terminal = sys.stdout.isatty()
    table = Table(act, write, terminal)
    painting = asyncio.create_task(table.run())
    try:
        await play(act, cluster)
    finally:
        painting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await painting
        table.paint()


def verdict(act: Act, deadlocked: demo_deadlock.Deadlocked) -> list[str]:
    """What was seen, in lines."""
    lines = [
        "",
        f"the longest time without a grant since the kill: {act.gap_s * 1000:.0f} ms",
        f"{act.grants} grants, {act.overlaps} overlaps; last tokens: "
        + ", ".join(f"{name} {lock.token}" for name, lock in act.locks.items()),
    ]
    for promise, held in {**act.promises(), **deadlocked.promises()}.items():
        lines.append(f"  {'kept  ' if held else 'BROKEN'}  {promise}")
    lines += [f"  {error}" for error in act.errors[:5]]
    return lines


@click.command()
def demo() -> None:
    """Kill the leader of three nodes while 32 clients contend for locks; then let two
    transactions wait for each other.

    Exits 0 if every promise held.
    """

    def write(text: str) -> None:
        click.echo(text, nl=False)

    act, deadlocked = Act(), demo_deadlock.Deadlocked()
    click.echo("Three node processes in a temporary directory, their logs on disk.\n")
    with LocalCluster(3) as cluster:
        asyncio.run(perform(act, cluster, write))
        asyncio.run(demo_deadlock.play(deadlocked, cluster, write))
    click.echo("\n".join(verdict(act, deadlocked)))
    click.echo("\nThe same in ten lines:\n\n" + PYTHON)
    if not all({**act.promises(), **deadlocked.promises()}.values()):
        sys.exit(1)
