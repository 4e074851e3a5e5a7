"""Changes of a group's configuration, one member at a time (thesis ch. 4).

The law: a configuration counts from the moment it is in the log; there is at most one that is not
committed, and none is proposed before the leader has committed an entry of its term (Ongaro, 2015).
Two configurations that follow each other differ in one member, so their majorities meet.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..errors import Code
from ..plugin import CONTROL, Failure
from ..records import CONFIGURATION, NOOP, Configuration, Member
from .group import Group, Role
from .progress import NEVER, Progress

REMOVED_MAX = 256
"""Removed members that are remembered; what was removed before them is only not recorded."""

_encoder = msgspec.msgpack.Encoder()


def encode(configuration: Configuration) -> bytes:
    """The payload of a CONFIGURATION entry."""
    return _encoder.encode(configuration)


def reconfigure(group: Group, members: Sequence[Member]) -> Failure | None:
    """Propose `members` as the group's new configuration; None if it went into the log."""
    present = group.configuration
    if group.role is not Role.LEADER or group.transferee is not None or present is None:
        return group.not_leader()
    if group.commit < group.first_of_term or group.configurations[-1][0] > group.commit:
        return Failure(Code.BUSY, "a change of members is under way; retry when it is done")
    ordered = tuple(sorted(members, key=lambda member: member.node))
    if not 0 < _differences(present.members, ordered) <= 1:
        return Failure(Code.MALFORMED, "members change one at a time")
    removed = present.removed
    if group.group == CONTROL:
        stay = {member.node for member in ordered}
        gone = [(m.node, m.incarnation) for m in present.members if m.node not in stay]
        gone = [pair for pair in gone if pair[1]]
        removed = (*removed, *gone)[-REMOVED_MAX:]
    group.lead(
        CONFIGURATION, encode(Configuration(present.cluster, ordered, present.plugins, removed))
    )
    group.touch()
    return None


def committed(group: Group) -> tuple[int, Configuration] | None:
    """The latest configuration that is known to be committed, and its index."""
    for found in reversed(group.configurations):
        if found.at <= group.commit:
            return found.at, found.configuration
    return None


def removed(control: Group, member: Member) -> bool:
    """Has this member left the cluster for good?"""
    known = committed(control)
    return known is not None and (member.node, member.incarnation) in known[1].removed


def standing(group: Group) -> tuple[int, Configuration] | None:
    """Of a group we lead: the configuration, if it is committed and the next may be proposed."""
    ready = group.role is Role.LEADER and group.commit >= group.first_of_term
    if not ready or group.transferee is not None or group.configurations[-1][0] > group.commit:
        return None
    latest = group.configurations[-1]
    return latest.at, latest.configuration


def _differences(old: Sequence[Member], new: Sequence[Member]) -> int:
    """How many nodes are in one only, or are another member in the other."""
    before = {member.node: member for member in old}
    after = {member.node: member for member in new}
    return sum(after.get(node) != member for node, member in before.items()) + sum(
        node not in before for node in after
    )


def replace(group: Group, member: Member) -> Failure | None:
    """Propose the configuration in which `member` stands in the place of its name."""
    return reconfigure(
        group, [member if old.node == member.node else old for old in group.members.values()]
    )


def consider_newcomer(group: Group, newcomer: Member) -> None:
    """A node of a known name presents itself. One never heard of before is recorded as the voter
    it is; one that was recorded otherwise has lost its disk, and with it what it voted and
    acknowledged: it comes back as a learner."""
    if group.role is not Role.LEADER:
        return
    recorded = group.members.get(newcomer.node)
    if recorded is None or recorded.incarnation == newcomer.incarnation:
        return
    member = Member(
        newcomer.node,
        newcomer.incarnation,
        recorded.voter and recorded.incarnation == 0,
        newcomer.client_endpoint or recorded.client_endpoint,
        newcomer.peer_endpoint or recorded.peer_endpoint,
        newcomer.publish_endpoint or recorded.publish_endpoint,
    )
    # A refusal is not an error: it introduces itself again.
    replace(group, member)


def consider_promotion(group: Group, peer: Progress, round_number: int) -> None:
    """Make a learner that is to vote a voter when it was close to the end of the log at the
    beginning and at the end of a round (thesis §4.2.1)."""
    if not group.turn.electable(group.group, peer.node):
        return
    # It must have the configuration that made it a learner: before that it might still give up
    # the copy whose entries it acknowledged.
    close = group.log.last_index - group.settings.promotion_entries
    if peer.match < max(close, group.configurations[-1][0]):
        peer.close_round = NEVER
    elif peer.close_round == NEVER:
        peer.close_round = group.reads.round
    elif round_number > peer.close_round:
        replace(group, msgspec.structs.replace(group.members[peer.node], voter=True))


def on_committed(group: Group) -> None:
    """A leader that is no voter of a committed configuration has done its work (thesis §4.2.2)."""
    if not group.voting and group.configurations[-1][0] <= group.commit:
        group.become_follower(group.term, None)


def tick(group: Group) -> None:
    """Write the log time down although there is nothing else to write."""
    group.lead(NOOP, b"")
