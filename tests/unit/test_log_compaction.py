"""A log that is made shorter: what it holds is what a model holds, whatever crash comes between."""

from __future__ import annotations

import asyncio
import copy
import errno
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import MemoryDisk

from coterie.nodes import log_index, log_writer
from coterie.nodes.disk import Disk, DiskFailed
from coterie.nodes.log import SEGMENTS_MAX, Log
from coterie.nodes.log_writer import LogWriter
from coterie.nodes.simulation.disk import SimulatedDisk
from coterie.nodes.wal import CorruptLog
from coterie.protocols.records import (
    DropRecord,
    Entry,
    EntryRecord,
    GroupState,
    Record,
    Snapshot,
    SnapshotRecord,
    StateRecord,
)

DEADLINE_S = 30
SEGMENT_BYTES = 2048
GROUPS = 3


def make(disk: Disk) -> Log:
    return Log(disk, node="node1", incarnation=7, segment_bytes=SEGMENT_BYTES)


def entry(index: int, term: int = 1, size: int = 40, group: int = 1) -> Record:
    return EntryRecord(group, Entry(index, term, index * 10, 1, bytes(size)))


def snapshot(index: int, term: int = 1, group: int = 1) -> Record:
    return SnapshotRecord(group, Snapshot(index, term, 100, b"d" * 16))


def write(log: Log, *records: Record) -> None:
    log.write(log.encode(records))


def indexes(log: Log, group: int = 1) -> list[int]:
    return [entry.index for entry in log.open()[group].entries]


def release(log: Log) -> None:
    if log.release():
        log.remove_released()


class Group:
    """What a group's log is, by the paper: all that was ever written is at hand."""

    def __init__(self) -> None:
        self.state = GroupState(entries=[])
        self.known: dict[int, Entry] = {}
        """Every entry that counts, also those the snapshot replaces."""
        self.segments: dict[int, int] = {}
        self.touched = False

    @property
    def base(self) -> int:
        return self.state.snapshot.index if self.state.snapshot else 0

    @property
    def last(self) -> int:
        return self.base + len(self.state.entries)

    def term(self, index: int) -> int:
        if self.state.snapshot is not None and index == self.base:
            return self.state.snapshot.term
        return self.state.entries[index - self.base - 1].term if index > self.base else 0

    def apply(self, record: Record, segment: int) -> None:
        state = self.state
        self.touched = True
        if isinstance(record, StateRecord):
            state.term, state.vote, state.commit = record.term, record.vote, record.commit
            state.floor = record.floor
        elif isinstance(record, EntryRecord):
            index = record.entry.index
            state.entries = [*state.entries[: index - self.base - 1], record.entry]
            self.known = {i: e for i, e in self.known.items() if i < index} | {index: record.entry}
            self.segments[index] = segment
        elif isinstance(record, SnapshotRecord):
            index = record.snapshot.index
            has = index <= self.last and self.term(index) == record.snapshot.term
            state.entries = state.entries[index - self.base :] if has else []
            self.known = self.known if has else {}
            state.snapshot, state.commit = record.snapshot, max(state.commit, index)
        else:
            state.entries, state.snapshot, state.commit = [], None, 0
            self.known = {}

    def needs(self) -> int | None:
        needed = [self.segments[entry.index] for entry in self.state.entries]
        return min(needed, default=None)


