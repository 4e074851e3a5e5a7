"""What raft asks of the disk beside the log's writes: snapshots kept, state hashed, pieces read.

The law: no turn is held up. Streams are pulled on the loop's thread, in `work`, as long as the
caller allows; whatever touches the disk runs where `execute` puts it. A snapshot is told of
(`on_saved`) only once it is on disk under its name. No clock and no thread of its own: the same
code runs in the simulator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from ..protocols.records import Entry, GroupId, Snapshot
from .disk import DiskFull, disk_error
from .log import Log
from .snapshots import BLOCK_BYTES, SYNC_BYTES, SnapshotStore, new_digest

WAITING_BYTES_MAX = 4 << 20
"""So much of a snapshot may wait for the disk; then its stream is not pulled."""

Execute: TypeAlias = Callable[[Callable[[], Any], Callable[[Any], None]], None]
"""Run the first elsewhere, one after the other, then hand what it returned to the second, on the
loop's thread."""


class Receiver(Protocol):
    """Who is told, on the loop's thread. The first five are those of `LogPlugin`."""

    def on_saved(self, group: GroupId, snapshot: Snapshot) -> None: ...

    def on_save_failed(self, group: GroupId) -> None: ...

    def on_digested(self, group: GroupId, index: int, digest: bytes) -> None: ...

    def on_fetched(self, group: GroupId, first: int, entries: Sequence[Entry]) -> None: ...

    def on_snapshot_fetched(
        self, group: GroupId, snapshot: Snapshot, offset: int, data: bytes
    ) -> None: ...

    def on_ready(self) -> None:
        """`work` has something to do again."""
        ...

    def on_full(self, error: DiskFull) -> None:
        """The disk is full: a snapshot was given up (`on_save_failed`), nothing else is lost."""
        ...

    def on_failed(self, error: Exception) -> None:
        """The disk failed, or what was read is damaged: the node must end."""
        ...


