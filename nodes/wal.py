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
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

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

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])


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


def encode_records(records: Sequence[Record]) -> bytes:
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
    """A batch as read: its segment, its place in the file and its records."""

    segment: int
    offset: int
    records: list[Record]


class Recovered(NamedTuple):
    """What a log holds.

    `segment` is where to go on, None if there is no log yet. `torn` is the place and length of
    what a torn write left behind (length 0: nothing): to be overwritten with zeros and synced
    before the next batch. `blank` is a segment made but never begun: to be removed.
    """

    batches: list[Batch]
    segment: Segment | None
    torn: tuple[int, int]
    blank: int | None


def recover(numbers: Sequence[int], read: Callable[[int], bytes]) -> Recovered:
    """Read the segments `numbers` (sorted) with `read`; raises `CorruptLog` or `ForeignLog`."""
    blank = None
    if numbers and _zero(read(numbers[-1]), 0):
        blank, numbers = numbers[-1], numbers[:-1]  # a crash while it was made, or made ahead
    batches: list[Batch] = []
    reader: _Reader | None = None
    for expected, number in enumerate(numbers, 1):
        if number != expected:  # compaction, once it removes old segments, sets the first number
            raise CorruptLog(expected, 0, "the segment is missing")
        chained = reader.segment.crc if reader else 0
        reader = _Reader(number, read(number), chained)
        reader.run(batches, last=number == numbers[-1])
    if reader is None:
        return Recovered(batches, None, (0, 0), blank)
    return Recovered(batches, reader.segment, reader.torn, blank)


class _Reader:
    """Reads one segment."""

    def __init__(self, number: int, data: bytes, chained: int) -> None:
        self.number = number
        self.data = data
        header, crc = decode_header(number, data[:SECTOR])
        if len(data) != header.size:
            raise CorruptLog(number, len(data), f"it has {len(data)} of {header.size} bytes")
        if header.chained != chained:
            raise CorruptLog(number, 0, "batches between it and the segment before are missing")
        self.segment = Segment(header, crc)
        self.stream = b"".join(
            [data[at + len(MARK) : at + SECTOR] for at in range(0, len(data), SECTOR)]
        )
        self.torn = (0, 0)

    def run(self, batches: list[Batch], last: bool) -> None:
        """Read all batches; decide whether what follows them is nothing, torn or corrupt."""
        segment, reason = self.segment, ""
        while not reason and self.stream[segment.offset : segment.offset + 8].strip(b"\0"):
            reason = self._batch(batches)
        start = position(segment.offset)
        if _zero(self.data, start):
            return
        if not last:
            raise CorruptLog(self.number, start, reason or "its end is not clean")
        if not self._is_torn():
            raise CorruptLog(self.number, start, reason or "there are bytes beyond its end")
        self.torn = (start, len(self.data.rstrip(b"\0")) - start)

    def _batch(self, batches: list[Batch]) -> str:
        """Read the batch at the segment's offset and step over it, or say what is wrong."""
        segment, stream, at = self.segment, self.stream, self.segment.offset
        head = _head(stream, at, segment.seed)
        if head is None:
            return "a batch's first word is damaged"
        length, kind = head
        stop = at + extent(length)
        if stop > len(stream):
            return "a batch reaches beyond its end"
        payload = stream[at + HEAD : at + HEAD + length]
        count, crc = _REST.unpack_from(stream, at + _WORD.size)
        if crc != chain(segment.crc, stream[at : at + _WORD.size], count, payload):
            return "a batch's checksum is wrong"
        if not self._marked(at, stop):
            return "a sector's mark is wrong"
        batches.append(Batch(self.number, position(at), self._records(at, payload, count)))
        segment.crc, segment.offset = crc, stop
        segment.begin(kind)
        return ""

    def _records(self, at: int, payload: bytes, count: int) -> list[Record]:
        try:
            records = _decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise CorruptLog(self.number, position(at), f"a record is unknown ({error})") from error
        if len(records) != count:
            raise CorruptLog(self.number, position(at), "a batch has another number of records")
        return records

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


def _head(stream: bytes, at: int, seed: int) -> tuple[int, int] | None:
    """Length and kind of the batch at `at`, None if there is none or its word is damaged."""
    word = stream[at : at + _WORD.size]
    if len(stream) - at < HEAD:
        return None
    value = _WORD.unpack(word)[0]
    length, kind = value & 0xFFFFFFFF, value >> 32 & 0xFF
    if kind not in KINDS or word != first_word(length, kind, at, seed):
        return None
    return length, kind


def _chunks(start: int, stop: int) -> list[tuple[int, int]]:
    """The pieces of [start, stop) that lie in one sector each."""
    edges = [start, *range(start - start % SECTOR + SECTOR, stop, SECTOR), stop]
    return list(itertools.pairwise(edges))


def _zero(data: bytes, start: int, stop: int | None = None) -> bool:
    stop = len(data) if stop is None else stop
    return data.count(0, start, stop) == stop - start
