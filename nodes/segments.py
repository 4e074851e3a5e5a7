"""The files of a log's segments: made ahead, begun, removed.

The law: a segment has its full size on disk before it is begun, its header before the first batch;
segments are removed oldest first. So what there is is a row without a gap.
"""

from __future__ import annotations

import threading

from ..protocols.records import NodeId
from . import wal
from .disk import Disk, DiskFull, disk_error


def segment_name(number: int) -> str:
    """The name of a segment's file."""
    return f"{number:04d}.wal"


def segment_number(name: str) -> int:
    """The number of a segment, from the name of its file; raises `ForeignLog`."""
    stem = name.removesuffix(".wal")
    if not stem.isdecimal() or segment_name(int(stem)) != name:
        raise wal.ForeignLog(f"{name!r} is not a segment of a log: move it out of the directory")
    return int(stem)


class Segments:
    """`first` is the oldest segment there is, `released` the oldest that is needed."""

    def __init__(self, disk: Disk, segment_bytes: int, first_segment_bytes: int) -> None:
        self.first = 1
        self.released = 1
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._first_segment_bytes = min(first_segment_bytes, segment_bytes)
        self._segment: wal.Segment | None = None
        self._making = threading.Lock()
        self._made: tuple[int, int] | None = None

    def numbers(self) -> list[int]:
        """The segments on the disk, sorted."""
        return sorted(segment_number(n) for n in self._disk.names() if n.endswith(".wal"))

    def begin(self, first: int, segment: wal.Segment) -> None:
        """The log is open: its segments begin with `first`, and it goes on in `segment`."""
        self.first, self._segment = first, segment

    @property
    def count(self) -> int:
        """How many segments there are, the one made ahead among them."""
        if self._segment is None:
            return 0
        return self._segment.header.number - self.first + 1 + (self._made is not None)

    @property
    def wants_next(self) -> bool:
        """True if the segment is half full and no next one made."""
        return self._segment is not None and self._segment.used >= 0.5 and self._made is None

    def roll(
        self, node: NodeId, incarnation: int, last: wal.Segment | None, payload: int
    ) -> wal.Segment:
        """Begin the segment after `last`, with room for so many bytes of payload."""
        number = last.header.number + 1 if last else 1
        with self._making:
            size = self._make(number, wal.size_for(payload))
            header = wal.Header(
                node,
                incarnation,
                number,
                size,
                chained=last.crc if last else 0,
                relaxed=last.relaxed if last else False,
            )
            sector = wal.encode_header(header)
            self._disk.write(segment_name(number), 0, sector)
            self._disk.sync(segment_name(number))
            self._segment = wal.Segment(*wal.decode_header(number, sector))
        return self._segment

    def _make(self, number: int, least: int) -> int:
        """The size of the file of segment `number`, made now if it was not made ahead."""
        made, self._made = self._made, None
        if made is not None:
            if made[1] >= least:
                return made[1]
            self._disk.remove(segment_name(number))
        size = max(least, self._size(number))
        try:
            self._disk.create(segment_name(number), size)
        except OSError as error:
            smaller = max(least, self._first_segment_bytes)
            if smaller >= size or not isinstance(disk_error("", error), DiskFull):
                raise
            size = smaller
            self._disk.create(segment_name(number), size)
        return size

    def _size(self, number: int) -> int:
        doubled = self._first_segment_bytes << min(number - 1, 40)
        return -(-min(doubled, self._segment_bytes) // wal.SECTOR) * wal.SECTOR

    def prepare(self) -> None:
        """Make the next segment ahead of need; see `Log.prepare`."""
        with self._making:
            segment = self._segment
            if segment is None or not self.wants_next:
                return  # a write was quicker
            number = segment.header.number + 1
            try:
                self._disk.create(segment_name(number), self._size(number))
            except OSError as error:
                failure = disk_error("making a segment of the log", error)
                if isinstance(failure, DiskFull):
                    failure.room = segment.header.size - wal.position(segment.offset)
                raise failure from error
            self._made = (number, self._size(number))

    def release(self, first: int) -> None:
        """The log says that the segments before `first` are no longer needed."""
        self.released = max(self.released, first)

    def remove_released(self) -> None:
        """Remove what is no longer needed, oldest first. Raises `DiskFailed`."""
        try:
            while self.first < self.released:
                self._disk.remove(segment_name(self.first))
                self.first += 1
        except OSError as error:
            raise disk_error("removing a segment of the log", error) from error
