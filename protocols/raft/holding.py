"""The groups a node holds: how a copy begins, and how it is given up.

The law: a copy that was given up takes with it what it acknowledged. So its term and vote stay, and
what is begun here afterwards has no vote before it has reached a configuration of its own time
(`StateRecord.floor`). Raft does not know why a group is held; who knows asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..plugin import CONTROL, Failure
from ..records import (
    CONFIGURATION,
    Configuration,
    DropRecord,
    Entry,
    GroupId,
    GroupState,
    Member,
    NodeId,
    StateRecord,
)
from . import election, membership
from .group import Group, Role

if TYPE_CHECKING:
    from .plugin import Raft


class Holding:
    """What the placement may ask of raft (`placement.plugin.Groups`). `dormant` is what outlived
    the copies that were given up."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self.dormant: dict[GroupId, GroupState] = {}

    # --- copies ---------------------------------------------------------------------------------

    def held(self) -> list[GroupId]:
        return list(self._raft.groups)

    def current(self) -> bool:
        """Is group 0 applied here as far as its leader, who is known, has committed it?"""
        control = self._raft.groups[CONTROL]
        return control.leader is not None and control.replica.applied >= max(
            control.commit, control.first_of_term if control.role is Role.LEADER else 0
        )

    def unknown(self, group: GroupId) -> bool:
        """Nothing was ever kept of this group here."""
        return group not in self._raft.groups and group not in self.dormant

    def begin(self, group: GroupId) -> None:
        """Hold an empty copy: its leader fills it."""
        raft = self._raft
        assert group not in raft.groups, group
        state = self.dormant.pop(group, None) or GroupState(entries=[])
        replica = raft.replicas[group] = raft.replicas.make(group)
        made = Group(group, replica, state, raft.turn)
        raft.groups[group] = made
        for number in sorted(raft.groups):  # in order; others hold this same dict
            raft.groups[number] = raft.groups.pop(number)
        made.touch()

    def found(self, group: GroupId, configuration: Configuration, at_once: bool) -> None:
        """Hold the copy that the group begins with, the same on all founding members. `at_once`:
        stand for election as soon as the others have theirs."""
        assert self.unknown(group), group
        self.begin(group)
        made, settings = self._raft.groups[group], self._raft.settings
        payload = membership.encode(configuration)
        made.term, made.dirty = 1, True
        made.follow((Entry(1, 1, 0, CONFIGURATION, payload),))
        if at_once and made.voting:
            made.deadline = self._raft.port.now() + 2 * settings.heartbeat_s

    def give_up(self, group: GroupId, floor: int) -> None:
        """Drop the copy; the configuration at `floor`, which is committed, does without us."""
        raft = self._raft
        gone = raft.groups.pop(group)
        assert gone.configuration is None or gone.configurations[-1][0] <= floor, (group, floor)
        if gone.role is Role.LEADER:
            gone.become_follower(gone.term, None)
        elif gone.leader is not None:
            raft.port.led(group, None, gone.term)
        raft.turn.snapshots.released.append(raft.replicas.pop(group).release())
        raft.turn.snapshots.forget(group)
        raft.turn.digests.forget(group)
        floor = max(floor, gone.floor)
        self.dormant[group] = GroupState(gone.term, gone.vote, 0, [], None, floor)
        turn = raft.turn
        turn.touched = [touched for touched in turn.touched if touched is not gone]
        turn.writing = [writing for writing in turn.writing if writing is not gone]
        turn.records += [DropRecord(group), StateRecord(group, gone.term, gone.vote, 0, floor)]

    # --- members --------------------------------------------------------------------------------

    def elect(self, electable: Callable[[GroupId, NodeId], bool]) -> None:
        """From now on this decides which learners become voters once they have caught up."""
        self._raft.turn.electable = electable

    def known(self) -> Mapping[NodeId, Member]:
        """The members of group 0 as far as that is committed: what is not may never have been."""
        found = membership.committed(self._raft.groups[CONTROL])
        return {member.node: member for member in found[1].members} if found is not None else {}

    def led(self) -> list[GroupId]:
        """The groups this node leads."""
        groups = self._raft.groups.values()
        return [group.group for group in groups if group.role is Role.LEADER]

    def configuration(self, group: GroupId) -> Configuration | None:
        """The latest configuration in the group's log here, committed or not."""
        found = self._raft.groups.get(group)
        return found.configuration if found is not None else None

    def configured_at(self, group: GroupId) -> int:
        """The index of that configuration, 0 without one."""
        configurations = self._raft.groups[group].configurations
        return configurations[-1][0] if configurations else 0

    def standing(self, group: GroupId) -> tuple[int, Configuration] | None:
        """Of a group we lead: its configuration and that one's index, if it is committed and the
        next change may be proposed."""
        return membership.standing(self._raft.groups[group])

    def reconfigure(self, group: GroupId, members: Sequence[Member]) -> Failure | None:
        """Propose members that differ from the present ones in one node; None if that is in the
        log now."""
        return membership.reconfigure(self._raft.groups[group], members)

    def fit(self, group: GroupId, node: NodeId) -> bool:
        """Could this node lead now: does it vote, has it answered lately, and is it close?"""
        return election.fit(self._raft.groups[group], node)

    def hand_over(self, group: GroupId, node: NodeId) -> bool:
        """Hand a leadership to a voter (thesis §3.10). False if that cannot be."""
        return self._raft.hand_over(group, node)
