"""A snapshot as a stream of bytes: a header, then the chunks of each section.

The law: one state has one stream, byte by byte, on every replica. Each item carries a CRC chained
over all before it, and the last one says that it is the last: a stream that was cut, mixed with
another or changed is `DamagedSnapshot`, never half a state.

The stream is a sequence of MessagePack arrays `[section, chunk, crc]`. The first one's section is
"" and its chunk a `Header`; the last one's is `END`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import msgpack  # type: ignore[import-untyped]
import msgspec

from .errors import Code
from .records import GroupId

VERSION = 1
HEADER, WINDOWS, END = "", "/windows", "."
"""Section names no plugin has; those of the machines are their plugins'."""

ITEM_BYTES_MAX = 4 << 20
"""No chunk is larger: about 1,000 records, or a single one of 1 MiB."""

Section = tuple[str, Iterable[bytes]]


class Header(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where the state stands: the last entry it contains, log time, operation number, and the
    latest configuration up to there with the index of its entry. `digest_at` is the operation
    number at which replicas compare their states next."""

    version: int
    group: GroupId
    index: int
    term: int
    time_us: int
    number: int
    digest_at: int
    configuration_index: int
    configuration: bytes


class DamagedSnapshot(Exception):
    """The bytes are not a whole snapshot of this group."""

    code = Code.CORRUPT_LOG


def encode(header: Header, sections: Iterable[Section]) -> Iterator[bytes]:
    """The stream, item by item; chunks are taken as it is."""
    packer = msgpack.Packer()
    crc = 0

    def item(section: str, chunk: bytes) -> bytes:
        nonlocal crc
        crc = zlib.crc32(chunk, zlib.crc32(section.encode(), crc))
        packed: bytes = packer.pack((section, chunk, crc))
        return packed

    yield item(HEADER, msgspec.msgpack.encode(header))
    for section, chunks in sections:
        for chunk in chunks:
            yield item(section, chunk)
    yield item(END, b"")


class Reader:
    """Takes a stream in pieces of any size. `header` is there after the first item, `complete`
    after the last."""

    def __init__(self, group: GroupId) -> None:
        self.header: Header | None = None
        self.complete = False
        self._group = group
        self._crc = 0
        self._unpacker = msgpack.Unpacker(max_buffer_size=2 * ITEM_BYTES_MAX)

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """The (section, chunk) pairs completed by this piece, the header's not among them. To be
        taken to the end. Raises `DamagedSnapshot`."""
        try:
            self._unpacker.feed(data)
            for item in self._unpacker:
                found = self._check(item)
                if found is not None:
                    yield found
        except DamagedSnapshot:
            raise
        except Exception as error:  # whatever the unpacker makes of bytes that are not MessagePack
            raise DamagedSnapshot(f"not a snapshot: {error}") from error

    def _check(self, item: object) -> tuple[str, bytes] | None:
        if self.complete:
            raise DamagedSnapshot("there is something behind the end of the snapshot")
        match item:
            case [str() as section, bytes() as chunk, int() as crc]:
                self._crc = zlib.crc32(chunk, zlib.crc32(section.encode(), self._crc))
                if crc != self._crc:
                    raise DamagedSnapshot("a checksum is wrong")
            case _:
                raise DamagedSnapshot("an item is no section, chunk and checksum")
        if (self.header is None) is not (section == HEADER):
            raise DamagedSnapshot("it does not begin with its one header")
        if section == HEADER:
            self.header = self._header(chunk)
        elif section == END:
            self.complete = True
        else:
            return section, chunk
        return None

    def _header(self, chunk: bytes) -> Header:
        header = msgspec.msgpack.decode(chunk, type=Header)
        if header.version != VERSION:
            raise DamagedSnapshot(f"its format is {header.version}, this program reads {VERSION}")
        if header.group != self._group:
            raise DamagedSnapshot(f"it is of group {header.group}, not of {self._group}")
        return header
