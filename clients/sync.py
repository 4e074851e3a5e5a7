"""The synchronous client: the asynchronous one on a background thread.

The law: it decides nothing. What talks to the cluster is the asynchronous client's own method, run
on its loop; only locks have a shorter way there, for they are what programs wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from .aio import AsyncClient
from .lock import Lock
from .mirror import mirrored
from .runner import Runner


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

    locks = mirrored(AsyncClient.locks)
    wait_graph = mirrored(AsyncClient.wait_graph)
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
