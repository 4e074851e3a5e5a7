"""Do the replicas of a group hold the same state? Now and then they compare a digest of it.

The law: the digest is of the state at exactly one entry, the same entry everywhere. A node whose
state is not the one that a majority of the voters has stops, and tells the entries that led there:
what it would answer from then on is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..errors import Code
from ..plugin import Failure
from ..records import COMMANDS, CONFIGURATION, Entry, GroupId, NodeId
from . import compaction
from .group import Group
from .messages import Digested
from .turn import Turn

KEPT = 4
"""Comparisons per group whose digests are remembered."""

STORY_ENTRIES = 20


class Digests:
    """One state is hashed at a time; a group whose turn comes meanwhile skips its comparison.
    `compared` counts those in which a majority agreed with us."""

    def __init__(self, turn: Turn, groups: Mapping[GroupId, Group]) -> None:
        self.turn = turn
        self.groups = groups
        self.busy: GroupId | None = None
        self.compared = 0
        self._told: dict[GroupId, dict[int, dict[NodeId, bytes]]] = {}

    def begin(self, group: Group) -> None:
        """The group's operation number reached its replica's `digest_at` with this entry."""
        group.replica.put_off_digest()
        if self.busy is None:
            self.busy = group.group
            stream = compaction.stream(group)
            self.turn.port.digest(group.group, group.replica.applied, stream)

    def on_digested(self, number: GroupId, index: int, digest: bytes) -> None:
        """Our state at `index` was hashed: tell every member."""
        self.dropped(number)
        group = self.groups.get(number)
        if group is None:
            return
        message = Digested(number, index, digest, group.incarnation)
        for member in group.members.values():
            if member.node != group.node and member.incarnation:
                self.turn.port.send(member.node, message)
        self._compare(group, group.node, index, digest)

    def on_told(self, group: Group, sender: NodeId, message: Digested) -> None:
        """Another member tells what its state was."""
        member = group.members.get(sender)
        if member is not None and member.incarnation == message.incarnation:
            self._compare(group, sender, message.index, message.digest)

    def dropped(self, number: GroupId) -> None:
        """The group's state is hashed, or will not be any more."""
        if self.busy == number:
            self.busy = None

    def forget(self, number: GroupId) -> None:
        """The node gives up its copy of a group."""
        self._told.pop(number, None)

    def _compare(self, group: Group, node: NodeId, index: int, digest: bytes) -> None:
        told = self._told.setdefault(group.group, {})
        at = told.setdefault(index, {})
        at[node] = digest
        while len(told) > KEPT:
            del told[min(told)]
        ours = at.get(group.node)
        if ours is None:
            return
        votes = Counter(
            at[member.node]
            for member in group.members.values()
            if member.voter and member.node in at
        )
        found, count = votes.most_common(1)[0] if votes else (ours, 0)
        if count <= group.voters // 2:
            return
        if found == ours:
            self.compared += node == group.node or count == group.voters // 2 + 1
        else:
            self.turn.port.stop(_diverged(group, index, ours, found))


def on_digested(group: Group, sender: NodeId, message: Digested) -> None:
    group.turn.digests.on_told(group, sender, message)


def _diverged(group: Group, index: int, ours: bytes, theirs: bytes) -> Failure:
    log = group.log
    first = max(log.base + 1, index - STORY_ENTRIES + 1)
    story = [_describe(group, log.get(at)) for at in range(first, min(index, log.last_index) + 1)]
    text = (
        f"the state of group {group.group} at entry {index} is {ours.hex()} here and"
        f" {theirs.hex()} on a majority of the nodes. This node must not go on: keep its data"
        " directory for those who look into it, and start the node with an empty one. The last"
        " entries before: " + "; ".join(story)
    )
    return Failure(Code.STATE_DIVERGED, text, (str(group.group), str(index), *story))


def _describe(group: Group, entry: Entry) -> str:
    where = f"{entry.index} (term {entry.term}, time {entry.time_us} us)"
    if entry.kind == CONFIGURATION:
        return f"{where} configuration"
    if entry.kind != COMMANDS:
        return f"{where} no-op"
    commands = Counter(
        f"{command.plugin} {type(operation).__name__}"
        for command in group.replica.codec.decode(entry.payload)
        for operation in command.operations
    )
    return f"{where} " + ", ".join(f"{count} {name}" for name, count in commands.items())
