"""Latencies, CPU seconds and the tables made of them.

The law: a figure never flatters. Where a rate is fixed, an operation's latency counts from the
moment it should have started, not from when the busy program got round to it (no coordinated
omission); an operation that did not end within the run is not counted as done; and the durability
stands beside every figure.
"""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figures:
    """What one run measured. Latencies in milliseconds, CPU in seconds per process or role."""

    name: str
    tasks: int
    seconds: float
    durability: str
    operations: int
    ops_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Recorder:
    """Latencies of one run: 8 bytes per operation, sorted only at the end."""

    def __init__(self) -> None:
        self.latencies_s = array("d")

    def __len__(self) -> int:
        return len(self.latencies_s)

    def record(self, latency_s: float) -> None:
        self.latencies_s.append(latency_s)

    def clear(self) -> None:
        """Forget what was recorded while the run warmed up."""
        del self.latencies_s[:]

    def merge(self, latencies_s: bytes) -> None:
        """Add what another process recorded, as `bytes(recorder.latencies_s)` gives it."""
        self.latencies_s.frombytes(latencies_s)

    def figures(
        self, name: str, tasks: int, seconds: float, durability: str, cpu_s: Mapping[str, float]
    ) -> Figures:
        ordered = sorted(self.latencies_s)
        return Figures(
            name=name,
            tasks=tasks,
            seconds=round(seconds, 3),
            durability=durability,
            operations=len(ordered),
            ops_per_s=round(len(ordered) / seconds, 1),
            p50_ms=milliseconds(ordered, 0.50),
            p95_ms=milliseconds(ordered, 0.95),
            p99_ms=milliseconds(ordered, 0.99),
            max_ms=milliseconds(ordered, 1.0),
            cpu_s={role: round(seconds_used, 2) for role, seconds_used in cpu_s.items()},
        )


def milliseconds(ordered_s: Sequence[float], share: float) -> float:
    """The latency that `share` of the operations did not exceed (nearest rank); 0.0 of none."""
    if not ordered_s:
        return 0.0
    rank = max(0, -int(-share * len(ordered_s) // 1) - 1)
    return round(ordered_s[rank] * 1000, 3)


async def loop_closed(
    operation: Callable[[], Awaitable[object]], recorder: Recorder, until: float
) -> None:
    """Call `operation` again and again until `until` (of `time.perf_counter`)."""
    clock = time.perf_counter
    started = clock()
    while started < until:
        await operation()
        ended = clock()
        if ended <= until:
            recorder.record(ended - started)
        started = ended


async def loop_paced(
    operation: Callable[[], Awaitable[object]],
    recorder: Recorder,
    until: float,
    first: float,
    period_s: float,
) -> None:
    """Call `operation` at `first`, `first + period_s`, … and measure from those moments.

    One that is late because its predecessor was slow starts at once, its waiting counted.
    """
    clock = time.perf_counter
    due = first
    while due < until:
        early = due - clock()
        if early > 0:
            await asyncio.sleep(early)
        await operation()
        ended = clock()
        if ended <= until:
            recorder.record(ended - due)
        due += period_s


def cpu_seconds(pid: int) -> float:
    """CPU seconds a process has used, all threads (proc(5), fields 14 and 15); 0.0 where there is
    no /proc, or no such process any more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """CPU seconds of named processes between two moments."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.pids = dict(pids)
        self.before: dict[str, float] = {}

    def start(self) -> None:
        self.before = {role: cpu_seconds(pid) for role, pid in self.pids.items()}

    def used(self) -> dict[str, float]:
        """Since `start`; a process that ended in between counts as 0."""
        now = {role: cpu_seconds(pid) for role, pid in self.pids.items()}
        return {role: max(0.0, now[role] - self.before.get(role, 0.0)) for role in now}


def middle(runs: Sequence[Figures]) -> Figures:
    """The run with the median throughput: one that happened, not a mixture of several."""
    wanted = median(sorted(run.ops_per_s for run in runs))
    return min(runs, key=lambda run: abs(run.ops_per_s - wanted))


def table(runs: Iterable[Figures]) -> str:
    """The figures of several runs as aligned text."""
    head = ("run", "durability", "tasks", "ops/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "CPU s")
    rows: list[tuple[str, ...]] = [head]
    for run in runs:
        cpu = " ".join(f"{role} {used:.1f}" for role, used in run.cpu_s.items())
        times = (f"{t:,.2f}" for t in (run.p50_ms, run.p95_ms, run.p99_ms, run.max_ms))
        rows.append(
            (run.name, run.durability, str(run.tasks), f"{run.ops_per_s:,.0f}", *times, cpu)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    numbers = range(2, len(head) - 1)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
