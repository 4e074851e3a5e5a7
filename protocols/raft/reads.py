"""Linearizable reads without an entry: ReadIndex (thesis §6.4).

The law: a read is answered only after a majority echoed a round that was started after the read
arrived, in this leader's term, and after everything committed when it arrived is applied. Rounds
are numbers that rise for ever; a round number is carried by heartbeats and appends and echoed by
their answers, so an old answer confirms only old rounds. The clock is never asked.
"""

from __future__ import annotations

from collections import deque
from typing import Any

Read = tuple[str, Any]
"""(plugin, token) of who reads."""


class Reads:
    """The reads of one group that wait for a round. `round` is the last round started."""

    def __init__(self) -> None:
        self.round = 0
        self.arrived: list[Read] = []
        self.waiting: deque[tuple[int, int, list[Read]]] = deque()
        self.count = 0

    def add(self, read: Read) -> None:
        self.arrived.append(read)
        self.count += 1

    def start_round(self, index: int) -> int:
        """Begin a round for all reads that arrived; they need `index` to be applied."""
        self.round += 1
        if self.arrived:
            self.waiting.append((self.round, index, self.arrived))
            self.arrived = []
        return self.round

    def release(self, confirmed_round: int, applied: int) -> list[Read]:
        """The reads that may be answered now."""
        released: list[Read] = []
        waiting = self.waiting
        while waiting and waiting[0][0] <= confirmed_round and waiting[0][1] <= applied:
            released += waiting.popleft()[2]
        self.count -= len(released)
        return released

    def abandon(self) -> list[Read]:
        """Leadership is lost: all reads, to be refused."""
        abandoned = [read for _, _, reads in self.waiting for read in reads] + self.arrived
        self.waiting.clear()
        self.arrived = []
        self.count = 0
        return abandoned
