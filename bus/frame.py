"""The frame header: sixteen fixed bytes that drop junk before anything is decoded.

    offset  size  field
         0     2  magic    "cT"
         2     1  version  1
         3     1  kind     PEER 1, ASK 2, ANSWER 3, TELL 4, PUBLISH 5
         4     4  plugin   the first four bytes of blake2b(plugin name)
         8     8  cluster  cluster id, big-endian; 0 on first contact

The body follows: one MessagePack value (`codec.py`). The law: the header never changes its size
or the place of its first four bytes, so that any version can refuse any other.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from typing import Literal, NamedTuple, TypeAlias

MAGIC = b"cT"
VERSION = 1
HEADER = struct.Struct(">2sBB4sQ")
HEADER_BYTES = HEADER.size

CUT_BYTES = 1024 * 1024
"""Senders begin a new frame where one would grow past this."""

PEER_FRAME_BYTES = 8 * 1024 * 1024
"""No frame between nodes, or from a node to a client, is larger than this."""

CLIENT_FRAME_BYTES = CUT_BYTES + 64 * 1024
"""No frame from a client is larger: a body of 1 MiB and what goes with it."""

Reason: TypeAlias = Literal[
    "short", "magic", "version", "kind", "plugin", "cluster", "body", "role", "oversize"
]


class Kind(enum.IntEnum):
    """Who speaks to whom; it decides which message types the body may hold."""

    PEER = 1  # node → node
    ASK = 2  # client → node
    ANSWER = 3  # node → client, to an ASK
    TELL = 4  # node → client, unasked
    PUBLISH = 5  # node → whoever subscribed


FRAME_BYTES: dict[Kind, int] = {
    Kind.PEER: PEER_FRAME_BYTES,
    Kind.ASK: CLIENT_FRAME_BYTES,
    Kind.ANSWER: PEER_FRAME_BYTES,
    Kind.TELL: PEER_FRAME_BYTES,
    Kind.PUBLISH: PEER_FRAME_BYTES,
}


class Malformed(ValueError):
    """A frame that is dropped. `reason` is a short name to count it by:

    short (no header), magic, version, kind (no such kind), plugin (unknown code), cluster
    (foreign), role (this receiver takes no such kind for that plugin), oversize, body.
    """

    def __init__(self, reason: Reason, text: str = "") -> None:
        super().__init__(f"malformed frame ({reason}){': ' + text if text else ''}")
        self.reason: Reason = reason


class Header(NamedTuple):
    """The fields of a frame header; `plugin` is the code, not the name."""

    kind: Kind
    plugin: bytes
    cluster: int


def plugin_code(name: str) -> bytes:
    """The four bytes that stand for a plugin's name in every frame."""
    return hashlib.blake2b(name.encode()).digest()[:4]


def pack(kind: Kind, plugin: bytes, cluster: int) -> bytes:
    """A frame header. `cluster` is an unsigned 64-bit number, 0 while none is known."""
    return HEADER.pack(MAGIC, VERSION, kind, plugin, cluster)


def unpack(frame: bytes) -> Header:
    """Read the header of a frame. Raises `Malformed`: short, magic, version or kind."""
    if len(frame) < HEADER_BYTES:
        raise Malformed("short", f"{len(frame)} bytes")
    magic, version, kind, plugin, cluster = HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise Malformed("magic")
    if version != VERSION:
        raise Malformed("version", f"version {version}, this is {VERSION}")
    if kind not in FRAME_BYTES:
        raise Malformed("kind", f"kind {kind}")
    return Header(Kind(kind), plugin, cluster)
