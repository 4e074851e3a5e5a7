"""What a snapshot does to one group: its log is forgotten up to there, or replaced.

The law: only what is applied and on disk leaves memory. A snapshot that is not newer than what is
committed here changes nothing; another node's replaces the log, and what followed stays only if
our log has the snapshot's last entry (paper §7).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..records import DropRecord, EntryRecord, Snapshot, SnapshotRecord
from ..replica import Replica
from .group import LEADER_LOST, Group


def trim(group: Group) -> None:
    """Forget a step of what is applied and on disk; peers that need it get it from there."""
    log = group.log
    limit = min(group.replica.applied, group.durable_index)
    log.trim(log.surplus(group.settings.tail_bytes, limit))
    configurations = group.configurations
    while len(configurations) > 1 and configurations[1][0] <= log.base:
        del configurations[0]


def stream(group: Group) -> Iterator[bytes]:
    """The applied state as a snapshot."""
    applied = group.replica.applied
    term = group.log.term_at(applied)
    assert term is not None, (group.group, applied)
    found = (0, b"")
    for configured in group.configurations:
        if configured.at <= applied:
            found = (configured.at, configured.payload)
    return group.replica.snapshot(term, *found)


def is_due(group: Group) -> bool:
    """Has so much been applied that a snapshot pays? Counted alike everywhere, so that mostly all
    nodes take theirs at the same entry: then any leader can go on sending it."""
    grown, settings, last = group.grown_bytes, group.settings, group.snapshot
    if last is not None and grown <= last.size:
        return False
    operations = group.replica.number - group.saved_number
    return grown > settings.snapshot_bytes or operations > settings.snapshot_operations


def mark(group: Group) -> None:
    """A snapshot is due: count from here."""
    group.grown_bytes, group.saved_number = 0, group.replica.number


def record(group: Group, snapshot: Snapshot) -> None:
    """`snapshot` is on disk: the log, too, says from now on that it begins behind it."""
    group.snapshot = snapshot
    group.turn.records.append(SnapshotRecord(group.group, snapshot))
    group.recorded_write = group.turn.written + 1  # the write at the end of this turn
    group.touch()


def is_newer(group: Group, snapshot: Snapshot) -> bool:
    """May the log begin behind `snapshot` from now on, and does it not yet?"""
    held = snapshot.index <= group.commit or (group.log.term_at(snapshot.index) == snapshot.term)
    return held and (group.snapshot is None or snapshot.index > group.snapshot.index)


def is_cheap(group: Group) -> bool:
    """Is it less work to write the entries behind the snapshot once more than to take another? A
    copy is one batch, and no other write passes it."""
    last, log = group.snapshot, group.log
    if last is None or log.bytes > last.size:
        return False
    return log.last_index - last.index <= group.settings.copy_entries


def copy_forward(group: Group) -> bool:
    """Write what the log still needs of its old segments once more: the entries behind the
    snapshot, in one row, since a later write of an earlier one cuts the others off. False if memory
    does not hold them all any more."""
    log = group.log
    first = group.snapshot.index + 1 if group.snapshot is not None else 1
    if log.base >= first:
        return False
    for index in range(first, log.last_index + 1):
        group.turn.records.append(EntryRecord(group.group, log.get(index)))
    group.unwritten = True
    group.touch()
    return True


def install(group: Group, snapshot: Snapshot, replica: Replica) -> None:
    """Go on from another node's snapshot, which is on disk, and the replica made from it."""
    assert snapshot.index > group.commit and replica.header is not None
    log = group.log
    if log.term_at(snapshot.index) == snapshot.term:
        log.trim(snapshot.index)
    else:
        log.reset(snapshot.index, snapshot.term)
        group.turn.records.append(DropRecord(group.group))
        group.durable_index = 0
        for write in group.writes:
            write[1] = 0
    record(group, snapshot)
    group.unwritten = True
    group.turn.snapshots.released.append(group.replica.release())
    group.replica = group.turn.replicas[group.group] = replica
    group.commit = group.checked = snapshot.index
    group.time_us = max(group.time_us, replica.time_us)
    mark(group)
    later = [found for found in group.configurations if snapshot.index < found[0]]
    group.configurations = []
    group.remember_configuration(replica.header)
    group.configurations += later if log.entries else []
    group.reconfigured()
    proposed, group.proposed = group.proposed, {}
    for _, tokens in proposed.values():
        for plugin, token in tokens:
            group.turn.port.failed(plugin, group.group, token, LEADER_LOST)
