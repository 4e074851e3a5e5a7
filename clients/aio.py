"""The asynchronous client.

The law: making a client, or an object of it, does no I/O; the first thing awaited connects. What
is not about one lock but about the cluster stands here: its locks, its graph, its nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..protocols.lock.messages import (
    Graph,
    GraphEdges,
    ListLocks,
    LockState,
    LockStates,
)
from ..protocols.plugin import Message, Operation, Query
from .clock import now
from .core import Call
from .errors import CoterieError, TooLarge, result_of
from .lock import AsyncLock
from .settings import settings
from .shell import Shell

if TYPE_CHECKING:
    from ..protocols.plugin import Plugin

MESSAGE_BYTES_MAX = 1024 * 1024
STATUS_S = 0.5
"""How long `status` waits for nodes that may be down."""


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


class Wait(NamedTuple):
    """An edge of the wait-for graph: the claim `waiter` waits for the claim `holder`."""

    waiter: int
    holder: int
    name: str


class AsyncClient:
    """A client of a cluster, for one event loop.

    `endpoints`: a string (comma-separated) or a sequence; None reads COTERIE_ENDPOINTS, then
    tcp://127.0.0.1:7001; one reachable node is enough. `session_ttl`: seconds without contact
    after which the cluster frees the locks. `timeout`: seconds of silence of the cluster after
    which a call that does not wait for its turn gives up. Raises ValueError.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        *,
        name: str | None = None,
        session_ttl: float = 10.0,
        timeout: float = 5.0,
        keys: Any = None,
    ) -> None:
        self._shell = Shell(settings(endpoints, name, session_ttl, timeout, keys))
        self._foreign: dict[str, Plugin] | None = None

    @property
    def name(self) -> str:
        """What this client calls itself; for display."""
        return self._shell.settings.name

    @property
    def session_id(self) -> int | None:
        """The session that holds this client's locks; None while there is none."""
        core = self._shell.core
        return core.session.number if core is not None and core.session is not None else None

    def lock(
        self,
        name: str,
        *,
        shared: bool = False,
        timeout: float | None = None,
        lock_delay: float = 0.0,
    ) -> AsyncLock:
        """A lock of the whole cluster. `timeout` bounds `async with` only. `lock_delay`: seconds
        nobody gets the lock after its holder's session expired. Raises `BadName`."""
        return AsyncLock(self._shell, name, shared, timeout, lock_delay)

    async def locks(self, prefix: str = "") -> list[LockInfo]:
        """The locks held or waited for whose names begin with `prefix`, in order of name."""
        found: list[LockInfo] = []
        after, more = "", True
        while more:
            states = await self._ask("lock", ListLocks(prefix, after))
            assert isinstance(states, LockStates)
            found += [_info(state) for state in states.locks]
            more = states.more and bool(states.locks)
            after = found[-1].name if found else ""
        return found

    async def wait_graph(self) -> list[Wait]:
        """Who waits for whom, by the numbers of their claims (see `locks`)."""
        edges = await self._ask("lock", Graph())
        assert isinstance(edges, GraphEdges)
        return [Wait(*edge) for edge in edges.edges]

    async def call(self, plugin: str, request: Message, *, key: str | None = None) -> Message:
        """Send an operation or query to a plugin of the cluster and return its result. Plugins
        are found by the entry points "coterie.protocols" of what is installed here.

        Raises `CoterieError` for an unknown plugin, and what its failures stand for.
        """
        if plugin not in ("lock", "session"):
            self._load(plugin, key)
        if not isinstance(request, (Operation, Query)):
            raise TypeError(f"send an Operation or a Query, not {request!r}")
        size = len(msgspec.msgpack.encode(request))
        if size > MESSAGE_BYTES_MAX:
            raise TooLarge(f"the request has {size} bytes, at most {MESSAGE_BYTES_MAX} are sent")
        return await self._ask(plugin, request)

    async def status(self) -> dict[str, Any]:
        """What the nodes say of the cluster and of who leads. Never raises `Unavailable`: nodes
        that did not answer are listed with "answers" false."""
        self._shell.future()
        asked_at = now()
        self._shell.locate()
        core = self._shell.core
        assert core is not None
        nodes = core.nodes

        def answered() -> bool:
            return all(nodes.located.get(e, (-1.0,))[0] >= asked_at for e in nodes.distinct())

        await self._shell.until(answered, STATUS_S)
        listed: list[dict[str, Any]] = []
        for endpoint in nodes.distinct():
            at, located = nodes.located.get(endpoint, (-1.0, None))
            if located is None or at < asked_at:
                listed.append({"endpoint": endpoint, "answers": False})
            else:
                listed.append(
                    {
                        "endpoint": endpoint,
                        "answers": True,
                        "node": located.node,
                        "leader": located.leader or None,
                        "term": located.term,
                    }
                )
        best = max((n for n in listed if n["answers"]), key=lambda n: n["term"], default=None)
        return {
            "cluster": f"{nodes.cluster:016x}" if nodes.cluster else None,
            "leader": best["leader"] if best else None,
            "term": best["term"] if best else None,
            "nodes": listed,
            "client": {"name": self.name, "session": self.session_id},
        }

    async def close(self) -> None:
        """End the session, which frees its locks at once. Idempotent."""
        await self._shell.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _ask(self, plugin: str, request: Message) -> Message:
        call = Call(plugin, request, self._shell.future())
        self._shell.submit(call)
        result = result_of(await call.future)
        assert isinstance(result, Message)
        return result

    def _load(self, plugin: str, key: str | None) -> None:
        if self._foreign is None:
            from .vocabulary import foreign_plugins

            self._foreign = {found.name: found for found in foreign_plugins()}
            self._shell.use(list(self._foreign.values()))
        found = self._foreign.get(plugin)
        if found is None:
            raise CoterieError(
                f"no plugin {plugin!r} is installed here; pip install the distribution that "
                "offers it"
            )
        if found.placement != "control" or key is not None:
            raise CoterieError(f"{plugin!r} lives in partitions, which this version has not yet")


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