class _Stream:
    """A stream that is being pulled. `ended`: nothing more of it is to be written."""

    def __init__(self, group: GroupId, index: int, term: int, stream: Iterator[bytes]) -> None:
        self.group = group
        self.index = index
        self.term = term
        self.stream = stream
        self.digest = new_digest()
        self.size = 0
        self.ended = False
        self.waiting = 0

    def take(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.size += len(chunk)


class _Save(_Stream):
    """A snapshot that is being written; `name` is that of its file once it was begun."""

    def __init__(self, group: GroupId, index: int, term: int, stream: Iterator[bytes]) -> None:
        super().__init__(group, index, term, stream)
        self.buffer = bytearray()
        self.name = ""
        self.unsynced = 0

    def take(self, chunk: bytes) -> None:
        super().take(chunk)
        self.buffer += chunk

    def block(self) -> bytes:
        """The next block to be written."""
        data = bytes(self.buffer[:BLOCK_BYTES])
        del self.buffer[:BLOCK_BYTES]
        return data


class SnapshotTasks:
    """Carries out `save`, `digest`, `fetch` and `fetch_snapshot` of `LogPort`.

    `clock` gives seconds, for `work`. All methods are called on the loop's thread.
    """

    def __init__(
        self,
        store: SnapshotStore,
        log: Log,
        receiver: Receiver,
        execute: Execute,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._log = log
        self._receiver = receiver
        self._execute = execute
        self._clock = clock
        self._pulled: deque[_Stream] = deque()
        self._saves: dict[GroupId, _Save] = {}

    def save(self, group: GroupId, index: int, term: int, stream: Iterator[bytes]) -> None:
        """Keep a snapshot: `on_saved`. One of the group that is not finished is given up."""
        self._give_up(group)
        save = self._saves[group] = _Save(group, index, term, stream)
        self._pulled.append(save)

    def digest(self, group: GroupId, index: int, stream: Iterator[bytes]) -> None:
        """Hash a stream: `on_digested`."""
        self._pulled.append(_Stream(group, index, 0, stream))

    def fetch(self, group: GroupId, first: int, bytes_max: int) -> None:
        """Read entries from the log: `on_fetched`."""
        self._run(
            lambda: self._log.read(group, first, bytes_max),
            lambda entries: self._receiver.on_fetched(group, first, entries),
        )

    def fetch_snapshot(
        self, group: GroupId, snapshot: Snapshot, offset: int, bytes_max: int
    ) -> None:
        """Read a piece of a snapshot: `on_snapshot_fetched`."""
        self._run(
            lambda: self._store.read(group, snapshot, offset, bytes_max),
            lambda data: self._receiver.on_snapshot_fetched(group, snapshot, offset, data),
        )

    def drop(self, group: GroupId) -> None:
        """The group was given up, and its `DropRecord` is on disk: its snapshots go."""
        self._give_up(group)
        self._pulled = deque(stream for stream in self._pulled if stream.group != group)
        self._run(lambda: self._store.drop(group), _ignore)

    def work(self, until_s: float) -> bool:
        """Pull streams until `until_s`, at least one chunk. True if there is more to do at once;
        else `on_ready` tells when there is. `on_digested` is called from here."""
        while (stream := self._next()) is not None:
            chunk = next(stream.stream, None)
            if chunk is None:
                self._pulled.remove(stream)
                self._complete(stream)
            else:
                stream.take(chunk)
                if isinstance(stream, _Save):
                    while len(stream.buffer) >= BLOCK_BYTES:
                        self._write(stream)
            if self._clock() >= until_s:
                break
        return self._next() is not None

    def close(self) -> None:
        """Give up what is not finished."""
        self._pulled.clear()
        for save in self._saves.values():
            save.ended = True

    def _next(self) -> _Stream | None:
        """The first stream that does not wait for the disk."""
        return next((s for s in self._pulled if s.waiting < WAITING_BYTES_MAX), None)

    def _give_up(self, group: GroupId) -> None:
        save = self._saves.pop(group, None)
        if save is not None:
            save.ended = True
            if save in self._pulled:
                self._pulled.remove(save)
            self._run(lambda: self._abandon(save), _ignore)

    def _complete(self, stream: _Stream) -> None:
        """All of a stream was pulled."""
        digest = stream.digest.digest()
        if not isinstance(stream, _Save):
            self._receiver.on_digested(stream.group, stream.index, digest)
            return
        if stream.buffer:
            self._write(stream)
        snapshot = Snapshot(stream.index, stream.term, stream.size, digest)
        self._run(
            lambda: self._finish(stream, snapshot),
            lambda _: self._finished(stream, snapshot),
            stream,
        )

    def _finished(self, save: _Save, snapshot: Snapshot) -> None:
        del self._saves[save.group]
        self._receiver.on_saved(save.group, snapshot)

    def _write(self, save: _Save) -> None:
        block = save.block()
        save.waiting += len(block)
        self._run(lambda: self._append(save, block), lambda _: self._written(save, block), save)

    def _written(self, save: _Save, block: bytes) -> None:
        waited = save.waiting >= WAITING_BYTES_MAX
        save.waiting -= len(block)
        if waited and save.waiting < WAITING_BYTES_MAX:
            self._receiver.on_ready()

    # Elsewhere

    def _run(
        self,
        job: Callable[[], Any],
        done: Callable[[Any], None],
        save: _Save | None = None,
    ) -> None:
        """Have a job executed; what it raises ends the save it belongs to."""

        def guarded() -> Any:
            if save is not None and save.ended:
                return None
            try:
                return job()
            except Exception as error:  # also a defect of ours: the node must hear of it and end
                if save is not None:
                    save.ended = True
                if isinstance(error, OSError):
                    return disk_error("keeping a snapshot", error)
                return error

        def told(result: Any) -> None:
            if isinstance(result, Exception):
                self._failed(result, save)
            elif save is None or not save.ended:
                done(result)

        self._execute(guarded, told)

    def _failed(self, error: Exception, save: _Save | None) -> None:
        if not isinstance(error, DiskFull) or save is None:
            self._receiver.on_failed(error)
            return
        if self._saves.get(save.group) is save:
            del self._saves[save.group]
            self._receiver.on_save_failed(save.group)
        if save in self._pulled:
            self._pulled.remove(save)
        self._run(lambda: self._abandon(save), _ignore)
        self._receiver.on_full(error)

    def _append(self, save: _Save, block: bytes) -> None:
        if not save.name:
            save.name = self._store.new_name(save.group)
            self._store.begin(save.name)
        save.unsynced += len(block)
        sync = save.unsynced >= SYNC_BYTES
        self._store.append(save.name, block, sync)
        if sync:
            save.unsynced = 0

    def _finish(self, save: _Save, snapshot: Snapshot) -> None:
        self._store.finish(save.name, save.group, snapshot, self._log.snapshot(save.group))
        save.name = ""

    def _abandon(self, save: _Save) -> None:
        if save.name:
            self._store.abandon(save.name)
            save.name = ""


def _ignore(result: Any) -> None:
    """Nobody waits for it."""
