"""The format of the log: bytes in, records out. No files, no clock.

The law: what was synced is never lost in silence. Reading a log gives every batch that was
written, or all but the one whose write a crash tore, or raises `CorruptLog`.

A log is a row of segments of a fixed size, made of zeros and never used twice. The unit of a
torn write is the sector (512 bytes): a crash leaves each sector of an unsynced write either as it
was before or as it was to become. So that a missing sector can be told from a damaged one, every
sector begins with `MARK` and holds `ROOM` bytes of the stream behind it: no value a client stores
makes a written sector look unwritten, and no flipped bit does.

The first sector is the header. It is synced before the first batch is written, so a segment
whose header is missing has no batch. Then come batches, one per write:

    u32 length, u8 kind, u24 check | u32 count, u32 crc | payload, padded to 8 bytes

The payload is a MessagePack array of `count` records. `crc` (CRC-32) is chained over everything
before it, back to the first segment. The first word is checked on its own, with its position, and
lies in one sector: when it is there, the extent of the batch is known even if the rest is not. It
is the commit mark of the batch and stands in front for that reason. A zero word ends the data.

Only one batch is ever unsynced: the next is written after the sync returned. Between a batch of
kind RELAXED and one of kind CLOSED that does not hold: there the last segment may be cut at any
batch, and who reads it is told.

Old segments are removed from the front. That those before some number are no longer needed stands
in the log (`Released`) before the first of them goes; it always lies in a segment that is needed
itself. So a log that begins later than the greatest number it names, or than 1, lost something.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from ..protocols.errors import Code
from ..protocols.records import NodeId, Record

SECTOR = 512
MARK = b"\x9d" * 8
ROOM = SECTOR - len(MARK)
FIRST = ROOM
"""Stream offset of the first batch: behind the header's sector."""

RECORDS, RELAXED, CLOSED = KINDS = 0xB7, 0xAE, 0xD9
"""Kinds of batches: all hold records; RELAXED also says that from here batches are not synced one
by one, CLOSED that all of them are. Each has several bits set, so that one flipped bit never makes
a zero word nor another kind."""

MAGIC = b"coterie\n"
VERSION = 1
_HEADER = struct.Struct("<8sIIQQQBB255s")
_WORD = struct.Struct("<Q")
_CHECKED = struct.Struct("<IBQ")
_REST = struct.Struct("<II")
_CRC = struct.Struct("<I")
HEAD = _WORD.size + _REST.size

PIECE = 512 * SECTOR
"""How much of a segment is read at once from its middle."""


class Released(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=0):
    """Not of any group: the segments before this one are no longer needed."""

    segment: int


LogRecord: TypeAlias = Record | Released

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[LogRecord])


class CorruptLog(Exception):
    """The log lost or changed something that was synced; the node must not vote with it.

    `segment` is the segment's number, `offset` the byte in its file where the trouble begins.
    """

    code = Code.CORRUPT_LOG

    def __init__(self, segment: int, offset: int, reason: str) -> None:
        super().__init__(
            f"segment {segment} of the log is damaged at byte {offset}: {reason}. This node must "
            "not vote with it: move its data directory away and start it with an empty one; it "
            "then joins as a learner and copies what it needs from its peers"
        )
        self.segment = segment
        self.offset = offset
        self.reason = reason


class ForeignLog(Exception):
    """The log is whole, but not one this node may use: another node's, or another version's."""

    code = Code.CORRUPT_LOG


class Header(NamedTuple):
    """What a segment says of itself. `chained` is the CRC at the end of the segment before,
    `relaxed` whether it begins between RELAXED and CLOSED."""

    node: NodeId
    incarnation: int
    number: int
    size: int
    chained: int
    relaxed: bool


def encode_header(header: Header) -> bytes:
    """The first sector of a segment."""
    node = header.node.encode()
    fields = _HEADER.pack(
        MAGIC, VERSION, header.chained, header.number, header.size,
        header.incarnation, header.relaxed, len(node), node,
    )  # fmt: skip
    body = MARK + fields.ljust(ROOM - _CRC.size, b"\0")
    return body + _CRC.pack(zlib.crc32(body))


