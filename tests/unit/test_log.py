"""The log over disks that crash and fail: what `write` confirmed is there again."""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import FailingDisk, MemoryDisk

from coterie.nodes import wal
from coterie.nodes.disk import Disk, DiskError, DiskFailed, DiskFull
from coterie.nodes.log import Log, Mode
from coterie.nodes.log_writer import LogWriter
from coterie.nodes.wal import CorruptLog, ForeignLog
from coterie.protocols.records import Entry, EntryRecord, GroupState, Record, StateRecord

DEADLINE_S = 30


def make(disk: Disk, *, segment_bytes: int = 4096, mode: Mode = "fsync") -> Log:
    return Log(disk, node="node1", incarnation=7, segment_bytes=segment_bytes, mode=mode)


def entry(index: int, term: int = 1, size: int = 40, group: int = 1) -> Record:
    return EntryRecord(group, Entry(index, term, index * 10, 1, bytes(size)))


def state(term: int, vote: str = "node1", commit: int = 0, group: int = 1) -> Record:
    return StateRecord(group, term, vote, commit)


def indexes(groups: dict[int, GroupState], group: int = 1) -> list[int]:
    return [entry.index for entry in groups[group].entries] if group in groups else []


def apply(model: dict[int, GroupState], records: list[Record]) -> None:
    for record in records:
        kept = model.setdefault(record.group, GroupState(entries=[]))
        if isinstance(record, StateRecord):
            kept.term, kept.vote, kept.commit = record.term, record.vote, record.commit
        else:
            kept.entries = [*kept.entries[: record.entry.index - 1], record.entry]


@st.composite
def histories(draw: st.DrawFn) -> list[list[Record]]:
    """Batches a correct raft could write: no gaps, terms never fall."""
    lengths: dict[int, list[int]] = {}
    terms: dict[int, int] = {}
    batches = []
    for _ in range(draw(st.integers(0, 8))):
        batch: list[Record] = []
        for _ in range(draw(st.integers(0, 6))):
            group = draw(st.integers(0, 3))
            entries = lengths.setdefault(group, [])
            term = terms[group] = terms.get(group, 1) + draw(st.sampled_from([0, 0, 0, 1]))
            if draw(st.booleans()):
                batch.append(StateRecord(group, term, draw(st.sampled_from(["", "b"])), 0))
            else:
                index = draw(st.integers(max(1, len(entries) - 2), len(entries) + 1))
                del entries[index - 1 :]
                entries.append(term)
                batch.append(entry(index, term, draw(st.sampled_from([0, 40, 700])), group))
        batches.append(batch)
    return batches


@settings(max_examples=150, deadline=None)
@given(histories(), st.sampled_from(["fsync", "relaxed"]), st.integers(0, 8))
def test_a_log_holds_what_a_dict_holds(batches: list[list[Record]], mode: Mode, at: int) -> None:
    disk, model = MemoryDisk(), dict[int, GroupState]()
    log = make(disk, segment_bytes=2048, mode=mode)
    assert log.open() == {}
    for number, batch in enumerate(batches):
        if number == at:
            log.close()
            log = make(disk, segment_bytes=2048, mode=mode)
            assert log.open() == model
        log.write(log.encode(batch))
        apply(model, batch)
    log.close()
    log = make(disk, segment_bytes=2048, mode=mode)
    assert log.open() == model
    assert not log.unclean


