"""What the benches need of a cluster: how far its nodes are, and how to say that nobody leads.

The law: it asks the nodes what they say of themselves, and changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ..clients.errors import Unavailable
from ..nodes.ask import NodeAsker
from ..protocols.plugin import CONTROL
from ..protocols.session.messages import Describe, Described

ANSWER_S = 1.0
WAIT_S = 60.0
"""How long a cluster may take to go on, or a node to catch up; then the bench fails."""


class NoQuorum(click.ClickException):
    """Nobody leads; EX_UNAVAILABLE of BSD's sysexits."""

    exit_code = 69


def described(asker: NodeAsker, endpoints: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each node that answers says of itself, by endpoint."""
    answers = asker.ask(endpoints, Describe(), timeout_s=ANSWER_S)
    return {
        endpoint: json.loads(answer.status)
        for endpoint, answer in answers.items()
        if isinstance(answer, Described)
    }


def caught_up(endpoints: Sequence[str], index: int) -> None:
    """Wait until a node has applied, in every group it holds, what the leader of group 0 had
    committed there when this was called. Raises `Unavailable`."""
    own, control = endpoints[index], str(CONTROL)
    goals: dict[str, int] = {}
    deadline = time.perf_counter() + WAIT_S
    with NodeAsker() as asker:
        while time.perf_counter() < deadline:
            asked = [own] if goals else endpoints
            said = {e: node["raft"]["groups"] for e, node in described(asker, asked).items()}
            for groups in said.values():
                if not goals and groups.get(control, {}).get("role") == "leader":
                    goals = {group: state["commit"] for group, state in groups.items()}
            held = said.get(own, {})
            behind = [g for g, state in held.items() if state["applied"] < goals.get(g, 0)]
            if goals and control in held and not behind:
                return
            time.sleep(0.02)
    raise Unavailable(f"the node at {own} has not caught up within {WAIT_S:g} s")


class Disk(msgspec.Struct, frozen=True):
    """What a node's data directory holds, in bytes and files."""

    log_bytes: int
    segments: int
    snapshot_bytes: int
    snapshots: int


def disk_of(directory: Path) -> Disk:
    """Looks at the data directory of a node; files may go while it looks."""
    segments, snapshots = sizes(directory / "log", ".wal"), sizes(directory / "snapshots", "")
    return Disk(sum(segments), len(segments), sum(snapshots), len(snapshots))


def sizes(directory: Path, suffix: str) -> list[int]:
    """The sizes of the files there are whose names end so."""
    found = []
    for path in sorted(directory.glob(f"*{suffix}")):
        try:
            found.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return found