class World:
    """A log and its model, driven by a source of choices."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.disk = SimulatedDisk(random.Random(choose.random()), 1)
        self.groups = [Group() for _ in range(GROUPS)]
        self.log = make(self.disk)
        self.log.open()
        self.history: list[tuple[dict[int, GroupState], list[Group]]] = []
        self.certain = True
        self.settle()
        self.crashes = self.removed = self.reads = self.conflicts = self.pinned = 0

    def note(self) -> None:
        """What is found after a crash may be this."""
        self.history.append((self.states(), copy.deepcopy(self.groups)))

    def states(self) -> dict[int, GroupState]:
        return {
            number: msgspec.structs.replace(group.state, entries=list(group.state.entries))
            for number, group in enumerate(self.groups)
            if group.touched
        }

    def settle(self) -> None:
        """All that was written so far is durable."""
        self.disk.settle()
        self.history.clear()
        self.note()

    def step(self) -> None:
        getattr(self, self.choose.choice(STEPS))()
        if self.choose.random() < 0.5:
            self.settle()

    def write(self, number: int, records: list[Record]) -> None:
        self.log.write(self.log.encode(records))
        assert self.log._segment is not None
        for record in records:
            self.groups[number].apply(record, self.log._segment.header.number)
        self.note()

    def pick(self) -> tuple[int, Group]:
        number = self.choose.randrange(GROUPS)
        return number, self.groups[number]

    def append(self) -> None:
        number, group = self.pick()
        state = group.state
        records: list[Record] = []
        for index in range(group.last + 1, group.last + self.choose.randint(2, 6)):
            size = self.choose.choice([0, 40, 300])
            records.append(entry(index, max(state.term, 1), size, number))
        self.write(number, records)

    def conclude(self) -> None:
        number, group = self.pick()
        state = group.state
        term = state.term + self.choose.randint(0, 1)
        commit = self.choose.randint(state.commit, group.last)
        self.write(number, [StateRecord(number, term, self.choose.choice(["", "b"]), commit)])

    def truncate(self) -> None:
        number, group = self.pick()
        if group.state.commit >= group.last:
            return
        index = self.choose.randint(group.state.commit + 1, group.last)
        term = group.state.term + 1
        records = [StateRecord(number, term, "", group.state.commit)]
        records += [entry(i, term, 40, number) for i in range(index, index + 3)]  # type: ignore[misc]
        self.write(number, records)

    def snapshot(self) -> None:
        number, group = self.pick()
        if group.state.commit > group.base:
            index = self.choose.randint(group.base + 1, group.state.commit)
            self.write(number, [snapshot(index, group.term(index), number)])

    def install(self) -> None:
        """Another leader's snapshot: beyond the log, or in conflict with its end."""
        number, group = self.pick()
        index = self.choose.randint(group.state.commit + 1, group.last + 3)
        term = group.state.term + 1
        self.conflicts += index <= group.last
        state = StateRecord(number, term, "", group.state.commit, self.choose.choice([0, index]))
        self.write(number, [state, snapshot(index, term, number)])

    def copy_forward(self) -> None:
        number, group = self.pick()
        entries = group.state.entries
        self.write(number, [EntryRecord(number, entry) for entry in entries])

    def drop(self) -> None:
        if self.choose.random() < 0.1:
            number, _ = self.pick()
            self.write(number, [DropRecord(number)])

    def shorten(self) -> None:
        """What a node does when its log is too long, for each group or for some."""
        for number in self.log.pinning():
            group = self.groups[number]
            assert not self.certain or group.needs() == self.log.oldest
            self.pinned += self.certain
            if self.choose.random() < 0.8:
                entries = [EntryRecord(number, entry) for entry in group.state.entries]
                records: list[Record] = [*entries]
                if group.state.commit > group.base:
                    records = [snapshot(group.state.commit, group.term(group.state.commit), number)]
                    kept = entries[group.state.commit - group.base :]
                    records += [EntryRecord(number, each.entry) for each in kept]
                self.write(number, records)
        before = self.log.oldest
        release(self.log)
        self.removed += self.log.oldest - before
        needed = [group.needs() for group in self.groups if self.certain]
        assert all(segment is None or segment >= self.log.oldest for segment in needed)

    def prepare(self) -> None:
        self.log.prepare()

    def crash(self) -> None:
        self.crashes += self.disk.crash()
        self.reopen()

    def reopen(self) -> None:
        self.log = make(self.disk)
        found = self.log.open()
        matching = [groups for states, groups in self.history if states == found]
        assert matching
        self.groups = copy.deepcopy(matching[-1])
        # Entries written once more change no state: nobody knows if the copy was lost.
        self.certain &= len(matching) == 1
        self.settle()

    def read(self) -> None:
        number, group = self.pick()
        if not group.last:
            return
        first = self.choose.randint(1, group.last)
        found = self.log.read(number, first, self.choose.choice([1, 500, 100_000]))
        self.reads += bool(found) and first <= group.base
        assert found or first <= group.base
        for place, each in enumerate(found):
            assert each.index == first + place
            assert each == group.known.get(each.index, each)


