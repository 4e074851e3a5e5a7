"""Some worlds of every kind; `coterie simulate --seeds 1..2000` runs the many."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

import pytest

from coterie.nodes.simulation.faults import KINDS
from coterie.nodes.simulator import Options, Summary, simulate


@pytest.mark.parametrize("seed", range(1, 31))
def test_a_world_keeps_every_promise(seed: int) -> None:
    simulate(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_alone_and_often(kind: str) -> None:
    summary = simulate(7, Options(faults=kind))
    assert summary.faults.get(kind, 0) > 0 or kind == "replace_disk"


@pytest.mark.parametrize("options", [Options(nodes=1), Options(nodes=5), Options(groups=3)])
def test_other_clusters(options: Options) -> None:
    for seed in (1, 2, 3):
        simulate(seed, options)


def test_worlds_are_worth_the_name() -> None:
    """Leaders change, operations are answered and disks are torn, else nothing is tested."""
    summaries = [simulate(seed) for seed in range(100, 120)]

    def mean(of: str) -> float:
        values: list[int] = [getattr(summary, of) for summary in summaries]
        return sum(values) / len(values)

    assert mean("elections") > 2
    assert mean("operations") > 50
    assert mean("entries") > 100
    assert sum(summary.torn for summary in summaries) > 20


TRACE = """
import zlib
from coterie.nodes.simulator import simulate
lines = []
summary = simulate(SEED, tell=lines.append)
print(len(lines), zlib.crc32("\\n".join(lines).encode()), summary)
"""


@pytest.mark.parametrize("seed", [5, 12])
def test_one_seed_gives_one_trace_under_any_hash_seed(seed: int) -> None:
    traces = []
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", TRACE.replace("SEED", str(seed))],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        traces.append(run.stdout)
    assert traces[0] == traces[1]


def test_two_seeds_give_two_traces() -> None:
    def trace(seed: int) -> int:
        lines: list[str] = []
        simulate(seed, Options(seconds=2.0), lines.append)
        return zlib.crc32("\n".join(lines).encode())

    assert trace(1) != trace(2)


def test_telling_changes_nothing() -> None:
    def run(told: bool) -> Summary:
        return simulate(3, Options(seconds=3.0), (lambda line: None) if told else None)

    assert run(True).events == run(False).events
