"""The way of a group from its configuration to the record, one member at a time.

The law: copies come before they go. Who should hold the group is a voter before anybody else is
removed from it; a node comes in as a learner (raft makes it a voter when it has caught up), and a
leader that is to leave hands over first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..records import Configuration, Member, NodeId
from .machine import Node, Placed

VOTERS_MAX = 5
"""Of group 0; the nodes beyond that listen."""


class Reconfigure(NamedTuple):
    """The next configuration."""

    members: tuple[Member, ...]


class Leave(NamedTuple):
    """We lead and should not be there: hand over to the first of these that can take it."""

    heirs: tuple[NodeId, ...]


class Wait(NamedTuple):
    """Somebody has to catch up, or to be heard of."""


class Settled(NamedTuple):
    """The configuration is what it should be."""


Step = Reconfigure | Leave | Wait | Settled


def without(members: Iterable[Member], node: NodeId) -> tuple[Member, ...]:
    return tuple(member for member in members if member.node != node)


def next_step(
    us: NodeId, present: Sequence[Member], wanted: Sequence[NodeId], known: Mapping[NodeId, Member]
) -> Step:
    """Of a partition whose committed members are `present` and whose leader we are. `known` are
    the members of group 0, which tell the incarnations; of our own we know better: it is ours that
    the group follows."""
    here = {member.node: member for member in present}
    for member in present:
        recorded = known.get(member.node) if member.node != us else None
        if recorded and recorded.incarnation not in (0, member.incarnation):
            # Whoever was never heard of has not voted either. Else its disk was lost.
            voter = member.voter and member.incarnation == 0
            renewed = Member(member.node, recorded.incarnation, voter)
            return Reconfigure((*without(present, member.node), renewed))
    for member in present:
        if not member.voter and member.node not in wanted:
            return Reconfigure(without(present, member.node))
    for node in wanted:
        if node not in here and node in known and known[node].incarnation:
            return Reconfigure((*present, Member(node, known[node].incarnation, False)))
    if not all(node in here and here[node].voter for node in wanted):
        return Wait()
    for member in present:
        if member.node not in wanted and member.node != us:
            return Reconfigure(without(present, member.node))
    if us not in wanted:
        return Leave(tuple(wanted))
    return Settled() if all(member.incarnation for member in present) else Wait()


def next_control_step(
    us: NodeId, present: Sequence[Member], nodes: Mapping[NodeId, Node], groups: Collection[Placed]
) -> Step:
    """The same of group 0, which every node holds until no group concerns it any more."""
    here = {member.node: member for member in present}
    for row in nodes.values():
        if row.state == "joining" and row.node not in here:
            newcomer = Member(
                row.node, 0, False, row.client_endpoint, row.peer_endpoint, row.publish_endpoint
            )
            return Reconfigure((*present, newcomer))
    leaving = [
        member.node
        for member in present
        if (member.node not in nodes or nodes[member.node].state == "leaving")
        and not any(row.concerns(member.node) for row in groups)
    ]
    for node in leaving:
        if node != us:
            return Reconfigure(without(present, node))
    if leaving:
        heirs = [member.node for member in present if member.voter and member.node != us]
        return Leave(tuple(heirs))
    return Settled()


def may_vote(present: Configuration, node: NodeId, nodes: Mapping[NodeId, Node]) -> bool:
    """Should a learner of group 0 that has caught up become a voter of it?"""
    row = nodes.get(node)
    voters = [member.node for member in present.members if member.voter]
    staying = [n for n in voters if n in nodes and nodes[n].state != "leaving"]
    return row is not None and row.state != "leaving" and len(staying) < VOTERS_MAX
