"""Who belongs to the cluster and who holds what: record, plan, and the steps towards them.

The law: the leader of group 0 plans and records, the leader of each group takes the steps in that
group's own log, and every node begins and gives up its own copies, by the record as applied here.
A copy is given up only when a report says that the group does without it, and nothing in its own
log is newer than that report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..errors import Code
from ..plugin import (
    CONTROL,
    Command,
    Failure,
    GroupId,
    Internal,
    Message,
    NodeId,
    Replicated,
    Request,
    Result,
)
from ..records import Configuration, Member
from ..replica import MEMORYLESS
from .machine import Placed, PlacementTable
from .messages import (
    MESSAGES,
    Found,
    HandingOver,
    HandOver,
    ListMembers,
    MemberList,
    MemberRow,
    Report,
    Reported,
)
from .planner import plan
from .reconciler import (
    Leave,
    Reconfigure,
    Settled,
    Step,
    may_vote,
    next_control_step,
    next_step,
    without,
)
from .ring import place

REPLICATION = 3

SOON_S, LATER_S = 0.1, 1.0
"""How long until the record is looked at again: while something is under way, and else."""

FOUNDING_S = 2.0
"""So long the partitions wait for a configured node that was not heard of yet."""

HEIRS_TRIED = 3
"""Hand-overs a leader that is to leave attempts before it removes itself."""


class Groups(Protocol):
    """What the placement asks of the plugin that owns the log (`raft.holding.Holding`)."""

    def held(self) -> list[GroupId]: ...
    def current(self) -> bool: ...
    def unknown(self, group: GroupId) -> bool: ...
    def begin(self, group: GroupId) -> None: ...
    def found(self, group: GroupId, configuration: Configuration, at_once: bool) -> None: ...
    def give_up(self, group: GroupId, floor: int) -> None: ...
    def elect(self, electable: Callable[[GroupId, NodeId], bool]) -> None: ...
    def known(self) -> Mapping[NodeId, Member]: ...
    def led(self) -> list[GroupId]: ...
    def configuration(self, group: GroupId) -> Configuration | None: ...
    def configured_at(self, group: GroupId) -> int: ...
    def standing(self, group: GroupId) -> tuple[int, Configuration] | None: ...
    def reconfigure(self, group: GroupId, members: Sequence[Member]) -> Failure | None: ...
    def fit(self, group: GroupId, node: NodeId) -> bool: ...
    def hand_over(self, group: GroupId, node: NodeId) -> bool: ...


class PlacementPlugin(Replicated):
    """See `messages.py` for what it is asked and answers. It rests until `attach`ed."""

    name = "placement"
    version = 1
    messages: Sequence[type[Message]] = MESSAGES

    def __init__(self) -> None:
        self._groups: Groups | None = None
        self._due_at = 0.0
        self._changes = 0
        self._led_since = 0.0
        self._proposed: dict[GroupId, object] = {}
        """By group: tokens of our proposals that were neither applied nor refused yet."""
        self._healthy_since: dict[GroupId, float] = {}
        """Since when a partition's preferred node, which does not lead it, could."""
        self._returned_at = 0.0
        self._heirs_tried: dict[GroupId, int] = {}

    def attach(self, groups: Groups, incarnation: int, partitions: int, return_s: float) -> None:
        """What there is to place, and where."""
        self._groups = groups
        self._incarnation = incarnation
        self._partitions = partitions
        self._return_s = return_s
        groups.elect(self._electable)

    def machine(self, group: GroupId) -> PlacementTable | None:
        return PlacementTable() if group == CONTROL else None

    # --- requests -------------------------------------------------------------------------------

    def on_request(self, request: Request) -> None:
        operations = request.operations
        if any(type(one) is HandOver for one in operations):
            self.port.reply(request, [self._hand_over(request.group, one) for one in operations])
        elif request.group != CONTROL:
            failure = Failure(Code.MALFORMED, "members and ring are asked of group 0")
            self.port.reply(request, [failure] * len(operations))
        else:
            super().on_request(request)

    def _hand_over(self, group: GroupId, operation: object) -> Result:
        if type(operation) is not HandOver:
            return Failure(Code.MALFORMED, "send a hand-over in a frame of its own")
        leader, node = self.port.leader(group)[0], operation.node
        if leader != self.port.node or self._groups is None:
            text = f"ask {leader}, the leader" if leader else "no leader is known here; ask again"
            return Failure(Code.NOT_LEADER, text, (leader,) if leader else ())
        if node == leader:
            return HandingOver()
        present = self._groups.configuration(group)
        members = {member.node: member.voter for member in present.members} if present else {}
        if not members.get(node):
            voters = ", ".join(name for name, voter in members.items() if voter)
            return Failure(Code.MALFORMED, f"{node} has no vote in group {group} ({voters} have)")
        if not self._groups.fit(group, node) or not self._groups.hand_over(group, node):
            return Failure(Code.BUSY, f"{node} is silent or behind in group {group}; retry later")
        self._healthy_since.pop(group, None)
        return HandingOver()

    def on_read(self, group: GroupId, token: Any) -> None:
        table, moment = self._table(), self.port.moment(CONTROL)
        self.port.reply(
            token,
            [
                self._members() if type(query) is ListMembers else table.query(moment, query)
                for query in token.operations
            ],
        )

    def _members(self) -> MemberList:
        table, known = self._table(), self._known()
        rows: list[MemberRow] = []
        nodes = dict.fromkeys(sorted({*known, *table.nodes}))
        for node in nodes:
            member, row = known.get(node), table.nodes.get(node)
            where = member or row
            assert where is not None
            groups = table.groups.values()
            rows.append(
                MemberRow(
                    node,
                    member.incarnation if member else 0,
                    member.voter if member else False,
                    row.state if row else "member" if table.found is None else "leaving",
                    where.client_endpoint,
                    where.peer_endpoint,
                    where.publish_endpoint,
                    tuple(placed.group for placed in groups if node in placed.nodes),
                    tuple(p.group for p in groups if any(m[0] == node for m in p.members)),
                    row.added if row else 0,
                )
            )
        return MemberList(tuple(rows))

    # --- events ---------------------------------------------------------------------------------

    def on_message(self, sender: NodeId, message: Message) -> None:
        assert isinstance(message, Reported)
        if self._leads(CONTROL):
            self._record(Report(message.group, message.index, message.members))

    def on_applied(self, group: GroupId, token: Any, results: Sequence[Result]) -> None:
        if isinstance(token, Request):
            self.port.reply(token, results)
        else:
            self._forget(token)

    def on_failed(self, group: GroupId, token: Any, failure: Failure) -> None:
        if isinstance(token, Request):
            super().on_failed(group, token, failure)
        else:
            self._forget(token)

    def _forget(self, token: object) -> None:
        self._proposed = {of: other for of, other in self._proposed.items() if other is not token}

    def on_leader(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        self._due_at = self.port.now()
        self._healthy_since.pop(group, None)
        self._heirs_tried.pop(group, None)
        if group == CONTROL:
            # What was proposed in another term is settled by the log, whoever tells of it.
            self._proposed = {}
            self._led_since = self.port.now()

    def deadline(self) -> float | None:
        if self._groups is None:
            return None
        return self.port.now() if self._table().changes != self._changes else self._due_at

    def on_deadline(self) -> None:
        deadline = self.deadline()
        if self._groups is None or deadline is None or self.port.now() < deadline:
            return
        self._changes = self._table().changes
        self._due_at = self.port.now() + (SOON_S if self._look(self._groups) else LATER_S)

    # --- looking at the record ------------------------------------------------------------------

    def _look(self, groups: Groups) -> bool:
        """Take what steps there are to take here; is something under way? An old record would
        lead back to where the groups have been."""
        if not groups.current():
            return True
        table = self._table()
        busy = False
        if table.found is not None:
            for row in list(table.groups.values()):
                busy |= self._keep_copy(groups, table, row)
        for group in groups.led():
            busy |= self._lead(groups, table, group)
        if table.found is not None:
            self._return_leaderships(groups, table)
        return busy

    def _keep_copy(self, groups: Groups, table: PlacementTable, row: Placed) -> bool:
        """Begin our copy of a group, or give it up; is that still to come?"""
        group, us = row.group, self.port.node
        if group in groups.held():
            if row.concerns(us):
                return False
            if groups.configured_at(group) <= row.index:
                groups.give_up(group, row.index)
                return False
            return True
        if not row.concerns(us):
            return False
        founding = table.founding(group, self.port.cluster())
        ours = any(
            (member.node, member.incarnation) == (us, self._incarnation)
            for member in founding.members
        )
        if ours and groups.unknown(group):
            assert table.found is not None
            first = table.found.placement[group - 1][0] == us
            groups.found(group, founding, first)
        elif us in row.nodes:
            groups.begin(group)
        return False

    def _lead(self, groups: Groups, table: PlacementTable, group: GroupId) -> bool:
        """Take the next step in a group we lead; is one still to come?"""
        standing = groups.standing(group)
        if standing is None:
            return True
        index, configuration = standing
        us, members = self.port.node, configuration.members
        step: Step
        if group == CONTROL:
            if table.found is None:
                self._found(members)
                return True
            step = next_control_step(us, members, table.nodes, table.groups.values())
        elif group in table.groups:
            step = next_step(us, members, table.groups[group].nodes, groups.known())
        else:
            return True  # our copy of group 0 is behind
        if isinstance(step, Reconfigure):
            # A refusal is not an error: the next look tries again.
            if self._keeps_majority(groups, group, members, step.members):
                groups.reconfigure(group, step.members)
        elif isinstance(step, Leave):
            self._leave(groups, group, members, step.heirs)
        elif isinstance(step, Settled):
            return self._report(table, group, index, members)
        return True

    def _keeps_majority(
        self, groups: Groups, group: GroupId, old: Sequence[Member], new: Sequence[Member]
    ) -> bool:
        """A voter goes only if a majority of those who stay are well: else the group would lose
        more than the node."""
        voters = [member.node for member in new if member.voter]
        if len(voters) >= sum(member.voter for member in old) or len(new) == len(old):
            return True
        us = self.port.node
        well = sum(node == us or groups.fit(group, node) for node in voters)
        return 2 * well > len(voters)

    def _leave(
        self, groups: Groups, group: GroupId, members: Sequence[Member], heirs: Sequence[NodeId]
    ) -> None:
        tried = self._heirs_tried.get(group, 0)
        heir = next((node for node in heirs if groups.fit(group, node)), None)
        if heir is not None and tried < HEIRS_TRIED and groups.hand_over(group, heir):
            self._heirs_tried[group] = tried + 1
        elif tried >= HEIRS_TRIED or not heirs:
            rest = without(members, self.port.node)
            if self._keeps_majority(groups, group, members, rest):
                groups.reconfigure(group, rest)

    # --- as the leader of group 0 ---------------------------------------------------------------

    def _found(self, members: Sequence[Member]) -> None:
        """Record the partitions, once every configured node was heard of or had its time."""
        waited = self.port.now() >= self._led_since + FOUNDING_S
        if waited or all(member.incarnation for member in members):
            nodes = tuple(sorted(member.node for member in members))
            placement = place(nodes, self._partitions, REPLICATION)
            self._propose(CONTROL, [Found(REPLICATION, tuple(members), placement)])

    def _report(
        self, table: PlacementTable, group: GroupId, index: int, members: Sequence[Member]
    ) -> bool:
        """Tell group 0 how our group stands, if it does not know; for group 0, plan on."""
        rows = tuple((member.node, member.incarnation, member.voter) for member in members)
        if group != CONTROL:
            if index <= table.groups[group].index:
                return False
            leader = self.port.leader(CONTROL)[0]
            if leader == self.port.node:
                self._record(Report(group, index, rows))
            elif leader is not None:
                self.port.send(leader, Reported(group, index, rows))
            return True
        here = {member.node: member.incarnation for member in members}
        for row in table.nodes.values():
            joined = row.state == "joining" and here.get(row.node)
            if joined or (row.state == "leaving" and row.node not in here):
                self._record(Report(CONTROL, index, rows))
                return True
        assert table.found is not None
        steps = plan(table.staying(), table.groups.values(), table.found.replication)
        if steps:
            self._propose(CONTROL, steps)
        return bool(steps) or any(row.state == "leaving" for row in table.nodes.values())

    def _record(self, report: Report) -> None:
        table = self._table()
        row = table.groups.get(report.group)
        if report.group == CONTROL or (row is not None and report.index > row.index):
            # Under a key of its own: the plan of group 0 is proposed beside it.
            self._propose(-1 if report.group == CONTROL else report.group, [report])

    def _propose(self, key: GroupId, operations: Sequence[Internal]) -> None:
        if key not in self._proposed:
            token = self._proposed[key] = object()
            numbers = [MEMORYLESS] * len(operations)
            self.port.propose(CONTROL, Command(self.name, 0, 0, 0, 0, numbers, operations), token)

    # --- leaderships ----------------------------------------------------------------------------

    def _return_leaderships(self, groups: Groups, table: PlacementTable) -> None:
        """Give a partition back to its preferred node once that has been well for a while; one a
        second, so that no burst of elections follows a restart."""
        now = self.port.now()
        for group in groups.led():
            row = table.groups.get(group)
            preferred = row.nodes[0] if row is not None else self.port.node
            if preferred == self.port.node or not groups.fit(group, preferred):
                self._healthy_since.pop(group, None)
                continue
            since = self._healthy_since.setdefault(group, now)
            if now >= since + self._return_s and now >= self._returned_at + min(1, self._return_s):
                self._returned_at = now
                del self._healthy_since[group]
                groups.hand_over(group, preferred)

    def _electable(self, group: GroupId, node: NodeId) -> bool:
        """May a learner that has caught up become a voter? `Groups` asks."""
        assert self._groups is not None
        table, present = self._table(), self._groups.configuration(group)
        if table.found is None or present is None:
            return group == CONTROL
        if group == CONTROL:
            return may_vote(present, node, table.nodes)
        return group in table.groups and node in table.groups[group].nodes

    # --- looking --------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What this node knows of the ring; what the cluster knows stands with the leader."""
        table = self._table()
        return {
            "partitions": len(table.groups),
            "moving": [row.group for row in table.groups.values() if row.moving],
            "nodes": {node: row.state for node, row in table.nodes.items()},
        }

    def _known(self) -> Mapping[NodeId, Member]:
        """The members of group 0 as this node knows them."""
        return {member.node: member for member in self.port.members()}

    def _leads(self, group: GroupId) -> bool:
        return self.port.leader(group)[0] == self.port.node

    def _table(self) -> PlacementTable:
        table = self.port.machine(CONTROL)
        assert isinstance(table, PlacementTable)
        return table
