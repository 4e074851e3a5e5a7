"""Events of the whole cluster.

The law: who waited when the event was set is woken, also if it is cleared at once. An event is
there while a session that used it lives.
"""

from __future__ import annotations

from ..protocols.coordination.messages import (
    ClearEvent,
    EventState,
    InspectEvent,
    SetEvent,
    WaitEvent,
)
from ..protocols.plugin import Message
from .arguments import bounded, check_name
from .clock import now
from .core import Call
from .errors import CoterieError, Timeout, result_of
from .mirror import mirrored
from .runner import Runner
from .shell import Shell


class AsyncEvent:
    """An event for asyncio, made by `AsyncClient.event`."""

    def __init__(self, shell: Shell, name: str) -> None:
        check_name(name, "event")
        self.name = name
        self._shell = shell

    async def is_set(self) -> bool:
        """True if the event is set."""
        return await self._state(InspectEvent(self.name))

    async def set(self) -> None:
        """Set the event and wake all who wait for it."""
        await self._state(SetEvent(self.name))

    async def clear(self) -> None:
        """Let those who wait from now on wait until it is set again."""
        await self._state(ClearEvent(self.name))

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set; false if it was not in `timeout` seconds."""
        limit = bounded(timeout)
        if limit == 0:
            return await self._state(WaitEvent(self.name, False))
        call = Call("coordination", WaitEvent(self.name), None, True)
        call.deadline = None if limit == -1 else now() + limit
        try:
            return _is_set(await self._shell.ask(call))
        except Timeout:
            return False

    async def _state(self, operation: Message) -> bool:
        return _is_set(await self._shell.ask(Call("coordination", operation)))


def _is_set(result: object) -> bool:
    state = result_of(result)
    if type(state) is not EventState:
        raise CoterieError(f"the cluster answered {result!r} of an event")
    return state.is_set


class Event:
    """An event, made by `Client.event`; honours `threading.Event`."""

    def __init__(self, runner: Runner, mirrored: AsyncEvent) -> None:
        self.name = mirrored.name
        self._runner = runner
        self._mirrored = mirrored

    is_set = mirrored(AsyncEvent.is_set)
    set = mirrored(AsyncEvent.set)
    clear = mirrored(AsyncEvent.clear)
    wait = mirrored(AsyncEvent.wait)