def decode_header(number: int, sector: bytes) -> tuple[Header, int]:
    """The header of segment `number` and its CRC; raises `CorruptLog` or `ForeignLog`."""
    crc = zlib.crc32(sector[: -_CRC.size])
    if len(sector) < SECTOR or crc != _CRC.unpack(sector[-_CRC.size :])[0]:
        raise CorruptLog(number, 0, "its header is damaged")
    magic, version, chained, stored, size, incarnation, relaxed, length, node = _HEADER.unpack_from(
        sector, len(MARK)
    )
    if magic != MAGIC or version != VERSION:
        raise ForeignLog(
            f"segment {number} of the log has format {version}; this program reads {VERSION}: "
            "start the node with the version of coterie that wrote it"
        )
    if stored != number:
        raise CorruptLog(number, 0, f"it is segment {stored} under another name")
    return Header(node[:length].decode(), incarnation, number, size, chained, bool(relaxed)), crc


def encode_records(records: Sequence[LogRecord]) -> bytes:
    """The payload of a batch."""
    return _encoder.encode(records)


def position(offset: int) -> int:
    """Where in the file the stream's byte `offset` is written; with its mark, if it needs one."""
    sector, rest = divmod(offset, ROOM)
    return sector * SECTOR + (rest and len(MARK) + rest)


def extent(payload: int) -> int:
    """Bytes of the stream that a batch with so many bytes of payload takes."""
    return HEAD + payload + -payload % 8


