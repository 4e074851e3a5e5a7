"""The thread with the loop on which a synchronous client lives, and the way onto it.

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
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

from .core import Call
from .errors import CLOSED, FORKED, CoterieError
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


class Carried(Generic[T]):
    """A coroutine carried over to the loop for a thread that waits for it.

    `undo` is given the result of a coroutine that came to its end though its caller had gone.
    """

    def __init__(
        self, begin: Callable[[], Coroutine[Any, Any, T]], undo: Callable[[T], object] | None
    ) -> None:
        self.future = Waiter()
        self._begin = begin
        self._undo = undo
        self._task: asyncio.Task[T] | None = None
        self._abandoned = False

    def start(self) -> None:
        """On the loop."""
        self._task = asyncio.get_running_loop().create_task(self._begin())
        self._task.add_done_callback(self._done)

    def abandon(self) -> None:
        """On the loop, after `start`: nobody waits any more."""
        task = self._task
        if task is not None and not self._abandoned:
            self._abandoned = True
            if self.future.done():
                self._settle(task)
            else:
                task.cancel()

    def _done(self, task: asyncio.Task[T]) -> None:
        if self._abandoned:
            self._settle(task)
        elif task.cancelled():
            self.future.set_result(CoterieError(CLOSED))
        else:
            self.future.set_result(task.exception() or task)

    def _settle(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None and self._undo is not None:
            self._undo(task.result())


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
        self._inbox: deque[tuple[Callable[[Any], None], Any]] = deque()
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

    def run(
        self,
        begin: Callable[[], Coroutine[Any, Any, T]],
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Run what `begin` gives on the loop and wait for it. Interrupted, it is cancelled; if it
        had just come to its end, `undo` is called with the result, on the loop."""
        self._ready()
        carried = Carried(begin, undo)
        try:
            self._post(self._start_carried, carried)
            outcome = carried.future.wait()
            if not isinstance(outcome, BaseException):
                # As in `Lock._acquire`: nothing may stand between this and the caller's hands.
                return outcome.result()  # type: ignore[no-any-return]
        except BaseException:
            self._post(Carried.abandon, carried)
            raise
        raise outcome

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

    def _post(self, step: Callable[[Any], None], subject: Any) -> None:
        self._inbox.append((step, subject))
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
        for step, subject in self._taken():
            step(subject)

    def _refuse(self) -> None:
        """The client was closed: nobody drains the inbox any more."""
        for step, subject in self._taken():
            if step == self._submit or step == self._start_carried:
                subject.future.set_result(CoterieError(CLOSED))

    def _taken(self) -> Iterator[tuple[Callable[[Any], None], Any]]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._inbox.popleft()

    def _submit(self, call: Call) -> None:
        try:
            self._shell.attach()
            self._shell.submit(call)
        except CoterieError as error:
            call.future.set_result(error)

    def _start_carried(self, carried: Carried[Any]) -> None:
        try:
            self._shell.attach()
        except CoterieError as error:
            carried.future.set_result(error)
        else:
            carried.start()


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
