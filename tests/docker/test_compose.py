"""docker/docker-compose.yml, run for real: up, HTTP, a killed leader, down.

Skipped, by name, where there is no engine, no Compose, no image to build from, or where a cluster
of that name is running already: it is somebody's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import script, until

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker" / "docker-compose.yml"
PROJECT = "coterie-test"
NODES = ("node1", "node2", "node3")
HOST = "tcp://localhost:7001,tcp://localhost:7002,tcp://localhost:7003"
INSIDE = "tcp://node1:7001,tcp://node2:7002,tcp://node3:7003"
BUILD_S = 600.0

# Takes a lock again and again until its input ends, then tells how often.
SURVIVOR = """
import sys, threading
import coterie
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
count = token = 0
with coterie.Client({endpoints!r}) as c:
    lock = c.lock("survives/" + {name!r}, timeout=30)
    while not done.is_set() or count < 10:
        with lock as grant:
            assert grant.token > token, (grant.token, token)
            token, count = grant.token, count + 1
        if count == 1:
            print("began", flush=True)
print("ended", count, flush=True)
"""


def run(*arguments: str, deadline_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=deadline_s,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Images of docker/make-base, where they are and nothing else was asked for."""
    found = dict(os.environ)
    for variable, image in (
        ("COTERIE_BASE", "coterie-base:bookworm"),
        ("COTERIE_REDIS", "coterie-redis:7"),
    ):
        if variable not in found:
            known = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
            if known.returncode == 0:
                found[variable] = image
    return found


def compose_command() -> tuple[str, ...]:
    """Either spelling; skips where there is none."""
    if shutil.which("docker") is None or run("docker", "info").returncode != 0:
        pytest.skip("no Docker engine answers: the Compose file is not tried")
    if run("docker", "compose", "version").returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose") is None:
        pytest.skip("no Docker Compose is installed: the Compose file is not tried")
    return ("docker-compose",)


@pytest.fixture(scope="module")
def compose() -> Iterator[tuple[str, ...]]:
    """The running cluster; afterwards nothing of it is left."""
    command = (*compose_command(), "-p", PROJECT, "-f", str(FILE))
    if run("docker", "inspect", "distributed-sync-node1").returncode == 0:
        pytest.skip("a container distributed-sync-node1 is there already: it is not ours to end")
    built = run(*command, "build", deadline_s=BUILD_S)
    if built.returncode != 0 and "registry" in built.stdout + built.stderr:
        pytest.skip("no registry answers and docker/make-base has made no image to build from")
    assert built.returncode == 0, built.stdout + built.stderr
    try:
        started = run(*command, "up", "-d", deadline_s=BUILD_S)
        assert started.returncode == 0, started.stdout + started.stderr
        yield command
    finally:
        run(*command, "down", "-v", deadline_s=120.0)
    assert run("docker", "inspect", "distributed-sync-node1").returncode != 0


def get(node: int, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> Any:
    """What a node answers over HTTP on this machine; None while it cannot be reached."""
    request = urllib.request.Request(
        f"http://localhost:{8000 + node}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return {"status": error.code}
    except OSError:
        return None


def state(name: str) -> dict[str, Any]:
    done = run("docker", "inspect", f"distributed-sync-{name}")
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def all_healthy() -> bool:
    return all(state(name)["State"]["Health"]["Status"] == "healthy" for name in (*NODES, "redis"))


def leader() -> str:
    """Who leads, where all nodes agree; "" else."""
    said = {(get(number, "/health") or {}).get("leader") for number in (1, 2, 3)}
    return str(said.pop() or "") if len(said) == 1 else ""


def test_all_containers_become_healthy_and_none_is_root(compose: tuple[str, ...]) -> None:
    until(all_healthy, "all containers are healthy", 90)
    for number, name in enumerate(NODES, 1):
        found = get(number, "/health")
        assert (found["status"], found["node_id"], found["answering"]) == ("healthy", name, 3)
        assert found["insecure"] is True
        assert get(number, "/metrics")["node_id"] == name
        assert run("docker", "exec", f"distributed-sync-{name}", "id", "-u").stdout == "10001\n"
        ports = state(name)["HostConfig"]["PortBindings"]
        assert {one["HostIp"] for bound in ports.values() for one in bound} == {"127.0.0.1"}
    told = run("docker", "logs", "distributed-sync-node1")
    assert "msg=start" in told.stdout + told.stderr


def test_status_within_a_container_shows_three_nodes(compose: tuple[str, ...]) -> None:
    until(leader, "a leader")
    done = run("docker", "exec", "distributed-sync-node2", "coterie", "status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("leads; 3 of 3 nodes answer")


def test_a_lock_is_taken_seen_and_released_at_three_nodes(compose: tuple[str, ...]) -> None:
    until(leader, "a leader")
    session = get(1, "/session", "POST", {"ttl": 60})["session"]
    token = get(1, "/lock/orders/42", "POST", {"session": session})["token"]
    assert get(2, "/lock/orders/42")["token"] == token
    get(3, f"/lock/orders/42?session={session}&token={token}", "DELETE")
    assert get(1, "/lock/orders/42")["holders"] == []


def test_clients_outside_and_inside_survive_the_kill_of_the_leader(
    compose: tuple[str, ...], tmp_path: Path
) -> None:
    until(all_healthy, "all containers are healthy", 90)
    until(leader, "a leader")
    outside = SURVIVOR.format(endpoints=HOST, name="outside")
    inside = SURVIVOR.format(endpoints=INSIDE, name="inside")
    arguments = ["docker", "run", "--rm", "-i", "--network", "coterie", "--entrypoint", "python3"]
    container = subprocess.Popen(
        [*arguments, "coterie:latest", "-c", inside],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with script(outside, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        assert container.stdout is not None
        assert container.stdout.readline() == "began\n"
        killed = leader()
        began = state(killed)["State"]["StartedAt"]
        # The init process of a container has one child: the node.
        kill = "kill -9 $(cat /proc/1/task/1/children)"
        done = run("docker", "exec", f"distributed-sync-{killed}", "sh", "-c", kill)
        assert done.returncode in (0, 137), done.stderr
        other = next(number for number, name in enumerate(NODES, 1) if name != killed)
        until(
            lambda: (get(other, "/health") or {}).get("leader") not in (None, killed),
            "another node leads",
        )
        until(lambda: state(killed)["State"]["StartedAt"] != began, "it is started again")
        until(all_healthy, "all containers are healthy again", 90)
        for survivor in (process, container):
            rest, errors = survivor.communicate(timeout=60)
            assert survivor.returncode == 0, errors
            assert rest.startswith("ended ")
