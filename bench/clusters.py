"""What the benches need of a cluster: how far its nodes are, and how to say that nobody leads.

The law: it asks the nodes what they say of themselves, and changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from ..clients.errors import Unavailable
from ..nodes.ask import NodeAsker
from ..protocols.session.messages import Describe, Described

WAIT_S = 60.0
"""How long a cluster may take to go on, or a node to catch up; then the bench fails."""


class NoQuorum(click.ClickException):
    """Nobody leads; EX_UNAVAILABLE of BSD's sysexits."""

    exit_code = 69


def caught_up(endpoints: Sequence[str], index: int) -> None:
    """Wait until a node has applied, in every group it holds, what any node had committed when
    this was called. Raises `Unavailable`."""
    goals: dict[str, int] = {}
    deadline = time.perf_counter() + WAIT_S
    with NodeAsker() as asker:
        for groups in groups_of(asker, endpoints).values():
            for group, said in groups.items():
                goals[group] = max(goals.get(group, 0), said["commit"])
        while time.perf_counter() < deadline:
            groups = groups_of(asker, [endpoints[index]]).get(endpoints[index], {})
            if groups and all(said["applied"] >= goals.get(g, 0) for g, said in groups.items()):
                return
            time.sleep(0.02)
    raise Unavailable(f"the node at {endpoints[index]} has not caught up within {WAIT_S:g} s")


def groups_of(asker: NodeAsker, endpoints: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """What each node that answers says of the groups it holds, by endpoint."""
    answers = asker.ask(endpoints, Describe())
    return {
        endpoint: json.loads(answer.status)["raft"]["groups"]
        for endpoint, answer in answers.items()
        if isinstance(answer, Described)
    }