STEPS = (
    *["append"] * 6, *["conclude"] * 3, "truncate", "snapshot", "install", "copy_forward", "drop",
    "shorten", "shorten", "prepare", "crash", "reopen", "read", "read",
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_a_log_holds_what_the_paper_says(seed: int, steps: int) -> None:
    world = World(random.Random(seed))
    for _ in range(steps):
        world.step()
    world.reopen()


def test_the_steps_reach_everything() -> None:
    worlds = [World(random.Random(seed)) for seed in range(20)]
    for world in worlds:
        for _ in range(200):
            world.step()
    for what in ("crashes", "removed", "reads", "conflicts", "pinned"):
        assert sum(getattr(world, what) for world in worlds) > 10, what


def long_log(disk: Disk, *, snapshots: bool = True) -> Log:
    """Group 1 fills segments; group 0 voted once, in the first, and did nothing since."""
    log = make(disk)
    log.open()
    write(log, StateRecord(0, 5, "node2", 0, 3), StateRecord(1, 1, "node1", 0))
    for index in range(1, 80):
        write(log, entry(index, size=100))
        if snapshots and index % 10 == 0:
            write(log, snapshot(index))
        release(log)
        log.prepare()
    return log


def test_a_log_with_snapshots_stays_short() -> None:
    disk = MemoryDisk()
    log = long_log(disk)
    assert log.oldest > 3
    assert len(disk.files) <= SEGMENTS_MAX + 1
    again = make(disk)
    found = again.open()
    assert found[0] == GroupState(5, "node2", 0, [], None, 3), "votes outlive their segment"
    assert (found[1].term, found[1].vote, found[1].commit) == (1, "node1", 70)
    assert [entry.index for entry in found[1].entries] == list(range(71, 80))
    assert again.snapshot(1) == found[1].snapshot
    assert again.snapshot(0) is None
    write(again, entry(80))
    assert indexes(make(disk)) == list(range(71, 81))


def test_nobody_is_asked_while_the_log_is_short_and_nothing_removed_that_is_needed() -> None:
    disk = MemoryDisk()
    log = long_log(disk, snapshots=False)
    assert len(disk.files) > SEGMENTS_MAX
    assert log.pinning() == [1]
    assert log.oldest == 1
    write(log, *[entry(index, size=100) for index in range(1, 80)])
    assert log.pinning() == []
    release(log)
    assert len(disk.files) == SEGMENTS_MAX
    assert log.pinning() == []
    assert indexes(make(disk)) == list(range(1, 80))


def test_an_idle_group_that_wrote_once_pins_only_until_it_writes_that_again() -> None:
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    first = entry(1, group=2)
    write(log, first)
    for index in range(1, 60):
        write(log, entry(index, size=100), snapshot(index))
        log.prepare()
        release(log)
    assert log.oldest == 1
    assert log.pinning() == [2]
    write(log, first)
    release(log)
    assert log.oldest > 1
    assert indexes(make(disk), 2) == [1]


def test_removal_goes_on_after_a_crash_in_it() -> None:
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    for index in range(1, 80):
        write(log, entry(index, size=100))
    write(log, snapshot(79))
    assert log.release()
    for kept in range(1, 4):
        disk.remove(f"000{kept}.wal")
        again = make(disk)
        memory = dict(disk.files), dict(disk.synced)
        assert indexes(again) == []
        assert again.oldest > 3
        disk.files, disk.synced = memory
    with pytest.raises(CorruptLog, match="missing"):
        disk.remove(f"{max(disk.files)}")
        make(disk).open()


@pytest.mark.parametrize("record", [snapshot(1), DropRecord(1)])
def test_relaxed_syncs_what_files_are_removed_by(record: Record) -> None:
    disk = MemoryDisk()
    log = Log(disk, node="node1", incarnation=7, segment_bytes=SEGMENT_BYTES, mode="relaxed")
    log.open()
    write(log, entry(1))
    assert disk.unsynced()
    write(log, record)
    assert not disk.unsynced()


def test_lost_segments_are_noticed() -> None:
    """Whichever it is, also the first, which may be gone for a good reason at other times."""
    disk = MemoryDisk()
    oldest = long_log(disk).oldest
    names = sorted(disk.files)
    assert names[0] == f"{oldest:04d}.wal"
    blank = names[-1] if not any(disk.files[names[-1]]) else ""
    for count in range(1, len(names) - 1):
        after = disk.crash(lambda name, at: False)
        for name in names[:count]:
            after.remove(name)
        with pytest.raises(CorruptLog, match="missing"):
            make(after).open()
    for name in names[1:-1]:
        if name != blank and names[names.index(name) + 1] != blank:
            after = disk.crash(lambda name, at: False)
            after.remove(name)
            with pytest.raises(CorruptLog, match="missing"):
                make(after).open()


def test_a_first_segment_lost_from_a_log_that_lost_none_is_noticed() -> None:
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    write(log, entry(1, size=1500))
    write(log, snapshot(1))
    write(log, entry(2, size=1500))
    disk.remove("0001.wal")
    with pytest.raises(CorruptLog, match=r"segment 1 .* missing"):
        make(disk).open()


@pytest.mark.parametrize(
    "records",
    [
        [entry(1), entry(2), snapshot(2), entry(2)],
        [entry(1), entry(2), snapshot(2), snapshot(1)],
        [entry(1), snapshot(1), snapshot(1, 2)],
        [snapshot(5), entry(7)],
        [snapshot(5, 3), entry(6, 2)],
        [entry(1), snapshot(1), DropRecord(1), entry(2)],
    ],
)
def test_records_that_make_no_sense_are_corruption(records: list[Record]) -> None:
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    write(log, *records)
    with pytest.raises(CorruptLog, match="group 1"):
        make(disk).open()


def test_entries_that_neither_a_segment_nor_a_snapshot_has_are_corruption() -> None:
    """Should segments ever be removed too early, the log says so instead of going on without."""
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    for index in range(1, 80):
        write(log, entry(index, size=100))
    write(log, snapshot(5))
    log._index.oldest = lambda: None  # type: ignore[method-assign]
    assert log.release()
    log.remove_released()
    with pytest.raises(CorruptLog, match="group 1: entries 6 to"):
        make(disk).open()


def test_reads_stay_within_their_bounds() -> None:
    disk = MemoryDisk()
    log = long_log(disk)
    held = log.read(1, 71, 1 << 20)
    assert [entry.index for entry in held] == list(range(71, 80))
    assert [entry.index for entry in log.read(1, 71, 300)] == [71, 72]
    assert [entry.index for entry in log.read(1, 71, 1)] == [71]
    assert log.read(1, 80, 1 << 20) == []
    assert log.read(1, 1, 1 << 20) == []
    assert log.read(7, 1, 1 << 20) == []
    older = next(first for first in range(1, 80) if log.read(1, first, 1))
    assert 1 < older <= 60, "entries a snapshot replaces are read while their segment is there"
    assert len(log.read(1, older, 1 << 20)) == 80 - older
    assert make(disk).read(1, 71, 1) == []


def test_a_batch_that_writes_an_entry_twice_is_read_by_its_last_word() -> None:
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    write(log, entry(1), entry(2), entry(3), entry(2, 2), entry(3, 2), entry(3, 3))
    for first in (1, 2, 3):
        assert [entry.term for entry in log.read(1, first, 1 << 20)] == [1, 2, 3][first - 1 :]


def test_a_read_notices_damage() -> None:
    disk = MemoryDisk()
    log = long_log(disk)
    disk.files[f"{log.oldest + 1:04d}.wal"][1100] ^= 1
    with pytest.raises(CorruptLog):
        for first in range(1, 71):
            log.read(1, first, 1 << 20)


def test_a_segment_removed_during_a_read_ends_it() -> None:
    disk = MemoryDisk()
    log = long_log(disk, snapshots=False)
    for name in sorted(disk.files)[2:]:
        disk.remove(name)
    found = log.read(1, 1, 1 << 20)
    assert 5 < len(found) < 79
    assert [entry.index for entry in found] == list(range(1, len(found) + 1))
    disk.remove("0001.wal")
    assert log.read(1, 1, 1 << 20) == []


def test_the_index_changes_only_under_its_lock() -> None:
    """Segments are forgotten in another thread than the one that writes."""
    index = log_index.LogIndex()

    class Guarded(dict[int, tuple[int, int]]):
        def __setitem__(self, segment: int, extent: tuple[int, int]) -> None:
            assert index._lock.locked()
            super().__setitem__(segment, extent)

    index._segments = Guarded()
    index.extent(1, 2, 3)
    assert index._segments == {1: (2, 3)}


def test_the_index_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_index, "POINTS_MAX", 32)
    monkeypatch.setattr(log_index, "SPACING_BYTES", 100)
    disk = MemoryDisk()
    log = Log(disk, node="node1", incarnation=7, segment_bytes=1 << 20)
    log.open()
    for index in range(1, 500):
        write(log, entry(index))
        assert len(log._index) <= 32
    assert [entry.index for entry in log.read(1, 1, 1 << 20)] == list(range(1, 500))


