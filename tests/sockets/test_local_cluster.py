"""LocalCluster: real nodes that come, go and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import processes_of, script, until

import coterie
from coterie.nodes import local, ports, watcher
from coterie.nodes.ask import NodeAsker, located
from coterie.nodes.local import ClusterClosed, NodeNotRunning
from coterie.protocols.session.messages import Locate, Located


def locate(cluster: coterie.LocalCluster) -> list[Located]:
    with NodeAsker() as asker:
        return list(located(asker.ask(cluster.endpoints, Locate())).values())


def agree(cluster: coterie.LocalCluster) -> bool:
    answers = locate(cluster)
    return len(answers) == len(cluster.endpoints) and len({a.leader for a in answers}) == 1


@pytest.fixture
def whole(cluster: coterie.LocalCluster) -> Iterator[coterie.LocalCluster]:
    """The cluster of the session; made whole again afterwards."""
    yield cluster
    for index in range(len(cluster.endpoints)):
        try:
            cluster.resume(index)
        except NodeNotRunning:
            cluster.restart(index)
    until(lambda: agree(cluster), "all nodes agree on a leader again")


def test_what_it_tells(cluster: coterie.LocalCluster) -> None:
    assert len(set(cluster.endpoints)) == 3
    assert len(set(cluster.http)) == 3
    assert all(re.fullmatch(r"http://127\.0\.0\.1:\d+", url) for url in cluster.http)
    assert 0 <= cluster.leader() < 3
    assert {path.name for path in cluster.data_dir.iterdir() if path.is_dir()} == {
        "node1", "node2", "node3",
    }  # fmt: skip
    for index in range(3):
        os.kill(cluster.pid(index), 0)
    assert str(cluster.data_dir) in repr(cluster)
    assert {answer.cluster for answer in locate(cluster)} == {locate(cluster)[0].cluster}


def test_another_leads_when_the_leader_is_killed(whole: coterie.LocalCluster) -> None:
    first = whole.leader()
    pid = whole.pid(first)
    whole.kill(first)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(NodeNotRunning, match=rf"node{first + 1} .*SIGKILL.*restart"):
        whole.pid(first)
    second = whole.leader()
    assert second != first
    assert f"node{second + 1}" in {answer.leader for answer in locate(whole)}
    whole.restart(first)
    assert whole.pid(first) != pid
    until(lambda: agree(whole), "the node is back")


def test_another_leads_when_the_leader_is_paused(whole: coterie.LocalCluster) -> None:
    first = whole.leader()
    whole.pause(first)
    assert whole.leader() != first
    whole.resume(first)
    until(lambda: agree(whole), "the node steps down")
    assert whole.leader() != first


def test_stop_ends_a_node_cleanly_even_a_paused_one(whole: coterie.LocalCluster) -> None:
    first = whole.leader()
    whole.stop(first)
    with pytest.raises(NodeNotRunning, match="exit code 0"):
        whole.stop(first)
    second = whole.leader()
    assert second != first
    whole.restart(first)
    whole.pause(first)
    whole.stop(first)
    with pytest.raises(NodeNotRunning):
        whole.kill(first)


def test_restart_of_a_running_node_replaces_it(whole: coterie.LocalCluster) -> None:
    pid = whole.pid(0)
    whole.restart(0)
    assert whole.pid(0) != pid


def test_what_has_no_meaning_is_refused(cluster: coterie.LocalCluster) -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match="nodes 0 to 2"):
            cluster.kill(index)
    with pytest.raises(ValueError, match="groups 0 to 12"):
        cluster.leader(13)
    with pytest.raises(ValueError, match="nodes=0"):
        coterie.LocalCluster(0)
    with pytest.raises(ValueError, match="redis"):
        coterie.LocalCluster(store="redis://localhost")
    with pytest.raises(ClusterClosed, match="with LocalCluster"):
        _ = coterie.LocalCluster().endpoints


def test_nothing_is_left_after_close() -> None:
    with coterie.LocalCluster(1) as cluster:
        directory = cluster.data_dir
        assert processes_of(directory)
        assert cluster.leader() == 0
    assert not directory.exists()
    assert processes_of(directory) == []
    cluster.close()
    with pytest.raises(ClusterClosed):
        cluster.leader()


def test_nothing_is_left_after_close_even_if_the_watcher_was_killed() -> None:
    with coterie.LocalCluster(1) as cluster:
        directory = cluster.data_dir
        (watching,) = (line for line in processes_of(directory) if "watcher.py" in line)
        os.kill(int(watching.split()[0]), signal.SIGKILL)
        cluster.kill(0)
        cluster.restart(0)
        assert cluster.leader() == 0
    assert not directory.exists()
    assert processes_of(directory) == []


OWNER = """
import coterie, os, sys
cluster = coterie.LocalCluster(3)
cluster.start()
cluster.pause(0)
os.fork()  # a child that lives on must not keep the nodes
print(cluster.data_dir, flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_when_the_owner_is_killed(tmp_path: Path) -> None:
    with script(OWNER, tmp_path) as owner:
        assert owner.stdout is not None
        directory = Path(owner.stdout.readline().strip())
        assert len(processes_of(directory)) == 4  # three nodes, one of them paused; the watcher
        assert owner.stdout.readline().strip() == str(directory)  # both print it
        owner.send_signal(signal.SIGKILL)
        until(lambda: not processes_of(directory), "all processes have ended")
        until(lambda: not directory.exists(), "the directory is removed")


STUCK = """
import signal
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
    signal.signal(number, signal.SIG_IGN)
print("stuck", flush=True)
signal.pause()
"""


def test_a_node_that_hangs_is_killed(tmp_path: Path) -> None:
    (owner, owner_held), (alive, alive_held) = os.pipe(), os.pipe()
    directory = tmp_path / "data"
    directory.mkdir()
    arguments = [sys.executable, "-I", "-S", watcher.__file__]
    keeper = subprocess.Popen(
        [*arguments, str(owner), str(alive), "0.1", str(directory)],
        pass_fds=(owner, alive),
        process_group=0,
    )
    stuck = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        stdout=subprocess.PIPE,
        pass_fds=(alive_held,),
        process_group=keeper.pid,
    )
    try:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == b"stuck\n"
        for descriptor in (owner, owner_held, alive, alive_held):
            os.close(descriptor)
        assert stuck.wait(30) == -signal.SIGKILL
        until(lambda: not directory.exists(), "the directory is removed")
    finally:
        for process in (stuck, keeper):
            process.kill()
            process.communicate()


