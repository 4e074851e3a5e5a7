"""What a running node counts of itself, for `status` and the metrics.

The law: nothing decides by these numbers, and counting costs little: some additions per turn and
per frame, one dictionary step per operation. They begin at zero with the process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..protocols.errors import Code
from ..protocols.plugin import Failure, Hint, Request, Result

BOUNDS_S = (
    0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075,
    0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
"""Upper bounds of a histogram's buckets, in seconds; a last bucket holds what took longer."""


class Histogram:
    """Durations, counted by bucket."""

    __slots__ = ("buckets", "max_s", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        self.max_s = 0.0

    def observe(self, seconds: float) -> None:
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds
        if seconds > self.max_s:
            self.max_s = seconds

    def status(self) -> dict[str, Any]:
        """Milliseconds, and the bucket counts in order of `BOUNDS_S`."""
        return {
            "count": sum(self.buckets),
            "ms_sum": round(self.sum_s * 1000, 3),
            "ms_max": round(self.max_s * 1000, 3),
            "ms_p50": round(min(quantile_s(self.buckets, 0.50), self.max_s) * 1000, 3),
            "ms_p99": round(min(quantile_s(self.buckets, 0.99), self.max_s) * 1000, 3),
            "buckets": list(self.buckets),
        }


def quantile_s(buckets: Sequence[int], q: float) -> float:
    """The q-quantile in seconds, taken as evenly spread within its bucket; 0 of nothing. What
    took longer than the last bound counts as that bound."""
    rank = q * sum(buckets)
    if not rank:
        return 0.0
    below = 0.0
    for count, lower, upper in zip(buckets, (0.0, *BOUNDS_S), BOUNDS_S, strict=False):
        if count and below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below += count
    return BOUNDS_S[-1]


class Answers:
    """What one plugin answered: `seconds` from a request's frame to its answer, `kinds` of
    results, and the codes of those that are failures."""

    __slots__ = ("failures", "kinds", "seconds")

    def __init__(self) -> None:
        self.seconds = Histogram()
        self.kinds: Counter[type[Any]] = Counter()
        self.failures: Counter[Code] = Counter()

    def status(self) -> dict[str, Any]:
        return {
            "operations": sum(self.kinds.values()),
            "results": {kind.__name__: count for kind, count in sorted_by_name(self.kinds)},
            "failures": {str(code.name).lower(): n for code, n in sorted(self.failures.items())},
            "answer": self.seconds.status(),
        }


class Counters:
    """The counts of one node's process. `dropped` is by cause."""

    def __init__(self) -> None:
        self.turns = Histogram()
        self.operations = 0
        self.operations_max = 0
        self.dropped: Counter[str] = Counter()
        self._answers: dict[str, Answers] = {}
        self._hints: dict[str, int] = {}

    def turn(self, seconds: float, operations: int) -> None:
        """A turn took so long and received so many operations."""
        self.turns.observe(seconds)
        self.operations += operations
        if operations > self.operations_max:
            self.operations_max = operations

    def answered(self, answers: Iterable[tuple[Request, Sequence[Result]]], now: float) -> None:
        """These requests are answered now."""
        for request, results in answers:
            counted = self._answers.get(request.plugin)
            if counted is None:
                counted = self._answers[request.plugin] = Answers()
            counted.seconds.observe(now - request.received_s)
            kinds = counted.kinds
            if len(results) == 1:
                kind = type(results[0])
                kinds[kind] = kinds.get(kind, 0) + 1
                failed = kind is Failure
            else:  # in C: a third of the time of a loop here
                failures = kinds.get(Failure)
                kinds.update(map(type, results))
                failed = kinds.get(Failure) != failures
            if failed:
                counted.failures.update(r.code for r in results if type(r) is Failure)

    def hinted(self, plugin: str, hints: Sequence[Hint]) -> None:
        self._hints[plugin] = self._hints.get(plugin, 0) + len(hints)

    def status(self) -> dict[str, Any]:
        """Of JSON types."""
        turns = sum(self.turns.buckets)
        return {
            "turns": turns,
            "operations": self.operations,
            "operations_a_turn_mean": round(self.operations / turns, 3) if turns else 0.0,
            "operations_a_turn_max": self.operations_max,
            "turn": self.turns.status(),
            "answers": {plugin: one.status() for plugin, one in sorted(self._answers.items())},
            "hints": dict(sorted(self._hints.items())),
        }


def sorted_by_name(kinds: Counter[type[Any]]) -> list[tuple[type[Any], int]]:
    """Those that were seen, in order of their names."""
    return sorted(((k, n) for k, n in kinds.items() if n), key=lambda item: item[0].__name__)
