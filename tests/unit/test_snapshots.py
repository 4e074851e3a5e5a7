"""Snapshots on disk: whole under their name or not there, and never the one the log names gone."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import FailingDisk, MemoryDisk

from coterie.nodes.disk import Disk, DiskFailed, DiskFull, FileDisk
from coterie.nodes.disk_thread import DiskThread
from coterie.nodes.log import Log
from coterie.nodes.simulation.disk import SimulatedDisk
from coterie.nodes.snapshot_tasks import WAITING_BYTES_MAX, Execute, SnapshotTasks
from coterie.nodes.snapshots import (
    BLOCK_BYTES,
    CorruptSnapshot,
    SnapshotStore,
    file_name,
    new_digest,
    parse_name,
)
from coterie.nodes.wal import CorruptLog
from coterie.protocols.records import Entry, EntryRecord, Snapshot, SnapshotRecord

DEADLINE_S = 30


def snapshot_of(data: bytes, index: int = 7, term: int = 2) -> Snapshot:
    digest = new_digest()
    digest.update(data)
    return Snapshot(index, term, len(data), digest.digest())


def put(
    store: SnapshotStore, data: bytes, index: int = 7, named: Snapshot | None = None
) -> Snapshot:
    snapshot = snapshot_of(data, index)
    name = store.new_name(1)
    store.begin(name)
    store.append(name, data, sync=False)
    store.finish(name, 1, snapshot, named)
    return snapshot


@given(
    st.integers(0, 2**31), st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**63),
    st.binary(min_size=16, max_size=16),
)  # fmt: skip
def test_a_name_tells_all(group: int, index: int, term: int, size: int, digest: bytes) -> None:
    snapshot = Snapshot(index, term, size, digest)
    assert parse_name(file_name(group, snapshot)) == (group, snapshot)


@pytest.mark.parametrize(
    "name", ["lock", "1-2-3-4-zz.snapshot", "01-2-3-4-00.snapshot", "1-2-3-4.snapshot", "0001.wal"]
)
def test_what_is_no_snapshot_is_left_alone(name: str) -> None:
    assert parse_name(name) is None
    disk = MemoryDisk()
    disk.create(name, 0)
    SnapshotStore(disk).clean({})
    assert disk.names() == [name]


def test_the_last_two_are_kept_and_the_one_the_log_names() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(disk)
    first = put(store, b"first", 1)
    kept = [put(store, b"later %d" % index, index, first) for index in range(2, 6)]
    assert disk.names() == sorted(file_name(1, each) for each in (first, *kept[-2:]))
    put(store, b"last", 9, kept[-1])
    assert len(disk.names()) == 2
    store.drop(2)
    assert len(disk.names()) == 2
    store.drop(1)
    assert disk.names() == []


def test_the_one_just_written_is_kept_though_there_are_later_ones() -> None:
    """The group's copy was given up and begun anew before the old one's files were removed."""
    store = SnapshotStore(MemoryDisk())
    put(store, b"old", 900)
    put(store, b"older", 1000)
    anew = put(store, b"anew", 800)
    assert store.read(1, anew, 0, 10) == b"anew"


def test_the_start_cleans_up() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(disk)
    every = [put(store, b"%d" % index, index, None) for index in (1, 2)]
    for index in (3, 4, 5):
        every.append(snapshot_of(b"%d" % index, index))
        disk.create(file_name(1, every[-1]), 1)
    disk.create(file_name(2, every[0]), 0)
    store.begin(store.new_name(1))
    SnapshotStore(disk).clean({1: every[3]})
    assert disk.names() == sorted(file_name(1, each) for each in every[2:4])
    SnapshotStore(disk).clean({})
    assert disk.names() == []


def test_the_start_refuses_to_go_on_without_what_the_log_names() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(disk)
    put(store, b"other", 1)
    with pytest.raises(CorruptSnapshot, match=r"missing.*joins as a learner") as caught:
        store.clean({1: snapshot_of(b"named")})
    assert isinstance(caught.value, CorruptLog)
    assert len(disk.names()) == 1, "nothing is removed then"


def test_a_snapshot_is_read_as_it_was_written() -> None:
    data = random.Random(1).randbytes(2 * BLOCK_BYTES + 5)
    store = SnapshotStore(MemoryDisk())
    snapshot = put(store, data)
    blocks = list(store.open(1, snapshot))
    assert [len(block) for block in blocks] == [BLOCK_BYTES, BLOCK_BYTES, 5]
    assert b"".join(blocks) == data
    assert store.read(1, snapshot, 100, 50) == data[100:150]
    assert store.read(1, snapshot, len(data), 50) == b""
    assert store.read(2, snapshot, 0, 50) == b""


def test_every_changed_byte_is_noticed() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(disk)
    data = bytes(range(200))
    snapshot = put(store, data)
    (file,) = disk.files.values()
    for at, bit in itertools.product(range(len(data)), range(8)):
        file[at] ^= 1 << bit
        with pytest.raises(CorruptSnapshot, match="digest"):
            list(store.open(1, snapshot))
        file[at] ^= 1 << bit
    for damaged in (data[:-1], data + b"\0", b""):
        file[:] = damaged
        with pytest.raises(CorruptSnapshot, match="bytes"):
            list(store.open(1, snapshot))
    file[:] = data
    assert b"".join(store.open(1, snapshot)) == data


class Told:
    """Who hears of it."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, Snapshot]] = []
        self.save_failed: list[int] = []
        self.digests: list[tuple[int, int, bytes]] = []
        self.fetched: list[tuple[int, int, Sequence[Entry]]] = []
        self.pieces: list[tuple[int, Snapshot, int, bytes]] = []
        self.ready = 0
        self.full: list[DiskFull] = []
        self.failed: list[Exception] = []

    def on_saved(self, group: int, snapshot: Snapshot) -> None:
        self.saved.append((group, snapshot))

    def on_save_failed(self, group: int) -> None:
        self.save_failed.append(group)

    def on_digested(self, group: int, index: int, digest: bytes) -> None:
        self.digests.append((group, index, digest))

    def on_fetched(self, group: int, first: int, entries: Sequence[Entry]) -> None:
        self.fetched.append((group, first, entries))

    def on_snapshot_fetched(self, group: int, snapshot: Snapshot, offset: int, data: bytes) -> None:
        self.pieces.append((group, snapshot, offset, data))

    def on_ready(self) -> None:
        self.ready += 1

    def on_full(self, error: DiskFull) -> None:
        self.full.append(error)

    def on_failed(self, error: Exception) -> None:
        self.failed.append(error)


