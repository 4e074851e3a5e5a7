"""Locks, for tasks and for threads.

The law: whatever ends a wait, a cancellation or a signal at any moment, leaves nothing held and
nobody waiting. Locks that a thread or task takes by `with` are asked for in the name of its nest
(`nests.py`), so that the cluster sees it when such wait for each other in a circle.
"""

from __future__ import annotations

import threading
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..protocols.lock.messages import Converted, Granted, Inspect, Released
from .arguments import bounded, check_timeout
from .core import Call
from .errors import CoterieError
from .grant import Grant, is_held, lost_error, released_error, timeout_error
from .holding import Holding
from .shell import Shell

if TYPE_CHECKING:
    from .runner import Runner


class AsyncLock(Holding):
    """A lock of the whole cluster for asyncio, made by `AsyncClient.lock`.

    As `threading.Lock`, but what talks to the cluster is awaited.
    """

    async def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; False if it was not had in `timeout` seconds, or at once if not
        `blocking`. Raises `Unavailable` (not blocking) or `Busy`."""
        if timeout != -1 or not blocking:
            check_timeout(blocking, timeout)
        return await self._acquire(blocking, timeout) is not None

    async def _acquire(
        self, blocking: bool, timeout: float, nest: list[Grant] | None = None
    ) -> Grant | None:
        shell = self._shell
        while True:
            call = self._call(shell.future(), blocking, timeout, nest)
            shell.submit(call)
            try:
                result = await call.future
            except BaseException:
                shell.cancel(call)
                raise
            if type(result) is Granted:
                grant = self._keep(shell.task(), call, result, nest)
                if grant is not None:
                    return grant
            elif not self._asked_anew(call, result):
                return None

    async def release(self) -> None:
        """Give the lock back. Raises RuntimeError if it is not held, `LockLost` if it is lost.

        Cancelled, or with the cluster silent (`Indeterminate`), the release goes on by itself.
        """
        grant = self._present()
        if grant.lost:
            self._drop(grant)
            raise lost_error(grant)
        call = self._releasing(grant, self._shell.future())
        self._shell.submit(call)
        self._drop(grant)
        result = await call.future
        if type(result) is not Released:
            raise released_error(grant, result)

    async def upgrade(self, timeout: float | None = None) -> Grant:
        """Make the present shared grant exclusive, ahead of all who wait. Raises `Timeout` (it
        stays shared), `LockLost`, or `Deadlock` for one of two that upgrade at once."""
        upgraded = await self._upgrade(self._present(), bounded(timeout))
        return self._present() if upgraded is None else upgraded[0]

    async def downgrade(self) -> Grant:
        """Make the present exclusive grant shared: those who wait to share it get it now. The
        token stays. Raises `LockLost`."""
        return await self._downgrade(self._present())

    async def locked(self) -> bool:
        """True if anyone, anywhere, holds the lock."""
        call = Call("lock", Inspect(self.name), self._shell.future())
        self._shell.submit(call)
        return is_held(await call.future)

    async def __aenter__(self) -> Grant:
        shell = self._shell
        grant = await self._acquire(True, self._timeout, shell.nests.of_task(shell.task()))
        if grant is None:
            raise timeout_error(self.name, self._timeout)
        return grant

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.release()
        except CoterieError as failure:
            if error is None:
                raise
            error.add_note(f"{type(failure).__name__}: {failure}")

    def _owner(self) -> object:
        return self._shell.task()

    def _is_owned(self) -> bool:
        return bool(self._held)

    async def _release_save(self) -> Any:
        nest = self._present()._nest
        await self.release()
        return nest

    async def _acquire_restore(self, nest: Any) -> None:
        await self._acquire(True, -1, nest)


class Lock(Holding):
    """A lock of the whole cluster, made by `Client.lock`; honours `threading.Lock`."""

    def __init__(
        self,
        runner: Runner,
        shell: Shell,
        name: str,
        shared: bool,
        timeout: float | None,
        lock_delay: float,
    ) -> None:
        super().__init__(shell, name, shared, timeout, lock_delay)
        self._runner = runner
        self._mutex = threading.RLock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; False if it was not had in `timeout` seconds, or at once if not
        `blocking`. Raises `Unavailable` (not blocking) or `Busy`."""
        if timeout != -1 or not blocking:
            check_timeout(blocking, timeout)
        return self._acquire(blocking, timeout) is not None

    def _acquire(
        self, blocking: bool, timeout: float, nest: list[Grant] | None = None
    ) -> Grant | None:
        runner = self._runner
        while True:
            call = self._call(runner.waiter(), blocking, timeout, nest)
            grant = None
            try:
                runner.submit(call)
                result = call.future.wait()
                if type(result) is Granted:
                    grant = self._keep(threading.get_ident(), call, result, nest)
                    # Here nothing may stand at which a signal's handler runs: the grant would be
                    # in nobody's hands (CPython looks for signals after calls of C functions).
                    if grant is not None:
                        return grant
                elif not self._asked_anew(call, result):
                    return None
            except BaseException:
                self._forget(call)
                runner.cancel(call)
                raise

    def _keep(
        self, holder: object, call: Call, granted: Granted, nest: list[Grant] | None
    ) -> Grant | None:
        with self._mutex:
            return super()._keep(holder, call, granted, nest)

    def _convert(self, grant: Grant, converted: Converted) -> Grant:
        with self._mutex:
            return super()._convert(grant, converted)

    def _drop(self, grant: Grant) -> None:
        with self._mutex:
            super()._drop(grant)

    def _forget(self, call: Call) -> None:
        """An interrupted acquire holds nothing, even if it had just been granted."""
        if type(call.result) is Granted:
            held = self._held.get(threading.get_ident(), [])
            for grant in [grant for grant in held if grant._number == call.result.grant]:
                self._drop(grant)

    def release(self) -> None:
        """Give the lock back. Raises RuntimeError if it is not held, `LockLost` if it is lost.

        Interrupted, or with the cluster silent (`Indeterminate`), the release goes on by itself.
        """
        grant = None
        try:
            grant = self._present()
            result = self._release(grant)
        except (RuntimeError, CoterieError):
            raise
        except BaseException:  # raised by a signal's handler, wherever we were
            self._let_go(grant)
            raise
        if type(result) is not Released:
            raise released_error(grant, result)

    def _release(self, grant: Grant) -> object:
        if grant.lost:
            self._drop(grant)
            raise lost_error(grant)
        call = self._releasing(grant, self._runner.waiter())
        self._runner.submit(call)
        self._drop(grant)  # in this order: what is still in hand was not surely submitted
        return call.future.wait()

    def _let_go(self, grant: Grant | None) -> None:
        """A release was interrupted: see that it goes on, without waiting for it."""
        grant = grant or self._present()
        if any(grant in held for held in list(self._held.values())):
            self._runner.submit(self._releasing(grant, self._runner.waiter()))
            self._drop(grant)

    def upgrade(self, timeout: float | None = None) -> Grant:
        """Make the present shared grant exclusive, ahead of all who wait. Raises `Timeout` (it
        stays shared), `LockLost`, or `Deadlock` for one of two that upgrade at once."""
        grant = self._present()
        begin = partial(self._upgrade, grant, bounded(timeout))
        upgraded = self._runner.run(begin, self._unconvert)
        return grant if upgraded is None else upgraded[0]

    def downgrade(self) -> Grant:
        """Make the present exclusive grant shared: those who wait to share it get it now. The
        token stays. Raises `LockLost`."""
        return self._runner.run(partial(self._downgrade, self._present()))

    def locked(self) -> bool:
        """True if anyone, anywhere, holds the lock."""
        call = Call("lock", Inspect(self.name), self._runner.waiter())
        self._runner.submit(call)
        return is_held(call.future.wait())

    def __enter__(self) -> Grant:
        grant = self._acquire(True, self._timeout, self._shell.nests.of_thread())
        if grant is None:
            raise timeout_error(self.name, self._timeout)
        return grant

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        grant = None
        try:
            grant = self._present()
            self.release()
        except CoterieError as failure:
            if error is None:
                raise
            error.add_note(f"{type(failure).__name__}: {failure}")
        except RuntimeError:
            raise
        except BaseException:
            self._let_go(grant)
            raise

    def _owner(self) -> object:
        return threading.get_ident()

    # What `threading.Condition` asks of its lock.

    def _is_owned(self) -> bool:
        return bool(self._held)

    def _release_save(self) -> Any:
        nest = self._present()._nest
        self.release()
        return nest

    def _acquire_restore(self, nest: Any) -> None:
        self._acquire(True, -1, nest)
