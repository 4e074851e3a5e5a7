"""Where in the log each group's entries are, and which segments it still needs.

The law: a segment that holds an entry no snapshot replaces is needed, and whoever reads an entry
by the index gets the version that counts, not one that was replaced. Memory is bounded by the log's
length: a point per group and segment, per truncation and per `SPACING_BYTES`.

A point says where the entries from its index on were written; up to the index of the next point
each was written once behind it. So a rewrite at some index removes the points from there on and
makes a new one.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import NamedTuple

from ..protocols.records import (
    DropRecord,
    EntryRecord,
    GroupId,
    Snapshot,
    SnapshotRecord,
)
from .wal import Batch, LogRecord

SPACING_BYTES = 256 * 1024
ENTRY_BYTES = 32
"""What an entry counts for beside its payload."""

POINTS_MAX = 4096
"""Points of one group; beyond, those that only shorten the search are thinned out, then what is
no longer needed cannot be read any more."""

_first = attrgetter("first")
_start = itemgetter(0)


class Point(NamedTuple):
    """The entry `first` of a group: its segment, the batch's offset in the stream and the CRC
    before it, the record's place in the batch. Without a `fixed` one the index would be wrong."""

    first: int
    segment: int
    offset: int
    crc: int
    record: int
    fixed: bool


class Region(NamedTuple):
    """The entries [point.first, stop) of a group; `seed` and `end` are those of the segment."""

    point: Point
    stop: int
    seed: int
    end: int


class LogIndex:
    """Noted by the thread that writes, read by others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[GroupId, _Points] = {}
        self._segments: dict[int, tuple[int, int]] = {}

    def note(self, batch: Batch) -> None:
        """A batch is in the log."""
        with self._lock:
            for place, record in enumerate(batch.records):
                if isinstance(record, EntryRecord):
                    self._points(record.group).add(record, place, batch)
                elif isinstance(record, SnapshotRecord):
                    self._points(record.group).compact(record.snapshot.index)
                elif isinstance(record, DropRecord):
                    self._groups.pop(record.group, None)

    def extent(self, segment: int, seed: int, end: int) -> None:
        """The CRC of a segment's header, and where its batches end."""
        with self._lock:
            self._segments[segment] = seed, end

    def oldest(self) -> int | None:
        """The oldest segment that any group needs."""
        with self._lock:
            needed = [points.needs() for points in self._groups.values()]
        return min((segment for segment in needed if segment is not None), default=None)

    def needing(self, segment: int) -> list[GroupId]:
        """The groups that need this segment and none before it, in order."""
        with self._lock:
            return sorted(g for g, points in self._groups.items() if points.needs() == segment)

    def forget(self, first: int) -> None:
        """The segments before `first` are going."""
        with self._lock:
            for points in self._groups.values():
                points.forget(first)
            for segment in [number for number in self._segments if number < first]:
                del self._segments[segment]

    def regions(self, group: GroupId, first: int) -> list[Region]:
        """Where the entries from `first` on are; empty if it is not known where `first` is."""
        with self._lock:
            points = self._groups.get(group)
            found = points.from_(first) if points is not None else []
            if points is None or not found:
                return []
            stops = [point.first for point in found[1:]] + [points.last + 1]
            return [
                Region(point, stop, *self._segments[point.segment])
                for point, stop in zip(found, stops, strict=True)
            ]

    def __len__(self) -> int:
        """How many points there are."""
        return sum(len(points.points) for points in self._groups.values())

    def _points(self, group: GroupId) -> _Points:
        points = self._groups.get(group)
        if points is None:
            points = self._groups[group] = _Points()
        return points


