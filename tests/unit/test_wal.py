"""The format of the log: what was synced is read again or missed aloud; a torn write is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.nodes import wal
from coterie.protocols.records import Entry, EntryRecord, Record, StateRecord

Batches = list[list[Record]]


def entry(index: int, payload: bytes = b"", group: int = 1) -> Record:
    return EntryRecord(group, Entry(index, 3, 1_000_000 + index, 1, payload))


def state(term: int = 3, vote: str = "node1") -> Record:
    return StateRecord(1, term, vote, 0)


class Written:
    """Segments as a log would write them, with the place of each batch."""

    def __init__(self, size: int, relaxed: bool = False) -> None:
        self.files: list[bytearray] = []
        self.places: list[tuple[int, int, int]] = []
        self.batches: Batches = []
        self.relaxed = relaxed
        self.size = size
        self.segment: Any = None
        self.roll()

    def roll(self) -> None:
        crc = self.segment.crc if self.segment else 0
        header = wal.Header("node1", 7, len(self.files) + 1, self.size, crc, self.relaxed)
        sector = wal.encode_header(header)
        self.files.append(bytearray(sector.ljust(self.size, b"\0")))
        self.segment = wal.Segment(*wal.decode_header(header.number, sector))

    def add(self, records: Sequence[Record], kind: int = wal.RECORDS) -> None:
        payload = wal.encode_records(records)
        if not self.segment.fits(len(payload)):
            self.roll()
        start, data = self.segment.append(kind, len(records), payload)
        self.files[-1][start : start + len(data)] = data
        self.places.append((len(self.files), start, start + len(data)))
        self.batches.append(list(records))

    def sectors(self) -> list[tuple[int, int]]:
        """The pieces of the last batch that lie in one sector each."""
        _, start, stop = self.places[-1]
        edges = [start, *range(start // 512 * 512 + 512, stop, 512), stop]
        return list(itertools.pairwise(edges))

    def copy(self) -> list[bytearray]:
        return [bytearray(data) for data in self.files]


class Found:
    """What a log holds, its batches among it."""

    def __init__(self, numbers: Sequence[int], files: Sequence[bytes | bytearray]) -> None:
        self.batches: list[wal.Batch] = []
        self.recovered = wal.recover(numbers, lambda n: bytes(files[n - 1]), self.batches.append)
        self.segment, self.torn, self.blank, self.extents, self.released = self.recovered


def read(files: Sequence[bytes | bytearray]) -> Found:
    return Found(range(1, len(files) + 1), files)


def records(found: Found) -> list[list[Any]]:
    return [list(batch.records) for batch in found.batches]


def small_log(size: int = 2048) -> Written:
    log = Written(size)
    log.add([state(), entry(1, b"first")])
    log.add([entry(2, bytes(600)), entry(3, b"\x9d" * 40)])  # zero runs and marks in a value
    log.add([entry(4, bytes(300)), state(4)])
    return log


@given(
    st.lists(
        st.lists(
            st.builds(
                entry,
                st.integers(1, 2**63 - 1),
                st.one_of(st.binary(max_size=900), st.integers(0, 2000).map(bytes)),
                st.integers(0, 12),
            ),
            max_size=5,
        ),
        max_size=8,
    )
)
def test_what_was_written_is_read(batches: Batches) -> None:
    log = Written(16 * 1024)
    for batch in batches:
        log.add(batch)
    found = read(log.files)
    assert records(found) == batches
    assert found.torn == (0, 0)
    assert found.blank is None
    assert found.segment is not None
    assert (found.segment.offset, found.segment.crc) == (log.segment.offset, log.segment.crc)


def test_batches_go_up_to_the_last_byte_of_a_segment() -> None:
    for length in range(520):
        payload = wal.encode_records([entry(1, bytes(length))])
        size = wal.size_for(len(payload))
        log = Written(size)
        log.add([entry(1, bytes(length))])
        assert len(log.files) == 1, "size_for says it fits"
        assert records(read(log.files)) == log.batches
        assert size == 1024 or not Written(size - 512).segment.fits(len(payload))


def test_every_flipped_bit_is_noticed_or_harmless() -> None:
    for log in (small_log(), small_log(1536)):  # in one segment, and in two
        for file, data in enumerate(log.files):
            for at, bit in itertools.product(range(len(data)), range(8)):
                files = log.copy()
                files[file][at] ^= 1 << bit
                try:
                    found = read(files)
                except wal.CorruptLog as error:
                    assert error.segment == file + 1 or error.segment == file + 2
                    continue
                assert records(found) == log.batches, f"bit {bit} of byte {at} in {file + 1}"


def test_every_flipped_bit_of_a_relaxed_log_is_noticed_or_harmless() -> None:
    log = Written(2048, relaxed=True)
    for number in range(1, 4):
        log.add([entry(number, bytes(250))])
    for at, bit in itertools.product(range(2048), range(8)):
        files = log.copy()
        files[0][at] ^= 1 << bit
        try:
            found = read(files)
        except wal.CorruptLog:
            continue
        assert records(found) == log.batches


def test_a_mark_inside_synced_data_is_checked() -> None:
    log = small_log()
    log.files[0][1024] ^= 1
    with pytest.raises(wal.CorruptLog, match="mark"):
        read(log.files)


def test_a_file_cut_short_is_never_taken_for_a_torn_write() -> None:
    """Segments have their full size, on disk, before they are used: a crash cuts none."""
    log = small_log()
    for length in range(1, 2048):
        with pytest.raises(wal.CorruptLog):
            read([log.files[0][:length]])


def test_zeros_from_any_byte_of_the_last_batch_on() -> None:
    """Cut at a sector's edge it is a torn write; within a sector it is damage."""
    log = small_log()
    _, start, stop = log.places[-1]
    outcomes = set()
    for at in range(start, stop + 1):
        files = log.copy()
        files[0][at:] = bytes(2048 - at)
        word = start < at < start + 8  # no crash cuts here: the first word lies in one sector
        lost = any(low >= at for low, _ in log.sectors()) and not word
        if files == log.files:
            assert records(read(files)) == log.batches
            outcomes.add("whole")
        elif lost:
            found = read(files)
            assert records(found) == log.batches[:-1]
            assert found.torn[0] == start or at == start
            outcomes.add("torn")
        else:
            with pytest.raises(wal.CorruptLog):
                read(files)
            outcomes.add("corrupt")
    assert outcomes == {"whole", "torn", "corrupt"}


