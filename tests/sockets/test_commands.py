"""The commands around nodes, typed as a user would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import coterie, free_base, processes_of, running, until

from coterie.nodes.ask import NodeAsker, located
from coterie.protocols.session.messages import Locate, Located


def endpoints(port: int) -> str:
    return ",".join(f"tcp://127.0.0.1:{port + n}" for n in range(3))


def locate(port: int) -> list[Located]:
    with NodeAsker() as asker:
        return list(located(asker.ask(endpoints(port).split(","), Locate())).values())


def output(directory: Path) -> str:
    return (directory / "output").read_text(encoding="utf-8")


def serves(directory: Path, process: subprocess.Popen[str]) -> None:
    def said_so() -> bool:
        assert process.poll() is None, output(directory)
        return "ends the nodes; the data stay" in output(directory)

    until(said_so, "up serves")


class Ups:
    """One cluster for all tests that only command it; each leaves it whole."""

    def __init__(self, directory: Path, port: int, http: int) -> None:
        self.directory = directory
        self.port = port
        self.http = http

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return coterie(*arguments, cwd=self.directory, COTERIE_ENDPOINTS=endpoints(self.port))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return found

    def answering(self) -> int:
        return len(locate(self.port))


@pytest.fixture(scope="module")
def ups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ups]:
    directory, port = tmp_path_factory.mktemp("up"), free_base()
    http = port + 10
    with running("up", "--port", port, "--http-port", http, cwd=directory) as process:
        serves(directory, process)
        yield Ups(directory, port, http)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    until(lambda: not processes_of(directory), "all nodes have ended")


def test_up_says_what_it_serves_and_what_to_type(ups: Ups) -> None:
    said = output(ups.directory)
    assert "3 nodes serve from coterie-data; node" in said
    for node in range(3):
        tcp, http = f"tcp://127.0.0.1:{ups.port + node}", f"http://127.0.0.1:{ups.http + node}"
        assert f"node{node + 1}  {tcp}  {http}  " in said
    assert f"export COTERIE_ENDPOINTS={endpoints(ups.port)}" in said
    assert f'with coterie.Client("{endpoints(ups.port)}") as c:' in said
    assert "coterie lock demo -- " in said
    assert f"curl http://127.0.0.1:{ups.http}/health" in said


def test_status_is_a_table_or_json(ups: Ups) -> None:
    done = ups.run("status")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["NODE", "ENDPOINT", "ROLE"]
    assert [row.split()[0] for row in rows[:3]] == ["node1", "node2", "node3"]
    assert sorted(row.split()[2] for row in rows[:3]) == ["follower", "follower", "leader"]
    assert rows[4].endswith("leads; 3 of 3 nodes answer")
    assert "partitions" in rows[-1]
    assert all("fsync" in row and "MiB" in row for row in rows[:3])
    found = ups.status()
    assert found["quorum"] is True
    assert {node["status"]["process"]["durability"] for node in found["nodes"]} == {"fsync"}
    pids = {node["status"]["process"]["pid"] for node in found["nodes"]}
    assert pids == {int(line.split()[0]) for line in processes_of(ups.directory / "coterie-data/n")}


def test_one_reachable_node_is_enough_for_status(ups: Ups) -> None:
    done = ups.run("status", "--endpoints", f"tcp://127.0.0.1:{ups.port + 1}")
    assert done.returncode == 0
    assert "3 of 3 nodes answer" in done.stdout


def test_kill_is_reported_and_restart_heals(ups: Ups) -> None:
    leader = ups.status()["leader"]
    assert ups.run("kill", leader).stdout == f"{leader} killed\n"
    line = f"{leader} ended with signal SIGKILL; start it again: coterie restart {leader} --data"
    until(lambda: line in output(ups.directory), "the death is reported")
    again = ups.run("kill", leader)
    assert again.returncode == 1
    assert f"restart {leader}" in again.stderr

    until(lambda: ups.status()["quorum"], "another leads")
    assert ups.status()["leader"] != leader
    table = ups.run("status")
    assert table.returncode == 0
    assert "silent" in table.stdout
    assert "2 of 3 nodes answer" in table.stdout
    assert ups.run("restart", leader).stdout == f"{leader} started\n"
    until(lambda: ups.answering() == 3, "the node is back")


def test_pause_and_resume_and_no_quorum(ups: Ups) -> None:
    for node in ("node1", "node2"):
        assert ups.run("pause", node).returncode == 0
    done = ups.run("status")
    assert done.returncode == 1
    assert "no quorum: 1 of 3 nodes answer" in done.stdout
    assert ups.status()["quorum"] is False
    for node in ("node1", "node2"):
        assert ups.run("resume", node).returncode == 0
    until(lambda: ups.status()["quorum"], "a leader serves again")


def test_no_such_node_is_refused_with_those_there_are(ups: Ups) -> None:
    done = ups.run("kill", "node4")
    assert done.returncode == 1
    assert "node1, node2, node3" in done.stderr


def test_a_directory_in_use_is_named_with_who_holds_it(ups: Ups) -> None:
    done = ups.run("up")
    assert done.returncode == 1
    assert "coterie-data is in use by process" in done.stderr
    assert f"up --port {ups.port}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_named_with_who_holds_it(tmp_path: Path) -> None:
    port = free_base()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 101))
        taken.listen()
        done = coterie("up", "--port", port, cwd=tmp_path)
    assert done.returncode == 1
    assert f"port {port + 101} of node2 is in use by process {os.getpid()} (" in done.stderr
    assert processes_of(tmp_path) == []


def test_ctrl_c_ends_all_and_the_data_are_found_again(tmp_path: Path) -> None:
    port = free_base()
    found = []
    for start in (["--port", port], []):
        with running("up", *start, cwd=tmp_path) as process:
            serves(tmp_path, process)
            found.append(locate(port)[0])
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        assert "all nodes have ended; the data stay in coterie-data" in output(tmp_path)
        assert processes_of(tmp_path) == []
        (tmp_path / "output").unlink()
    assert found[0].cluster == found[1].cluster
    assert found[0].members == found[1].members
    assert found[0].term < found[1].term
    done = coterie("up", "--nodes", 5, cwd=tmp_path)
    assert done.returncode == 64
    assert "holds a cluster of 3" in done.stderr
    done = coterie("up", "--port", port + 1, cwd=tmp_path)
    assert done.returncode == 64
    assert f"port {port}" in done.stderr


def test_nodes_end_when_up_is_killed(tmp_path: Path) -> None:
    with running("up", "--port", free_base(), cwd=tmp_path) as process:
        serves(tmp_path, process)
        assert coterie("pause", "node2", cwd=tmp_path).returncode == 0
        assert len(processes_of(tmp_path)) == 3
        process.send_signal(signal.SIGKILL)
        until(lambda: not processes_of(tmp_path), "all nodes have ended")
    done = coterie("kill", "node1", cwd=tmp_path)
    assert done.returncode == 1
    assert "no cluster runs on coterie-data" in done.stderr


def test_detach_and_down(tmp_path: Path) -> None:
    port = free_base()
    done = coterie("up", "--port", port, "--data", "here", "--detach", cwd=tmp_path)
    try:
        assert done.returncode == 0, done.stderr
        assert "coterie down --data here" in done.stdout
        assert len(locate(port)) == 3
    finally:
        ended = coterie("down", "--data", "here", cwd=tmp_path)
    assert ended.returncode == 0
    assert processes_of(tmp_path) == []
    again = coterie("down", "--data", "here", cwd=tmp_path)
    assert again.returncode == 1
    assert "no cluster runs on here" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["node", "--durability", "lazy"], "--durability: 'lazy': "),
        (["node", "--bind", "0.0.0.0"], "--insecure"),
        (["node", "--frobnicate"], "--frobnicate"),
        (["up", "--durability", "lazy"], "--durability: 'lazy': "),
        (["up", "--store", "redis://localhost"], "--store: 'redis://localhost'"),
        (["up", "--nodes", "0"], "--nodes"),
        (["kill"], "NODE"),
        (["status", "--endpoints", "nowhere"], "--endpoints: 'nowhere'"),
        (["status", "--endpoints", " "], "--endpoints"),
    ],
)
def test_wrong_usage_is_64_and_names_it(arguments: list[str], text: str, tmp_path: Path) -> None:
    done = coterie(*arguments, cwd=tmp_path)
    assert done.returncode == 64
    assert text in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_variable_is_64_and_names_it(tmp_path: Path) -> None:
    for command in ("node", "up"):
        done = coterie(command, cwd=tmp_path, COTERIE_ELECTION_TIMEOUT="soon")
        assert done.returncode == 64
        assert done.stderr.startswith("Error: COTERIE_ELECTION_TIMEOUT: 'soon': ")
        assert len(done.stderr.splitlines()) == 1


def test_status_of_nobody_is_1(tmp_path: Path) -> None:
    done = coterie("status", "--endpoints", f"tcp://127.0.0.1:{free_base()}", cwd=tmp_path)
    assert done.returncode == 1
    assert "no quorum: 0 of 1 nodes answer" in done.stdout


def test_one_node_alone_runs_until_it_is_told(tmp_path: Path) -> None:
    port = free_base(1)
    with running("node", "--peers", f"node1=127.0.0.1:{port}", cwd=tmp_path) as process:
        until(lambda: any(answer.leader for answer in locate(port)), "it leads itself")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert (tmp_path / "coterie-data" / "node1" / "node.json").exists()
