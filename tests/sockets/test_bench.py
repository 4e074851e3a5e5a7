"""`coterie bench lock` against a cluster of its own: what it prints, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coterie.bench.commands import split
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


def test_it_tells_what_a_handover_costs_and_measures_transactions() -> None:
    run = bench("--clients", "4", "--names", "1", "--seconds", "0.3", "--no-bare", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["alone"]["tasks"] == 1 and found["cluster"]["tasks"] == 4
    assert found["handover_ratio"] > 0 and found["commits_per_handover"] > 0.5
    command = [*BENCH[:-1], "transactions", "--clients", "2", "--seconds", "0.3", "--no-bare"]
    run = subprocess.run([*command, "--json"], cwd="/", capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and json.loads(run.stdout)["cluster"]["operations"] > 0, run.stderr
