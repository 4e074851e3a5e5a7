"""The log of a node: what all its raft groups must not forget, in one row of segments.

The law: once `write` returned ("fsync"), its records are found by every later `open`, in
order; a write or sync that failed is never repeated, and nothing is written after it. In
"relaxed" only batches that change a term, a vote or a snapshot are synced; a log that was not
closed then says so (`unclean`) and its node must come back as a learner.

Every segment begins with the state and the snapshot of every group. So the oldest ones can be
removed once their entries are replaced: past `SEGMENTS_MAX` segments `pinning` names the groups to
snapshot or to write once more, `release` notes on disk which segments nobody needs, and
`remove_released` removes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from ..protocols.records import (
    DropRecord,
    Entry,
    EntryRecord,
    GroupId,
    GroupState,
    NodeId,
    Snapshot,
    SnapshotRecord,
    StateRecord,
)
from . import wal
from .disk import MIB, Disk, DiskError, disk_error
from .log_index import ENTRY_BYTES, LogIndex, Region, Terms
from .replay import Replay
from .segments import Segments, segment_name

Mode: TypeAlias = Literal["fsync", "relaxed"]


SEGMENTS_MAX = 4
"""Past so many segments, the one made ahead among them, the log wants to be shorter."""


class Batch(NamedTuple):
    """Records ready to be written, and their encoding."""

    records: Sequence[wal.LogRecord]
    payload: bytes


class Log:
    """The segments of one node on one disk.

    Segments grow from `first_segment_bytes` to `segment_bytes`, doubling: making one means
    writing that many zeros. One thread writes; the order is `open`, then `write` as often as
    wanted, then `close`. `prepare`, `remove_released` and `read` may run in other threads.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        node: NodeId,
        incarnation: int,
        segment_bytes: int = 64 * MIB,
        first_segment_bytes: int = 4 * MIB,
        mode: Mode = "fsync",
    ) -> None:
        if len(node.encode()) > 255:
            raise ValueError(f"node id {node!r} is longer than 255 bytes: choose a shorter one")
        self.node = node
        self.incarnation = incarnation
        self.mode = mode
        self.fresh = False
        """True after `open` if there was no log: who knows that there was one must not go on."""
        self.unclean = False
        """True after `open` if acknowledged writes of a relaxed log may be missing."""
        self.torn_bytes = 0
        """How many bytes of a torn write `open` cut off."""
        self._disk = disk
        self._segments = Segments(disk, segment_bytes, first_segment_bytes)
        self._states: dict[GroupId, StateRecord] = {}
        self._snapshots: dict[GroupId, SnapshotRecord] = {}
        self._terms = Terms()
        self._index = LogIndex()
        self._segment: wal.Segment | None = None
        self._error: DiskError | None = None

    def open(self) -> dict[GroupId, GroupState]:
        """Read the log, cut off a torn write and make ready to go on.

        Raises `CorruptLog`, `ForeignLog`, `DiskFailed`, `DiskFull`.
        """
        try:
            return self._open()
        except OSError as error:
            self._error = disk_error("opening the log", error)
            raise self._error from error

    def _open(self) -> dict[GroupId, GroupState]:
        replay = Replay()

        def take(batch: wal.Batch) -> None:
            replay.take(batch)
            self._terms.admit(batch.records)
            self._track(batch)

        numbers = self._segments.numbers()
        found = wal.recover(numbers, lambda number: self._disk.read(segment_name(number)), take)
        self._segment = found.segment
        if found.segment is not None:
            self._check_owner(found.segment.header)
        groups = replay.groups()
        if found.blank is not None:
            self._disk.remove(segment_name(found.blank))
        self.fresh = found.segment is None
        start, self.torn_bytes = found.torn
        if found.segment is None:
            self._roll(0)
            self._relax()
            return groups
        name = segment_name(found.segment.header.number)
        if self.torn_bytes:
            self._disk.write(name, start, bytes(self.torn_bytes))
        # Also a whole batch may be known to the page cache only: its process was killed before the
        # sync returned. From here on it counts.
        self._disk.sync(name)
        for number, (seed, end) in found.extents.items():
            self._index.extent(number, seed, end)
        self._segments.begin(numbers[0], found.segment)
        self._segments.release(found.released)
        self.remove_released()
        self.unclean = found.segment.relaxed
        self._relax()
        return groups

    def _relax(self) -> None:
        """Say on disk that batches are not synced from here on, before the first that is not."""
        if self.mode == "relaxed" and not self.unclean:
            self._append(self.encode(()), sync=True, kind=wal.RELAXED)

    def _check_owner(self, header: wal.Header) -> None:
        if (header.node, header.incarnation) != (self.node, self.incarnation):
            raise wal.ForeignLog(
                f"the log is that of node {header.node!r}, incarnation {header.incarnation}, not "
                f"of {self.node!r}, incarnation {self.incarnation}: give every node a data "
                "directory of its own and do not copy one"
            )

    def encode(self, records: Sequence[wal.LogRecord]) -> Batch:
        """Encode records for one `write`."""
        return Batch(records, wal.encode_records(records))

    def write(self, batch: Batch) -> None:
        """Write a batch and, by the mode, sync it. Blocks. Raises `DiskFull` or `DiskFailed`;
        from then on every call raises the same."""
        records = self._terms.admit(batch.records)
        if records is not batch.records:
            batch = self.encode(records)
        self._append(batch, self.mode == "fsync" or self._must_sync(records))

    def _append(self, batch: Batch, sync: bool, kind: int = wal.RECORDS) -> None:
        if self._error is not None:
            raise self._error
        try:
            segment, batch = self._place(batch)
            before = segment.offset, segment.crc
            where, data = segment.append(kind, len(batch.records), batch.payload)
            number = segment.header.number
            self._disk.write(segment_name(number), where, data)
            if sync:
                self._disk.sync(segment_name(number))
        except OSError as error:
            self._error = disk_error("writing the log", error)
            raise self._error from error
        self._index.extent(number, segment.seed, segment.offset)
        self._track(wal.Batch(number, *before, batch.records))

    def _place(self, batch: Batch) -> tuple[wal.Segment, Batch]:
        """The segment the batch goes to, and the batch; the states lead it in an empty segment."""
        segment = self._segment
        if segment is None:
            raise RuntimeError("the log is not open: call open() first")
        if segment.empty or not segment.fits(len(batch.payload)):
            if self._states or self._snapshots:
                snapshots = self._snapshots.values()
                batch = self.encode([*self._states.values(), *snapshots, *batch.records])
            if not segment.fits(len(batch.payload)):
                segment = self._roll(len(batch.payload))
        return segment, batch

    def _roll(self, payload: int) -> wal.Segment:
        """Begin the next segment, with room for so many bytes of payload."""
        last = self._segment
        if last is not None:
            # Relaxed: all segments but the last one are whole.
            self._disk.sync(segment_name(last.header.number))
        self._segment = self._segments.roll(self.node, self.incarnation, last, payload)
        return self._segment

    @property
    def wants_segment(self) -> bool:
        """True if it is time to call `prepare`: the segment is half full and no next one made."""
        return self._segments.wants_next

    def prepare(self) -> None:
        """Make the next segment ahead of need. May run in another thread than `write`.

        Raises `DiskFull` with the room that is left (writing goes on until it is used up), or
        `DiskFailed`.
        """
        self._segments.prepare()

    @property
    def oldest(self) -> int:
        """The number of the oldest segment."""
        return self._segments.first

    def pinning(self) -> list[GroupId]:
        """The groups that need the oldest segment of a log that is too long: each is to be
        snapshotted, or to write the entries it needs once more, in one batch."""
        if self._segments.count <= SEGMENTS_MAX:
            return []
        return self._index.needing(self._segments.first)

    def release(self) -> bool:
        """Note on disk which of the oldest segments of a log that is too long nobody needs. In the
        thread that writes. True if there is something to do for `remove_released`."""
        segments, segment = self._segments, self._segment
        if segment is not None and segments.count > SEGMENTS_MAX:
            needed = self._index.oldest() or segment.header.number
            first = min(needed, segments.first + segments.count - SEGMENTS_MAX)
            if first > segments.released:
                record = wal.Released(first)
                self._append(self.encode([record]), sync=True)
                segments.release(first)
        return segments.first < segments.released

    def remove_released(self) -> None:
        """Remove the segments nobody needs, oldest first. May run in another thread than `write`.
        Raises `DiskFailed`."""
        self._index.forget(self._segments.released)
        self._segments.remove_released()

    def snapshot(self, group: GroupId) -> Snapshot | None:
        """The group's snapshot by the log on disk."""
        record = self._snapshots.get(group)
        return record.snapshot if record is not None else None

    def read(self, group: GroupId, first: int, bytes_max: int) -> list[Entry]:
        """Committed entries from `first` on, of at most `bytes_max` bytes but for the first one;
        none if they are no longer there. May run in another thread than `write`. Raises
        `CorruptLog` or `DiskFailed`."""
        entries: list[Entry] = []
        size = 0
        try:
            for region in self._index.regions(group, first):
                for entry in self._scan(group, region):
                    if entry.index < first:
                        continue
                    size += ENTRY_BYTES + len(entry.payload)
                    if entries and size > bytes_max:
                        return entries
                    entries.append(entry)
        except FileNotFoundError:
            pass  # the segment was removed meanwhile
        except OSError as error:
            raise disk_error("reading the log", error) from error
        return entries

    def _scan(self, group: GroupId, region: Region) -> Iterator[Entry]:
        point, next_index = region.point, region.point.first
        name, skipped = segment_name(point.segment), point.record
        for records in wal.read_batches(
            lambda position, size: self._disk.read_at(name, position, size),
            point.segment,
            region.seed,
            (point.offset, point.crc),
            region.end,
        ):
            for record in records[skipped:]:
                if isinstance(record, EntryRecord) and record.group == group:
                    if record.entry.index != next_index:
                        raise wal.CorruptLog(point.segment, 0, "an entry is not where it was")
                    yield record.entry
                    next_index += 1
                    if next_index == region.stop:
                        return
            skipped = 0

    def close(self) -> None:
        """End the log. A relaxed one is synced and marked as closed, if it was opened clean."""
        if self._segment is None or self._error is not None:
            return
        if self._segment.relaxed and not self.unclean:
            self._append(self.encode(()), sync=True, kind=wal.CLOSED)
        self._segment = None

    def _must_sync(self, records: Sequence[wal.LogRecord]) -> bool:
        for record in records:
            if isinstance(record, StateRecord):
                known = self._states.get(record.group)
                if known is None or _ballot(known) != _ballot(record):
                    return True
            elif isinstance(record, SnapshotRecord | DropRecord):
                return True  # files are removed by what it says
        return False

    def _track(self, batch: wal.Batch) -> None:
        for record in batch.records:
            if isinstance(record, StateRecord):
                self._states[record.group] = record
            elif isinstance(record, SnapshotRecord):
                self._snapshots[record.group] = record
            elif isinstance(record, DropRecord):
                self._snapshots.pop(record.group, None)
                state = self._states.get(record.group)
                if state is not None:
                    self._states[record.group] = msgspec.structs.replace(state, commit=0)
        self._index.note(batch)


def _ballot(record: StateRecord) -> tuple[int, NodeId, int]:
    """What of a state may never be lost."""
    return record.term, record.vote, record.floor
