"""The bare path runs, and its nodes end with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from coterie.bench.bare import bare_nodes, run_bare

DEADLINE_S = 20.0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("durability", ["fsync", "relaxed"])
def test_it_runs(durability: str) -> None:
    figures = run_bare(4, 0.2, durability)
    assert figures.operations > 0
    assert figures.durability == durability
    assert set(figures.cpu_s) == {"node1", "node2", "node3", "client"}


def test_its_nodes_end_with_the_block() -> None:
    with bare_nodes("relaxed") as (_, pids):
        assert all(alive(pid) for pid in pids.values())
    assert not any(alive(pid) for pid in pids.values())


def test_its_nodes_end_when_their_starter_is_killed() -> None:
    script = (
        "import json, sys\n"
        "from coterie.bench.bare import bare_nodes\n"
        "with bare_nodes('relaxed') as (_, pids):\n"
        "    print(json.dumps(list(pids.values())), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pids = [int(pid) for pid in starter.stdout.readline().strip("[]\n").split(",")]
    assert len(pids) == 3
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    deadline = time.monotonic() + DEADLINE_S
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a node of the bare path outlived its starter"
        time.sleep(0.01)
