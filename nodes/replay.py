"""From the records of a log to the state of each group.

The law: records that no correct node writes (a gap, an entry of a lower term than the one before
it, a term or a snapshot that goes back) are damage: `CorruptLog`, never a guess.

A log whose first segments were removed begins in the middle of a group's entries. Then those that
are missing must turn out to be replaced, by a snapshot or by being written once more.
"""

from __future__ import annotations

from ..protocols.records import (
    DropRecord,
    Entry,
    GroupId,
    GroupState,
    Record,
    SnapshotRecord,
    StateRecord,
)
from .wal import Batch, CorruptLog, Released, position


class Replay:
    """Takes the batches of a log in their order; `groups` then says how the groups stand."""

    def __init__(self) -> None:
        self._groups: dict[GroupId, _Group] = {}
        self._first: int | None = None

    def take(self, batch: Batch) -> None:
        """Raises `CorruptLog` if a record makes no sense after those before it."""
        if self._first is None:
            self._first = batch.segment
        for record in batch.records:
            if isinstance(record, Released):
                continue
            group = self._groups.get(record.group)
            if group is None:
                base = 0 if self._first == 1 else None
                group = self._groups[record.group] = _Group(base)
            wrong = group.apply(record)
            if wrong:
                reason = f"group {record.group}: {wrong}"
                raise CorruptLog(batch.segment, position(batch.offset), reason)

    def groups(self) -> dict[GroupId, GroupState]:
        """The state of every group after all batches; raises `CorruptLog` if a group lacks
        entries."""
        for number, group in self._groups.items():
            if group.base is not None and group.base > group.compacted:
                lacking = f"entries {group.compacted + 1} to {group.base} are missing"
                raise CorruptLog(self._first or 1, 0, f"group {number}: {lacking}")
        return {number: group.state for number, group in self._groups.items()}


class _Group:
    """`base` is the index before the first entry held; None while nothing is known of where the
    entries stand that the log began with."""

    def __init__(self, base: int | None) -> None:
        self.state = GroupState(entries=[])
        self.base = base

    @property
    def compacted(self) -> int:
        """The last entry that the snapshot replaces."""
        return self.state.snapshot.index if self.state.snapshot is not None else 0

    def apply(self, record: Record) -> str:
        """Apply a record, or say what is wrong with it."""
        state = self.state
        if isinstance(record, StateRecord):
            if record.term < state.term:
                return f"term {record.term} after term {state.term}"
            state.term, state.vote, state.floor = record.term, record.vote, record.floor
            state.commit = max(record.commit, self.compacted)
        elif isinstance(record, SnapshotRecord):
            return self._compact(record)
        elif isinstance(record, DropRecord):
            state.entries, state.snapshot, state.commit = [], None, 0
            self.base = 0
        else:
            return self._append(record.entry)
        return ""

    def _append(self, entry: Entry) -> str:
        entries, index = self.state.entries, entry.index
        if index <= self.compacted:
            return f"entry {index} after a snapshot of entry {self.compacted}"
        if self.base is None or index <= self.base:
            entries.clear()
            self.base = index - 1
        place = index - self.base - 1
        if place > len(entries):
            return f"entry {index} after entry {self.base + len(entries)}"
        if entry.term < self._term_at(index - 1):
            return f"entry {index} has a lower term than the one before it"
        del entries[place:]
        entries.append(entry)
        return ""

    def _compact(self, record: SnapshotRecord) -> str:
        state, snapshot = self.state, record.snapshot
        index = snapshot.index
        if index < self.compacted:
            return f"a snapshot of entry {index} after one of entry {self.compacted}"
        if index == self.compacted and state.snapshot and state.snapshot.term != snapshot.term:
            return f"a snapshot of entry {index} in another term"
        # If the log did not have the snapshot's last entry, a DropRecord stands before it. So where
        # that entry lay in a removed segment, what follows it stays.
        if self.base is not None and index > self.base:
            if self._term_at(index) == snapshot.term:
                del state.entries[: index - self.base]
            else:
                state.entries.clear()
            self.base = index
        state.snapshot = snapshot
        state.commit = max(state.commit, index)
        return ""

    def _term_at(self, index: int) -> int:
        """The term of an entry held or of the last one in the snapshot; else 0."""
        entries, snapshot = self.state.entries, self.state.snapshot
        if snapshot is not None and snapshot.index == index:
            return snapshot.term
        place = index - self.base - 1 if self.base is not None else -1
        return entries[place].term if 0 <= place < len(entries) else 0
