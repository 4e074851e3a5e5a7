"""Conditions of the whole cluster: wait for others to change what a lock guards.

The law: who waits is in the cluster's queue before the lock is released, so no notification that
comes after can be missed. `wait` returns, or raises, with the lock held again. A wait whose session
ended returns as if it had been notified: look at what you waited for, as with any condition.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TypeVar

from ..protocols.coordination.messages import Notified, NotifyCondition, WaitCondition
from ..protocols.errors import Code
from ..protocols.plugin import Failure
from .arguments import bounded, check_name
from .clock import now
from .core import Call
from .errors import CoterieError, Timeout, result_of
from .grant import Grant
from .lock import AsyncLock, Lock
from .mirror import mirrored
from .runner import Runner
from .shell import Shell

T = TypeVar("T")
ALL = 0
COUNT_MAX = 1_000_000


class Queue:
    """The cluster's queue of those who wait at a condition."""

    def __init__(self, shell: Shell, name: str) -> None:
        check_name(name, "condition")
        self.name = name
        self._shell = shell

    async def enlist(self) -> Call:
        """Wait from now on: in the queue when this returns."""
        future = self._shell.future()
        call = Call("coordination", WaitCondition(self.name), future, True)
        call.queued = type(future)(loop=future.get_loop())
        self._shell.submit(call)
        try:
            await call.queued
        except BaseException:
            self._shell.cancel(call)
            raise
        if call.completed:
            self._woken(call.result)
        return call

    async def woken(self, call: Call, limit: float) -> bool:
        """Wait for the notification; false if none came in `limit` seconds."""
        deadline = None if limit == -1 else now() + limit
        try:
            self._shell.limit(call, deadline)
            return self._woken(await call.future)
        except Timeout:
            return False
        except BaseException:
            self.forsake(call)
            raise

    def forsake(self, call: Call, woken: bool = True) -> None:
        """Nobody waits any more; a notification that had just come goes to another."""
        self._shell.cancel(call)
        if woken and type(call.result) is Notified:
            self._shell.submit(Call("coordination", NotifyCondition(self.name, 1), waits=True))

    async def notify(self, count: int) -> None:
        """Wake `count` of those who wait, or all."""
        result = result_of(
            await self._shell.ask(Call("coordination", NotifyCondition(self.name, count)))
        )
        if type(result) is not Notified:
            raise CoterieError(f"the cluster answered {result!r} to a notification")

    @staticmethod
    def _woken(result: object) -> bool:
        if isinstance(result, Failure) and result.code is Code.SESSION_EXPIRED:
            return True
        if type(result_of(result)) is not Notified:
            raise CoterieError(f"the cluster answered {result!r} at a condition")
        return True


class AsyncCondition:
    """A condition for asyncio, made by `AsyncClient.condition`."""

    def __init__(self, shell: Shell, lock: AsyncLock, name: str | None) -> None:
        self.name = lock.name if name is None else name
        self._queue = Queue(shell, self.name)
        self._lock = lock

    async def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; as its own `acquire`."""
        return await self._lock.acquire(blocking, timeout)

    async def release(self) -> None:
        """Give the lock back; as its own `release`."""
        await self._lock.release()

    async def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait to be notified, take the lock again; false if nobody notified in
        `timeout` seconds. Raises RuntimeError if the lock is not held."""
        self._check_owned("wait on")
        limit = bounded(timeout)
        call = await self._queue.enlist()
        try:
            state = await self._lock._release_save()
        except BaseException:
            self._queue.forsake(call)
            raise
        try:
            return await self._queue.woken(call, limit)
        finally:
            await self._restore(state)

    async def _restore(self, state: object) -> None:
        """Take the lock again, whatever comes: who waits for it may be cancelled only then."""
        cancelled: asyncio.CancelledError | None = None
        while not self._lock._is_owned():
            try:
                await self._lock._acquire_restore(state)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` is true, at most `timeout` seconds; its last value."""
        until = None if timeout is None else time.monotonic() + timeout
        result = predicate()
        while not result:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            await self.wait(left)
            result = predicate()
        return result

    async def notify(self, n: int = 1) -> None:
        """Wake `n` of those who wait. Raises RuntimeError if the lock is not held."""
        self._check_owned("notify on")
        if n > 0:
            await self._queue.notify(min(n, COUNT_MAX))

    async def notify_all(self) -> None:
        """Wake all who wait. Raises RuntimeError if the lock is not held."""
        self._check_owned("notify on")
        await self._queue.notify(ALL)

    async def __aenter__(self) -> Grant:
        return await self._lock.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._lock.__aexit__(kind, error, traceback)

    def _check_owned(self, what: str) -> None:
        if not self._lock._is_owned():
            raise RuntimeError(f"cannot {what} un-acquired lock")


class Condition:
    """A condition, made by `Client.condition`; honours `threading.Condition`."""

    def __init__(self, runner: Runner, shell: Shell, lock: Lock, name: str | None) -> None:
        self.name = lock.name if name is None else name
        self._runner = runner
        self._mirrored = self._queue = Queue(shell, self.name)
        self._lock = lock

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; as its own `acquire`."""
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Give the lock back; as its own `release`."""
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait to be notified, take the lock again; false if nobody notified in
        `timeout` seconds. Raises RuntimeError if the lock is not held."""
        self._check_owned("wait on")
        limit = bounded(timeout)
        queue = self._queue
        call = self._runner.run(queue.enlist, queue.forsake)
        try:
            state = self._lock._release_save()
        except BaseException:
            self._runner.cancel(call)
            raise
        try:
            begin = partial(queue.woken, call, limit)
            woken: bool = self._runner.run(begin, partial(queue.forsake, call))
            return woken
        finally:
            self._lock._acquire_restore(state)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` is true, at most `timeout` seconds; its last value."""
        until = None if timeout is None else time.monotonic() + timeout
        result = predicate()
        while not result:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Wake `n` of those who wait. Raises RuntimeError if the lock is not held."""
        self._check_owned("notify on")
        if n > 0:
            self._notify(min(n, COUNT_MAX))

    def notify_all(self) -> None:
        """Wake all who wait. Raises RuntimeError if the lock is not held."""
        self._check_owned("notify on")
        self._notify(ALL)

    _notify = mirrored(Queue.notify)

    def __enter__(self) -> Grant:
        return self._lock.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.__exit__(kind, error, traceback)

    def _check_owned(self, what: str) -> None:
        if not self._lock._is_owned():
            raise RuntimeError(f"cannot {what} un-acquired lock")