class Queue:
    """Executes when it is told to."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()

    def __call__(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((job, done))

    def run(self, count: int = 10**6) -> None:
        while self.jobs and count:
            job, done = self.jobs.popleft()
            done(job())
            count -= 1


def at_once(job: Callable[[], Any], done: Callable[[Any], None]) -> None:
    done(job())


class Bench:
    """Tasks over a disk; a clock that moves by 1 each time it is read."""

    def __init__(self, disk: Disk, execute: Execute = at_once) -> None:
        self.told = Told()
        self.log = Log(MemoryDisk(), node="n", incarnation=1, segment_bytes=4096)
        self.log.open()
        self.store = SnapshotStore(disk)
        clock = itertools.count().__next__
        self.tasks = SnapshotTasks(self.store, self.log, self.told, execute, clock)

    def work(self) -> None:
        while self.tasks.work(0):
            pass


def test_a_save_is_pulled_in_slices_and_told_when_it_is_named() -> None:
    disk = MemoryDisk()
    bench = Bench(disk)
    chunks = [random.Random(n).randbytes(100_000) for n in range(9)]
    pulled = 0

    def stream() -> Iterator[bytes]:
        nonlocal pulled
        for chunk in chunks:
            pulled += 1
            yield chunk

    bench.tasks.save(1, 7, 2, stream())
    assert pulled == 0
    assert bench.tasks.work(0)
    assert pulled == 1, "the time was over: one chunk"
    assert bench.tasks.work(3)
    assert 1 < pulled < 9
    assert not bench.told.saved
    bench.work()
    snapshot = snapshot_of(b"".join(chunks))
    assert bench.told.saved == [(1, snapshot)]
    assert disk.names() == [file_name(1, snapshot)]
    assert not disk.unsynced()
    assert list(bench.store.open(1, snapshot)) != []
    assert not bench.tasks.work(0)


def test_a_digest_is_that_of_the_snapshot_and_needs_no_file() -> None:
    disk = MemoryDisk()
    bench = Bench(disk)
    bench.tasks.digest(1, 7, iter([b"some ", b"state"]))
    bench.tasks.digest(1, 8, iter([b"other"]))
    bench.work()
    assert bench.told.digests == [
        (1, 7, snapshot_of(b"some state").digest),
        (1, 8, snapshot_of(b"other").digest),
    ]
    assert disk.names() == []


def test_a_slow_disk_stops_the_pulling_and_not_the_others() -> None:
    queue = Queue()
    bench = Bench(MemoryDisk(), queue)
    pulled = 0

    def stream() -> Iterator[bytes]:
        nonlocal pulled
        for _ in range(40):
            pulled += 1
            yield bytes(BLOCK_BYTES)

    bench.tasks.save(1, 7, 2, stream())
    bench.work()
    assert pulled * BLOCK_BYTES == WAITING_BYTES_MAX
    bench.tasks.digest(2, 1, iter([b"x"]))
    bench.work()
    assert bench.told.digests
    assert bench.told.ready == 0
    while not bench.told.saved:
        assert queue.jobs, "the disk is done, and nobody pulls"
        queue.run(1)
        if bench.told.ready:
            bench.told.ready = 0
            bench.work()
        assert len(queue.jobs) * BLOCK_BYTES <= WAITING_BYTES_MAX + BLOCK_BYTES
    assert pulled == 40


@pytest.mark.parametrize("steps", range(8))
def test_a_later_save_replaces_an_unfinished_one(steps: int) -> None:
    """Whatever of the first was done by then."""
    queue, disk = Queue(), MemoryDisk()
    bench = Bench(disk, queue)
    bench.tasks.save(1, 7, 2, iter([bytes(BLOCK_BYTES)] * 3))
    for _ in range(steps):
        bench.tasks.work(0)
        queue.run(1)
    first = list(bench.told.saved)
    bench.tasks.save(1, 8, 2, iter([b"second"]))
    bench.work()
    queue.run()
    second = snapshot_of(b"second", 8)
    assert bench.told.saved == [*first, (1, second)]
    assert file_name(1, second) in disk.names()
    assert all(parse_name(name) for name in disk.names()), "nothing unfinished is left"


def test_a_dropped_group_leaves_nothing() -> None:
    for steps in range(8):
        queue, disk = Queue(), MemoryDisk()
        bench = Bench(disk, queue)
        put(bench.store, b"old", 1)
        bench.tasks.save(1, 7, 2, iter([bytes(BLOCK_BYTES)] * 3))
        for _ in range(steps):
            bench.tasks.work(0)
            queue.run(1)
        bench.tasks.digest(1, 7, iter([b"x"]))
        saved = len(bench.told.saved)
        bench.tasks.drop(1)
        bench.work()
        queue.run()
        assert disk.names() == []
        assert len(bench.told.saved) == saved
        assert bench.told.digests == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_operation_may_fail(code: int, late: bool) -> None:
    for at in itertools.count(1):
        disk = MemoryDisk()
        failing = FailingDisk(disk, at, code=code, late=late, lasting=False)
        bench = Bench(failing)
        bench.tasks.save(1, 7, 2, iter([bytes(BLOCK_BYTES)] * 3))
        bench.work()
        if bench.told.saved:
            assert at > 6
            return
        if code == errno.EIO:
            assert [type(error) for error in bench.told.failed] == [DiskFailed]
        else:
            assert [type(error) for error in bench.told.full] == [DiskFull]
            assert bench.told.failed == []
            assert bench.told.save_failed == [1]
            assert not any(name.endswith("unfinished") for name in disk.names())
            bench.tasks.save(1, 8, 2, iter([b"the next one works"]))
            bench.work()
            assert [group for group, _ in bench.told.saved] == [1]


def test_a_defect_of_a_job_is_told() -> None:
    bench = Bench(MemoryDisk())
    bench.store.read = lambda *arguments: 1 // 0  # type: ignore[method-assign,assignment]
    bench.tasks.fetch_snapshot(1, snapshot_of(b""), 0, 10)
    assert [type(error) for error in bench.told.failed] == [ZeroDivisionError]


def test_entries_and_pieces_are_fetched() -> None:
    bench = Bench(MemoryDisk())
    entries = [Entry(index, 1, 0, 1, b"x") for index in range(1, 9)]
    bench.log.write(bench.log.encode([EntryRecord(1, entry) for entry in entries]))
    snapshot = put(bench.store, b"0123456789")
    bench.tasks.fetch(1, 3, 1 << 20)
    bench.tasks.fetch(1, 9, 1 << 20)
    assert bench.told.fetched == [(1, 3, entries[2:]), (1, 9, [])]
    bench.tasks.fetch_snapshot(1, snapshot, 4, 3)
    bench.tasks.fetch_snapshot(2, snapshot, 4, 3)
    assert bench.told.pieces == [(1, snapshot, 4, b"456"), (2, snapshot, 4, b"")]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60))
def test_a_crash_leaves_what_the_log_names(seed: int, steps: int) -> None:
    """Power is lost anywhere between a file's first byte, its name and its record in the log."""
    choose = random.Random(seed)
    disk, log_disk = (SimulatedDisk(random.Random(choose.random()), 1) for _ in range(2))
    queue = Queue()
    bench = Bench(disk, queue)
    bench.log = bench.tasks._log = Log(log_disk, node="n", incarnation=1, segment_bytes=4096)
    bench.log.open()
    log_disk.settle()
    index, contents, told = 0, dict[int, bytes](), 0
    for _ in range(steps):
        if choose.random() < 0.2:
            index += 1
            chunks = [choose.randbytes(choose.choice([10, 700])) for _ in range(4)]
            contents[index] = b"".join(chunks)
            bench.tasks.save(1, index, 1, iter(chunks))
        bench.tasks.work(0)
        if queue.jobs and choose.random() < 0.6:
            job, done = queue.jobs.popleft()
            result = job()
            if choose.random() < 0.1:
                break
            disk.settle()
            done(result)
        for _, snapshot in bench.told.saved[told:]:
            bench.log.write(bench.log.encode([SnapshotRecord(1, snapshot)]))
        if len(bench.told.saved) > told and choose.random() < 0.1:
            break
        told = len(bench.told.saved)
        log_disk.settle()
    disk.crash()
    log_disk.crash()
    groups = Log(log_disk, node="n", incarnation=1, segment_bytes=4096).open()
    named = {1: groups[1].snapshot} if 1 in groups and groups[1].snapshot else {}
    store = SnapshotStore(disk)
    store.clean(named)
    assert len(disk.names()) <= 2
    for name in disk.names():
        kept = parse_name(name)
        assert kept is not None
        assert b"".join(store.open(*kept)) == contents[kept.snapshot.index]
    if told:
        assert named[1].index >= bench.told.saved[told - 1][1].index