def test_the_index_is_bounded_even_when_a_log_is_truncated_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_index, "POINTS_MAX", 32)
    disk = MemoryDisk()
    log = make(disk)
    log.open()
    for index in range(1, 200):
        write(log, entry(index, 2 * index), entry(index + 1, 2 * index))
        if index % 50 == 0:
            write(log, snapshot(index, 2 * index))
        release(log)
        assert len(log._index) <= 33 + len(disk.files)
    for first in range(1, 201):
        found = log.read(1, first, 1)
        assert found == [] or found[0].term == 2 * min(first, 199)
        assert found or first < 190
    assert log.read(1, 199, 1)


class Writing:
    """A log's writer on a loop; whoever is asked to let go of a segment does so, if it `heeds`."""

    def __init__(self, disk: Disk, *, heeds: bool) -> None:
        self.log = make(disk)
        self.log.open()
        self.heeds = heeds
        self.index = self.number = self.durable = 0
        self.asked: list[list[int]] = []
        self.errors: list[Exception] = []
        self.changed = asyncio.Event()
        self.writer = LogWriter(
            self.log,
            self._on_durable,
            asyncio.get_running_loop().call_soon_threadsafe,
            on_failed=self._on_failed,
            on_long=self._on_long,
        )

    def _on_durable(self, number: int) -> None:
        self.durable = number
        self.changed.set()

    def _on_failed(self, error: Exception) -> None:
        self.errors.append(error)
        self.changed.set()

    def _on_long(self, groups: list[int]) -> None:
        self.asked.append(groups)
        if self.heeds:
            self._submit(snapshot(self.index))

    def _submit(self, record: Record) -> None:
        self.number += 1
        self.writer.submit(self.number, [record])

    async def write(self) -> None:
        """Write another entry and wait for it."""
        self.index += 1
        self._submit(entry(self.index, size=100))
        number = self.number
        async with asyncio.timeout(DEADLINE_S):
            while self.durable < number and not self.errors:
                self.changed.clear()
                await self.changed.wait()


