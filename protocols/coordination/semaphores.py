"""Semaphores: permits that belong to the session that took them.

The law: a permit is free or in one session's hands. A bounded semaphore has as many as it was made
with, for ever; any other gets one more when somebody gives back what he did not have.
"""

from __future__ import annotations

import msgspec

from ..errors import Code
from ..plugin import Failure, Moment, Result
from .messages import Given, GivePermits, Permitted, SemaphoreState, TakePermit
from .serving import WOULD_BLOCK, Serving, differ, row_of
from .things import SEMAPHORE, Key, Thing


class Semaphores(Serving):
    """How permits are taken, given back and passed on."""

    def _take_permit(self, moment: Moment, operation: TakePermit) -> Result:
        thing = self._semaphore(moment, operation)
        if isinstance(thing, Failure):
            return thing
        key = (SEMAPHORE, thing.name)
        if thing.free == 0 or key in self.queues:
            return self._wait(moment, key) if operation.wait else WOULD_BLOCK
        failure = self._full(moment.session)
        if failure is not None:
            return failure
        self.things[key] = msgspec.structs.replace(thing, free=thing.free - 1)
        self.put(row_of(moment, key, moment.number))
        return Permitted(moment.number)

    def _give_permits(self, moment: Moment, operation: GivePermits) -> Result:
        thing = self._semaphore(moment, operation)
        if isinstance(thing, Failure):
            return thing
        key = (SEMAPHORE, thing.name)
        own = self.held_by(key, moment.session)[: operation.count]
        if thing.bounded and len(own) < operation.count:
            text = f"the session has {len(own)} permits of {thing.name!r}, not {operation.count}"
            return Failure(Code.NOT_HELD, text)
        for row in own:
            self.strike(row)
        self.things[key] = msgspec.structs.replace(thing, free=thing.free + operation.count)
        self._permit(moment, key)
        return Given()

    def _semaphore(self, moment: Moment, operation: TakePermit | GivePermits) -> Thing | Failure:
        name, value, bounded = operation.name, operation.value, operation.bounded
        key = (SEMAPHORE, name)
        new = Thing(SEMAPHORE, name, size=value, bounded=bounded, free=value)
        thing = self._used(moment, key, new)
        if isinstance(thing, Failure):
            return thing
        stored, given = (_permits(one.size, one.bounded) for one in (thing, new))
        return thing if stored == given else differ(key, stored, given)

    def _permit(self, moment: Moment, key: Key) -> None:
        """Give free permits to those who wait."""
        free = self.things[key].free
        served = 0
        for row in self._next(key, free, lambda _: True):
            self._wake(moment, row, row.number)
            served += 1
        if served:
            self.things[key] = msgspec.structs.replace(self.things[key], free=free - served)

    def semaphore_state(self, name: str) -> SemaphoreState:
        key = (SEMAPHORE, name)
        thing = self.things.get(key)
        if thing is None:
            return SemaphoreState(False)
        held = sum(map(len, self.held.get(key, {}).values()))
        waiting = self._waiting(key)
        return SemaphoreState(True, thing.size, thing.bounded, thing.free, held, waiting)


def _permits(value: int, bounded: bool) -> str:
    return f"{'bounded, ' if bounded else ''}value {value}"
