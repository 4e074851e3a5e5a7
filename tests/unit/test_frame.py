"""The frame header: its sixteen bytes, and what is refused before anything is decoded."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.bus.frame import (
    FRAME_BYTES,
    HEADER_BYTES,
    Header,
    Kind,
    Malformed,
    pack,
    plugin_code,
    unpack,
)


def test_golden_header() -> None:
    """Written by hand from the table in `frame.py`: it must never change."""
    golden = b"cT\x01\x02" + hashlib.blake2b(b"lock").digest()[:4] + bytes(6) + b"\x01\x02"
    assert pack(Kind.ASK, plugin_code("lock"), 258) == golden
    assert unpack(golden + b"body") == Header(Kind.ASK, plugin_code("lock"), 258)
    assert len(golden) == HEADER_BYTES == 16


@given(st.sampled_from(Kind), st.binary(min_size=4, max_size=4), st.integers(0, 2**64 - 1))
def test_round_trip(kind: Kind, plugin: bytes, cluster: int) -> None:
    assert unpack(pack(kind, plugin, cluster)) == (kind, plugin, cluster)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "short"),
        (pack(Kind.PEER, b"abcd", 1)[:15], "short"),
        (b"GET / HTTP/1.1\r\n\r\n", "magic"),
        (b"cT\x02\x01" + bytes(12), "version"),
        (b"cT\x01\x00" + bytes(12), "kind"),
        (b"cT\x01\x06" + bytes(12), "kind"),
    ],
)
def test_refused(frame: bytes, reason: str) -> None:
    with pytest.raises(Malformed) as caught:
        unpack(frame)
    assert caught.value.reason == reason


@settings(max_examples=1000)
@given(st.binary(max_size=40))
def test_only_malformed_escapes(frame: bytes) -> None:
    try:
        header = unpack(frame)
    except Malformed:
        return
    assert pack(*header) == frame[:HEADER_BYTES]


def test_every_kind_has_a_size_limit() -> None:
    assert set(FRAME_BYTES) == set(Kind)


def test_codes_of_our_plugins_differ() -> None:
    names = ("raft", "session", "lock", "queue", "mesi", "cluster")
    assert len({plugin_code(name) for name in names}) == len(names)