def test_the_writer_asks_who_keeps_the_log_long_and_removes_what_nobody_needs() -> None:
    async def run() -> None:
        disk = MemoryDisk()
        writing = Writing(disk, heeds=True)
        async with asyncio.timeout(DEADLINE_S):
            while "0005.wal" in disk.files or writing.index < 100:
                await writing.write()
        writing.writer.close()
        assert writing.errors == []
        assert writing.asked
        assert all(groups == [1] for groups in writing.asked)
        kept = indexes(make(disk))
        assert kept[-1] == writing.index

    asyncio.run(run())


def test_nobody_is_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(pause_s: float) -> int:
        monkeypatch.setattr(log_writer, "TOLD_S", pause_s)
        writing = Writing(MemoryDisk(), heeds=False)
        while writing.index < 100:
            await writing.write()
        writing.writer.close()
        return len(writing.asked)

    assert asyncio.run(run(1e9)) == 1
    assert asyncio.run(run(0.0)) > 10


def test_a_failed_removal_ends_the_log() -> None:
    class Stubborn(MemoryDisk):
        def remove(self, name: str) -> None:
            raise OSError(errno.EIO, "Input/output error")

    async def run() -> None:
        writing = Writing(Stubborn(), heeds=True)
        async with asyncio.timeout(DEADLINE_S):
            while not writing.errors:
                await writing.write()
        writing.writer.close()
        assert [type(error) for error in writing.errors] == [DiskFailed]

    asyncio.run(run())
