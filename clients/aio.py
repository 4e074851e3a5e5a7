"""The asynchronous client.

The law: making a client, or an object of it, does no I/O; the first thing awaited connects. What
is not about one lock but about the cluster stands here: its locks, its graph, its nodes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from ..protocols.plugin import Message, Operation, Query
from .barrier import AsyncBarrier
from .clock import now
from .condition import AsyncCondition
from .core import OURS, Call
from .election import AsyncElection
from .errors import CoterieError, TooLarge, result_of
from .event import AsyncEvent
from .inspection import AsyncClusterFence, LockEvent, LockInfo, Owner, Seeing, Wait, Watcher
from .lock import AsyncLock
from .rlock import AsyncRLock
from .semaphore import AsyncSemaphore
from .settings import settings
from .shell import Shell
from .transaction import AsyncTransaction, run

if TYPE_CHECKING:
    from ..protocols.plugin import Plugin

MESSAGE_BYTES_MAX = 1024 * 1024
STATUS_S = 0.5
"""How long `status` waits for nodes that may be down."""


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
        self._seeing = Seeing(self._shell)

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

    def rlock(self, name: str) -> AsyncRLock:
        """A lock that its task may take again. All of one name are one. Raises `BadName`."""
        found = self._shell.rlocks.get(name)
        if found is None:
            found = self._shell.rlocks.setdefault(name, AsyncRLock(self._shell, name))
        assert isinstance(found, AsyncRLock)
        return found

    def transaction(self) -> AsyncTransaction:
        """Locks that go together: `async with` commits, or aborts on an exception."""
        return AsyncTransaction(self._shell)

    async def run(self, function: Callable[[AsyncTransaction], Any], *, attempts: int = 10) -> Any:
        """Call (and await) `function(t)` in a transaction. One that the cluster chose to break a
        deadlock is repeated after a pause, older each time in the eyes of the cluster, so that it
        is not chosen for ever; after `attempts` of them `Deadlock` is raised."""
        return await run(partial(AsyncTransaction, self._shell), function, attempts)

    def semaphore(self, name: str, value: int = 1) -> AsyncSemaphore:
        """A semaphore of `value` permits; `value` is stored at first use. Raises `BadName`."""
        return AsyncSemaphore(self._shell, name, value, False)

    def bounded_semaphore(self, name: str, value: int = 1) -> AsyncSemaphore:
        """A semaphore that takes no more permits back than it gave out."""
        return AsyncSemaphore(self._shell, name, value, True)

    def event(self, name: str) -> AsyncEvent:
        """An event. Raises `BadName`."""
        return AsyncEvent(self._shell, name)

    def barrier(self, name: str, parties: int, *, timeout: float | None = None) -> AsyncBarrier:
        """A barrier for `parties`; `timeout` bounds every wait there. Raises `BadName`."""
        return AsyncBarrier(self._shell, name, parties, timeout)

    def condition(self, lock: AsyncLock, name: str | None = None) -> AsyncCondition:
        """A condition of what `lock` guards; without `name` it has the lock's."""
        return AsyncCondition(self._shell, lock, name)

    def election(self, name: str) -> AsyncElection:
        """An election. Raises `BadName`."""
        return AsyncElection(self._shell, name)

    def fence(self, name: str) -> AsyncClusterFence:
        """A fence kept by the cluster (`coterie.Fence` is one of this process)."""
        return AsyncClusterFence(self._shell, name)

    async def locks(self, prefix: str = "") -> list[LockInfo]:
        """The locks held or waited for whose names begin with `prefix`, in order of name."""
        return await self._seeing.locks(prefix)

    def watch_locks(self, prefix: str = "") -> AsyncIterator[LockEvent]:
        """What happens to the locks whose names begin with `prefix`, from now on."""
        return Watcher(self._seeing, prefix)

    async def wait_graph(self) -> list[Wait]:
        """Who waits for whom: transactions, threads and tasks, single claims."""
        return (await self._graph())[0]

    async def _graph(self) -> tuple[list[Wait], list[Owner]]:
        return await self._seeing.graph()

    async def force_release(self, name: str) -> bool:
        """Take a lock away from whoever holds it; false if nobody did. Only a fence keeps the old
        holder from going on: it may hear of it late."""
        return await self._seeing.force_release(name)

    async def call(self, plugin: str, request: Message, *, key: str | None = None) -> Message:
        """Send an operation or query to a plugin of the cluster and return its result. Plugins
        are found by the entry points "coterie.protocols" of what is installed here.

        Raises `CoterieError` for an unknown plugin, and what its failures stand for.
        """
        if plugin not in (*OURS, "session"):
            self._load(plugin, key)
        if not isinstance(request, (Operation, Query)):
            raise TypeError(f"send an Operation or a Query, not {request!r}")
        size = len(msgspec.msgpack.encode(request))
        if size > MESSAGE_BYTES_MAX:
            raise TooLarge(f"the request has {size} bytes, at most {MESSAGE_BYTES_MAX} are sent")
        result = result_of(await self._shell.ask(Call(plugin, request)))
        assert isinstance(result, Message)
        return result

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
