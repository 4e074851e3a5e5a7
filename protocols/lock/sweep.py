"""The leader's audit of the wait-for graph: a walk over the whole of it, in slices.

The law: it changes nothing; it names what it found, and the table looks again. A turn takes one
slice, however large the graph. A deadlock stays until it is broken, so what is there when a sweep
begins is found by its end, whatever else comes and goes meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plugin import SessionId
from .claims import ClaimIndex
from .deadlock import Search, victim_of
from .messages import BreakDeadlock

PERIOD_S = 5.0
"""From the beginning of one sweep to the beginning of the next."""

SLICE = 2_000
"""Steps of the walk in one turn: some milliseconds."""

EDGES_MAX = 1_000
"""A longer cycle is left alone: one command would look at too much. Those that begin to wait look
farther than that."""


class Sweep:
    """When to look, how far the walk has come, and what was found."""

    def __init__(self) -> None:
        self.count = 0
        self._next_s = 0.0
        self._search: Search | None = None
        self._found: list[BreakDeadlock] = []

    def deadline(self, index: ClaimIndex, now: float) -> float | None:
        """When it wants `go_on`: at once within a sweep; None while nobody waits."""
        if self._search is not None:
            return now
        return self._next_s if index.waits or index.upgrading else None

    def go_on(
        self, index: ClaimIndex, alive: Mapping[SessionId, object], now: float
    ) -> list[BreakDeadlock]:
        """One slice; at the end of a sweep the cycles it found."""
        deadline = self.deadline(index, now)
        if deadline is None or deadline > now:
            return []
        if self._search is None:
            self._next_s = now + PERIOD_S
            self._search, self._found = Search(index, alive, index.owners), []
        search, steps = self._search, SLICE
        while steps > 0 and not search.finished:
            before = search.looked
            cycle = search.go_on(steps)
            steps -= search.looked - before
            if cycle is not None:
                search.pass_over(victim_of(cycle))
                if len(cycle) <= EDGES_MAX:
                    edges = tuple((w.name, w.number, c.number) for w, c in cycle)
                    self._found.append(BreakDeadlock(edges))
        if not search.finished:
            return []
        self.count += 1
        self.forget()
        return self._found

    def repeat(self, at: float) -> None:
        """What was found could not be proposed: look again, then."""
        self._next_s = min(self._next_s, at)

    def forget(self) -> None:
        """Give up a sweep under way: this node leads no more."""
        self._search = None
