"""`coterie status`: what every node says of itself, as a table or as JSON.

The law: it shows what was heard, and a node that is silent as silent. Whether there is a quorum is
not judged from what nodes say: a read is made, which only a leader with a majority answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..protocols.plugin import Result
from ..protocols.session.messages import Describe, Described, Locate
from .ask import NodeAsker, await_leader, located

if TYPE_CHECKING:
    from rich.table import Table

ANSWER_WAIT_S = 0.5
READ_WAIT_S = 1.0
"""Longer than an election takes."""

COLUMNS = (
    "NODE", "ENDPOINT", "ROLE", "TERM", "LED", "LOG", "APPLIED", "LAG", "FSYNC P99", "MEMORY",
    "DURABILITY", "INSECURE",
)  # fmt: skip
NUMBERS = ("TERM", "LED", "LOG", "APPLIED", "LAG", "FSYNC P99", "MEMORY")

Node = tuple[str, str, dict[str, Any] | None]
"""Name, endpoint, and what it says of itself; None if it is silent."""


class Status(NamedTuple):
    """What was heard of a cluster. `leader` is "" when none was found."""

    nodes: list[Node]
    leader: str
    quorum: bool

    @property
    def answering(self) -> int:
        return sum(said is not None for _, _, said in self.nodes)


class Observer:
    """Looks at a cluster, again and again. A context manager; to be used by one thread."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        """Raises ValueError if there is no endpoint among them."""
        if not endpoints:
            raise ValueError("names no node; write tcp://HOST:PORT,…")
        self._given = list(dict.fromkeys(endpoints))
        self._asker = NodeAsker()

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._asker.close()

    def look(self, *, wait_s: float = ANSWER_WAIT_S, read: bool = True) -> Status:
        """Ask the endpoints who the members are, and all of them how they are. `read`: find out
        whether there is a quorum, too; else who says it leads is believed. Raises ValueError for
        what is no endpoint."""
        asker = self._asker
        heard = located(asker.ask(self._given, Locate(), timeout_s=wait_s, enough=_members_known))
        names = {e: answer.node for e, answer in heard.items()}
        advertised = {
            member.node: member.client_endpoint
            for answer in heard.values()
            for member in answer.members
        }
        reached = set(names.values())
        asked = [*self._given, *(e for node, e in advertised.items() if node not in reached)]
        answers = {
            e: _described(a) for e, a in asker.ask(asked, Describe(), timeout_s=wait_s).items()
        }
        said: dict[str, Node] = {}
        for endpoint in asked:
            status = answers.get(endpoint)
            if status is not None:
                said.setdefault(status["node"], (status["node"], endpoint, status))
        for node, endpoint in advertised.items():
            said.setdefault(node, (node, endpoint, None))
        if not advertised:  # then there is nothing better to call the silent ones
            for endpoint in self._given:
                if answers.get(endpoint) is None:
                    said.setdefault(endpoint, ("?", endpoint, None))
        nodes = sorted(said.values(), key=lambda node: (node[0], node[1]))
        leader = _claimed(nodes)
        if read and heard:  # the silent ones too, for a majority is counted among all
            deadline = time.monotonic() + READ_WAIT_S
            serving = await_leader(asker, [endpoint for _, endpoint, _ in nodes], deadline)
            leader = serving.node if serving is not None else ""
        return Status(nodes, leader, leader != "")


def collect(endpoints: Sequence[str]) -> Status:
    """Look once. Raises ValueError for what is no endpoint."""
    with Observer(endpoints) as observer:
        return observer.look()


def _members_known(answers: dict[str, Result]) -> bool:
    return any(answer.leader for answer in located(answers).values())


def _claimed(nodes: Sequence[Node]) -> str:
    """Who says that it leads, in the latest term."""
    latest, leader = -1, ""
    for name, _, said in nodes:
        control = _groups(said).get("0", {})
        if control.get("role") == "leader" and control["term"] > latest:
            latest, leader = control["term"], name
    return leader


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


def to_text(status: Status) -> str:
    """A table for pipes and files, and below it the leader or what to do."""
    table = [list(COLUMNS), *rows(status)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([*lines, "", summary(status)])


def to_table(status: Status) -> Table:
    """The same table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in NUMBERS else "left", no_wrap=True)
    for row in rows(status):
        role = row[2]
        style = {"leader": "green", "silent": "red"}.get(role, "")
        # Text, not markup: what a node says of itself is not ours.
        cells = [Text(cell, style=style if column < 3 else "") for column, cell in enumerate(row)]
        if row[-1] == "yes":
            cells[-1].stylize("yellow")
        table.add_row(*cells)
    return table


def rows(status: Status) -> list[list[str]]:
    """A row of `COLUMNS` for each node. The log and what is applied are counted in entries over
    all groups; the lag is what is committed, as far as anybody knows, and not applied here."""
    commits: dict[str, int] = {}
    for _, _, said in status.nodes:
        for number, group in _groups(said).items():
            commits[number] = max(commits.get(number, 0), group["commit"])
    return [_row(*node, commits) for node in status.nodes]


def summary(status: Status) -> str:
    """Who leads, or what to do."""
    answer = f"{status.answering} of {len(status.nodes)} nodes answer"
    if status.quorum:
        return f"{status.leader} leads; {answer}"
    return (
        f"no quorum: {answer} and none of them leads a majority; start the others "
        "(coterie restart NODE, coterie up)"
    )


def _groups(said: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = said["raft"]["groups"] if said is not None else {}
    return groups


def _row(
    name: str, endpoint: str, said: dict[str, Any] | None, commits: Mapping[str, int]
) -> list[str]:
    if said is None:
        return [name, endpoint, "silent", *["-"] * (len(COLUMNS) - 3)]
    groups, process = _groups(said), said["process"]
    control = groups["0"]
    led = sum(group["role"] == "leader" for group in groups.values())
    lag = sum(max(0, commits[number] - group["applied"]) for number, group in groups.items())
    return [
        name,
        endpoint,
        control["role"],
        str(control["term"]),
        f"{led}/{len(groups)}",
        str(sum(group["last_index"] for group in groups.values())),
        str(sum(group["applied"] for group in groups.values())),
        str(lag),
        f"{process['log_write_ms_p99']:.1f} ms",
        f"{process['memory_bytes'] / 2**20:.1f} MiB",
        process["durability"],
        "yes" if process["insecure"] else "no",
    ]
