"""Figures must not flatter: percentiles, medians, and latencies at a fixed rate."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from coterie.bench.figures import (
    CpuMeter,
    Figures,
    Recorder,
    cpu_seconds,
    loop_closed,
    loop_paced,
    middle,
    milliseconds,
    table,
)


def figures(rate: float) -> Figures:
    return Figures("run", 1, 1.0, "fsync", int(rate), rate, 1.0, 2.0, 3.0, 4.0, {"node1": 0.5})


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)]
)
def test_percentiles_are_the_nearest_rank(share: float, expected: float) -> None:
    assert milliseconds([n / 1000 for n in range(1, 101)], share) == expected


def test_percentiles_of_few() -> None:
    assert milliseconds([], 0.5) == 0.0
    assert milliseconds([0.004], 0.5) == milliseconds([0.004], 0.99) == 4.0


def test_the_middle_run_is_one_that_happened() -> None:
    runs = [figures(rate) for rate in (10.0, 500.0, 90.0)]
    assert middle(runs) is runs[2]
    assert middle(runs[:1]) is runs[0]


def test_latencies_of_several_processes_are_merged() -> None:
    here, there = Recorder(), Recorder()
    here.record(0.001)
    there.record(0.003)
    here.merge(bytes(there.latencies_s))
    found = here.figures("run", 2, 1.0, "fsync", {})
    assert (found.operations, found.p50_ms, found.max_ms) == (2, 1.0, 3.0)


def test_a_closed_loop_counts_what_ended_in_time() -> None:
    recorder = Recorder()
    calls = 0

    async def operation() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)

    asyncio.run(loop_closed(operation, recorder, time.perf_counter() + 0.01))
    assert calls - 1 <= len(recorder) <= calls


def test_at_a_fixed_rate_a_stall_counts_for_all_that_had_to_wait() -> None:
    """The error this avoids: one slow operation, recorded once, hides all those it delayed."""
    recorder = Recorder()
    stall_s = 0.05
    calls = 0

    async def operation() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            until = time.perf_counter() + stall_s
            while time.perf_counter() < until:
                await asyncio.sleep(0)

    start = time.perf_counter()
    asyncio.run(loop_paced(operation, recorder, start + 10 * stall_s, start, stall_s / 10))
    latencies = list(recorder.latencies_s)
    assert latencies[0] >= stall_s
    # Those due during the stall waited for its end.
    assert latencies[1] >= stall_s * 0.9
    assert latencies[5] >= stall_s * 0.5


def test_cpu_seconds_rise_with_work() -> None:
    meter = CpuMeter({"me": os.getpid()})
    meter.start()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    if os.path.exists("/proc/self/stat"):
        assert meter.used()["me"] >= 0.02
    assert cpu_seconds(2**22 + 1) == 0.0


def test_the_table_names_durability_and_cpu() -> None:
    text = table([figures(12_345.0)])
    assert "12,345" in text
    assert "fsync" in text
    assert "node1 0.5" in text
