"""Semaphores of the whole cluster.

The law: a permit belongs to the session that took it and goes back with it. So a permit that was
lost is never given back a second time: releasing it raises `LockLost`.
"""

from __future__ import annotations

from types import TracebackType

from ..protocols.coordination.messages import Given, GivePermits, Permitted, TakePermit
from ..protocols.errors import Code
from ..protocols.plugin import Failure
from .arguments import bounded, check_name
from .clock import now
from .core import Call
from .core_records import Session
from .errors import CoterieError, LockLost, Timeout, result_of
from .mirror import mirrored
from .runner import Runner
from .shell import Shell

GIVEN_MAX = 1_000
"""Permits given back by one command."""


class AsyncSemaphore:
    """A semaphore for asyncio, made by `AsyncClient.semaphore` and `bounded_semaphore`."""

    def __init__(self, shell: Shell, name: str, value: int, bounded: bool) -> None:
        check_name(name, "semaphore")
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        self.name = name
        self._shell = shell
        self._value = value
        self._bounded = bounded

    async def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take a permit; false if none was had in `timeout` seconds, or at once if not
        `blocking`. Raises ValueError if the semaphore was made otherwise."""
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        limit = bounded(timeout) if blocking else 0
        waits = limit != 0
        operation = TakePermit(self.name, self._value, self._bounded, waits)
        call = Call("coordination", operation, None, waits)
        if waits and limit != -1:
            call.deadline = now() + limit
        result = await self._shell.ask(call)
        if type(result) is Permitted and call.session is not None:
            self._shell.permits.setdefault(self.name, []).append(call.session)
            return True
        try:
            result_of(result)
        except Timeout:
            return False
        raise CoterieError(f"the cluster answered {result!r} to an acquire")

    async def release(self, n: int = 1) -> None:
        """Give back `n` permits. Raises ValueError for more than a bounded semaphore gave out,
        `LockLost` for permits that went with their session."""
        if n < 1:
            raise ValueError("n must be one or more")
        lost = 0
        while n:
            session, count = self._next(min(n, GIVEN_MAX))
            n -= count
            if (session is not None and session.is_lost(now())) or not await self._give(
                session, count
            ):
                lost += count
        if lost:
            raise LockLost(
                f"{lost} permits of {self.name!r} are lost: they went with their session"
            )

    async def __aenter__(self) -> bool:
        return await self.acquire()

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

    def _next(self, most: int) -> tuple[Session | None, int]:
        """The session of the oldest permits in hand, and how many of them to give back now; None
        if there are none: an unbounded semaphore takes more than it gave."""
        held = self._shell.permits.get(self.name)
        if not held:
            return None, most
        session = held[0]
        count = 1
        while count < min(most, len(held)) and held[count] is session:
            count += 1
        del held[:count]
        if not held:
            del self._shell.permits[self.name]
        return session, count

    async def _give(self, session: Session | None, count: int) -> bool:
        operation = GivePermits(self.name, self._value, self._bounded, count)
        result = await self._shell.ask(Call("coordination", operation, session=session))
        if type(result) is Given:
            return True
        if isinstance(result, Failure):
            if session is not None and result.code is Code.SESSION_EXPIRED:
                return False
            if result.code is Code.NOT_HELD:
                raise ValueError("Semaphore released too many times")
        result_of(result)
        raise CoterieError(f"the cluster answered {result!r} to a release")

    def _give_back(self, taken: bool) -> None:
        """Nobody waited for the permit any more."""
        if taken:
            session, count = self._next(1)
            operation = GivePermits(self.name, self._value, self._bounded, count)
            self._shell.submit(Call("coordination", operation, session=session, waits=True))


class Semaphore:
    """A semaphore, made by `Client.semaphore` and `bounded_semaphore`; honours
    `threading.Semaphore` and `threading.BoundedSemaphore`."""

    def __init__(self, runner: Runner, mirrored: AsyncSemaphore) -> None:
        self.name = mirrored.name
        self._runner = runner
        self._mirrored = mirrored

    acquire = mirrored(AsyncSemaphore.acquire, AsyncSemaphore._give_back)
    release = mirrored(AsyncSemaphore.release)
    __enter__ = mirrored(AsyncSemaphore.__aenter__, AsyncSemaphore._give_back)
    __exit__ = mirrored(AsyncSemaphore.__aexit__)
