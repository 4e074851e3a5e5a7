"""Which group of a node takes a snapshot when, and which snapshots come from elsewhere.

The law: one snapshot is written at a time, and the next of a group not before the log has the last
one's record on disk. So what the log names is always there. A snapshot that comes from a leader is
taken piece by piece in their order, never mixed with another, and nothing of the group changes
before all of it is on disk under the digest the leader gave it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from ..errors import Code
from ..plugin import Failure, NodeId
from ..records import GroupId, Snapshot, WriteNumber
from ..replica import Replica, Replicas
from ..restoring import Restoring
from ..snapshot import DamagedSnapshot
from . import compaction, replication
from .group import FOREVER, Group, Role
from .messages import Appended, Heard, InstallSnapshot, SnapshotReceived
from .turn import Turn

DAMAGED_MAX = 3
"""So many snapshots of a group came damaged, or made another state here: this is no accident."""


class Incoming:
    """A snapshot that comes from a leader. `offset` bytes of it are here; once that is all,
    `replica` is what they make, to be `written` to our own disk."""

    def __init__(self, message: InstallSnapshot, replica: Replica) -> None:
        self.snapshot = message.snapshot
        self.term = message.term
        self.round = message.round
        self.offset = 0
        self.heard_at = 0.0
        self.restoring: Restoring | None = Restoring(replica)
        self.replica: Replica | None = None
        self.written = False

    def take(self, offset: int, data: bytes) -> None:
        """The next piece; any other is passed over. Raises `DamagedSnapshot`."""
        restoring, snapshot = self.restoring, self.snapshot
        if not data or offset != self.offset or restoring is None:
            return
        restoring.feed(data)
        self.offset += len(data)
        if self.offset >= snapshot.size:
            header = restoring.finish()
            if (header.index, header.term) != (snapshot.index, snapshot.term):
                raise DamagedSnapshot("it is of another entry than its name says")
            self.replica, self.restoring = restoring.replica, None


class Snapshots:
    """`wanted` are the groups to save next, in order; `saving` the one being saved; `incoming`
    what comes from leaders. `taken`, `installed` and `resumed` (under another leader) count."""

    def __init__(self, turn: Turn, replicas: Replicas, groups: Mapping[GroupId, Group]) -> None:
        self.turn = turn
        self.replicas = replicas
        self.groups = groups
        self.wanted: dict[GroupId, None] = {}
        self.saving: GroupId | None = None
        self.incoming: dict[GroupId, Incoming] = {}
        self.damaged: dict[GroupId, int] = {}
        self.released: deque[Iterator[None]] = deque()
        """Replicas whose memory is given back, a step in a turn."""
        self._given_up: list[tuple[WriteNumber, GroupId]] = []
        self._resting_until = -FOREVER
        self.taken = self.installed = self.resumed = 0

    # --- our own --------------------------------------------------------------------------------

    def want(self, group: Group) -> None:
        """Save the group's state as soon as it is its turn."""
        self.wanted[group.group] = None

    def take(self, group: Group) -> None:
        """The group's snapshot is due at the entry just applied: begin at once if that can be."""
        compaction.mark(group)
        if self._may_save() and group.recorded_write <= self.turn.durable:
            self._save(group)
        else:
            self.want(group)

    def compact(self, numbers: Sequence[GroupId]) -> None:
        """These groups need the oldest segment of the log: free them of it."""
        for number in numbers:
            group = self.groups.get(number)
            if group is None or number in self.wanted or self.saving == number:
                continue
            behind = group.replica.applied > (group.snapshot.index if group.snapshot else 0)
            if (behind and not compaction.is_cheap(group)) or not compaction.copy_forward(group):
                self.want(group)

    def forget(self, number: GroupId) -> None:
        """The node gives up its copy of a group, by a record of this turn."""
        self._given_up.append((self.turn.written + 1, number))
        self.wanted.pop(number, None)
        self.incoming.pop(number, None)
        self.damaged.pop(number, None)

    def advance(self) -> None:
        """At the end of a turn: begin the next save, if none is under way."""
        for number, incoming in list(self.incoming.items()):
            self._reconsider(number, incoming)
        while self._given_up and self._given_up[0][0] <= self.turn.durable:
            _, number = self._given_up.pop(0)
            if number not in self.groups:  # else its next snapshot takes their place
                self.turn.port.drop(number)  # and whatever of it is under way
                self.saving = None if self.saving == number else self.saving
                self.turn.digests.dropped(number)
        if self.released and next(self.released[0], self) is self:
            self.released.popleft()
        if not self.wanted or not self._may_save():
            return
        for number in self.wanted:
            group = self.groups.get(number)
            if group is None:
                del self.wanted[number]
                return
            if group.recorded_write <= self.turn.durable:
                del self.wanted[number]
                self._save(group)
                return

    def _may_save(self) -> bool:
        return self.saving is None and self.turn.port.now() >= self._resting_until

    def _save(self, group: Group) -> None:
        number, applied = group.group, group.replica.applied
        incoming = self.incoming.get(number)
        if incoming is not None and incoming.replica is not None:
            self.saving = number
            replica, header = incoming.replica, incoming.replica.header
            assert header is not None
            incoming.written = True
            stream = replica.snapshot(header.term, header.configuration_index, header.configuration)
            self.turn.port.save(number, header.index, header.term, stream)
            return
        if not applied:
            return  # it was wanted for a snapshot that came and was given up
        self.saving = number
        term = group.log.term_at(applied)
        assert term is not None, (number, applied)
        self.turn.port.save(number, applied, term, compaction.stream(group))

    def on_saved(self, number: GroupId, snapshot: Snapshot) -> None:
        """A snapshot is on disk, under its name: the log learns of it."""
        if self.saving == number:
            self.saving = None
        group = self.groups.get(number)
        if group is None:
            return
        incoming = self.incoming.get(number)
        if incoming is not None and incoming.written:
            del self.incoming[number]
            self._install(group, incoming, snapshot)
        elif compaction.is_newer(group, snapshot):
            self.taken += 1
            compaction.record(group, snapshot)

    def on_save_failed(self, number: GroupId) -> None:
        """A snapshot was given up since the disk is full. Ours is taken anew after a pause; what
        came from a leader has to come again."""
        self._resting_until = self.turn.port.now() + self.turn.settings.save_pause_s
        if self.saving == number:
            self.saving = None
        group, incoming = self.groups.get(number), self.incoming.get(number)
        if incoming is not None and incoming.written:
            del self.incoming[number]
        elif group is not None:
            self.want(group)

    # --- those of a leader ----------------------------------------------------------------------

    def on_install(self, group: Group, sender: NodeId, message: InstallSnapshot) -> None:
        """A piece of the leader's snapshot, or the question how much of it is here."""
        if not replication.hear(group, sender, message.term):
            return
        snapshot, turn = message.snapshot, self.turn
        if snapshot.index <= group.commit:
            # All of it is here; an old copy must not touch what came since.
            turn.answer(sender, _appended(group, snapshot.index, message.round))
            return
        incoming = self._receiving(group, message)
        if incoming is None:
            group.respond(sender, Heard(group.group, group.term, message.round, group.incarnation))
            return
        incoming.heard_at = turn.port.now()
        incoming.round = message.round
        try:
            incoming.take(message.offset, message.data)
        except DamagedSnapshot as damage:
            del self.incoming[group.group]
            self._damaged(group, f"it came damaged: {damage}")
            incoming.offset = 0
        if incoming.replica is not None and not incoming.written:
            self.wanted = {group.group: None, **self.wanted}
        received = SnapshotReceived(
            group.group, group.term, snapshot.index, snapshot.digest, incoming.offset,
            message.round, group.incarnation,
        )  # fmt: skip
        group.respond(sender, received)

    def _receiving(self, group: Group, message: InstallSnapshot) -> Incoming | None:
        """What is coming already, or comes from now on; None if this must wait or is old."""
        number, found = group.group, self.incoming.get(group.group)
        if found is not None:
            if found.snapshot == message.snapshot:
                self.resumed += message.term > found.term and found.offset > 0
                found.term = max(found.term, message.term)
                return found
            ours, theirs = (
                (found.term, found.snapshot.index),
                (message.term, message.snapshot.index),
            )
            if found.replica is not None or theirs <= ours:
                return None
        elif len(self.incoming) >= self.turn.settings.incoming_snapshots:
            return None
        incoming = self.incoming[number] = Incoming(message, self.replicas.make(number))
        return incoming

    def _reconsider(self, number: GroupId, incoming: Incoming) -> None:
        """Give up what is not needed any more, and what nobody goes on with."""
        group, settings = self.groups.get(number), self.turn.settings
        if incoming.written:
            return
        idle = self.turn.port.now() - incoming.heard_at > settings.incoming_idle_s
        if group is None or incoming.snapshot.index <= group.commit or idle:
            del self.incoming[number]

    def _install(self, group: Group, incoming: Incoming, snapshot: Snapshot) -> None:
        """What came is on our disk: is it what was sent, and is it still news?"""
        if snapshot != incoming.snapshot:
            self._damaged(group, "it makes another state here than where it comes from")
            return
        assert incoming.replica is not None
        self.damaged.pop(group.group, None)
        if snapshot.index > group.commit and group.role is not Role.LEADER:
            self.installed += 1
            compaction.install(group, snapshot, incoming.replica)
        elif compaction.is_newer(group, snapshot):
            compaction.record(group, snapshot)
        if group.leader not in (None, group.node):
            self.turn.answer(group.leader, _appended(group, snapshot.index, incoming.round))

    def _damaged(self, group: Group, cause: str) -> None:
        count = self.damaged[group.group] = self.damaged.get(group.group, 0) + 1
        if count >= DAMAGED_MAX:
            text = (
                f"the snapshot of group {group.group} was refused {count} times, at last because"
                f" {cause}; see that all nodes run the same versions of coterie and its plugins"
            )
            self.turn.port.stop(Failure(Code.STATE_DIVERGED, text))


def _appended(group: Group, index: int, round_number: int) -> Appended:
    return Appended(group.group, group.term, index, round_number, group.incarnation)


def on_install_snapshot(group: Group, sender: NodeId, message: InstallSnapshot) -> None:
    group.turn.snapshots.on_install(group, sender, message)
