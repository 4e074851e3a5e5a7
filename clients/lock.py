"""Locks, for tasks and for threads.

The law: a grant is never handed out after it was lost, and whatever ends a wait, a cancellation or
a signal at any moment, leaves nothing held and nobody waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from ..protocols.lock.messages import Acquire, Granted, Inspect, Release, Released
from ..protocols.lock.plugin import name_is_good
from .clock import now
from .core import Call
from .errors import BadName, CoterieError, Timeout, result_of
from .grant import Grant, is_held, lost_error, released_error, timeout_error
from .shell import Shell

if TYPE_CHECKING:
    from .runner import Runner

LOCK_DELAY_MAX_S = 3_600.0


def check_timeout(blocking: bool, timeout: float) -> None:
    """What `threading.Lock.acquire` refuses. Raises ValueError or OverflowError."""
    if not blocking and timeout != -1:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    if timeout != -1 and not timeout >= 0:
        raise ValueError("timeout value must be a non-negative number")


class LockBase:
    """What both kinds of lock share: the questions they ask, and the grants in hand."""

    def __init__(
        self, shell: Shell, name: str, shared: bool, timeout: float | None, lock_delay: float
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a lock's name is a string, not {name!r}")
        if not name_is_good(name):
            raise BadName(
                f"{name!r} is no name: use 1 to 255 bytes of UTF-8 without control characters, "
                "not . or .."
            )
        if timeout is not None:
            check_timeout(True, timeout)
        if not 0 <= lock_delay <= LOCK_DELAY_MAX_S:
            raise ValueError(f"lock_delay must be from 0 seconds to 1 hour, not {lock_delay!r}")
        self.name = name
        self.mode: Literal["exclusive", "shared"] = "shared" if shared else "exclusive"
        self._shell = shell
        self._timeout = -1 if timeout is None else timeout
        delay_us = round(lock_delay * 1e6)
        self._waiting = Acquire(name, shared, True, 0, delay_us)
        self._trying = Acquire(name, shared, False, 0, delay_us)
        self._held: dict[object, list[Grant]] = {}

    @property
    def token(self) -> int:
        """The fencing token of the present grant. Raises RuntimeError if there is none."""
        return self._present().token

    @property
    def lost(self) -> bool:
        """Whether the present grant is lost. Raises RuntimeError if there is none."""
        return self._present().lost

    def ensure_held(self) -> None:
        """Raise `LockLost` if the present grant is lost, RuntimeError if there is none."""
        self._present().ensure_held()

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Call `callback()` when the present grant is lost; see `Grant.on_lost`."""
        self._present().on_lost(callback)

    def _call(self, future: Any, blocking: bool, timeout: float) -> Call:
        if not blocking or timeout == 0:
            return Call("lock", self._trying, future)
        if timeout == -1:
            return Call("lock", self._waiting, future, True)
        return Call("lock", self._waiting, future, True, now() + timeout)

    def _keep(self, owner: object, call: Call, granted: Granted) -> Grant | None:
        """The grant in the caller's hands; None if its session was lost on the way."""
        session = call.session
        assert session is not None
        if session.is_lost(now()):
            return None
        grant = Grant(
            self.name, self.mode, granted.token, granted.grant, session, self._shell.call_back
        )
        self._held.setdefault(owner, []).append(grant)
        return grant

    def _owner(self) -> object:
        raise NotImplementedError

    def _present(self) -> Grant:
        """The latest grant of this thread or task, else the latest of any."""
        grants = self._held.get(self._owner())
        if grants:
            return grants[-1]
        for grants in reversed(list(self._held.values())):
            if grants:
                return grants[-1]
        raise RuntimeError("release unlocked lock")

    def _drop(self, grant: Grant) -> None:
        """Let go of a grant. Raises RuntimeError if another thread or task was quicker."""
        owner = self._owner()
        if grant not in self._held.get(owner, ()):
            owner = next((o for o, held in list(self._held.items()) if grant in held), None)
        try:
            grants = self._held[owner]
            grants.remove(grant)
        except (KeyError, ValueError):
            raise RuntimeError("release unlocked lock") from None
        if not grants:
            self._held.pop(owner, None)

    def _releasing(self, grant: Grant, future: Any) -> Call:
        call = Call("lock", Release(grant.name, grant._number), future)
        call.session = grant._session
        grant._session.watched.pop(grant._number, None)
        return call

    @staticmethod
    def _refused(result: object) -> None:
        """Nothing for a lock that was not had in time; raises for anything else."""
        try:
            result_of(result)
        except Timeout:
            return None
        raise CoterieError(f"the cluster answered {result!r} to an acquire")


class AsyncLock(LockBase):
    """A lock of the whole cluster for asyncio, made by `AsyncClient.lock`.

    As `threading.Lock`, but what talks to the cluster is awaited.
    """

    async def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; False if it was not had in `timeout` seconds, or at once if not
        `blocking`. Raises `Unavailable` (not blocking) or `Busy`."""
        if timeout != -1 or not blocking:
            check_timeout(blocking, timeout)
        return await self._acquire(blocking, timeout) is not None

    async def _acquire(self, blocking: bool, timeout: float) -> Grant | None:
        shell = self._shell
        while True:
            call = self._call(shell.future(), blocking, timeout)
            shell.submit(call)
            try:
                result = await call.future
            except BaseException:
                shell.cancel(call)
                raise
            if type(result) is not Granted:
                return self._refused(result)
            grant = self._keep(shell.task(), call, result)
            if grant is not None:
                return grant

    async def release(self) -> None:
        """Give the lock back. Raises RuntimeError if it is not held, `LockLost` if it is lost.

        Cancelled, or with the cluster silent (`Indeterminate`), the release goes on by itself.
        """
        grant = self._present()
        if grant.lost:
            self._drop(grant)
            raise lost_error(self.name)
        call = self._releasing(grant, self._shell.future())
        self._shell.submit(call)
        self._drop(grant)
        result = await call.future
        if type(result) is not Released:
            raise released_error(self.name, result)

    async def locked(self) -> bool:
        """True if anyone, anywhere, holds the lock."""
        call = Call("lock", Inspect(self.name), self._shell.future())
        self._shell.submit(call)
        return is_held(await call.future)

    async def __aenter__(self) -> Grant:
        grant = await self._acquire(True, self._timeout)
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


class Lock(LockBase):
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

    def _acquire(self, blocking: bool, timeout: float) -> Grant | None:
        runner = self._runner
        while True:
            call = self._call(runner.waiter(), blocking, timeout)
            grant = None
            try:
                runner.submit(call)
                result = call.future.wait()
                if type(result) is not Granted:
                    return self._refused(result)
                grant = self._keep(threading.get_ident(), call, result)
                # Here nothing may stand at which a signal's handler runs: the grant would be
                # in nobody's hands (CPython looks for signals after calls of C functions).
                if grant is not None:
                    return grant
            except BaseException:
                self._forget(call)
                runner.cancel(call)
                raise

    def _keep(self, owner: object, call: Call, granted: Granted) -> Grant | None:
        with self._mutex:
            return super()._keep(owner, call, granted)

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
            raise released_error(self.name, result)

    def _release(self, grant: Grant) -> object:
        if grant.lost:
            self._drop(grant)
            raise lost_error(self.name)
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

    def locked(self) -> bool:
        """True if anyone, anywhere, holds the lock."""
        call = Call("lock", Inspect(self.name), self._runner.waiter())
        self._runner.submit(call)
        return is_held(call.future.wait())

    def __enter__(self) -> Grant:
        grant = self._acquire(True, self._timeout)
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


__all__ = ["AsyncLock", "Grant", "Lock"]
