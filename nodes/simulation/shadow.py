"""What a group's log on one disk holds, rebuilt from the records that were written to it.

The law: a chain of digests stands for every entry and all before it, so two logs that agree at one
entry agree in all before. A snapshot takes the place of entries that some node applied first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ...protocols.records import (
    DropRecord,
    EntryRecord,
    GroupId,
    GroupState,
    Record,
    Snapshot,
    SnapshotRecord,
    StateRecord,
)


class Violation(AssertionError):
    """An invariant does not hold."""


class Slot(NamedTuple):
    """One entry in a shadow: `chain` is a digest of it and of everything before it."""

    term: int
    chain: bytes


Committed: TypeAlias = Mapping[GroupId, Sequence[tuple[Slot, int]]]
"""Per group the entries applied by anyone, from index 1, with the term of who committed them."""


class Shadow:
    """`slots` are the entries after `base`, which a snapshot replaced (0: none)."""

    __slots__ = ("base", "base_slot", "commit", "slots", "term", "vote")

    def __init__(self) -> None:
        self.term = 0
        self.vote = ""
        self.commit = 0
        self._clear()

    def _clear(self) -> None:
        self.base = 0
        self.base_slot = Slot(0, b"")
        self.slots: list[Slot] = []

    @property
    def last(self) -> int:
        """The index of the last entry."""
        return self.base + len(self.slots)

    def at(self, index: int) -> Slot | None:
        """The entry at an index, the last one a snapshot replaced included."""
        if index == self.base:
            return self.base_slot
        return self.slots[index - self.base - 1] if self.base < index <= self.last else None

    def holds(self, index: int, slot: Slot) -> bool:
        """Is that entry there, or in the snapshot?"""
        return index < self.base or self.at(index) == slot

    def put(self, record: Record, committed: Committed) -> None:
        if isinstance(record, StateRecord):
            self.term, self.vote, self.commit = record.term, record.vote, record.commit
        elif isinstance(record, SnapshotRecord):
            self._replace(record.snapshot, committed.get(record.group, ()))
        elif isinstance(record, DropRecord):
            self._clear()
        else:
            self.append(record)

    def append(self, record: EntryRecord) -> None:
        entry = record.entry
        if not self.base < entry.index <= self.last + 1:
            raise Violation(f"entry {entry.index} after {self.last}, snapshot {self.base}")
        del self.slots[entry.index - self.base - 1 :]
        before = self.slots[-1] if self.slots else self.base_slot
        self.slots.append(Slot(entry.term, chain(before.chain, entry)))

    def _replace(self, snapshot: Snapshot, committed: Sequence[tuple[Slot, int]]) -> None:
        index = snapshot.index
        if index > len(committed) or committed[index - 1][0].term != snapshot.term:
            raise Violation(f"snapshot {index} of term {snapshot.term} is of nothing committed")
        if index < self.base:
            raise Violation(f"snapshot {index} after snapshot {self.base}")
        slot, ours = committed[index - 1][0], self.at(index)
        if ours is not None and ours.term == slot.term and ours != slot:
            raise Violation(f"snapshot {index} keeps entries that follow another one")
        keeps = ours == slot
        self.slots = self.slots[index - self.base :] if keeps else []
        self.base, self.base_slot = index, slot

    def same(self, other: Shadow) -> bool:
        return (self.term, self.vote, self.base, self.base_slot, self.slots) == (
            (other.term, other.vote, other.base, other.base_slot, other.slots)
        )


def shadow_of(group: GroupId, state: GroupState, committed: Committed) -> Shadow:
    """The shadow of what a log gave back."""
    shadow = Shadow()
    shadow.term, shadow.vote, shadow.commit = state.term, state.vote, state.commit
    if state.snapshot is not None:
        shadow.put(SnapshotRecord(group, state.snapshot), committed)
    for entry in state.entries:
        shadow.append(EntryRecord(group, entry))
    return shadow


def chain(before: bytes, entry: Any) -> bytes:
    digest = hashlib.blake2b(before, digest_size=8)
    digest.update(b"%d %d %d " % (entry.term, entry.time_us, entry.kind))
    digest.update(entry.payload)
    return digest.digest()
