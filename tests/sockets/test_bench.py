"""`coterie bench` against clusters of its own: what it prints, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coterie.bench.commands import split
from coterie.bench.failover import Gaps
from coterie.bench.load import Load

DEADLINE_S = 30.0
BENCH = [sys.executable, "-m", "coterie", "bench", "lock"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "COTERIE_ENDPOINTS"}
    return subprocess.run(
        [*BENCH, *arguments],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_measures_a_cluster_beside_the_bare_path() -> None:
    run = bench("--clients", "5", "--processes", "2", "--seconds", "0.3", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    cluster, bare = found["cluster"], found["bare"]
    assert cluster["durability"] == bare["durability"] == "fsync"
    assert cluster["tasks"] == bare["tasks"] == 5
    assert cluster["operations"] > 0 and bare["operations"] > 0
    assert set(cluster["cpu_s"]) == {"node1", "node2", "node3", "clients"}
    assert found["ratio"] == pytest.approx(cluster["ops_per_s"] / bare["ops_per_s"], abs=0.001)


def test_it_says_when_nobody_leads() -> None:
    run = bench("--endpoints", "tcp://127.0.0.1:1", "--no-bare")
    assert run.returncode == 69
    assert "coterie status" in run.stderr and "Traceback" not in run.stderr


def test_what_is_no_endpoint_is_wrong_usage() -> None:
    run = bench("--endpoints", "nonsense")
    assert run.returncode == 64
    assert "--endpoints" in run.stderr and "Traceback" not in run.stderr


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_it(how: signal.Signals) -> None:
    starter = subprocess.Popen(
        [*BENCH, "--seconds", "600", "--no-bare"],
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        started: set[int] = set()
        while not any(is_load(pid) for pid in started):
            assert time.monotonic() < deadline, "no load process was started"
            started |= set(children(starter.pid))
            time.sleep(0.01)
        os.kill(starter.pid, how)
        starter.wait(DEADLINE_S)
        while any(alive(pid) for pid in started):
            assert time.monotonic() < deadline, "a process outlived the bench"
            time.sleep(0.01)
    finally:
        starter.kill()
        starter.wait()


def is_load(pid: int) -> bool:
    try:
        return b"coterie.bench.load" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_load_is_split_without_loss() -> None:
    loads = split(Load(["tcp://127.0.0.1:1"], tasks=10, seconds=1.0, rate=100.0), 3)
    assert [(load.first, load.tasks) for load in loads] == [(0, 4), (4, 3), (7, 3)]
    assert sum(load.rate for load in loads) == pytest.approx(100.0)


def measured(*arguments: str, **environ: str) -> dict[str, Any]:
    """A bench with a cluster of its own, as its one JSON object."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COTERIE_")}
    run = subprocess.run(
        [*BENCH[:-1], *arguments, "--json"],
        cwd="/",
        env={**environment, **environ},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert found["durability"] == "fsync"
    return found


@pytest.mark.parametrize("how", ["KILL", "TERM"])
def test_the_gaps_of_a_failover_are_measured(how: str) -> None:
    found = measured("failover", "--kills", "2", "--signal", how, "--tasks", "4")
    assert (found["signal"], found["tasks"], len(found["kills"])) == (how, 4, 2)
    for kill in found["kills"]:
        # Nobody completes anything while there is no leader, unless it handed over before it ended.
        assert how == "TERM" or kill["gap_ms"] >= kill["leader_ms"] / 2
        assert 0 < kill["gap_ms"] <= kill["task_gap_ms"]
        assert kill["caught_up_s"] > 0
    assert found["gap_ms"]["max"] == max(kill["gap_ms"] for kill in found["kills"])


def test_gaps_are_those_between_completed_operations() -> None:
    gaps = Gaps(2, 10.0)
    gaps.completed(0, 11.0)
    gaps.completed(1, 11.5)
    gaps.completed(0, 13.0)
    assert gaps.take(13.0) == (1.5, 2.0)
    gaps.completed(1, 13.25)
    assert gaps.take(14.0) == (0.75, 1.75)  # the first gap of task 1 began before, and counts
    assert gaps.take(20.0) == (6.75, 7.0)  # what has not ended yet counts too


def test_a_recovery_is_measured() -> None:
    found = measured("recovery", "--operations", "3000")
    assert found["operations"] == 3000
    assert len(found["disks"]) == len(found["memory_bytes"]) == 3
    assert all(disk["segments"] >= 1 for disk in found["disks"])
    assert found["one_s"] > 0 and found["all_s"] > 0


def test_the_cost_of_a_snapshot_is_measured() -> None:
    """With small segments a small state is snapshotted often."""
    found = measured(
        "snapshot", "--state-mib", "1", "--tasks", "4", "--rate", "100",
        COTERIE_SEGMENT_BYTES=str(1024 * 1024),
    )  # fmt: skip
    assert found["snapshot_bytes"] >= 1024 * 1024
    assert found["locks"] >= 4000
    for phase in ("before", "snapshot", "filling"):
        assert found[phase]["p99_ms"] <= found[phase]["max_ms"]
    assert found["before"]["operations"] and found["filling"]["operations"]
    assert found["filled_s"] > 0


def test_it_measures_http_and_what_that_does_to_others() -> None:
    command = [sys.executable, "-m", "coterie", "bench", "http"]
    run = subprocess.run(
        [*command, "--connections", "4", "--seconds", "0.3", "--json"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["http"]["operations"] > 0 and found["http"]["tasks"] == 4
    assert len(found["pairs"]) == 1 and found["p99_ratio"] > 0


def test_it_tells_what_a_handover_costs_and_measures_transactions() -> None:
    run = bench("--clients", "4", "--names", "1", "--seconds", "0.3", "--no-bare", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["alone"]["tasks"] == 1 and found["cluster"]["tasks"] == 4
    assert found["handover_ratio"] > 0 and found["commits_per_handover"] > 0.5
    command = [*BENCH[:-1], "transactions", "--clients", "2", "--seconds", "0.3", "--no-bare"]
    run = subprocess.run([*command, "--json"], cwd="/", capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and json.loads(run.stdout)["cluster"]["operations"] > 0, run.stderr