FORKING = """
import coterie, os
with coterie.LocalCluster(1) as cluster:
    child = os.fork()
    if not child:
        cluster.close()
        raise SystemExit
    os.waitpid(child, 0)
    print(cluster.leader(), flush=True)
"""


def test_a_forked_child_ends_nothing(tmp_path: Path) -> None:
    with script(FORKING, tmp_path) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "0\n"
        assert owner.wait(30) == 0


def test_data_are_found_again(tmp_path: Path) -> None:
    with coterie.LocalCluster(3, data_dir=tmp_path / "data") as cluster:
        first, endpoints = locate(cluster)[0], cluster.endpoints
        other = coterie.LocalCluster(3, data_dir=tmp_path / "data")
        with pytest.raises(coterie.Unavailable, match=f"process {os.getpid()}"):
            other.start()
    with pytest.raises(ValueError, match="a cluster of 3"):
        coterie.LocalCluster(1, data_dir=tmp_path / "data").start()
    with coterie.LocalCluster(3, data_dir=tmp_path / "data") as cluster:
        again = locate(cluster)[0]
        assert cluster.endpoints == endpoints
        assert again.cluster == first.cluster
        assert again.members == first.members
        assert again.term > first.term
    assert (tmp_path / "data" / "node1" / "node.json").exists()
    assert processes_of(tmp_path) == []


def test_a_node_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    cluster = coterie.LocalCluster(
        1, data_dir=tmp_path / "data", env={"COTERIE_HEARTBEAT": "often"}
    )
    with pytest.raises(coterie.Unavailable, match=r"(?s)exit code 64.*COTERIE_HEARTBEAT: 'often'"):
        cluster.start()
    assert processes_of(tmp_path) == []


def test_other_ports_are_taken_when_one_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ports.find_free
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        attempts: list[list[int]] = []

        def lose_the_first(count: int) -> list[int]:
            found = real(count)
            if not attempts:
                found[-1] = taken.getsockname()[1]
            attempts.append(found)
            return found

        monkeypatch.setattr(local, "find_free", lose_the_first)
        with coterie.LocalCluster(1) as cluster:
            assert cluster.leader() == 0
    assert len(attempts) == 2
