"""What a program can see of the locks of a cluster: lists, the wait-for graph, a stream of events.

The law: a stream has no gap. If the cluster has forgotten what came after the last event told, or
a node that knew it is gone, the stream goes on from what is there now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from ..protocols.coordination.messages import CheckFence, FencePassed
from ..protocols.lock.messages import (
    ForceRelease,
    ForceReleased,
    Graph,
    GraphEdges,
    ListLocks,
    LockEvents,
    LockState,
    LockStates,
    Watch,
)
from ..protocols.plugin import Message
from .arguments import check_name
from .core import Call
from .errors import CoterieError, result_of
from .mirror import mirrored
from .runner import Runner
from .shell import LINGER_US, Shell

FORCED_MAX = 1_000
"""Holders from whom one command takes a lock."""


class Claimant(NamedTuple):
    """Who holds a lock or waits for it: client and session, and the number of its claim."""

    client: str
    session: int
    number: int
    mode: str


class LockInfo(NamedTuple):
    """A lock as it stands: `mode` and `token` of those who hold it."""

    name: str
    mode: str
    holders: list[Claimant]
    waiters: list[Claimant]
    token: int


class LockEvent(NamedTuple):
    """What happened to a lock. `kind`: granted, released, waiting, withdrawn, upgraded, downgraded,
    aborted (lost as the victim of a deadlock), expired (lost with its session), forced, or
    "listed" for each holder there is when the stream begins, or begins anew after a gap. `number`
    is that of the claim (see `locks`), `token` 0 if it is not held."""

    kind: str
    name: str
    client: str
    session: int
    number: int
    token: int


class Wait(NamedTuple):
    """An edge of the wait-for graph: the owner `waiter` waits for the owner `holder`. An owner is
    a transaction, the locks of a thread or task, or a single claim; a later one is higher."""

    waiter: int
    holder: int
    name: str


class Owner(NamedTuple):
    """Who stands in the wait-for graph by a number."""

    number: int
    client: str
    session: int
    transaction: bool


class Seeing:
    """The questions about the whole cluster."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def locks(self, prefix: str) -> list[LockInfo]:
        return (await self.listed(prefix))[0]

    async def listed(self, prefix: str) -> tuple[list[LockInfo], int]:
        """The locks, and the revision from which to watch so that nothing is missed."""
        found: list[LockInfo] = []
        after, more, revision = "", True, -1
        while more:
            states = await self._ask(ListLocks(prefix, after))
            assert isinstance(states, LockStates)
            if revision < 0:
                revision = states.revision  # of the first page: what came since is told again
            found += [_info(state) for state in states.locks]
            more = states.more and bool(states.locks)
            after = found[-1].name if found else ""
        return found, revision

    async def graph(self) -> tuple[list[Wait], list[Owner]]:
        edges = await self._ask(Graph())
        assert isinstance(edges, GraphEdges)
        return [Wait(*edge) for edge in edges.edges], [Owner(*owner) for owner in edges.owners]

    async def force_release(self, name: str) -> bool:
        check_name(name)
        taken = False
        while True:
            released = await self._ask(ForceRelease(name))
            assert isinstance(released, ForceReleased)
            taken = taken or bool(released.holders)
            if len(released.holders) < FORCED_MAX:
                return taken

    async def events(self, prefix: str, after: int) -> LockEvents:
        call = Call("lock", Watch(prefix, after, LINGER_US), None, True)
        events = result_of(await self._shell.ask(call))
        assert isinstance(events, LockEvents)
        return events

    async def _ask(self, request: Message) -> object:
        return result_of(await self._shell.ask(Call("lock", request)))


class Watcher(AsyncIterator[LockEvent]):
    """The stream of `watch_locks`."""

    def __init__(self, seeing: Seeing, prefix: str) -> None:
        self._seeing = seeing
        self._prefix = prefix
        self._revision: int | None = None
        self._ready: deque[LockEvent] = deque()

    async def __anext__(self) -> LockEvent:
        while not self._ready:
            if self._revision is None:
                locks, self._revision = await self._seeing.listed(self._prefix)
                for lock in locks:
                    self._ready += [_listed(lock, holder) for holder in lock.holders]
            else:
                told = await self._seeing.events(self._prefix, self._revision)
                self._revision = told.revision if told.complete else None
                if told.complete:
                    self._ready += [LockEvent(*event) for event in told.events]
        return self._ready.popleft()


class AsyncClusterFence:
    """A fence in the cluster, for a resource of many processes; made by `AsyncClient.fence`."""

    def __init__(self, shell: Shell, name: str) -> None:
        check_name(name, "fence")
        self.name = name
        self._shell = shell

    async def check(self, token: int) -> None:
        """Let `token` pass if none higher was seen; an equal one passes. Raises `StaleToken`."""
        call = Call("coordination", CheckFence(self.name, token))
        result = result_of(await self._shell.ask(call))
        if type(result) is not FencePassed:
            raise CoterieError(f"the cluster answered {result!r} at a fence")


class ClusterFence:
    """A fence in the cluster, for a resource of many processes; made by `Client.fence`."""

    def __init__(self, runner: Runner, mirrored: AsyncClusterFence) -> None:
        self.name = mirrored.name
        self._runner = runner
        self._mirrored = mirrored

    check = mirrored(AsyncClusterFence.check)


def _listed(lock: LockInfo, holder: Claimant) -> LockEvent:
    return LockEvent("listed", lock.name, holder.client, holder.session, holder.number, lock.token)


def _info(state: LockState) -> LockInfo:
    return LockInfo(
        state.name,
        "shared" if state.shared else "exclusive",
        [_claimant(*holder) for holder in state.holders],
        [_claimant(*waiter) for waiter in state.waiters],
        state.token,
    )


def _claimant(client: str, session: int, number: int, shared: bool) -> Claimant:
    return Claimant(client, session, number, "shared" if shared else "exclusive")