def lose(log: Written, lost: Sequence[tuple[int, int]]) -> list[bytearray]:
    files = log.copy()
    for low, high in lost:
        files[-1][low:high] = bytes(high - low)
    return files


@pytest.mark.parametrize("filler", [b"\0", b"x", b"\x9d", b"\xb7"])
def test_every_set_of_lost_sectors_of_the_last_batch(filler: bytes) -> None:
    """At every alignment of the batch to the sectors."""
    for shift in range(0, 512, 8):
        log = Written(4096)
        log.add([entry(1, b"s" * shift)])
        log.add([entry(2, filler * 1300)])
        pieces = log.sectors()
        assert 3 <= len(pieces) <= 4
        for chosen in itertools.product([False, True], repeat=len(pieces)):
            lost = list(itertools.compress(pieces, chosen))
            found = read(lose(log, lost))
            assert records(found) == (log.batches[:-1] if lost else log.batches)
            if lost and len(lost) < len(pieces):
                assert_cut_makes_room(found, lose(log, lost))


def assert_cut_makes_room(found: Found, files: list[bytearray]) -> None:
    """What is torn, once overwritten with zeros, leaves a clean end."""
    start, length = found.torn
    assert length > 0
    files[-1][start : start + length] = bytes(length)
    again = read(files)
    assert records(again) == records(found)
    assert again.torn == (0, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 1200), max_size=4),
    st.lists(st.one_of(st.integers(0, 6000).map(bytes), st.binary(max_size=3000)), max_size=4),
    st.randoms(use_true_random=False),
)
def test_lost_sectors_of_larger_batches(before: list[int], last: list[bytes], random: Any) -> None:
    log = Written(64 * 1024)
    for number, length in enumerate(before, 1):
        log.add([entry(number, bytes(length))])
    log.add([entry(9, payload) for payload in last])
    lost = [piece for piece in log.sectors() if random.random() < 0.4]
    found = read(lose(log, lost))
    assert records(found) == (log.batches[:-1] if lost else log.batches)


