"""Python's collector of cycles, kept from looking at the whole state again and again.

The law: a pass of the collector is as long as what it looks at. So what lives now is set aside for
good (`gc.freeze`), and so is what the state has grown by, as soon as it has been looked at once.
Set aside is not kept: what nothing refers to any more is freed as ever. Only a cycle that was alive
when it was set aside is never found; the state makes none, and without growth nothing is set aside.

With 400,000 locks one full pass took 50 ms, and they came with every quarter of growth.
"""

from __future__ import annotations

import asyncio
import gc

YOUNG = 50_000
"""New objects that call for a look at the young ones: a millisecond or two."""

LOOK_S = 1.0

NEVER = 1_000_000_000


class Collector:
    """Looks after the collector of this process while its loop runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Set aside what lives now."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, 20, NEVER)
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if gc.get_count()[1]:  # the young were looked at since, so there was growth
            gc.collect(1)
            gc.freeze()
        self._timer = self._loop.call_later(LOOK_S, self._look)