class _Points:
    """The points of one group, by index, which is also by place in the log. Entries before
    `readable` cannot be found any more."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.last = 0
        self.compacted = 0
        self.readable = 0
        self._bytes = 0
        self._spacing = SPACING_BYTES

    def add(self, record: EntryRecord, place: int, batch: Batch) -> None:
        index, points = record.entry.index, self.points
        again = index <= self.last
        if again:
            del points[bisect_left(points, index, key=_first) :]
        fixed = again or not points or points[-1].segment != batch.segment
        if fixed or self._bytes >= self._spacing:
            points.append(Point(index, batch.segment, batch.offset, batch.crc, place, fixed))
            self._bytes = 0
            if len(points) > POINTS_MAX:
                self._thin()
        self._bytes += ENTRY_BYTES + len(record.entry.payload)
        self.last = index

    def compact(self, index: int) -> None:
        self.compacted = index
        if index > self.last:
            # What is there may be another leader's.
            self.points.clear()
            self.last = index

    def needs(self) -> int | None:
        if self.last <= self.compacted or not self.points:
            return None
        place = bisect_right(self.points, self.compacted + 1, key=_first) - 1
        return self.points[max(place, 0)].segment

    def forget(self, first: int) -> None:
        segments = [point.segment for point in self.points]
        del self.points[: bisect_left(segments, first)]

    def from_(self, first: int) -> list[Point]:
        place = bisect_right(self.points, first, key=_first) - 1
        if place < 0 or not self.readable <= first <= self.last:
            return []
        return self.points[place:]

    def _thin(self) -> None:
        self._spacing *= 2
        self.points = [point for place, point in enumerate(self.points) if point.fixed or place % 2]
        if len(self.points) > POINTS_MAX * 3 // 4:  # nearly all of them truncations
            half = len(self.points) // 2
            old, self.points = self.points[:half], self.points[half:]
            self.readable = self.points[0].first
            firsts = {point.segment: point for point in reversed(old)}
            self.points[:0] = sorted(firsts.values())


class Terms:
    """The terms of the entries that no snapshot replaces, of every group: whether a snapshot goes
    on with what the log has or replaces all of it (paper §7)."""

    def __init__(self) -> None:
        self._runs: dict[GroupId, list[tuple[int, int]]] = {}
        self._last: dict[GroupId, int] = {}
        self._compacted: dict[GroupId, int] = {}

    def admit(self, records: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """The records as they are to be written: before a snapshot whose last entry the log has in
        another term stands a DropRecord. Who reads the log without its first segments could not
        tell otherwise."""
        conflicts: list[tuple[int, GroupId]] = []
        for place, record in enumerate(records):
            if isinstance(record, EntryRecord):
                self._append(record.group, record.entry.index, record.entry.term)
            elif isinstance(record, SnapshotRecord):
                if self._conflicts(record.group, record.snapshot):
                    conflicts.append((place, record.group))
            elif isinstance(record, DropRecord):
                self._forget(record.group)
        if not conflicts:
            return records
        written = list(records)
        for place, group in reversed(conflicts):
            written.insert(place, DropRecord(group))
        return written

    def _append(self, group: GroupId, index: int, term: int) -> None:
        runs = self._runs.setdefault(group, [])
        if index <= self._last.get(group, 0):
            del runs[bisect_left(runs, (index, 0)) :]
        if not runs or runs[-1][1] != term:
            runs.append((index, term))
        self._last[group] = index

    def _conflicts(self, group: GroupId, snapshot: Snapshot) -> bool:
        runs, index = self._runs.setdefault(group, []), snapshot.index
        if index <= self._compacted.get(group, 0):
            return False  # nothing new; one that goes back is noticed when the log is read
        self._compacted[group] = index
        if index > self._last.get(group, 0):
            runs.clear()
            self._last[group] = index
            return False
        # Entries before the first one known lie in a segment that was removed: they are right.
        place = bisect_right(runs, index, key=_start) - 1
        if place >= 0 and runs[place][1] != snapshot.term:
            runs.clear()
            self._last[group] = index
            return True
        del runs[: max(place, 0)]
        return False

    def _forget(self, group: GroupId) -> None:
        self._runs.pop(group, None)
        self._last.pop(group, None)
        self._compacted.pop(group, None)
