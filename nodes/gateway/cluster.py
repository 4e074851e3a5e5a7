"""The cluster as the gateway sees it: a client that acts for its HTTP sessions.

The law: numbering and repetition are the gateway's own (its client, its session), what is opened
or taken belongs to the session it acts for. Of one lock a session has one claim, however often and
at however many nodes it asks; the cluster counts who counts on it, so a caller that hangs up
withdraws its own asking and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from ...clients.clock import now
from ...clients.core import Call
from ...clients.errors import (
    Indeterminate,
    LockLost,
    SessionExpired,
    Timeout,
    result_of,
)
from ...clients.settings import settings
from ...clients.shell import Shell
from ...protocols.lock.messages import (
    Abort,
    Acquire,
    BeginTransaction,
    Begun,
    Commit,
    Converted,
    Granted,
    Inspect,
    ListLocks,
    LockStates,
    Release,
)
from ...protocols.plugin import Message
from ...protocols.session.messages import (
    EndSession,
    KeepAlive,
    KeptAlive,
    OpenSession,
    SessionOpened,
)

ATTEMPTS = 3
"""How often what may be repeated is, when our own session ended under it."""

CANCEL_S = 0.25
"""How long a caller that got no lock waits until that is confirmed."""

RENEW_FIRST_S = 0.3
RENEWALS_PER_TTL = 3
CLOSE_S = 0.2
ANSWER_S = 0.1
"""How long members are waited for that may be down."""

M = TypeVar("M", bound=Message)

Key: TypeAlias = tuple[int, str, bool, int]
"""What is asked for: principal, name, whether shared, transaction."""


class Cluster:
    """What the rooms ask of the cluster. Every method raises `CoterieError`."""

    def __init__(self, endpoints: Sequence[str], name: str) -> None:
        self._shell = Shell(settings(list(endpoints), name, 10.0, 5.0, None))
        self._asking: dict[Key, _Shared] = {}

    async def close(self) -> None:
        await self._shell.close(CLOSE_S)

    async def answering(self) -> int:
        """How many members answer now."""
        shell = self._shell
        shell.attach()
        asked_at = now()
        shell.locate()
        core = shell.core
        assert core is not None
        nodes = core.nodes

        def count() -> int:
            return sum(nodes.answered_at.get(e, -1.0) >= asked_at for e in nodes.distinct())

        await shell.until(lambda: count() == len(nodes.distinct()), ANSWER_S)
        return count()

    # Sessions

    async def open_session(self, principal: int, ttl_s: float, name: str) -> float:
        """Open the session of a client, or find it open; its ttl in seconds."""
        operation = OpenSession(1, round(ttl_s * 1e6), name)
        opened = await self._repeated("session", operation, principal, SessionOpened)
        return opened.ttl_us / 1e6

    async def keep_alive(self, principal: int) -> float:
        """Renew a session; its ttl in seconds."""
        kept = await self._repeated("session", KeepAlive(), principal, KeptAlive)
        return kept.ttl_us / 1e6

    async def end_session(self, principal: int) -> None:
        """End a session; an unknown one is ended already."""
        await self._repeated("session", EndSession(0), principal, Message)

    def forget_session(self, principal: int) -> None:
        """End a session nobody was told of, without waiting."""
        self._submit(Call("session", EndSession(0), principal=principal))

    # Locks

    async def lock(self, name: str) -> LockStates:
        return await self._asked("lock", Inspect(name), 0, LockStates)

    async def locks(self, prefix: str, after: str) -> LockStates:
        return await self._asked("lock", ListLocks(prefix, after), 0, LockStates)

    async def release(self, principal: int, name: str, token: int) -> None:
        """Release the lock a session holds under this token."""
        for attempt in range(ATTEMPTS):
            try:
                await self._asked("lock", Release(name, 0, token), principal, Message)
            except (Indeterminate, SessionExpired):
                if attempt == ATTEMPTS - 1:
                    raise
            except LockLost:
                if not attempt:
                    raise
                return  # by the copy before this one
            else:
                return

    def ask_once(self, principal: int, name: str, shared: bool, transaction: int) -> Asking:
        """Ask for a lock that is had at once or not at all (`Timeout`)."""
        key = (principal, name, shared, transaction)
        return Asking(self, _Shared(key, self._acquire(*key, wait=False)))

    def ask(self, principal: int, name: str, shared: bool, transaction: int) -> Asking:
        """Begin to ask for a lock, of a transaction if that is not 0. Callers that ask for the same
        at this node share one call."""
        key = (principal, name, shared, transaction)
        found = self._asking.get(key)
        if found is None:
            found = self._asking[key] = _Shared(key, self._acquire(*key, wait=True))
            found.call.future.add_done_callback(lambda _: self._answered(found))
        return Asking(self, found)

    def _answered(self, shared: _Shared) -> None:
        if self._asking.get(shared.key) is shared:
            del self._asking[shared.key]

    def _acquire(
        self, principal: int, name: str, shared: bool, transaction: int, *, wait: bool
    ) -> Call:
        operation = Acquire(name, shared, wait, transaction, once=not transaction)
        call = Call("lock", operation, self._shell.future(), wait, principal=principal)
        self._submit(call)
        return call

    def leave(self, shared: _Shared) -> None:
        """A caller is gone without the lock; the last one withdraws the asking."""
        shared.callers -= 1
        if not shared.callers and not shared.kept:
            self._answered(shared)  # who comes now asks anew
            self._shell.cancel(shared.call)

    async def withdraw(self, shared: _Shared) -> None:
        """A caller's time is up: if it is the last one, see that nobody waits on its account."""
        if shared.callers == 1 and not shared.kept:
            self._answered(shared)  # who comes now asks anew
            self._shell.cancel(shared.call)
            await asyncio.wait([shared.call.future], timeout=CANCEL_S)

    def renew(self, shared: _Shared) -> None:
        """Keep the session of a waiting caller alive; if it is gone, the call itself tells."""
        call = Call("session", KeepAlive(), self._shell.future(), principal=shared.key[0])

        def renewed(future: asyncio.Future[object]) -> None:
            if not future.cancelled() and isinstance(kept := future.result(), KeptAlive):
                shared.renew_s = kept.ttl_us / 1e6 / RENEWALS_PER_TTL

        call.future.add_done_callback(renewed)
        self._submit(call)

    # Transactions

    async def begin(self, principal: int) -> int:
        """Begin a transaction; its id. Should its caller not hear of it, it holds nothing."""
        begun = await self._repeated("lock", BeginTransaction(), principal, Begun)
        return begun.transaction

    async def commit(self, principal: int, transaction: int) -> None:
        """End a transaction. Raises `Deadlock` if it was a victim: it is ended all the same."""
        for attempt in range(ATTEMPTS):
            try:
                await self._asked("lock", Commit(transaction), principal, Message)
            except (Indeterminate, SessionExpired):
                if attempt == ATTEMPTS - 1:
                    raise
            except LockLost:
                if not attempt:
                    raise
                return  # by the copy before this one
            else:
                return

    async def abort(self, principal: int, transaction: int) -> None:
        """End a transaction; an unknown one is ended already."""
        await self._repeated("lock", Abort(transaction), principal, Message)

    def forget_transaction(self, principal: int, transaction: int) -> None:
        """End a transaction nobody was told of, without waiting."""
        self._submit(Call("lock", Abort(transaction), principal=principal))

    # Calls

    async def _repeated(self, plugin: str, operation: Message, principal: int, kind: type[M]) -> M:
        """Ask for what is harmless when done twice, until it is known to be done."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._asked(plugin, operation, principal, kind)
            except (Indeterminate, SessionExpired):
                continue
        return await self._asked(plugin, operation, principal, kind)

    async def _asked(self, plugin: str, request: Message, principal: int, kind: type[M]) -> M:
        call = Call(plugin, request, self._shell.future(), principal=principal)
        self._submit(call)
        answer = result_of(await call.future)
        assert isinstance(answer, kind), answer
        return answer

    def _submit(self, call: Call) -> None:
        self._shell.attach()
        self._shell.submit(call)


class _Shared:
    """One call for a lock, and the callers at this node that count on it."""

    def __init__(self, key: Key, call: Call) -> None:
        self.key = key
        self.call = call
        self.callers = 0
        self.kept = False
        """True once a caller was told that it has the lock."""
        self.renew_s = RENEW_FIRST_S


class Asking:
    """One caller's part in the asking for a lock, from its making to `leave`. Unless `keep` was
    called before, the caller got nothing, and nothing stays held or waited for on its account."""

    def __init__(self, cluster: Cluster, shared: _Shared) -> None:
        self._cluster = cluster
        self._shared = shared
        shared.callers += 1

    def leave(self) -> None:
        """The caller is served, or gone."""
        self._cluster.leave(self._shared)

    def keep(self) -> None:
        """The caller was told that the lock is its."""
        self._shared.kept = True

    async def granted(self, timeout_s: float) -> int:
        """The token, once the lock is had. Meanwhile the session is kept alive: whoever waits here
        is there. Raises `Timeout`."""
        shared, cluster = self._shared, self._cluster
        future, loop = shared.call.future, asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not future.done():
            left_s = deadline - loop.time()
            if left_s <= 0:
                await cluster.withdraw(shared)
                raise Timeout(
                    f"the lock {shared.key[1]!r} was not had in {timeout_s:g} s; "
                    "GET /lock tells who holds it"
                )
            done, _ = await asyncio.wait([future], timeout=min(left_s, shared.renew_s))
            if not done:
                cluster.renew(shared)
        granted = result_of(future.result())
        assert isinstance(granted, (Granted, Converted)), granted
        return granted.token
