"""What must hold after every event, seen from outside: from records, applied entries and leaders.

The law: nothing here asks raft what it believes about safety. A shadow of every log is kept from
the records the node wrote, and compared with all others (Ongaro's thesis, figure 3.2):

* election safety       at most one leader per group and term;
* log matching          an entry of the same index and term has the same predecessor everywhere;
* leader completeness   a leader holds every entry committed in an earlier term;
* commitment            what a leader applies first is on a majority of the disks, below an entry
                        of its own term that is there too (paper §5.4.2);
* state machine safety  what is applied at an index is the same on every node, and so is the state;
* one vote              per group, term and incarnation, also over crashes (kept or told);
* durability            a disk gives back what it was told to keep, and at most one batch more;
* monotony              of term, applied index, log time and operation number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import msgspec

from ...protocols.raft.messages import Voted
from ...protocols.records import (
    DropRecord,
    EntryRecord,
    GroupId,
    GroupState,
    Record,
    SnapshotRecord,
    StateRecord,
)
from ..engine import Effects
from .shadow import Shadow, Slot, Violation, shadow_of

if TYPE_CHECKING:
    from .node import SimulatedNode

CONFIGURATIONS = 3
"""What a leader applies was committed by one of its last so many configurations."""

CHECKPOINT = 16
"""The whole state is hashed where the applied index is a multiple of this."""


def _same(ours: Mapping[GroupId, Shadow], theirs: Mapping[GroupId, Shadow]) -> bool:
    return ours.keys() == theirs.keys() and all(ours[g].same(theirs[g]) for g in ours)


class Life(msgspec.Struct):
    """What one node was seen to do: `written` with all it submitted, `kept` what it was told is
    durable; `applied` per group since its last start."""

    written: dict[GroupId, Shadow]
    kept: dict[GroupId, Shadow]
    applied: dict[GroupId, int]
    moments: dict[GroupId, tuple[int, int]]


class Invariants:
    """Registers filled by every node's turns; each raises `Violation`."""

    def __init__(self, check_every: int) -> None:
        self.leaders: dict[tuple[GroupId, int], str] = {}
        self.committed: dict[GroupId, list[tuple[Slot, int]]] = {}
        self.elections = 0
        self._check_every = check_every
        self._turns = 0
        self._before: dict[tuple[GroupId, int, int], bytes] = {}
        self._votes: dict[tuple[GroupId, int, str, int], str] = {}
        self._moments: dict[tuple[GroupId, int], tuple[int, int]] = {}
        self._states: dict[tuple[GroupId, int], bytes] = {}
        self._lives: dict[str, Life] = {}
        self._replaced: list[tuple[str, dict[GroupId, Shadow]]] = []

    # Called by the nodes

    def recovered(self, node: SimulatedNode, groups: Mapping[GroupId, GroupState]) -> None:
        """A node starts with what its log gave it."""
        found = {g: shadow_of(g, state, self.committed) for g, state in groups.items()}
        life = self._lives.get(node.name)
        if life is not None and not _same(found, life.kept):
            # What was being written may be there too, but only as a whole.
            for record in node.in_flight:
                life.kept.setdefault(record.group, Shadow()).put(record, self.committed)
            if not node.in_flight or not _same(found, life.kept):
                raise Violation(f"the disk of {node.name} gave back another log than it was given")
        kept = {g: shadow_of(g, state, self.committed) for g, state in groups.items()}
        self._lives[node.name] = Life(found, kept, {}, {})

    def wiped(self, node: SimulatedNode) -> None:
        # What it acknowledged counted when it did.
        self._replaced.append((node.name, self._lives.pop(node.name).kept))

    def durable(self, node: SimulatedNode, records: Sequence[Record]) -> None:
        """The node is about to be told that these records are on its disk."""
        kept = self._lives[node.name].kept
        for record in records:
            shadow = kept.get(record.group)
            if shadow is None:
                shadow = kept[record.group] = Shadow()
            if isinstance(record, DropRecord):
                # What it acknowledged counted when it did.
                self._replaced.append((node.name, {record.group: copy(shadow)}))
            shadow.put(record, self.committed)
            if isinstance(record, StateRecord) and record.vote:
                self._vote(node, record.group, record.term, record.vote)

    def turned(self, node: SimulatedNode, effects: Effects) -> None:
        """A turn of the node is over; its effects have not left yet."""
        engine = node.engine
        assert engine is not None
        life = self._lives[node.name]
        if effects.records:
            for record in effects.records:
                self._write(node, life, record)
        for (to, _), messages in effects.messages.items():
            for message in messages:
                if type(message) is Voted and message.granted:
                    self._vote(node, message.group, message.term, to)
        for group, replica in engine.replicas.items():
            leader, term = engine.log.leader(group)
            if leader is not None:
                self._lead(node, life, group, leader, term)
            if replica.applied != life.applied.get(group, 0):
                self._apply(node, life, group, replica)
        self._turns += 1
        if self._turns % self._check_every == 0:
            engine.check()
            raft: Any = engine.log
            if raft.turn.snapshots.damaged:
                raise Violation(f"{node.name}: a snapshot came damaged, or made another state")

    # Each rule

    def _write(self, node: SimulatedNode, life: Life, record: Record) -> None:
        group = record.group
        shadow = life.written.get(group)
        if shadow is None:
            shadow = life.written[group] = Shadow()
        if isinstance(record, EntryRecord):
            entry = record.entry
            shadow.append(record)
            slot, applied = shadow.slots[-1], life.applied.get(group, 0)
            # Once more is no harm: so a log frees its oldest segment.
            if entry.index <= applied and slot != self.committed[group][entry.index - 1][0]:
                raise Violation(f"{node.name} overwrites applied entry {entry.index} of {group}")
            key = (group, entry.index, entry.term)
            if self._before.setdefault(key, slot.chain) != slot.chain:
                raise Violation(f"log matching: entry {key} of {node.name} differs from another's")
            return
        if isinstance(record, SnapshotRecord):
            shadow.put(record, self.committed)
            return
        if isinstance(record, DropRecord):
            shadow.put(record, self.committed)
            life.applied.pop(group, None)
            life.moments.pop(group, None)
            return
        if record.term < shadow.term:
            raise Violation(f"{node.name}: term {record.term} after {shadow.term} in {group}")
        if record.term == shadow.term and shadow.vote not in ("", record.vote):
            raise Violation(f"{node.name} changes its vote in term {record.term} of group {group}")
        shadow.put(record, self.committed)

    def _vote(self, node: SimulatedNode, group: GroupId, term: int, candidate: str) -> None:
        ballot = (group, term, node.name, node.disk.incarnation)
        if self._votes.setdefault(ballot, candidate) != candidate:
            raise Violation(f"two votes: {ballot}: {self._votes[ballot]} and {candidate}")

    def _lead(
        self, node: SimulatedNode, life: Life, group: GroupId, leader: str, term: int
    ) -> None:
        known = self.leaders.get((group, term))
        if known is None:
            self.leaders[group, term] = leader
            if leader == node.name:
                self.elections += 1
                self._complete(node, life, group, term)
        elif known != leader:
            raise Violation(f"two leaders of group {group} in term {term}: {known} and {leader}")

    def _complete(self, node: SimulatedNode, life: Life, group: GroupId, term: int) -> None:
        """Every entry committed in an earlier term is in the log of the new leader."""
        committed = self.committed.get(group, ())
        last = len(committed)
        while last and committed[last - 1][1] >= term:
            last -= 1
        if not last:
            return
        if not life.written[group].holds(last, committed[last - 1][0]):
            raise Violation(
                f"{node.name} leads group {group} in term {term} without entry {last}, which was"
                f" committed by term {committed[last - 1][1]}"
            )

    def _apply(self, node: SimulatedNode, life: Life, group: GroupId, replica: Any) -> None:
        applied, last = replica.applied, life.applied.get(group, 0)
        if applied < last:
            raise Violation(f"{node.name}: applied {applied} after {last} in group {group}")
        committed = self.committed.setdefault(group, [])
        shadow = life.written[group]
        if applied > shadow.last:
            raise Violation(f"{node.name} applied {applied} of {shadow.last} entries")
        new = applied > len(committed)
        for index in range(max(last, shadow.base), applied):
            slot = shadow.slots[index - shadow.base]
            if index == len(committed):
                committed.append((slot, max(shadow.term, slot.term)))
            elif committed[index][0] != slot:
                raise Violation(f"{node.name} applies another entry {index + 1} in group {group}")
        life.applied[group] = applied
        if new and node.leads(group):
            self._committed(node, group, shadow)
        moment = (replica.number, replica.time_us)
        before = life.moments.get(group, (0, 0))
        if moment[0] < before[0] or moment[1] < before[1]:
            raise Violation(f"{node.name}: number, time {moment} after {before} in group {group}")
        life.moments[group] = moment
        if self._moments.setdefault((group, applied), moment) != moment:
            raise Violation(f"{node.name}: number, time {moment} at entry {applied} of {group}")
        if applied % CHECKPOINT == 0:
            self.compare_state(node, group)

    def _committed(self, node: SimulatedNode, group: GroupId, shadow: Shadow) -> None:
        assert node.engine is not None
        raft: Any = node.engine.log
        # It may have been committed by a configuration before the one that counts now.
        electorates = [
            [member.node for member in configuration.members if member.voter]
            for _, configuration, _ in raft.groups[group].configurations[-CONFIGURATIONS:]
        ]
        disks = [(name, life.kept) for name, life in self._lives.items()] + self._replaced
        first = len(self.committed[group]) - 1
        for index in range(max(first, shadow.base), shadow.last):
            slot = shadow.slots[index - shadow.base]
            if slot.term == shadow.term:
                holders = {
                    name: None
                    for name, kept in disks
                    if group in kept and kept[group].holds(index + 1, slot)
                }
                if any(2 * sum(name in holders for name in e) > len(e) for e in electorates):
                    return
        raise Violation(
            f"{node.name} applies entry {first + 1} of group {group}, but no majority has it and"
            f" an entry of term {shadow.term} on disk"
        )

    def compare_state(self, node: SimulatedNode, group: GroupId) -> bytes:
        """The state is the same as every other node's at this index."""
        assert node.engine is not None
        replica = node.engine.replicas[group]
        found = state_digest(replica)
        if self._states.setdefault((group, replica.applied), found) != found:
            raise Violation(f"{node.name}: another state at {replica.applied} of group {group}")
        return found


def state_digest(replica: Any) -> bytes:
    """A digest of all that a group's log has made: of what replicas compare."""
    digest = hashlib.blake2b(digest_size=16)
    for chunk in replica.snapshot(0, 0, b""):
        digest.update(chunk)
    return digest.digest()
