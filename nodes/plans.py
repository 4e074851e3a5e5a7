"""Which nodes a directory of this machine holds, on which ports, and who runs them.

The law: nodes know each other by their ports, so a directory keeps the plan it was founded with
(`cluster.json`); and one process at a time runs its nodes (`flock` on `cluster.lock`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from .configuration import HTTP_OFFSET, PEER_OFFSET, PUBLISH_OFFSET
from .ports import Holder, command_of, held_by, is_free

PLAN_FILE, LOCK_FILE = "cluster.json", "cluster.lock"
LOCK_WAIT_S = 0.25
"""A command that looks whether the lock is held holds it for a moment itself."""


class PlanDiffers(ValueError):
    """The directory was founded with another plan than the one asked for."""


class PortInUse(OSError):
    """A port of a node is taken; the text names by whom."""


class DirectoryInUse(OSError):
    """Another process runs the nodes of the directory; `holder` says which, where known."""

    def __init__(self, directory: Path, holder: Holder | None) -> None:
        who = "another process" if holder is None else str(holder)
        super().__init__(f"{directory} is in use by {who}")
        self.holder = holder


class NodePlan(NamedTuple):
    """A node to run: its name, and its ports for clients, peers, PUB and HTTP on 127.0.0.1. One
    that was removed from its cluster stays in the plan: its name is not given to another."""

    name: str
    client: int
    peer: int
    publish: int
    http: int
    removed: bool = False

    @property
    def ports(self) -> tuple[int, int, int, int]:
        return self.client, self.peer, self.publish, self.http

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.client}"

    @property
    def peer_endpoints(self) -> tuple[str, str]:
        """For peers, and of PUB."""
        return f"tcp://127.0.0.1:{self.peer}", f"tcp://127.0.0.1:{self.publish}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def address(self) -> str:
        """As in `--peers`, without the name."""
        return f"127.0.0.1:{self.client}:{self.peer}:{self.publish}"


def numbered(nodes: int, port: int, http_port: int) -> list[NodePlan]:
    """node1 on `port`, node2 on the next, …; peers on +100, PUB on +200; HTTP on `http_port` …."""
    ports = range(port, port + nodes)
    plans = [
        NodePlan(f"node{number}", client, client + PEER_OFFSET, client + PUBLISH_OFFSET, 0)
        for number, client in enumerate(ports, 1)
    ]
    return serving_http(plans, http_port)


def serving_http(plans: Sequence[NodePlan], http_port: int) -> list[NodePlan]:
    """The same nodes, the first serving HTTP on `http_port`, the second on the next, …; 0 where the
    ports end."""
    ports = range(http_port, http_port + len(plans))
    return [
        plan._replace(http=port if port <= 65535 else 0)
        for plan, port in zip(plans, ports, strict=True)
    ]


def peers_option(plans: Sequence[NodePlan]) -> str:
    """The `--peers` of these nodes, without those removed."""
    return ",".join(f"{plan.name}={plan.address}" for plan in plans if not plan.removed)


def kept(directory: Path) -> list[NodePlan] | None:
    """The plan the directory was founded with; None if it is new. Raises `PlanDiffers` if the
    file cannot be read."""
    path = directory / PLAN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [_plan(str(name), ports) for name, *ports in content["nodes"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        text = f"{path} cannot be read ({error}); take another directory, or move it away"
        raise PlanDiffers(text) from None


def _plan(name: str, values: Sequence[int | bool]) -> NodePlan:
    """A row of the file: ports, and at its end whether the node was removed. One that was written
    before nodes served HTTP has a port less."""
    ports = [int(value) for value in values if not isinstance(value, bool)]
    client, peer, publish, http = (*ports, ports[0] + HTTP_OFFSET)[:4]
    return NodePlan(name, client, peer, publish, http, removed=values[-1] is True)


def keep(directory: Path, plans: Sequence[NodePlan]) -> None:
    """Keep the plan in the directory."""
    temporary = directory / f".{PLAN_FILE}.new"
    nodes = [plan if plan.removed else plan[:-1] for plan in plans]
    temporary.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    temporary.replace(directory / PLAN_FILE)


def check_ports(plans: Sequence[NodePlan]) -> None:
    """Raises `PortInUse` for the first port that is taken."""
    for plan in plans:
        for port in plan.ports:
            if not plan.removed and not is_free(port):
                raise PortInUse(f"port {port} of {plan.name} is in use by {held_by(port)}")


class DirectoryLock:
    """Held while this process runs the nodes of a directory. Made only when it is free."""

    def __init__(self, directory: Path) -> None:
        """Raises `DirectoryInUse`."""
        self._file = open(directory / LOCK_FILE, "a+", encoding="ascii")  # noqa: SIM115
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try(self._file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                holder = self._holder()
                self._file.close()
                raise DirectoryInUse(directory, holder)
            time.sleep(0.01)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let the directory go. Idempotent."""
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # also where a forked child has a copy
            self._file.close()

    def _holder(self) -> Holder | None:
        self._file.seek(0)
        with contextlib.suppress(ValueError):
            pid = int(self._file.read())
            return Holder(pid, command_of(pid))
        return None


def is_held(directory: Path) -> bool:
    """True if a process runs the nodes of the directory."""
    try:
        with open(directory / LOCK_FILE, encoding="ascii") as file:
            return not _try(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _try(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
