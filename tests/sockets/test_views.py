"""What is shown of a running cluster: `status`, one frame of `top`, the live view of `up`."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import DEADLINE_S, clean_environment, coterie, free_base, processes_of, until

from coterie import LocalCluster

CTRL_C = b"\x03"


class Terminal:
    """A command of ours on a terminal of its own."""

    def __init__(self, *arguments: object, cwd: Path, **more: str) -> None:
        mine, its = pty.openpty()
        self._terminal = mine
        self._seen = b""
        environ = clean_environment(TERM="xterm", COLUMNS="160", LINES="50", **more)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "coterie", *map(str, arguments)],
                cwd=cwd,
                env=environ,
                stdin=its,
                stdout=its,
                stderr=its,
                start_new_session=True,
                preexec_fn=lambda: _take_terminal(its),
            )
        finally:
            os.close(its)

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def until(self, text: str, times: int = 1) -> None:
        """Wait until this was shown so often."""
        deadline = time.monotonic() + DEADLINE_S
        while self._seen.count(text.encode()) < times:
            left = deadline - time.monotonic()
            assert left > 0, f"never shown: {text!r}, but {self._seen.decode(errors='replace')}"
            self._read(left)

    def ended(self) -> int:
        """The exit code, once it has ended; all it showed is read meanwhile."""
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self._seen.decode(errors="replace")
            self._read(0.05)
        return self.process.wait()

    def _read(self, seconds: float) -> None:
        if select.select([self._terminal], [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # EIO: the other side is closed
                self._seen += os.read(self._terminal, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


def _take_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(*arguments: object, cwd: Path, **more: str) -> Iterator[Terminal]:
    shown = Terminal(*arguments, cwd=cwd, **more)
    try:
        yield shown
    finally:
        shown.close()


@pytest.fixture
def endpoints(cluster: LocalCluster) -> str:
    return ",".join(cluster.endpoints)


def test_status_on_a_terminal_is_a_table(
    cluster: LocalCluster, endpoints: str, tmp_path: Path
) -> None:
    leader = f"node{cluster.leader() + 1}"
    with terminal("status", cwd=tmp_path, COTERIE_ENDPOINTS=endpoints) as shown:
        shown.until("FSYNC P99")
        shown.until("\x1b[")
        shown.until(f"{leader} leads; 3 of 3 nodes answer")
        assert shown.ended() == 0


def test_top_into_a_pipe_is_one_picture(cluster: LocalCluster, tmp_path: Path) -> None:
    with cluster.client() as client, client.lock("watched"):
        done = coterie("top", cwd=tmp_path, COTERIE_ENDPOINTS=",".join(cluster.endpoints))
    assert done.returncode == 0, done.stderr
    assert "leads; 3 of 3 nodes answer" in done.stdout
    assert "\x1b" not in done.stdout
    headers = [line.split() for line in done.stdout.splitlines() if "NODE" in line]
    assert len(headers) == 2
    assert "OPS/S" in headers[1]
    (protocol,) = [line for line in done.stdout.splitlines() if line.strip().startswith("lock")]
    assert "held 1" in protocol


@pytest.mark.parametrize("key", [b"q", CTRL_C])
def test_top_shows_frame_after_frame_until_told(endpoints: str, tmp_path: Path, key: bytes) -> None:
    with terminal("top", cwd=tmp_path, COTERIE_ENDPOINTS=endpoints) as shown:
        shown.until("OPS/S", times=3)
        shown.until("PROTOCOL", times=3)
        shown.type(key)
        assert shown.ended() == 0


def test_top_of_no_endpoint_is_wrong_usage(tmp_path: Path) -> None:
    done = coterie("top", "--endpoints", "nowhere", cwd=tmp_path)
    assert done.returncode == 64
    assert "--endpoints: 'nowhere'" in done.stderr


def test_up_on_a_terminal_shows_its_nodes_live(tmp_path: Path) -> None:
    port = free_base()
    try:
        with terminal("up", "--port", port, cwd=tmp_path) as shown:
            shown.until("Ctrl-C (or: coterie down) ends the nodes")
            shown.until(f'with coterie.Client("tcp://127.0.0.1:{port},')
            shown.until("3 of 3 nodes answer")
            assert coterie("kill", "node2", cwd=tmp_path).returncode == 0
            shown.until("node2 ended with signal SIGKILL")
            shown.until("silent")
            shown.until("2 of 3 nodes answer")
            shown.type(CTRL_C)
            shown.until("all nodes have ended; the data stay in coterie-data")
            assert shown.ended() == 0
    finally:
        until(lambda: not processes_of(tmp_path), "all nodes have ended")


def test_a_node_tells_of_its_life_in_json(tmp_path: Path) -> None:
    import json

    port = free_base(1)
    environ = {"COTERIE_LOG_FORMAT": "json", "COTERIE_LOG_LEVEL": "info"}
    arguments = ["node", "--peers", f"node1=127.0.0.1:{port}"]
    with open(tmp_path / "told", "wb") as told:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "coterie", *arguments],
            cwd=tmp_path,
            env=clean_environment(**environ),
            stderr=told,
        )
    try:
        until(lambda: b'"leader": "node1"' in (tmp_path / "told").read_bytes(), "it leads")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert {line["node"] for line in lines} == {"node1"}
    messages = [line["msg"] for line in lines]
    assert [m for m in messages if m in ("start", "joined", "leader", "stop")] == [
        "start", "joined", "leader", "stop",
    ]  # fmt: skip
    leads = lines[messages.index("leader")]
    assert (leads["group"], leads["leader"], leads["level"]) == (0, "node1", "info")
    assert leads["term"] >= 1
    assert lines[-1]["reason"] == "it was told to"
