"""Elections of the whole cluster: one leader at a time, the others wait in line.

The law: leadership is a grant like a lock's: it is the session's, its token rises from leader to
leader, and it knows itself when it is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, NamedTuple

from ..protocols.coordination.messages import (
    Campaign,
    Elected,
    ElectionState,
    InspectElection,
    Resign,
)
from ..protocols.errors import Code
from ..protocols.plugin import Failure
from .arguments import bounded, check_name
from .clock import now
from .core import Call
from .errors import CoterieError, Timeout, result_of
from .grant import Grant, lost_error
from .mirror import mirrored, mirrored_iterator
from .runner import Runner
from .shell import LINGER_US, Shell


class Leader(NamedTuple):
    """Who was elected: the name of its client, the value it stood with, its fencing token."""

    name: str
    value: bytes
    token: int


class AsyncElection:
    """An election for asyncio, made by `AsyncClient.election`. `async with` campaigns and, at the
    end, resigns."""

    def __init__(self, shell: Shell, name: str) -> None:
        check_name(name, "election")
        self.name = name
        self._shell = shell
        self._grant: Grant | None = None

    async def campaign(self, value: bytes = b"", timeout: float | None = None) -> Grant:
        """Stand for election and wait to be elected. Raises `Timeout` if that took longer than
        `timeout` seconds, RuntimeError on an object that leads already."""
        if not isinstance(value, bytes):
            raise TypeError(f"an election's value is bytes, not {value!r}")
        if self._grant is not None and not self._grant.lost:
            raise RuntimeError("this election is won already; resign first")
        limit = bounded(timeout)
        waits = limit != 0
        call = Call("coordination", Campaign(self.name, value, waits), None, waits)
        call.deadline = now() + limit if waits and limit != -1 else None
        try:
            result = result_of(await self._shell.ask(call))
        except Timeout:
            raise Timeout(f"not elected in {limit:g} s; leader() tells who leads") from None
        if type(result) is not Elected or call.session is None:
            raise CoterieError(f"the cluster answered {result!r} to a campaign")
        self._grant = grant = Grant(
            self.name,
            "exclusive",
            result.token,
            result.leadership,
            call.session,
            self._shell.call_back,
            result.leadership,
            None,
            "coordination",
        )
        return grant

    async def resign(self) -> None:
        """Lead no longer. Raises RuntimeError if this object does not lead, `LockLost` if its
        leadership was lost."""
        grant, self._grant = self._grant, None
        if grant is None:
            raise RuntimeError("cannot resign: this election was not won")
        if grant.lost:
            raise lost_error(grant)
        grant._session.watched.pop(grant, None)
        call = Call("coordination", Resign(self.name, grant._number), session=grant._session)
        result = await self._shell.ask(call)
        if isinstance(result, Failure) and result.code in (Code.NOT_HELD, Code.SESSION_EXPIRED):
            raise lost_error(grant)
        result_of(result)

    async def leader(self) -> Leader | None:
        """Who leads now; None if nobody does."""
        return _leader(await self._inspect(InspectElection(self.name), False))

    def observe(self) -> AsyncIterator[Leader | None]:
        """Who leads, now and after each change, as long as one asks; None while nobody does."""
        return Observer(self._inspect, self.name)

    async def __aenter__(self) -> Grant:
        return await self.campaign()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.resign()
        except CoterieError as failure:
            if error is None:
                raise
            error.add_note(f"{type(failure).__name__}: {failure}")

    async def _inspect(self, query: InspectElection, waits: bool) -> ElectionState:
        call = Call("coordination", query, None, waits)
        state = result_of(await self._shell.ask(call))
        if type(state) is not ElectionState:
            raise CoterieError(f"the cluster answered {state!r} of an election")
        return state

    def _take_back(self, grant: Grant) -> None:
        """Nobody waited for the election any more."""
        if self._grant is grant:
            self._grant = None
        operation = Resign(self.name, grant._number)
        call = Call("coordination", operation, waits=True, session=grant._session)
        self._shell.submit(call)


class Observer(AsyncIterator["Leader | None"]):
    """Each step waits for another leader than the last one told."""

    def __init__(self, inspect: Callable[[InspectElection, bool], Any], name: str) -> None:
        self._inspect = inspect
        self._name = name
        self._after = -1

    async def __anext__(self) -> Leader | None:
        while True:
            query = InspectElection(self._name, self._after, LINGER_US)
            state = await self._inspect(query, True)
            if state.token != self._after:
                self._after = state.token
                return _leader(state)


def _leader(state: ElectionState) -> Leader | None:
    return Leader(state.client, state.value, state.token) if state.token else None


class Election:
    """An election, made by `Client.election`. `with` campaigns and, at the end, resigns."""

    def __init__(self, runner: Runner, mirrored: AsyncElection) -> None:
        self.name = mirrored.name
        self._runner = runner
        self._mirrored = mirrored

    campaign = mirrored(AsyncElection.campaign, AsyncElection._take_back)
    resign = mirrored(AsyncElection.resign)
    leader = mirrored(AsyncElection.leader)
    observe = mirrored_iterator(AsyncElection.observe)
    __enter__ = mirrored(AsyncElection.__aenter__, AsyncElection._take_back)
    __exit__ = mirrored(AsyncElection.__aexit__)
