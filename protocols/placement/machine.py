"""What group 0 records of the cluster: its nodes, who should hold each group, who was said to.

The law: this is the record, not the state. A node counts as a member of a group only by the
group's own log; what stands here of that are reports of committed configurations, and a report
never gives way to an older one. Rows are immutable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from ..errors import Code
from ..plugin import CONTROL, Failure, Moment, Result, SessionId
from ..records import Configuration, GroupId, Member, NodeId
from .messages import (
    NODES_MAX,
    AddMember,
    Changed,
    Found,
    MemberState,
    Place,
    RemoveMember,
    Report,
    Ring,
    RingRow,
)
from .planner import remaining

ENDPOINT_BYTES_MAX = 255

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHANGED = Changed()
_decode = msgspec.msgpack.Decoder(list[Any]).decode
_encode = msgspec.msgpack.Encoder().encode


class Node(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A node of the cluster; `added` is the operation number by which it came (0: founding)."""

    node: NodeId
    state: MemberState
    client_endpoint: str
    peer_endpoint: str
    publish_endpoint: str
    added: int = 0


class Placed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A group: `nodes` should hold it, the preferred primary first; `members` are (node,
    incarnation, voter) by the committed configuration at `index` of its log, as last reported."""

    group: GroupId
    nodes: tuple[NodeId, ...]
    index: int
    members: tuple[tuple[NodeId, int, bool], ...]

    @property
    def moving(self) -> bool:
        """Is it on the way from where it was to where it should be?"""
        return sorted(self.nodes) != [member[0] for member in self.members]

    def concerns(self, node: NodeId) -> bool:
        """Should this node hold it, or did it when that was last reported?"""
        return node in self.nodes or any(member[0] == node for member in self.members)


class PlacementTable:
    """The state machine. `changes` counts what was applied, for whoever acts on it; it is not
    part of the state."""

    def __init__(self) -> None:
        self.found: Found | None = None
        self.nodes: dict[NodeId, Node] = {}
        self.groups: dict[GroupId, Placed] = {}
        self.control_index = 0
        self.changes = 0

    def apply(self, moment: Moment, operation: Any) -> Result:
        self.changes += 1
        if isinstance(operation, AddMember):
            return self._add(operation, moment.number)
        if isinstance(operation, RemoveMember):
            return self._remove(operation)
        if isinstance(operation, Found):
            self._found(operation)
        elif isinstance(operation, Place):
            self._place(operation)
        elif isinstance(operation, Report):
            self._report(operation)
        else:
            return Failure(Code.MALFORMED, "a leadership is handed over by the group's leader")
        return _CHANGED

    def query(self, moment: Moment, query: Any) -> Result:
        """The ring. (The members are told by the plugin: it knows their incarnations.)"""
        rows = tuple(
            RingRow(
                row.group,
                row.nodes,
                tuple((member[0], member[2]) for member in row.members),
                row.moving,
            )
            for row in self.groups.values()
        )
        replication = self.found.replication if self.found else 0
        return Ring(len(rows), replication, rows, self.remaining())

    def remaining(self) -> int:
        """How many groups are not where the ring wants them."""
        if self.found is None:
            return 0
        return remaining(self.staying(), self.groups.values(), self.found.replication)

    def staying(self) -> list[NodeId]:
        """The nodes that groups are placed on: heard of, and not leaving."""
        return [node.node for node in self.nodes.values() if node.state == "member"]

    def founding(self, group: GroupId, cluster: int) -> Configuration:
        """The configuration a partition began with: the same on every node."""
        assert self.found is not None
        known = {member.node: member.incarnation for member in self.found.members}
        nodes = sorted(self.found.placement[group - 1])
        return Configuration(cluster, tuple(Member(node, known[node], True) for node in nodes))

    # --- operations -----------------------------------------------------------------------------

    def _add(self, operation: AddMember, number: int) -> Result:
        if self.found is None:
            return Failure(Code.BUSY, "the cluster is still being founded; retry in a second")
        endpoints = (
            operation.client_endpoint, operation.peer_endpoint, operation.publish_endpoint,
        )  # fmt: skip
        if not _NAME.fullmatch(operation.node):
            return Failure(Code.MALFORMED, "a name is 1 to 64 letters, digits, '.', '_' or '-'")
        if any(not e or len(e.encode()) > ENDPOINT_BYTES_MAX for e in endpoints):
            return Failure(Code.MALFORMED, "a node has three endpoints: clients, peers, PUB")
        present = self.nodes.get(operation.node)
        if present is not None:
            return self._again(present, endpoints)
        for other in self.nodes.values():
            if other.peer_endpoint == operation.peer_endpoint:
                text = f"{other.node} has that address already; choose other ports"
                return Failure(Code.SETTINGS_DIFFER, text, (other.node,))
        if len(self.nodes) >= NODES_MAX:
            return Failure(Code.MALFORMED, f"a cluster has at most {NODES_MAX} nodes")
        row = Node(operation.node, "joining", *endpoints, number)
        self.nodes = dict(sorted({**self.nodes, row.node: row}.items()))
        return _CHANGED

    @staticmethod
    def _again(present: Node, endpoints: tuple[str, str, str]) -> Result:
        name = present.node
        if present.state == "leaving":
            text = f"{name} is leaving; wait until it is gone, then add it with an empty directory"
            return Failure(Code.SETTINGS_DIFFER, text, (name,))
        ours = (present.client_endpoint, present.peer_endpoint, present.publish_endpoint)
        if ours != endpoints:
            text = f"the name {name} is in use at {ours[0]}; choose another name"
            return Failure(Code.SETTINGS_DIFFER, text, (name, *ours))
        return _CHANGED

    def _remove(self, operation: RemoveMember) -> Result:
        if self.found is None:
            return Failure(Code.BUSY, "the cluster is still being founded; retry in a second")
        present = self.nodes.get(operation.node)
        if present is None or present.state == "leaving":
            return _CHANGED
        if operation.added not in (-1, present.added):
            return _CHANGED  # a late copy: the node it means is gone
        if self.staying() in ([], [operation.node]):
            text = f"{operation.node} is the last node of the cluster; stop it instead"
            return Failure(Code.MALFORMED, text)
        self.nodes[operation.node] = msgspec.structs.replace(present, state="leaving")
        return _CHANGED

    def _found(self, operation: Found) -> None:
        if self.found is not None:
            return  # proposed twice, over a change of leaders
        self.found = operation
        for member in sorted(operation.members, key=lambda member: member.node):
            self.nodes[member.node] = Node(
                member.node, "member", member.client_endpoint, member.peer_endpoint,
                member.publish_endpoint,
            )  # fmt: skip
        for group, nodes in enumerate(operation.placement, start=1):
            founding = self.founding(group, 0)
            members = tuple((m.node, m.incarnation, True) for m in founding.members)
            self.groups[group] = Placed(group, nodes, 1, members)

    def _place(self, operation: Place) -> None:
        row = self.groups.get(operation.group)
        states = [self.nodes[n].state for n in operation.nodes if n in self.nodes]
        # Planned before a node began to leave: the next plan knows better.
        if row is not None and states == ["member"] * len(operation.nodes) and states:
            self.groups[row.group] = msgspec.structs.replace(row, nodes=operation.nodes)

    def _report(self, report: Report) -> None:
        if report.group == CONTROL:
            self._report_control(report)
            return
        row = self.groups.get(report.group)
        if row is not None and report.index > row.index:
            self.groups[row.group] = msgspec.structs.replace(
                row, index=report.index, members=report.members
            )

    def _report_control(self, report: Report) -> None:
        if report.index < self.control_index:
            return
        self.control_index = report.index
        members = {node: incarnation for node, incarnation, _ in report.members}
        for row in list(self.nodes.values()):
            if row.state == "joining" and members.get(row.node):
                self.nodes[row.node] = msgspec.structs.replace(row, state="member")
            elif row.state == "leaving" and row.node not in members:
                del self.nodes[row.node]

    # --- the rest of a state machine ------------------------------------------------------------

    def end_session(self, moment: Moment, session: SessionId, limit: int) -> int:
        return 0

    def cancel(self, moment: Moment, answered: Result) -> None:
        """Asked without a session, so there is nothing to cancel."""

    def news(self, moment: Moment, session: SessionId, number: int) -> Result | None:
        return None

    def size(self) -> int:
        return 1 + len(self.nodes) + len(self.groups)

    def snapshot(self) -> Iterable[bytes]:
        rows = (
            self.found,
            self.control_index,
            list(self.nodes.values()),
            list(self.groups.values()),
        )
        return iter((_encode(rows),))

    def restore(self, chunk: bytes) -> None:
        found, self.control_index, nodes, groups = _decode(chunk)
        self.found = msgspec.convert(found, Found | None)
        self.nodes = {row[0]: msgspec.convert(row, Node) for row in nodes}
        self.groups = {row[0]: msgspec.convert(row, Placed) for row in groups}

    def restored(self) -> None:
        self.changes += 1

    def check(self) -> None:
        assert list(self.nodes) == sorted(self.nodes)
        assert list(self.groups) == list(range(1, len(self.groups) + 1))
        for row in self.groups.values():
            assert row.nodes and len(set(row.nodes)) == len(row.nodes), row
            assert [m[0] for m in row.members] == sorted({m[0] for m in row.members}), row
