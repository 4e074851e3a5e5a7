"""Between the turns of an engine and the disk: snapshots, hashes, and reads of what is old.

The law: what the disk has to tell, the engine hears within a turn, and the disk's work takes at
most `SLICE_S` of one. The same code runs in a node and in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..protocols.records import Entry, GroupId, Snapshot
from .disk import DiskFull
from .engine import Engine
from .log import Log
from .snapshot_tasks import Execute, SnapshotTasks
from .snapshots import SnapshotStore

SLICE_S, REST_S = 0.002, 0.006
"""A slice of pulling, and how long clients then have the processor before the next one: the nodes
take their snapshots at the same entry, and may share their machine."""


class Keeping:
    """Carries out the disk tasks of an engine's effects; `schedule` asks for a turn, in which
    `tell` is to be called first and `work` last. It is the `Receiver` of its tasks."""

    def __init__(
        self,
        store: SnapshotStore,
        log: Log,
        *,
        execute: Execute,
        clock: Callable[[], float],
        schedule: Callable[[], None],
        on_full: Callable[[DiskFull], None],
        on_failed: Callable[[Exception], None],
    ) -> None:
        self._tasks = SnapshotTasks(store, log, self, execute, clock)
        self._schedule = schedule
        self._came: list[tuple[str, tuple[Any, ...]]] = []
        self._rests_until: float | None = None
        self.on_full = on_full
        self.on_failed = on_failed

    def carry_out(self, tasks: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        """Begin what a turn wants of the disk."""
        for name, arguments in tasks:
            getattr(self._tasks, name)(*arguments)
        self._schedule()

    def work(self, now: float) -> None:
        """Pull streams for a slice of time; the rest in later turns, from `deadline` on."""
        if self._rests_until is None or now >= self._rests_until:
            more = self._tasks.work(now + SLICE_S)
            self._rests_until = now + SLICE_S + REST_S if more else None

    def deadline(self) -> float | None:
        """When a turn is wanted to go on pulling; None while nothing is to be pulled."""
        return self._rests_until

    def tell(self, engine: Engine) -> None:
        """Within a turn: hand over what came since the last one."""
        if self._came:
            came, self._came = self._came, []
            for name, arguments in came:
                getattr(engine.log, name)(*arguments)

    def close(self) -> None:
        self._tasks.close()

    # What the tasks and the log's writer tell

    def on_saved(self, group: GroupId, snapshot: Snapshot) -> None:
        self._hear("on_saved", group, snapshot)

    def on_save_failed(self, group: GroupId) -> None:
        self._hear("on_save_failed", group)

    def on_digested(self, group: GroupId, index: int, digest: bytes) -> None:
        self._hear("on_digested", group, index, digest)

    def on_fetched(self, group: GroupId, first: int, entries: Sequence[Entry]) -> None:
        self._hear("on_fetched", group, first, entries)

    def on_snapshot_fetched(
        self, group: GroupId, snapshot: Snapshot, offset: int, data: bytes
    ) -> None:
        self._hear("on_snapshot_fetched", group, snapshot, offset, data)

    def on_long(self, groups: Sequence[GroupId]) -> None:
        self._hear("compact", groups)

    def on_ready(self) -> None:
        self._schedule()

    def _hear(self, name: str, *arguments: Any) -> None:
        self._came.append((name, arguments))
        self._schedule()