def test_on_a_real_disk_in_a_thread(tmp_path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def call(function: Callable[..., None], *arguments: Any) -> None:
            loop.call_soon_threadsafe(lambda: (function(*arguments), changed.set()))

        thread = DiskThread(call)
        bench = Bench(FileDisk(tmp_path / "snapshots", reserve_bytes=0, hold=False), thread.execute)
        try:
            data = random.Random(5).randbytes(1 << 20)
            chunks = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
            bench.tasks.save(1, 7, 2, iter(chunks * 12))
            async with asyncio.timeout(DEADLINE_S):
                while not bench.told.saved:
                    changed.clear()
                    bench.work()
                    await changed.wait()
            ((_, snapshot),) = bench.told.saved
            assert b"".join(bench.store.open(1, snapshot)) == data * 12
            bench.tasks.fetch_snapshot(1, snapshot, 1 << 20, 1000)
            thread.close()
            thread.close()
            while not bench.told.pieces:
                await asyncio.sleep(0)
            assert bench.told.pieces[0][3] == data[:1000]
            bench.tasks.close()
            assert [path.name for path in (tmp_path / "snapshots").iterdir()] == [
                file_name(1, snapshot)
            ]
        finally:
            thread.close()

    asyncio.run(run())


def test_the_threads_queue_is_bounded() -> None:
    async def run() -> None:
        thread = DiskThread(asyncio.get_running_loop().call_soon_threadsafe, limit=0)
        try:
            with pytest.raises(BufferError):
                thread.execute(lambda: None, lambda result: None)
        finally:
            thread.close()

    asyncio.run(run())
