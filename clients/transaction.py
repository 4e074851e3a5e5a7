"""Transactions: locks that are taken one after the other and go together.

The law: two-phase (Eswaran, Gray, Lorie & Traiger, 1976): no lock of a transaction goes before its
end, and after its end it takes none. A transaction that the cluster chose to break a deadlock has
lost everything at once; whatever is asked of it then raises `Deadlock`.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from ..protocols.errors import Code
from ..protocols.lock.messages import (
    Abort,
    Acquire,
    AcquireAll,
    BeginTransaction,
    Begun,
    Commit,
    Converted,
    Ended,
    Granted,
    GrantedAll,
)
from ..protocols.plugin import Failure
from .arguments import bounded, check_name
from .clock import now
from .core import Call
from .core_records import Session
from .errors import CoterieError, Deadlock, LockLost, Timeout, result_of
from .grant import Grant, lost_error, timeout_error
from .mirror import mirrored
from .runner import Runner
from .shell import Shell

T = TypeVar("T")
PAUSE_S, PAUSE_MAX_S = 0.01, 1.0


class AsyncTransaction:
    """A transaction for asyncio, made by `AsyncClient.transaction`. `async with` commits it, or
    aborts it on an exception."""

    def __init__(self, shell: Shell, first: int = 0) -> None:
        self._shell = shell
        self._first = first
        self._number = 0
        self._session: Session | None = None
        self._beginning = asyncio.Lock()
        self._grants: dict[str, Grant] = {}
        self._ended = False
        self._failure: Failure | None = None

    @property
    def id(self) -> int:
        """Its number: a later transaction has a higher one. Raises RuntimeError before it began:
        by `with`, or by its first lock."""
        if not self._number:
            raise RuntimeError("the transaction has not begun; use `with`, or take a lock")
        return self._number

    async def lock(self, name: str, *, shared: bool = False, timeout: float | None = None) -> Grant:
        """Take a lock for as long as the transaction lasts; one that it holds shared already is
        upgraded. Raises `Timeout`, `Deadlock`, `LockLost` if the transaction was lost."""
        check_name(name)
        limit = bounded(timeout)
        number = await self._begun()
        operation = Acquire(name, shared, limit != 0, number)
        call = self._waiting(operation, limit)
        result = await self._shell.ask(call)
        if type(result) is Granted:
            held = self._grants.get(name)
            if held is None:
                return self._keep(name, shared, result.token, result.grant)
            return self._keep(name, False, result.token, held._number)
        if type(result) is Converted:
            held = self._grants.get(name)
            if held is not None and held.token == result.token:
                return held
            return self._keep(name, result.shared, result.token, result.grant)
        raise self._refused(result, name, limit)

    async def lock_all(
        self, names: Iterable[str], *, shared: bool = False, timeout: float | None = None
    ) -> list[Grant]:
        """Take several locks at once: all of them, or none. Raises as `lock`, and ValueError for
        one that is to be upgraded."""
        wanted = list(names)
        for name in wanted:
            check_name(name)
            held = self._grants.get(name)
            if held is not None and held.mode == "shared" and not shared:
                raise ValueError(f"the transaction holds {name!r} shared; upgrade it by lock()")
        limit = bounded(timeout)
        number = await self._begun()
        missing = tuple(dict.fromkeys(name for name in wanted if name not in self._grants))
        if missing:
            operation = AcquireAll(missing, shared, limit != 0, number)
            result = await self._shell.ask(self._waiting(operation, limit))
            if type(result) is not GrantedAll:
                raise self._refused(result, ", ".join(missing), limit)
            for place, name in enumerate(missing):
                self._keep(name, shared, result.tokens[place], result.grant + place)
        return [self._grants[name] for name in wanted]

    async def commit(self) -> None:
        """End the transaction; its locks go. Raises `Deadlock` if it was a victim, `LockLost` if
        it lost a lock."""
        self._check_open()
        lost = next((grant for grant in self._grants.values() if grant.lost), None)
        if not self._end():
            return
        result = await self._shell.ask(self._call(Commit(self._number)))
        if type(result) is not Ended:
            raise self._refused(result, "", -1)
        if lost is not None:
            raise lost_error(lost)

    async def abort(self) -> None:
        """End the transaction; its locks go. Harmless on one that has ended."""
        if self._end() and self._session is not None and not self._session.lost:
            result = await self._shell.ask(self._call(Abort(self._number)))
            if not (isinstance(result, Failure) and result.code is Code.SESSION_EXPIRED):
                result_of(result)

    async def __aenter__(self) -> AsyncTransaction:
        await self._begun()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            if not self._ended:
                await self.commit()
            return
        try:
            await self.abort()
        except CoterieError as failure:
            error.add_note(f"{type(failure).__name__}: {failure}")

    async def _begun(self) -> int:
        """Its id; begins at first use."""
        self._check_open()
        if not self._number:
            async with self._beginning:
                if not self._number:
                    call = Call("lock", BeginTransaction(self._first), None, True)
                    result = await self._shell.ask(call)
                    if type(result) is not Begun:
                        result_of(result)
                        raise CoterieError(f"the cluster answered {result!r} to a beginning")
                    self._number, self._session = result.transaction, call.session
                    if self._session is not None:  # the id of a victim, in its next life
                        self._session.aborted.pop(self._number, None)
        return self._number

    def _check_open(self) -> None:
        if self._failure is not None:
            result_of(self._failure)
        if self._ended:
            raise RuntimeError("the transaction has ended; begin another")

    def _call(self, operation: Any) -> Call:
        return Call("lock", operation, session=self._session)

    def _waiting(self, operation: Acquire | AcquireAll, limit: float) -> Call:
        call = self._call(operation)
        call.waits = operation.wait
        call.deadline = now() + limit if operation.wait and limit != -1 else None
        return call

    def _keep(self, name: str, shared: bool, token: int, number: int) -> Grant:
        session = self._session
        assert session is not None
        mode = "shared" if shared else "exclusive"
        grant = Grant(name, mode, token, number, session, self._shell.call_back, self._number)  # type: ignore[arg-type]
        replaced = self._grants.get(name)
        if replaced is not None and (watching := session.watched.pop(replaced, None)):
            session.watched[grant] = watching
        self._grants[name] = grant
        return grant

    def _end(self) -> bool:
        """Take no more locks; false if there is nothing to end in the cluster."""
        if self._ended:
            return False
        self._ended = True
        if self._session is not None:
            for grant in self._grants.values():
                self._session.watched.pop(grant, None)
        return self._session is not None and self._failure is None

    def _refused(self, result: object, name: str, limit: float) -> BaseException:
        """What to raise for an answer that is no grant."""
        if isinstance(result, Failure):
            if result.code is Code.DEADLOCK:
                self._failure = result
                for grant in self._grants.values():  # lost by themselves: the id may live again
                    grant._session.take(grant._number)
            elif result.code in (Code.NOT_HELD, Code.SESSION_EXPIRED):
                self._ended = True
                if self._failure is None:
                    return LockLost("the transaction is lost with all its locks: its session ended")
                result = self._failure
        try:
            result_of(result)
        except Timeout:
            return timeout_error(name, max(limit, 0.0))
        except CoterieError as error:
            return error
        return CoterieError(f"the cluster answered {result!r} to a transaction")

    def _forsake(self, begun: AsyncTransaction) -> None:
        """Nobody waited for the beginning any more."""
        if self._end():
            call = Call("lock", Abort(self._number), session=self._session)
            self._shell.submit(call)


class Transaction:
    """A transaction, made by `Client.transaction`. `with` commits it, or aborts it on an
    exception."""

    def __init__(self, runner: Runner, mirrored: AsyncTransaction) -> None:
        self._runner = runner
        self._mirrored = mirrored

    @property
    def id(self) -> int:
        """Its number: a later transaction has a higher one. Raises RuntimeError before it began:
        by `with`, or by its first lock."""
        return self._mirrored.id

    # An interrupted lock is the transaction's all the same, and goes with it.
    lock = mirrored(AsyncTransaction.lock)
    lock_all = mirrored(AsyncTransaction.lock_all)
    commit = mirrored(AsyncTransaction.commit)
    abort = mirrored(AsyncTransaction.abort)

    _enter = mirrored(AsyncTransaction.__aenter__, AsyncTransaction._forsake)
    __exit__ = mirrored(AsyncTransaction.__aexit__)

    def __enter__(self) -> Transaction:
        self._enter()
        return self


def pauses(attempts: int) -> Iterator[float]:
    """How long to pause after each attempt but the last: random, and doubling on average."""
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts!r}")
    longest = (min(PAUSE_MAX_S, PAUSE_S * 2**attempt) for attempt in range(attempts - 1))
    return (random.uniform(0.0, pause) for pause in longest)


async def run(
    begin: Callable[[int], AsyncTransaction], function: Callable[[Any], Any], attempts: int
) -> Any:
    """Call `function` in a transaction of `begin(first id)`, again while it is a victim."""
    first, waiting = 0, pauses(attempts)
    while True:
        transaction = begin(first)
        try:
            async with transaction:
                result = function(transaction)
                return await result if inspect.isawaitable(result) else result
        except Deadlock:
            pause = next(waiting, None) if transaction._failure is not None else None
            if pause is None:
                raise
        first = first or transaction.id
        await asyncio.sleep(pause)


def repeated(
    begin: Callable[[int], Transaction],
    sleep: Callable[[float], object],
    function: Callable[[Transaction], T],
    attempts: int,
) -> T:
    """`run` for threads: `function` is called on the caller's own."""
    first, waiting = 0, pauses(attempts)
    while True:
        transaction = begin(first)
        try:
            with transaction:
                return function(transaction)
        except Deadlock:
            pause = next(waiting, None) if transaction._mirrored._failure is not None else None
            if pause is None:
                raise
        first = first or transaction.id
        sleep(pause)