@settings(max_examples=150, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_a_crash_in_any_write_loses_at_most_that_write(
    batches: list[list[Record]], random: Any
) -> None:
    """The disk dies at any operation; each sector not yet synced is kept or lost."""
    memory, confirmed = MemoryDisk(), list[list[Record]]()
    disk = FailingDisk(memory, random.randint(4, 40), late=random.random() < 0.5)
    log = make(disk, segment_bytes=1024)
    tried: list[list[Record]] = []
    try:
        log.open()
        for batch in batches:
            tried = [batch]
            log.write(log.encode(batch))
            confirmed.append(batch)
            tried = []
    except DiskError:
        pass
    found = make(memory.crash(lambda name, at: random.random() < 0.5)).open()
    allowed = []
    for written in (confirmed, confirmed + tried):
        allowed.append(dict[int, GroupState]())
        for batch in written:
            apply(allowed[-1], batch)
    assert found in allowed


def test_segments_roll_and_each_begins_with_every_state() -> None:
    disk = MemoryDisk()
    log = make(disk, segment_bytes=2048)
    log.open()
    log.write(log.encode([state(1, group=0), state(1, group=1)]))
    for index in range(1, 60):
        log.write(log.encode([entry(index, size=100)]))
    assert len(disk.files) > 3
    assert sorted(disk.files) == [f"{number:04d}.wal" for number in range(1, len(disk.files) + 1)]
    batches: list[wal.Batch] = []
    wal.recover(range(1, len(disk.files) + 1), lambda n: disk.read(f"{n:04d}.wal"), batches.append)
    first = {batch.segment: batch.records for batch in reversed(batches)}
    assert all(records[:2] == [state(1, group=0), state(1)] for records in first.values())
    assert indexes(make(disk).open()) == list(range(1, 60))


def test_a_batch_larger_than_a_segment_gets_one_of_its_own() -> None:
    disk = MemoryDisk()
    log = make(disk, segment_bytes=1024)
    log.open()
    log.write(log.encode([entry(1, size=10_000)]))
    log.write(log.encode([entry(2)]))
    assert indexes(make(disk).open()) == [1, 2]


def test_segments_grow() -> None:
    disk = MemoryDisk()
    log = Log(disk, node="a", incarnation=1, segment_bytes=8192, first_segment_bytes=2048)
    log.open()
    for index in range(1, 30):
        log.write(log.encode([entry(index, size=900)]))
    sizes = [len(disk.files[name]) for name in sorted(disk.files)]
    assert sizes[:4] == [2048, 4096, 8192, 8192]


@pytest.mark.parametrize(
    "records",
    [
        [entry(2)],
        [entry(1), entry(3)],
        [entry(1, term=2), entry(2, term=1)],
        [state(3), state(2)],
    ],
)
def test_records_that_make_no_sense_are_corruption(records: list[Record]) -> None:
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    log.write(log.encode(records))
    with pytest.raises(CorruptLog, match="group 1"):
        make(disk).open()


def test_a_conflict_replaces_the_rest() -> None:
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    log.write(log.encode([entry(1), entry(2), entry(3)]))
    log.write(log.encode([entry(2, term=2)]))
    entries = make(disk).open()[1].entries
    assert [(kept.index, kept.term) for kept in entries] == [(1, 1), (2, 2)]


def test_another_node_or_incarnation_is_refused() -> None:
    disk = MemoryDisk()
    make(disk).open()
    for node, incarnation in (("node2", 7), ("node1", 8)):
        with pytest.raises(ForeignLog, match="node1"):
            Log(disk, node=node, incarnation=incarnation).open()


def test_fresh_tells_a_new_log() -> None:
    disk = MemoryDisk()
    first, second = make(disk), make(disk)
    first.open()
    second.open()
    assert (first.fresh, second.fresh) == (True, False)


def test_a_torn_write_is_cut_and_written_over() -> None:
    for lost in itertools.product([False, True], repeat=4):
        disk = MemoryDisk()
        log = make(disk, segment_bytes=8192)
        log.open()
        log.write(log.encode([entry(1)]))
        disk.sync = lambda name: None  # type: ignore[method-assign]
        log.write(log.encode([EntryRecord(1, Entry(2, 1, 20, 1, b"torn" * 425))]))
        sectors = iter(lost)
        assert len(disk.unsynced()) == 4
        after = disk.crash(lambda name, at, sectors=sectors: next(sectors))  # type: ignore[misc]
        log = make(after, segment_bytes=8192)
        expected = [1] if any(lost) else [1, 2]
        assert indexes(log.open()) == expected
        assert bool(log.torn_bytes) == (any(lost) and not all(lost))
        log.write(log.encode([entry(len(expected) + 1, size=300)]))
        assert indexes(make(after).open()) == [*expected, len(expected) + 1]


def test_what_a_killed_process_wrote_and_did_not_sync_is_not_lost_later() -> None:
    """It is read back from the page cache, and raft counts on it: it must outlive a power cut."""
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    log.write(log.encode([state(4)]))
    sync, disk.sync = disk.sync, lambda name: None  # type: ignore[method-assign]
    log.write(log.encode([state(5, "node2")]))
    disk.sync = sync  # type: ignore[method-assign]
    for _ in range(2):
        found = make(disk).open()[1]
        assert (found.term, found.vote) == (5, "node2")
        disk = disk.crash(lambda name, at: True)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_any_operation_may_fail(code: int, late: bool) -> None:
    """The n-th fails, for every n: the error is typed, sticks, and what was confirmed stays."""
    for at in itertools.count(1):
        memory = MemoryDisk()
        disk = FailingDisk(memory, at, code=code, late=late)
        log, confirmed = make(disk, segment_bytes=1024), 0
        error: DiskError | None = None
        try:
            log.open()
            for index in range(1, 12):
                log.write(log.encode([entry(index, size=200), state(1)]))
                confirmed = index
        except DiskError as raised:
            error = raised
        if error is None:
            assert at > 20, "the disk was hardly used"
            return
        assert isinstance(error, DiskFull if code == errno.ENOSPC else DiskFailed)
        used = disk.count
        with pytest.raises((DiskError, RuntimeError)):
            log.write(log.encode([entry(confirmed + 1)]))
        assert disk.count == used, "a log that failed touches the disk no more"
        before, after = list(range(1, confirmed + 1)), list(range(1, confirmed + 2))
        found = indexes(make(memory.crash(lambda name, at: True)).open())
        assert found == before or (late and found == after)
        found = indexes(make(memory.crash(lambda name, at: False)).open())
        assert found in (before, after)


def test_relaxed_syncs_terms_and_votes_and_tells_an_unclean_end() -> None:
    disk = MemoryDisk()
    log = make(disk, mode="relaxed")
    log.open()
    assert not log.unclean
    log.write(log.encode([state(1), entry(1)]))
    assert disk.unsynced() == []
    log.write(log.encode([entry(2), state(1, commit=1)]))
    assert disk.unsynced() != []
    log.write(log.encode([state(1, vote="node2", commit=1)]))
    assert disk.unsynced() == []
    log.write(log.encode([entry(3)]))
    after = disk.crash(lambda name, at: True)
    for mode in ("relaxed", "fsync"):  # once unclean, always: neither mode washes it away
        reopened = make(after, mode=mode)
        assert indexes(reopened.open()) == [1, 2]
        assert reopened.unclean
        reopened.close()


def test_relaxed_closed_is_clean_and_all_there() -> None:
    disk = MemoryDisk()
    log = make(disk, mode="relaxed", segment_bytes=1024)
    log.open()
    for index in range(1, 20):
        log.write(log.encode([entry(index, size=100)]))
    log.close()
    after = disk.crash(lambda name, at: True)
    reopened = make(after)
    assert indexes(reopened.open()) == list(range(1, 20))
    assert not reopened.unclean


def test_relaxed_loses_no_segment_but_the_last() -> None:
    disk = MemoryDisk()
    log = make(disk, mode="relaxed", segment_bytes=1024)
    log.open()
    for index in range(1, 20):
        log.write(log.encode([entry(index, size=100)]))
    last = max(disk.files)
    assert all(name == last for name, _ in disk.unsynced())
    reopened = make(disk.crash(lambda name, at: True))
    kept = indexes(reopened.open())
    assert kept == list(range(1, len(kept) + 1))
    assert reopened.unclean


def test_a_segment_made_ahead_is_used_and_one_not_begun_is_made_anew() -> None:
    disk = MemoryDisk()
    log = make(disk, segment_bytes=2048)
    log.open()
    log.prepare()
    assert len(disk.files) == 1, "not yet half full"
    index = 0
    while not log.wants_segment:
        index += 1
        log.write(log.encode([entry(index)]))
    log.prepare()
    assert len(disk.files) == 2
    assert indexes(make(disk.crash(lambda name, at: True)).open()) == list(range(1, index + 1))
    while len(disk.files) == 2:
        index += 1
        log.write(log.encode([entry(index, size=150)]))
    assert indexes(make(disk).open()) == list(range(1, index + 1))


class Driver:
    """A writer on a loop, with what it told."""

    def __init__(self, disk: Disk, **options: Any) -> None:
        self.log = make(disk, segment_bytes=2048)
        self.log.open()
        self.durable: list[int] = []
        self.errors: list[Exception] = []
        self.full: list[DiskFull] = []
        self.changed = asyncio.Event()
        self.writer = LogWriter(
            self.log,
            lambda number: self._note(self.durable.append, number),
            asyncio.get_running_loop().call_soon_threadsafe,
            on_failed=lambda error: self._note(self.errors.append, error),
            on_full=lambda error: self._note(self.full.append, error),
            **options,
        )

    def _note(self, note: Callable[[Any], None], value: object) -> None:
        note(value)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class SlowDisk(MemoryDisk):
    """Its syncs wait for a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.syncs = 0

    def sync(self, name: str) -> None:
        assert self.gate.wait(DEADLINE_S)
        self.syncs += 1
        super().sync(name)


def test_what_queues_up_becomes_one_batch() -> None:
    async def run() -> None:
        disk = SlowDisk()
        driver = Driver(disk)
        before = disk.syncs
        disk.gate.clear()
        try:
            for number in range(1, 11):
                driver.writer.submit(number, [entry(number, size=20)])
            assert driver.writer.backlog == 10
            assert driver.durable == []
        finally:
            disk.gate.set()
        await driver.until(lambda: driver.durable[-1:] == [10])
        assert disk.syncs - before <= 2
        assert driver.writer.backlog == 0
        p50, p99 = driver.writer.write_times()
        assert 0 < p50 <= p99
        driver.writer.close()
        driver.writer.close()
        assert indexes(make(disk).open()) == list(range(1, 11))

    asyncio.run(run())


def test_what_raft_counts_on_is_never_refused() -> None:
    """A copy of many small entries, or a node that catches up with them while its disk is slow."""

    async def run() -> None:
        disk = SlowDisk()
        driver = Driver(disk)
        disk.gate.clear()
        many = 32_768
        try:
            for number in range(1, 4):
                first = (number - 1) * many + 1
                records = [entry(index, size=0) for index in range(first, first + many)]
                driver.writer.submit(number, records)
            assert driver.writer.backlog == 3 * many
        finally:
            disk.gate.set()
        await driver.until(lambda: driver.durable[-1:] == [3])
        driver.writer.close()
        assert not driver.errors
        assert len(indexes(make(disk).open())) == 3 * many

    asyncio.run(run())


def test_close_writes_what_is_queued() -> None:
    async def run() -> None:
        disk = MemoryDisk()
        driver = Driver(disk)
        for number in range(1, 101):
            driver.writer.submit(number, [entry(number)])
        driver.writer.close()
        await driver.until(lambda: driver.durable[-1:] == [100])
        assert driver.durable == sorted(driver.durable)
        assert indexes(make(disk.crash(lambda name, at: True)).open()) == list(range(1, 101))

    asyncio.run(run())


def test_a_failed_write_is_told_once_and_nothing_is_written_after() -> None:
    async def run() -> None:
        memory = MemoryDisk()
        disk = FailingDisk(memory, 10)
        driver = Driver(disk)
        number = 0
        while driver.writer.failed is None:
            number += 1
            driver.writer.submit(number, [entry(number)])
            await driver.until(lambda: driver.durable[-1:] == [number] or driver.errors)  # noqa: B023
        used = disk.count
        driver.writer.submit(number + 1, [entry(number + 1)])
        driver.writer.close()
        await driver.until(lambda: driver.errors)
        assert disk.count == used
        assert [type(error) for error in driver.errors] == [DiskFailed]
        assert driver.durable == list(range(1, number))

    asyncio.run(run())


class SmallDisk(MemoryDisk):
    """Has room for one segment."""

    def create(self, name: str, size: int) -> None:
        if self.files:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().create(name, size)


def test_a_full_disk_is_told_before_and_when_the_room_is_used_up() -> None:
    async def run() -> None:
        disk = SmallDisk()
        driver = Driver(disk)
        number = 0
        while not driver.errors:
            number += 1
            driver.writer.submit(number, [entry(number)])
            await driver.until(lambda: driver.durable[-1:] == [number] or driver.errors)  # noqa: B023
        assert len(driver.full) == 1
        assert 0 < driver.full[0].room <= 1024
        assert [type(error) for error in driver.errors] == [DiskFull]
        driver.writer.close()
        assert indexes(make(disk.crash(lambda name, at: True)).open()) == list(range(1, number))

    asyncio.run(run())
