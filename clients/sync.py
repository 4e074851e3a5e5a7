"""The synchronous client: the asynchronous one on a background thread.

The law: every wait of the program can be interrupted and leaves nothing behind; nothing the
program does, blocks or forgets on its own threads stops the keep-alives. A burst of calls wakes
the loop once.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from ..protocols.plugin import Message
from .aio import AsyncClient, LockInfo, Wait
from .core import Call
from .errors import CLOSED, FORKED, CoterieError
from .lock import Lock
from .shell import EXIT_S, Shell

T = TypeVar("T")
WORKERS_MAX = 8


class Waiter:
    """What a program thread waits on for one call; completed on the loop like a future."""

    __slots__ = ("_lock", "_result", "_waiting")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()
        self._waiting = True
        self._result: Any = None

    def done(self) -> bool:
        return not self._waiting

    def set_result(self, result: Any) -> None:
        self._result = result
        self._waiting = False
        self._lock.release()

    def wait(self) -> Any:
        """The result; a signal's handler runs, and may raise, in between."""
        self._lock.acquire()
        return self._result


class Runner:
    """The thread with the loop, and the way of calls onto it."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._pid = os.getpid()
        self._mutex = threading.RLock()  # a signal's handler may close the client, too
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._thread_id: int | None = None
        self._closed = False
        self._inbox: deque[tuple[Callable[[Call], None], Call]] = deque()
        self._woken = False
        shell.call_back = call_back

    def waiter(self) -> Waiter:
        """Something to wait on. Raises `CoterieError`, or RuntimeError on the loop's thread."""
        self._ready()
        return Waiter()

    def submit(self, call: Call) -> None:
        self._post(self._submit, call)

    def cancel(self, call: Call) -> None:
        self._post(self._shell.cancel, call)

    def run(self, coroutine: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Run a coroutine function on the loop and wait for it."""
        loop = self._ready()
        future = asyncio.run_coroutine_threadsafe(coroutine(*arguments), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, grace_s: float | None = None) -> None:
        """End the session, the loop and its thread. Idempotent; nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._mutex:
            loop, thread = self._loop, self._thread
            self._closed = True
            if loop is None or thread is None:
                return
            if threading.get_ident() == self._thread_id:
                raise RuntimeError("close the client from another thread than its own loop's")
            self._loop = None
            try:
                closing = self._shell.close() if grace_s is None else self._shell.close(grace_s)
                asyncio.run_coroutine_threadsafe(closing, loop).result()
            finally:
                loop.call_soon_threadsafe(loop.stop)
                thread.join(1.0)
                self._refuse()

    def _ready(self) -> asyncio.AbstractEventLoop:
        if os.getpid() != self._pid:
            raise CoterieError(FORKED)
        loop = self._loop
        if loop is None:
            loop = self._start()
        if threading.get_ident() == self._thread_id:
            raise RuntimeError(
                "a sync call on the client's own loop thread would wait for itself; "
                "use another thread, or AsyncClient"
            )
        return loop

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._mutex:
            if self._closed:
                raise CoterieError(CLOSED)
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(loop,), name="coterie-client", daemon=True
                )
                self._thread.start()
                self._shell.at_exit = lambda: self.close(EXIT_S)
                self._loop = loop
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._thread_id = threading.get_ident()
        # A signal that this thread took would not wake the main thread, which runs the handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    def _post(self, step: Callable[[Call], None], call: Call) -> None:
        self._inbox.append((step, call))
        loop = self._loop
        if loop is not None and not self._woken:
            self._woken = True
            try:
                loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                pass  # closed since; refused below
            except BaseException:  # a signal's handler: the next call wakes the loop
                self._woken = False
                raise
        if self._loop is None:
            self._refuse()

    def _drain(self) -> None:
        self._woken = False
        for step, call in self._taken():
            step(call)

    def _refuse(self) -> None:
        """The client was closed: nobody drains the inbox any more."""
        for step, call in self._taken():
            if step == self._submit:
                call.future.set_result(CoterieError(CLOSED))

    def _taken(self) -> Iterator[tuple[Callable[[Call], None], Call]]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._inbox.popleft()

    def _submit(self, call: Call) -> None:
        try:
            self._shell.attach()
            self._shell.submit(call)
        except CoterieError as error:
            call.future.set_result(error)


def call_back(callbacks: list[Callable[[], object]]) -> None:
    """Run callbacks on worker threads, side by side: one that blocks keeps no other waiting."""
    waiting = deque(callbacks)
    for _ in range(min(WORKERS_MAX, len(waiting))):
        threading.Thread(target=_work, args=(waiting,), name="coterie-worker", daemon=True).start()


def _work(waiting: deque[Callable[[], object]]) -> None:
    # Not as in the loop's thread: a process that a callback starts would inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    while True:
        try:
            callback = waiting.popleft()
        except IndexError:
            return
        try:
            callback()
        except Exception as error:
            details = (type(error), error, error.__traceback__, threading.current_thread())
            threading.excepthook(threading.ExceptHookArgs(details))


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
        self._client = AsyncClient(
            endpoints, name=name, session_ttl=session_ttl, timeout=timeout, keys=keys
        )
        self._runner = Runner(self._client._shell)

    @property
    def name(self) -> str:
        """What this client calls itself; for display."""
        return self._client.name

    @property
    def session_id(self) -> int | None:
        """The session that holds this client's locks; None while there is none."""
        return self._client.session_id

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
        return Lock(self._runner, self._client._shell, name, shared, timeout, lock_delay)

    def locks(self, prefix: str = "") -> list[LockInfo]:
        """The locks held or waited for whose names begin with `prefix`, in order of name."""
        return self._runner.run(self._client.locks, prefix)

    def wait_graph(self) -> list[Wait]:
        """Who waits for whom, by the numbers of their claims (see `locks`)."""
        return self._runner.run(self._client.wait_graph)

    def call(self, plugin: str, request: Message, *, key: str | None = None) -> Message:
        """Send an operation or query to a plugin; see `AsyncClient.call`."""

        async def call() -> Message:
            return await self._client.call(plugin, request, key=key)

        return self._runner.run(call)

    def status(self) -> dict[str, Any]:
        """What the nodes say of the cluster; see `AsyncClient.status`."""
        return self._runner.run(self._client.status)

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
