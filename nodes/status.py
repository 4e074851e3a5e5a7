"""`coterie status`: what every node says of itself, as a table or as JSON.

The law: it shows what was heard, and a node that is silent as silent. Whether there is a quorum is
not judged from what nodes say: a read is made, which only a leader with a majority answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..protocols.plugin import Result
from ..protocols.session.messages import Describe, Described, Locate
from .ask import NodeAsker, await_leader, located

ANSWER_WAIT_S = 0.5
READ_WAIT_S = 1.0
"""Longer than an election takes."""

COLUMNS = (
    "NODE", "ENDPOINT", "ROLE", "TERM", "LEADER", "LAST", "COMMIT", "APPLIED", "FSYNC P99",
    "MEMORY", "DURABILITY", "INSECURE",
)  # fmt: skip


class Status(NamedTuple):
    """`nodes`: (name, endpoint, what it says or None if it is silent)."""

    nodes: list[tuple[str, str, dict[str, Any] | None]]
    leader: str
    quorum: bool


def collect(endpoints: Sequence[str]) -> Status:
    """Ask the endpoints who the members are, and all of them how they are. Raises ValueError for
    what is no endpoint."""
    if not endpoints:
        raise ValueError("names no node; write tcp://HOST:PORT,…")
    with NodeAsker() as asker:
        heard = located(
            asker.ask(endpoints, Locate(), timeout_s=ANSWER_WAIT_S, enough=_members_known)
        )
        names = {endpoint: answer.node for endpoint, answer in heard.items()}
        for answer in heard.values():
            for member in answer.members:
                names.setdefault(member.client_endpoint, member.node)
        for endpoint in endpoints:
            names.setdefault(endpoint, "?")
        said = asker.ask(names, Describe(), timeout_s=ANSWER_WAIT_S)
        deadline = time.monotonic() + READ_WAIT_S
        leader = await_leader(asker, list(names), deadline) if heard else None
    nodes = [(name, endpoint, _described(said.get(endpoint))) for endpoint, name in names.items()]
    nodes.sort(key=lambda row: (row[0], row[1]))
    return Status(nodes, leader.node if leader else "", leader is not None)


def _members_known(answers: dict[str, Result]) -> bool:
    return any(answer.leader for answer in located(answers).values())


def _described(answer: Result | None) -> dict[str, Any] | None:
    if not isinstance(answer, Described):
        return None
    said: dict[str, Any] = json.loads(answer.status)
    return said


def to_json(status: Status) -> str:
    """One object: `quorum`, `leader`, and all that each node says under its name."""
    nodes = [
        {"node": name, "endpoint": endpoint, "answers": said is not None, "status": said}
        for name, endpoint, said in status.nodes
    ]
    return json.dumps({"quorum": status.quorum, "leader": status.leader, "nodes": nodes}, indent=2)


def to_table(status: Status) -> str:
    """A table, and below it the leader or what to do."""
    rows = [list(COLUMNS), *(_row(*node) for node in status.nodes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    answering = sum(said is not None for _, _, said in status.nodes)
    if status.quorum:
        lines += ["", f"{status.leader} leads; {answering} of {len(status.nodes)} nodes answer"]
    else:
        lines += [
            "",
            f"no quorum: {answering} of {len(status.nodes)} nodes answer and none of them leads a "
            "majority; start the others (coterie restart NODE, coterie up)",
        ]
    return "\n".join(lines)


def _row(name: str, endpoint: str, said: dict[str, Any] | None) -> list[str]:
    if said is None:
        return [name, endpoint, "silent", *["-"] * (len(COLUMNS) - 3)]
    group = said.get("raft", {}).get("groups", {}).get("0", {})
    process = said.get("process", {})
    values = (
        group.get("role"), group.get("term"), group.get("leader"), group.get("last_index"),
        group.get("commit"), group.get("applied"), _milliseconds(process.get("log_write_ms_p99")),
        _mebibytes(process.get("memory_bytes")), process.get("durability"),
        {True: "yes", False: "no"}.get(process.get("insecure")),
    )  # fmt: skip
    return [name, endpoint, *("-" if value in (None, "") else str(value) for value in values)]


def _milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f} ms"


def _mebibytes(value: int | None) -> str | None:
    return None if value is None else f"{value / 2**20:.1f} MiB"
