"""From the records of a log to the state of each group.

The law: records that no correct node writes (a gap, an entry of a lower term than the one before
it, a term that falls) are damage: `CorruptLog`, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..protocols.records import GroupId, GroupState, Record, StateRecord
from .wal import Batch, CorruptLog


def replay(batches: Iterable[Batch]) -> dict[GroupId, GroupState]:
    """The state of every group after all records; raises `CorruptLog` if they make no sense."""
    groups: dict[GroupId, GroupState] = {}
    for batch in batches:
        for record in batch.records:
            state = groups.get(record.group)
            if state is None:
                state = groups[record.group] = GroupState()
            wrong = _apply(state, record)
            if wrong:
                reason = f"group {record.group}: {wrong}"
                raise CorruptLog(batch.segment, batch.offset, reason)
    return groups


def _apply(state: GroupState, record: Record) -> str:
    """Apply a record, or say what is wrong with it."""
    if isinstance(record, StateRecord):
        if record.term < state.term:
            return f"term {record.term} after term {state.term}"
        state.term, state.vote, state.commit = record.term, record.vote, record.commit
        return ""
    entry, entries = record.entry, state.entries
    if not 1 <= entry.index <= len(entries) + 1:
        return f"entry {entry.index} after entry {len(entries)}"
    if entry.index > 1 and entry.term < entries[entry.index - 2].term:
        return f"entry {entry.index} has a lower term than the one before it"
    del entries[entry.index - 1 :]
    entries.append(entry)
    return ""
