"""A thread for what touches the disk and may take its time: snapshots, reads of old entries.

The law: jobs run one after the other, in the order they came, and what they return is handed over
on the loop's thread. Jobs raise nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias

Job: TypeAlias = tuple[Callable[[], Any], Callable[[Any], None]]


class DiskThread:
    """`execute(job, done)` runs `job()` in the thread, then `done(result)` through
    `call_soon_threadsafe`. At most `limit` jobs may wait."""

    def __init__(self, call_soon_threadsafe: Callable[..., Any], *, limit: int = 4096) -> None:
        self._call = call_soon_threadsafe
        self._limit = limit
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="coterie-disk", daemon=True)
        self._thread.start()

    def execute(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Queue a job. Raises BufferError if too many wait: who asks did not bound itself."""
        if self._queue.qsize() >= self._limit:
            raise BufferError(f"{self._limit} jobs wait for the disk: ask for less at once")
        self._queue.put((job, done))

    def close(self) -> None:
        """Do what is queued, end the thread. Idempotent."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (queued := self._queue.get()) is not None:
            job, done = queued
            self._call(done, job())
