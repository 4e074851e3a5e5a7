"""Barriers of the whole cluster.

The law: all parties pass together or none does. A party that waits no longer, because its time is
up or its session ended, breaks the barrier for all, until it is reset.
"""

from __future__ import annotations

from collections.abc import Awaitable

from ..protocols.coordination.messages import (
    BarrierState,
    BreakBarrier,
    InspectBarrier,
    Passed,
    ResetBarrier,
    WaitBarrier,
)
from ..protocols.errors import Code
from ..protocols.plugin import Failure, Message
from .arguments import bounded, check_name
from .clock import now
from .core import Call
from .errors import BrokenBarrier, CoterieError, Timeout, result_of
from .mirror import mirrored
from .runner import Runner
from .shell import Shell


class AsyncBarrier:
    """A barrier for asyncio, made by `AsyncClient.barrier`."""

    def __init__(self, shell: Shell, name: str, parties: int, timeout: float | None) -> None:
        check_name(name, "barrier")
        if parties < 1:
            raise ValueError("parties must be > 0")
        bounded(timeout)
        self.name = name
        self.parties = parties
        """How many must arrive."""
        self._shell = shell
        self._timeout = timeout

    @property
    def n_waiting(self) -> Awaitable[int]:
        """How many wait now; to be awaited."""
        return self._waiting()

    @property
    def broken(self) -> Awaitable[bool]:
        """Whether the barrier is broken; to be awaited."""
        return self._broken()

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for all parties; a number from 0 to parties - 1, another one for each. Raises
        `BrokenBarrier`, also when `timeout` (or the barrier's own) is over."""
        limit = bounded(self._timeout if timeout is None else timeout)
        call = Call("coordination", WaitBarrier(self.name, self.parties), None, True)
        call.deadline = None if limit == -1 else now() + limit
        result = await self._shell.ask(call)
        if type(result) is Passed:
            return result.index
        try:
            if isinstance(result, Failure) and result.code is Code.SESSION_EXPIRED:
                raise BrokenBarrier(f"the barrier {self.name!r} is broken: our session ended")
            result_of(result)
        except Timeout:
            await self.abort()
            raise BrokenBarrier(
                f"the barrier {self.name!r} is broken: not all came in {limit:g} s; reset() "
                "mends it"
            ) from None
        raise CoterieError(f"the cluster answered {result!r} at a barrier")

    async def reset(self) -> None:
        """Mend the barrier; who waits now gets `BrokenBarrier`."""
        await self._state(ResetBarrier(self.name, self.parties))

    async def abort(self) -> None:
        """Break the barrier: who waits or comes gets `BrokenBarrier`, until `reset`."""
        await self._state(BreakBarrier(self.name, self.parties))

    async def _waiting(self) -> int:
        return (await self._state(InspectBarrier(self.name))).waiting

    async def _broken(self) -> bool:
        return (await self._state(InspectBarrier(self.name))).broken

    async def _state(self, operation: Message) -> BarrierState:
        state = result_of(await self._shell.ask(Call("coordination", operation)))
        if type(state) is not BarrierState:
            raise CoterieError(f"the cluster answered {state!r} of a barrier")
        return state


class Barrier:
    """A barrier, made by `Client.barrier`; honours `threading.Barrier`."""

    def __init__(self, runner: Runner, mirrored: AsyncBarrier) -> None:
        self.name = mirrored.name
        self.parties = mirrored.parties
        self._runner = runner
        self._mirrored = mirrored

    wait = mirrored(AsyncBarrier.wait)
    reset = mirrored(AsyncBarrier.reset)
    abort = mirrored(AsyncBarrier.abort)
    _waiting = mirrored(AsyncBarrier._waiting)
    _broken = mirrored(AsyncBarrier._broken)

    @property
    def n_waiting(self) -> int:
        """How many wait now."""
        return self._waiting()

    @property
    def broken(self) -> bool:
        """Whether the barrier is broken."""
        return self._broken()
