"""The log of a node: what all its raft groups must not forget, in one row of segments.

The law: once `write` returned ("fsync"), its records are found by every later `open`, in
order; a write or sync that failed is never repeated, and nothing is written after it. In
"relaxed" only batches that change a term or a vote are synced; a log that was not closed then
says so (`unclean`) and its node must come back as a learner.

Every segment begins with the state of every group, so that old segments can be dropped once
their entries are in snapshots. Compaction will stand here: `Log._roll` is where a group that pins
the oldest segment is to be snapshotted or copied forward, `wal.recover` where the first segment
is no longer number 1.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Literal, NamedTuple, TypeAlias

from ..protocols.records import (
    GroupId,
    GroupState,
    NodeId,
    Record,
    StateRecord,
    WriteNumber,
)
from . import wal
from .disk import MIB, Disk, DiskError, DiskFull, disk_error
from .replay import replay

Mode: TypeAlias = Literal["fsync", "relaxed"]


Write: TypeAlias = tuple[WriteNumber, Sequence[Record]]


class Batch(NamedTuple):
    """Records ready to be written, and their encoding."""

    records: Sequence[Record]
    payload: bytes


class Log:
    """The segments of one node on one disk.

    Segments grow from `first_segment_bytes` to `segment_bytes`, doubling: making one means
    writing that many zeros. Not thread-safe, but for `prepare`; the order is `open`, then `write`
    as often as wanted, then `close`.
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
        self._segment_bytes = segment_bytes
        self._first_segment_bytes = min(first_segment_bytes, segment_bytes)
        self._states: dict[GroupId, StateRecord] = {}
        self._segment: wal.Segment | None = None
        self._making = threading.Lock()
        self._made: tuple[int, int] | None = None
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
        numbers = sorted(_number(name) for name in self._disk.names() if name.endswith(".wal"))
        found = wal.recover(numbers, lambda number: self._disk.read(_name(number)))
        if found.segment is not None:
            self._check_owner(found.segment.header)
        groups = replay(found.batches)
        for batch in found.batches:
            self._track(batch.records)
        if found.blank is not None:
            self._disk.remove(_name(found.blank))
        self._segment = found.segment
        self.fresh = found.segment is None
        start, self.torn_bytes = found.torn
        if self._segment is None:
            self._roll(0)
            self._relax()
            return groups
        if self.torn_bytes:
            name = _name(self._segment.header.number)
            self._disk.write(name, start, bytes(self.torn_bytes))
            self._disk.sync(name)
        self.unclean = self._segment.relaxed
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

    def encode(self, records: Sequence[Record]) -> Batch:
        """Encode records for one `write`."""
        return Batch(records, wal.encode_records(records))

    def write(self, batch: Batch) -> None:
        """Write a batch and, by the mode, sync it. Blocks. Raises `DiskFull` or `DiskFailed`;
        from then on every call raises the same."""
        self._append(batch, self.mode == "fsync" or self._changes_vote(batch.records))
        self._track(batch.records)

    def _append(self, batch: Batch, sync: bool, kind: int = wal.RECORDS) -> None:
        if self._error is not None:
            raise self._error
        try:
            segment, records, payload = self._place(batch)
            where, data = segment.append(kind, len(records), payload)
            name = _name(segment.header.number)
            self._disk.write(name, where, data)
            if sync:
                self._disk.sync(name)
        except OSError as error:
            self._error = disk_error("writing the log", error)
            raise self._error from error

    def _place(self, batch: Batch) -> tuple[wal.Segment, Sequence[Record], bytes]:
        """The segment the batch goes to, and the batch; the states lead it in an empty segment."""
        segment = self._segment
        if segment is None:
            raise RuntimeError("the log is not open: call open() first")
        if segment.empty or not segment.fits(len(batch.payload)):
            if self._states:
                batch = self.encode([*self._states.values(), *batch.records])
            if not segment.fits(len(batch.payload)):
                segment = self._roll(len(batch.payload))
        return segment, batch.records, batch.payload

    def _roll(self, payload: int) -> wal.Segment:
        """Begin the next segment, with room for so many bytes of payload."""
        last = self._segment
        if last is not None:
            self._disk.sync(_name(last.header.number))  # relaxed: all but the last one is whole
        number = last.header.number + 1 if last else 1
        with self._making:
            size = self._make(number, wal.size_for(payload))
            header = wal.Header(
                self.node,
                self.incarnation,
                number,
                size,
                chained=last.crc if last else 0,
                relaxed=last.relaxed if last else False,
            )
            sector = wal.encode_header(header)
            self._disk.write(_name(number), 0, sector)
            self._disk.sync(_name(number))
            self._segment = wal.Segment(*wal.decode_header(number, sector))
        return self._segment

    def _make(self, number: int, least: int) -> int:
        """The size of the file of segment `number`, made now if it was not made ahead."""
        made, self._made = self._made, None
        if made is not None:
            if made[1] >= least:
                return made[1]
            self._disk.remove(_name(number))
        size = max(least, self._size(number))
        try:
            self._disk.create(_name(number), size)
        except OSError as error:
            smaller = max(least, self._first_segment_bytes)
            if smaller >= size or not isinstance(disk_error("", error), DiskFull):
                raise
            size = smaller
            self._disk.create(_name(number), size)
        return size

    def _size(self, number: int) -> int:
        doubled = self._first_segment_bytes << min(number - 1, 40)
        return -(-min(doubled, self._segment_bytes) // wal.SECTOR) * wal.SECTOR

    @property
    def wants_segment(self) -> bool:
        """True if it is time to call `prepare`: the segment is half full and no next one made."""
        return self._segment is not None and self._segment.used >= 0.5 and self._made is None

    def prepare(self) -> None:
        """Make the next segment ahead of need. May run in another thread than `write`.

        Raises `DiskFull` with the room that is left (writing goes on until it is used up), or
        `DiskFailed`.
        """
        with self._making:
            segment = self._segment
            if segment is None or not self.wants_segment:
                return  # a write was quicker
            number = segment.header.number + 1
            try:
                self._disk.create(_name(number), self._size(number))
            except OSError as error:
                failure = disk_error("making a segment of the log", error)
                if isinstance(failure, DiskFull):
                    failure.room = segment.header.size - wal.position(segment.offset)
                raise failure from error
            self._made = (number, self._size(number))

    def close(self) -> None:
        """End the log. A relaxed one is synced and marked as closed, if it was opened clean."""
        if self._segment is None or self._error is not None:
            return
        if self._segment.relaxed and not self.unclean:
            self._append(self.encode(()), sync=True, kind=wal.CLOSED)
        self._segment = None

    def _changes_vote(self, records: Sequence[Record]) -> bool:
        for record in records:
            if isinstance(record, StateRecord):
                known = self._states.get(record.group)
                if known is None or (known.term, known.vote) != (record.term, record.vote):
                    return True
        return False

    def _track(self, records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, StateRecord):
                self._states[record.group] = record


def _name(number: int) -> str:
    return f"{number:04d}.wal"


def _number(name: str) -> int:
    stem = name.removesuffix(".wal")
    if not stem.isdecimal() or _name(int(stem)) != name:
        raise wal.ForeignLog(f"{name!r} is not a segment of a log: move it out of the directory")
    return int(stem)


class LogWriter:
    """Writes a log in a thread of its own, so that a slow disk stops nobody.

    Whatever is submitted while one batch is being synced becomes the next batch. `on_durable(n)`
    tells that every write up to n is durable; `on_failed(error)`, once, that the log ended and
    nothing more is written; `on_full(error)` that no next segment can be made and the log will
    end when `error.room` bytes are used up. All are handed to `call_soon_threadsafe`.
    """

    def __init__(
        self,
        log: Log,
        on_durable: Callable[[WriteNumber], None],
        call_soon_threadsafe: Callable[..., Any],
        *,
        on_failed: Callable[[Exception], None],
        on_full: Callable[[DiskFull], None] | None = None,
        limit: int = 65_536,
    ) -> None:
        self.limit = limit
        """How many records may wait; the node takes no new work before `backlog` gets there."""
        self.failed: Exception | None = None
        self.full = False
        """True while the disk has no space for the next segment."""
        self._log = log
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._on_full = on_full
        self._call = call_soon_threadsafe
        self._queue: SimpleQueue[Write | None] = SimpleQueue()
        self._submitted = 0
        self._written = 0
        self._times: deque[float] = deque(maxlen=1024)
        self._maker: threading.Thread | None = None
        self._maker_error: DiskError | None = None
        self._thread = threading.Thread(target=self._run, name="coterie-log", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Records submitted and not yet durable."""
        return self._submitted - self._written

    def submit(self, write_number: WriteNumber, records: Sequence[Record]) -> None:
        """Queue records to be written; from the loop's thread, with rising numbers.

        Raises BufferError if more than `limit` records would wait: the node did not push back.
        After a failure nothing is queued any more; `on_failed` tells.
        """
        if self.failed is not None:
            return
        if self.backlog and self.backlog + len(records) > self.limit:
            raise BufferError(f"{self.backlog} records wait for the disk: refuse new work earlier")
        self._submitted += len(records)
        self._queue.put((write_number, records))

    def write_times(self) -> tuple[float, float]:
        """Median and 99th percentile of the last 1,024 writes with their sync, in seconds."""
        times = sorted(self._times)
        if not times:
            return 0.0, 0.0
        return times[len(times) // 2], times[len(times) * 99 // 100]

    def close(self) -> None:
        """Write what is queued, close the log, end the thread. Idempotent."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._write_all(*self._take()):
                pass
            self._log.close()
        except Exception as error:  # also a defect of ours: the node must hear of it and end
            self.failed = error
            self._call(self._on_failed, error)
        if self._maker is not None:
            self._maker.join()

    def _take(self) -> tuple[list[Write], bool]:
        """Wait for a write, then take all there are; and whether to go on after them."""
        taken: list[Write] = []
        write = self._queue.get()
        try:
            while write is not None:
                taken.append(write)
                write = self._queue.get_nowait()
        except Empty:
            return taken, True
        return taken, False

    def _write_all(self, writes: list[Write], go_on: bool) -> bool:
        """Write all that was taken as one batch."""
        if writes:
            records = [record for _, records in writes for record in records]
            if records:
                began = time.perf_counter()
                self._log.write(self._log.encode(records))
                self._times.append(time.perf_counter() - began)
                self._written += len(records)
            self._call(self._on_durable, writes[-1][0])
            self._make_ahead()
        return go_on

    def _make_ahead(self) -> None:
        """Have the next segment made while the present one is filled, in yet another thread."""
        if self._maker is None:
            if not self._log.wants_segment:
                self.full = False
            elif not self.full:
                self._maker = threading.Thread(target=self._prepare, name="coterie-log-segment")
                self._maker.start()
        elif not self._maker.is_alive():
            self._maker = None
            error, self._maker_error = self._maker_error, None
            if isinstance(error, DiskFull):
                self.full = True
                if self._on_full is not None:
                    self._call(self._on_full, error)
            elif error is not None:
                raise error

    def _prepare(self) -> None:
        try:
            self._log.prepare()
        except DiskError as error:
            self._maker_error = error
