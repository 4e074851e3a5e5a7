"""The synchronous client: the asynchronous one on a background thread.

The law: it decides nothing. What talks to the cluster is the asynchronous client's own method, run
on its loop; only locks have a shorter way there, for they are what programs wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from .aio import AsyncClient
from .barrier import Barrier
from .condition import Condition
from .election import Election
from .event import Event
from .inspection import ClusterFence
from .lock import Lock
from .mirror import mirrored, mirrored_iterator
from .rlock import RLock
from .runner import Runner
from .semaphore import Semaphore
from .transaction import AsyncTransaction, Transaction, repeated

T = TypeVar("T")


class Client:
    """A client of a cluster for threads; thread-safe. Arguments as of `AsyncClient`."""

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        *,
        name: str | None = None,
        session_ttl: float = 10.0,
        timeout: float = 5.0,
        keys: Any = None,
    ) -> None:
        self._mirrored = AsyncClient(
            endpoints, name=name, session_ttl=session_ttl, timeout=timeout, keys=keys
        )
        self._shell = self._mirrored._shell
        self._runner = Runner(self._shell)

    @property
    def name(self) -> str:
        """What this client calls itself; for display."""
        return self._mirrored.name

    @property
    def session_id(self) -> int | None:
        """The session that holds this client's locks; None while there is none."""
        return self._mirrored.session_id

    def lock(
        self,
        name: str,
        *,
        shared: bool = False,
        timeout: float | None = None,
        lock_delay: float = 0.0,
    ) -> Lock:
        """A lock of the whole cluster. `timeout` bounds `with` only. `lock_delay`: seconds nobody
        gets the lock after its holder's session expired. Raises `BadName`."""
        return Lock(self._runner, self._shell, name, shared, timeout, lock_delay)

    def rlock(self, name: str) -> RLock:
        """A lock that its thread may take again. All of one name are one. Raises `BadName`."""
        found = self._shell.rlocks.get(name)
        if found is None:
            made = RLock(self._runner, self._shell, name)
            found = self._shell.rlocks.setdefault(name, made)
        assert isinstance(found, RLock)
        return found

    def transaction(self) -> Transaction:
        """Locks that go together: `with` commits, or aborts on an exception."""
        return self._transaction(0)

    def run(self, function: Callable[[Transaction], T], *, attempts: int = 10) -> T:
        """Call `function(t)` in a transaction, on this thread. One that the cluster chose to break
        a deadlock is repeated after a pause, older each time in the eyes of the cluster, so that
        it is not chosen for ever; after `attempts` of them `Deadlock` is raised."""
        return repeated(self._transaction, time.sleep, function, attempts)

    def _transaction(self, first: int) -> Transaction:
        return Transaction(self._runner, AsyncTransaction(self._shell, first))

    def semaphore(self, name: str, value: int = 1) -> Semaphore:
        """A semaphore of `value` permits; `value` is stored at first use. Raises `BadName`."""
        return Semaphore(self._runner, self._mirrored.semaphore(name, value))

    def bounded_semaphore(self, name: str, value: int = 1) -> Semaphore:
        """A semaphore that takes no more permits back than it gave out."""
        return Semaphore(self._runner, self._mirrored.bounded_semaphore(name, value))

    def event(self, name: str) -> Event:
        """An event. Raises `BadName`."""
        return Event(self._runner, self._mirrored.event(name))

    def barrier(self, name: str, parties: int, *, timeout: float | None = None) -> Barrier:
        """A barrier for `parties`; `timeout` bounds every wait there. Raises `BadName`."""
        return Barrier(self._runner, self._mirrored.barrier(name, parties, timeout=timeout))

    def condition(self, lock: Lock, name: str | None = None) -> Condition:
        """A condition of what `lock` guards; without `name` it has the lock's."""
        return Condition(self._runner, self._shell, lock, name)

    def election(self, name: str) -> Election:
        """An election. Raises `BadName`."""
        return Election(self._runner, self._mirrored.election(name))

    def fence(self, name: str) -> ClusterFence:
        """A fence kept by the cluster (`coterie.Fence` is one of this process)."""
        return ClusterFence(self._runner, self._mirrored.fence(name))

    locks = mirrored(AsyncClient.locks)
    watch_locks = mirrored_iterator(AsyncClient.watch_locks)
    wait_graph = mirrored(AsyncClient.wait_graph)
    force_release = mirrored(AsyncClient.force_release)
    _graph = mirrored(AsyncClient._graph)
    call = mirrored(AsyncClient.call)
    status = mirrored(AsyncClient.status)

    def close(self) -> None:
        """End the session, which frees its locks at once. Idempotent."""
        self._runner.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
