"""Writes the log in a thread of its own, so that a slow disk stops nobody.

The law: what was submitted is written in its order, and `on_durable` tells nothing that could still
be lost. Segments are made and removed in yet another thread: no write waits for that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from ..protocols.records import GroupId, Record, WriteNumber
from .disk import DiskError, DiskFull
from .log import Log

Write: TypeAlias = tuple[WriteNumber, Sequence[Record]]

TOLD_S = 1.0
"""A group that is asked to let go of the oldest segment has so long before it is asked again."""


class LogWriter:
    """Writes a log in a thread of its own, so that a slow disk stops nobody.

    Whatever is submitted while one batch is being synced becomes the next batch. `on_durable(n)`
    tells that every write up to n is durable; `on_failed(error)`, once, that the log ended and
    nothing more is written; `on_full(error)` that no next segment can be made and the log will
    end when `error.room` bytes are used up; `on_long(groups)` that the log is too long and these
    need its oldest segment (`Log.pinning`). All are handed to `call_soon_threadsafe`.

    What waits is bounded where it comes from, and never refused here: raft counts on it already.
    A follower gets no more than its leaders' windows, which only what is durable opens again; a
    leader appends no more than `Settings.uncommitted_bytes` a group; and the node takes no new
    work of clients while `backlog` is high.
    """

    def __init__(
        self,
        log: Log,
        on_durable: Callable[[WriteNumber], None],
        call_soon_threadsafe: Callable[..., Any],
        *,
        on_failed: Callable[[Exception], None],
        on_full: Callable[[DiskFull], None] | None = None,
        on_long: Callable[[list[GroupId]], None] | None = None,
    ) -> None:
        self.failed: Exception | None = None
        self.full = False
        """True while the disk has no space for the next segment."""
        self._log = log
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._on_full = on_full
        self._on_long = on_long
        self._told: tuple[int, float] = (0, 0.0)
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
        """Queue records to be written; from the loop's thread, with rising numbers. After a failure
        nothing is queued any more; `on_failed` tells."""
        if self.failed is not None:
            return
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
            self._shorten()
            self._tend()
        return go_on

    def _shorten(self) -> None:
        """Tell who keeps the log long: once for each oldest segment, then every second."""
        oldest, now = self._log.oldest, time.monotonic()
        if self._on_long is None or (oldest == self._told[0] and now < self._told[1] + TOLD_S):
            return
        groups = self._log.pinning()
        if groups:
            self._told = oldest, now
            self._call(self._on_long, groups)

    def _tend(self) -> None:
        """Have the next segment made while the present one is filled, and those removed that nobody
        needs, in yet another thread."""
        if self._maker is None:
            wants = self._log.wants_segment
            if not wants:
                self.full = False
            if self._log.release() or (wants and not self.full):
                self._maker = threading.Thread(target=self._maintain, name="coterie-log-segment")
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

    def _maintain(self) -> None:
        try:
            self._log.remove_released()
            if not self.full:
                self._log.prepare()
        except DiskError as error:
            self._maker_error = error