def test_a_lost_sector_of_synced_data_is_corruption() -> None:
    log = small_log()
    _, start, stop = log.places[1]
    for low in range(start, stop):
        high = min(low // 512 * 512 + 512, stop)
        if low != start and low % 512:
            continue
        files = log.copy()
        files[0][low:high] = bytes(high - low)
        with pytest.raises(wal.CorruptLog):
            read(files)


def test_a_missing_first_sector_before_another_batch_is_corruption() -> None:
    log = Written(8192)
    log.add([entry(1, b"a" * 1000)])
    log.add([entry(2, b"b" * 2000)])
    log.add([entry(3, b"c" * 1000)])
    _, start, _ = log.places[1]
    files = log.copy()
    files[0][start : start // 512 * 512 + 512] = bytes(512 - start % 512)
    with pytest.raises(wal.CorruptLog):
        read(files)


def test_a_value_that_looks_like_a_batch_does_not_hinder_the_cut() -> None:
    """The first word is checked with its place and the segment's header: copied, it is void."""
    other = Written(4096)
    other.add([entry(1, b"x" * 100)])
    forged = bytes(other.files[0][520:640])
    log = Written(8192)
    log.add([entry(1)])
    log.add([entry(2, forged * 20)])
    found = read(lose(log, log.sectors()[:1]))
    assert records(found) == log.batches[:1]


def test_a_damaged_batch_that_is_not_the_last_is_never_cut() -> None:
    log = small_log()
    _, start, _ = log.places[1]
    files = log.copy()
    files[0][start + 40] ^= 0xFF
    files[0][1024:1536] = bytes(512)  # and a sector is missing, as if torn
    with pytest.raises(wal.CorruptLog):
        read(files)


def test_a_segment_that_was_not_begun_is_blank() -> None:
    log = small_log()
    for rest in (b"", bytes(100), bytes(512), bytes(2048)):
        found = read([*log.files, rest])
        assert records(found) == log.batches
        assert found.blank == 2
    assert read([]).segment is None
    only = read([bytes(2048)])
    assert only.segment is None
    assert only.blank == 1


def test_a_segment_with_a_header_and_no_batch_is_gone_on_with() -> None:
    log = small_log()
    log.roll()
    found = read(log.files)
    assert records(found) == log.batches
    assert found.segment is not None
    assert found.segment.header.number == 2
    assert found.segment.empty


def test_a_torn_first_batch_of_a_new_segment_is_cut() -> None:
    log = small_log()
    log.roll()
    log.add([entry(5, bytes(1000))])
    for chosen in itertools.product([False, True], repeat=len(log.sectors())):
        lost = list(itertools.compress(log.sectors(), chosen))
        found = read(lose(log, lost))
        assert records(found) == (log.batches[:-1] if lost else log.batches)


def test_a_batch_missing_before_the_next_segment_is_corruption() -> None:
    log = small_log()
    _, start, stop = log.places[-1]
    log.roll()
    log.files[0][start:stop] = bytes(stop - start)
    with pytest.raises(wal.CorruptLog, match="missing"):
        read(log.files)


def test_bytes_beyond_the_end_of_a_segment_are_not_overlooked() -> None:
    log = small_log(4096)
    log.files[0][3072] = 3
    assert records(read(log.files)) == log.batches
    assert read(log.files).torn[1] > 0, "in the last segment they are cut"
    log.files[0][3072] = 0
    log.roll()
    log.files[0][3072] = 3
    with pytest.raises(wal.CorruptLog, match="not clean"):
        read(log.files)


def test_a_header_missing_before_data_is_corruption() -> None:
    log = small_log()
    log.files[0][:512] = bytes(512)
    with pytest.raises(wal.CorruptLog, match="header"):
        read(log.files)


def test_missing_and_exchanged_segments_are_noticed() -> None:
    log = small_log(1536)
    assert len(log.files) == 2
    with pytest.raises(wal.CorruptLog, match="missing"):
        Found([2], log.files)
    with pytest.raises(wal.CorruptLog, match="another name"):
        read(log.files[::-1])


def test_a_log_of_a_later_version_is_not_called_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wal, "VERSION", 2)
        log = small_log()
    with pytest.raises(wal.ForeignLog, match="format 2"):
        read(log.files)


def test_the_error_says_where_and_what_to_do() -> None:
    log = small_log()
    _, start, _ = log.places[1]
    log.files[0][start + 50] ^= 1
    with pytest.raises(wal.CorruptLog, match="joins as a learner") as caught:
        read(log.files)
    assert (caught.value.segment, caught.value.offset) == (1, start)


def test_a_relaxed_log_is_cut_at_the_first_missing_sector() -> None:
    log = Written(8192)
    log.add([entry(1)])
    log.add([], wal.RELAXED)
    for number in range(2, 6):
        log.add([entry(number, b"r" * 700)])
    for low in range(1024, log.places[-1][2] // 512 * 512, 512):
        files = log.copy()
        files[0][low : low + 512] = bytes(512)
        found = read(files)
        whole = sum(stop <= low for _, _, stop in log.places)
        assert records(found) == log.batches[:whole]
        assert found.segment is not None
        assert found.segment.relaxed


def test_closed_ends_relaxed() -> None:
    log = Written(8192)
    for kind, relaxed in ((wal.RELAXED, True), (wal.CLOSED, False), (wal.RELAXED, True)):
        log.add([entry(1, b"k" * 600)], kind)
        found = read(log.files)
        assert found.segment is not None
        assert found.segment.relaxed is relaxed
    log.add([entry(2)])
    _, start, _ = log.places[0]
    log.files[0][start : start // 512 * 512 + 512] = bytes(512 - start % 512)
    with pytest.raises(wal.CorruptLog):
        read(log.files)