def size_for(payload: int) -> int:
    """The smallest size of a segment, in bytes, that holds one batch of so many bytes."""
    return -(-(FIRST + extent(payload)) // ROOM) * SECTOR


class Segment:
    """The end of a segment: where the next batch goes. Frames batches; does not write them."""

    def __init__(self, header: Header, crc: int) -> None:
        self.header = header
        self.seed = crc
        self.crc = crc
        self.relaxed = header.relaxed
        self.offset = FIRST
        self._end = header.size // SECTOR * ROOM

    def begin(self, kind: int) -> None:
        """Note whether what comes behind a batch of this kind is synced batch by batch."""
        if kind != RECORDS:
            self.relaxed = kind == RELAXED

    @property
    def empty(self) -> bool:
        return self.offset == FIRST

    @property
    def used(self) -> float:
        """The part of the segment that is written, 0 to 1."""
        return self.offset / self._end

    def fits(self, payload: int) -> bool:
        """True if a batch with so many bytes of payload fits in."""
        return self.offset + extent(payload) <= self._end

    def append(self, kind: int, count: int, payload: bytes) -> tuple[int, bytes]:
        """Frame the next batch: where in the file it goes, and its bytes."""
        length, offset = len(payload), self.offset
        word = first_word(length, kind, offset, self.seed)
        self.crc = chain(self.crc, word, count, payload)
        padding = bytes(-length % 8)
        stream = b"".join((word, _REST.pack(count, self.crc), payload, padding))
        self.offset = offset + len(stream)
        self.begin(kind)
        cut = -offset % ROOM  # what still fits in a sector begun by an earlier batch
        pieces = [stream[at : at + ROOM] for at in range(cut, len(stream), ROOM)]
        return position(offset), MARK.join([stream[:cut], *pieces])


def first_word(length: int, kind: int, offset: int, seed: int) -> bytes:
    check = zlib.crc32(_CHECKED.pack(length, kind, offset), seed) & 0xFFFFFF
    return _WORD.pack(length | kind << 32 | check << 40)


def chain(crc: int, word: bytes, count: int, payload: bytes) -> int:
    """The CRC of a batch, from the CRC before it. The padding means nothing and is not in it."""
    return zlib.crc32(payload, zlib.crc32(word + _CRC.pack(count), crc))


class Batch(NamedTuple):
    """A batch as read or written: its segment, its offset in the stream, the CRC before it and
    its records."""

    segment: int
    offset: int
    crc: int
    records: Sequence[LogRecord]


class Recovered(NamedTuple):
    """What a log holds beside its batches.

    `segment` is where to go on, None if there is no log yet. `torn` is the place and length of
    what a torn write left behind (length 0: nothing): to be overwritten with zeros and synced
    before the next batch. `blank` is a segment made but never begun: to be removed. `extents` are
    the CRCs of the headers and the ends of the streams, by segment; the segments before
    `released` are no longer needed.
    """

    segment: Segment | None
    torn: tuple[int, int]
    blank: int | None
    extents: dict[int, tuple[int, int]]
    released: int


def recover(
    numbers: Sequence[int], read: Callable[[int], bytes], take: Callable[[Batch], object]
) -> Recovered:
    """Read the segments `numbers` (sorted) with `read` and hand every batch to `take`, which must
    forget them all if this raises `CorruptLog` or `ForeignLog`."""
    blank = None
    if numbers and _zero(read(numbers[-1]), 0):
        blank, numbers = numbers[-1], numbers[:-1]  # a crash while it was made, or made ahead
    if not numbers:
        return Recovered(None, (0, 0), blank, {}, 1)
    extents: dict[int, tuple[int, int]] = {}
    chained = 0 if numbers[0] == 1 else None
    released = 1
    for expected, number in enumerate(numbers, numbers[0]):
        if number != expected:
            raise CorruptLog(expected, 0, "the segment is missing")
        reader = _Reader(number, read(number), chained)
        reader.run(take, last=number == numbers[-1])
        chained, released = reader.segment.crc, max(released, reader.released)
        extents[number] = reader.segment.seed, reader.segment.offset
    if numbers[0] > released:
        raise CorruptLog(numbers[0] - 1, 0, "the segment is missing")
    return Recovered(reader.segment, reader.torn, blank, extents, released)


def read_batches(
    read: Callable[[int, int], bytes], number: int, seed: int, start: tuple[int, int], stop: int
) -> Iterator[list[LogRecord]]:
    """The records of each batch from the middle of a segment: `start` is (offset in the stream,
    CRC before it), `stop` the offset behind the last batch; `read(position, size)` reads the file.
    Raises `CorruptLog`."""
    offset, crc = start
    base = offset - offset % ROOM
    stream = b""

    def has(length: int) -> bool:
        """Have so many bytes from `offset` on, if the file does."""
        nonlocal base, stream
        missing = offset + length - base - len(stream)
        if missing > 0:
            sector = offset // ROOM
            stream, base, at = stream[sector * ROOM - base :], sector * ROOM, base + len(stream)
            size = max(PIECE, -(-missing // ROOM) * SECTOR)
            stream += _unmarked(read(at // ROOM * SECTOR, size))
        return len(stream) >= offset + length - base

    while offset < stop:
        head = _head(stream, offset - base, seed, base) if has(HEAD) else None
        if head is None or not has(extent(head[0])):
            raise CorruptLog(number, position(offset), "a batch is no longer there")
        payload, count, after = _body(stream, offset - base, head[0], crc)
        if after is None:
            raise CorruptLog(number, position(offset), "a batch's checksum is wrong")
        yield _records(number, offset, payload, count)
        crc, offset = after, offset + extent(head[0])


class _Reader:
    """Reads one segment."""

    def __init__(self, number: int, data: bytes, chained: int | None) -> None:
        self.number = number
        self.data = data
        header, crc = decode_header(number, data[:SECTOR])
        if len(data) != header.size:
            raise CorruptLog(number, len(data), f"it has {len(data)} of {header.size} bytes")
        if chained is not None and header.chained != chained:
            raise CorruptLog(number, 0, "batches between it and the segment before are missing")
        self.segment = Segment(header, crc)
        self.stream = _unmarked(data)
        self.torn = (0, 0)
        self.released = 1

    def run(self, take: Callable[[Batch], object], last: bool) -> None:
        """Read all batches; decide whether what follows them is nothing, torn or corrupt."""
        segment, reason = self.segment, ""
        while not reason and self.stream[segment.offset : segment.offset + 8].strip(b"\0"):
            reason = self._batch(take)
        start = position(segment.offset)
        if _zero(self.data, start):
            return
        if not last:
            raise CorruptLog(self.number, start, reason or "its end is not clean")
        if not self._is_torn():
            raise CorruptLog(self.number, start, reason or "there are bytes beyond its end")
        self.torn = (start, len(self.data.rstrip(b"\0")) - start)

    def _batch(self, take: Callable[[Batch], object]) -> str:
        """Read the batch at the segment's offset and step over it, or say what is wrong."""
        segment, stream, at = self.segment, self.stream, self.segment.offset
        head = _head(stream, at, segment.seed)
        if head is None:
            return "a batch's first word is damaged"
        length, kind = head
        stop = at + extent(length)
        if stop > len(stream):
            return "a batch reaches beyond its end"
        payload, count, crc = _body(stream, at, length, segment.crc)
        if crc is None:
            return "a batch's checksum is wrong"
        if not self._marked(at, stop):
            return "a sector's mark is wrong"
        records = _records(self.number, at, payload, count)
        for record in records:
            if type(record) is Released:
                self.released = max(self.released, record.segment)
        take(Batch(self.number, at, segment.crc, records))
        segment.crc, segment.offset = crc, stop
        segment.begin(kind)
        return ""

    def _marked(self, at: int, stop: int) -> bool:
        """True if every sector that begins within this part of the stream has its mark. Behind a
        mark there may be zeros only: then nothing else tells that the sector is missing."""
        data, first = self.data, -(-position(at) // SECTOR) * SECTOR
        return all(
            data[sector : sector + len(MARK)] == MARK
            for sector in range(first, position(stop - 1) + 1, SECTOR)
        )

    def _is_torn(self) -> bool:
        """True if the damage at the segment's offset is what a crash leaves of one last write."""
        at, relaxed = self.segment.offset, self.segment.relaxed
        start = position(at)
        head = _head(self.stream, at, self.segment.seed)
        if head is not None:
            stop = position(at + extent(head[0]) - 1) + 1
            if stop > len(self.data) or not (relaxed or _zero(self.data, stop)):
                return False  # something follows: this batch was synced
            return any(_zero(self.data, low, min(high, stop)) for low, high in _chunks(start, stop))
        sector_end = start - start % SECTOR + SECTOR
        if not _zero(self.data, start, sector_end):
            return False  # the sector was written, so the first word was there
        return relaxed or not self._later_batch(at)

    def _later_batch(self, at: int) -> bool:
        """True if a batch begins beyond `at`: then the one at `at` was synced."""
        for kind in KINDS:
            found = self.stream.find(kind, at)
            while found >= 0:
                word = found - 4  # where a batch begins that has its kind here
                if word % 8 == 0 and _head(self.stream, word, self.segment.seed) is not None:
                    return True
                found = self.stream.find(kind, found + 1)
        return False


def _head(stream: bytes, at: int, seed: int, base: int = 0) -> tuple[int, int] | None:
    """Length and kind of the batch at `at`, None if there is none or its word is damaged. `base`
    is where in the segment's stream this part of it begins."""
    word = stream[at : at + _WORD.size]
    if len(stream) - at < HEAD:
        return None
    value = _WORD.unpack(word)[0]
    length, kind = value & 0xFFFFFFFF, value >> 32 & 0xFF
    if kind not in KINDS or word != first_word(length, kind, base + at, seed):
        return None
    return length, kind


def _body(stream: bytes, at: int, length: int, crc: int) -> tuple[bytes, int, int | None]:
    """Payload and count of the batch at `at`, and the CRC behind it; None if that is wrong."""
    payload = stream[at + HEAD : at + HEAD + length]
    count, stored = _REST.unpack_from(stream, at + _WORD.size)
    right = stored == chain(crc, stream[at : at + _WORD.size], count, payload)
    return payload, count, stored if right else None


def _records(number: int, offset: int, payload: bytes, count: int) -> list[LogRecord]:
    """The records of the batch at `offset`."""
    try:
        records = _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise CorruptLog(number, position(offset), f"a record is unknown ({error})") from error
    if len(records) != count:
        raise CorruptLog(number, position(offset), "a batch has another number of records")
    return records


def _unmarked(data: bytes) -> bytes:
    """The stream in whole sectors of a file."""
    return b"".join([data[at + len(MARK) : at + SECTOR] for at in range(0, len(data), SECTOR)])


def _chunks(start: int, stop: int) -> list[tuple[int, int]]:
    """The pieces of [start, stop) that lie in one sector each."""
    edges = [start, *range(start - start % SECTOR + SECTOR, stop, SECTOR), stop]
    return list(itertools.pairwise(edges))


def _zero(data: bytes, start: int, stop: int | None = None) -> bool:
    stop = len(data) if stop is None else stop
    return data.count(0, start, stop) == stop - start
