"""The codec: envelopes come back as they went, roles are kept apart, junk costs no memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.bus.codec import (
    OPERATIONS,
    Answer,
    Ask,
    Codec,
    Envelope,
    PeerFrame,
    Publish,
    Tell,
    TooLarge,
    Vocabulary,
)
from coterie.bus.frame import (
    CLIENT_FRAME_BYTES,
    CUT_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    PEER_FRAME_BYTES,
    Kind,
    Malformed,
    pack,
    plugin_code,
)
from coterie.protocols.errors import Code
from coterie.protocols.plugin import Failure, Hint, Internal, Message, Operation, Query, Result


class Vote(Message, frozen=True, tag=0):
    term: int
    entries: tuple[bytes, ...] = ()


class Put(Operation, frozen=True, tag=1):
    key: str
    value: bytes = b""
    numbers: tuple[int, ...] = ()


class Get(Query, frozen=True, tag=2):
    key: str


class Expire(Internal, frozen=True, tag=3):
    number: int


class Got(Result, frozen=True, tag=4):
    value: bytes | None


class Freed(Hint, frozen=True, tag=5):
    number: int


WORDS = Vocabulary(peer=[Vote], asked=[Put, Get], answered=[Got, Failure], told=[Freed])
CODEC = Codec({"toy": WORDS, "mute": Vocabulary(peer=[Vote])})
CLUSTER = 2**64 - 1
ALL = tuple(Kind)


def decode(frame: bytes, cluster: int = CLUSTER, **options: Any) -> Envelope:
    plugin, theirs, envelope = CODEC.decode(frame, cluster, ALL, **options)
    assert plugin == "toy" and theirs in (cluster, 0)
    return envelope


def ask(count: int = 1, value: bytes = b"") -> list[bytes]:
    sequences, operations = list(range(count)), [Put(f"k{n}", value) for n in range(count)]
    return CODEC.encode_ask("toy", CLUSTER, 7, 8, 9, 10, 11, sequences, operations)


def reason(frame: bytes, cluster: int = CLUSTER, kinds: tuple[Kind, ...] = ALL, **o: Any) -> str:
    with pytest.raises(Malformed) as caught:
        CODEC.decode(frame, cluster, kinds, **o)
    return str(caught.value.reason)


GOLDEN: list[tuple[bytes, Envelope, list[Any], str]] = [
    (
        CODEC.encode_peer("toy", CLUSTER, "node1", 5, 0, [Vote(3, (b"e",))])[0],
        PeerFrame("node1", 5, 0, [Vote(3, (b"e",))]),
        ["node1", 5, 0, [[0, 3, [b"e"]]]],
        "94a56e6f64653105009193000391c40165",
    ),
    (
        CODEC.encode_ask("toy", CLUSTER, 7, 8, 9, 10, 11, [1, 2], [Put("k", b"v"), Get("k")])[0],
        Ask(7, 8, 9, 10, 11, [1, 2], [Put("k", b"v"), Get("k")]),
        [7, 8, 9, 10, 11, [1, 2], [[1, "k", b"v", []], [2, "k"]], []],
        "980708090a0b920102929401a16bc40176909202a16b90",
    ),
    (
        CODEC.encode_answer("toy", CLUSTER, 9, [1, 2], [Got(None), Failure(Code.BUSY, "wait")])[0],
        Answer(9, [1, 2], [Got(None), Failure(Code.BUSY, "wait")]),
        [9, [1, 2], [[4, None], [-1, 3, "wait", []]]],
        "930992010292" + "9204c0" + "94ff03a47761697490",
    ),
    (
        CODEC.encode_tell("toy", CLUSTER, [Freed(2**40)])[0],
        Tell([Freed(2**40)]),
        [[[5, 2**40]]],
        "919192" + "05cf0000010000000000",
    ),
    (
        CODEC.encode_publish("toy", CLUSTER, "node1", 5, 6, [Vote(1)]),
        Publish("node1", 5, 6, [Vote(1)]),
        ["node1", 5, 6, [[0, 1, []]]],
        "94a56e6f6465310506" + "91930001" + "90",
    ),
]


@pytest.mark.parametrize(("frame", "envelope", "plain", "body"), GOLDEN)
def test_golden_frames(frame: bytes, envelope: Envelope, plain: list[Any], body: str) -> None:
    """Bytes on the wire are a promise; plain MessagePack reads them too."""
    assert frame[HEADER_BYTES:].hex() == body
    assert msgpack.unpackb(frame[HEADER_BYTES:]) == plain
    assert decode(frame) == envelope


def test_roles_are_kept_apart() -> None:
    """Neither a peer's message nor an internal write passes in a client's frame."""
    header = pack(Kind.ASK, plugin_code("toy"), CLUSTER)
    for message in (Vote(1), Expire(1), Got(b""), Freed(1)):
        body = msgspec.msgpack.encode(Ask(7, 8, 9, 10, 11, [1], [message]))
        assert reason(header + body) == "body"
    peer = CODEC.encode_peer("toy", CLUSTER, "n", 1, 1, [Vote(1)])[0]
    assert reason(peer, kinds=(Kind.ASK,)) == "role"
    assert reason(ask()[0], kinds=(Kind.PEER,)) == "role"
    assert reason(pack(Kind.ASK, plugin_code("mute"), CLUSTER) + b"\x90") == "role"
    assert reason(pack(Kind.ASK, b"none", CLUSTER) + b"\x90") == "plugin"


def test_clusters_are_kept_apart() -> None:
    """Id 0 means unknown; it passes only where the caller allows a first contact."""
    foreign, unknown, ours = (
        CODEC.encode_tell("toy", cluster, [])[0] for cluster in (1, 0, CLUSTER)
    )
    assert reason(foreign) == reason(foreign, first_contact=True) == "cluster"
    assert reason(unknown) == reason(unknown, 0) == reason(ours, 0) == "cluster"
    assert CODEC.decode(unknown, CLUSTER, ALL, first_contact=True)[1] == 0
    assert CODEC.decode(ours, 0, ALL, first_contact=True)[1] == CLUSTER
    # the body of a foreign frame is never decoded
    assert reason(foreign[:HEADER_BYTES] + b"\xc1") == "cluster"


def test_unknown_fields_from_peers_pass_from_clients_not() -> None:
    peer = pack(Kind.PEER, plugin_code("toy"), CLUSTER)
    newer = ["n", 1, 1, [[0, 3, [], "new field"]], "new field", {"and": ["more"]}]
    assert decode(peer + msgpack.packb(newer)) == PeerFrame("n", 1, 1, [Vote(3)])
    header = pack(Kind.ASK, plugin_code("toy"), CLUSTER)
    good: list[Any] = [7, 8, 9, 10, 11, [1], [[1, "k"]]]
    assert decode(header + msgpack.packb(good)) == Ask(7, 8, 9, 10, 11, [1], [Put("k")])
    assert reason(header + msgpack.packb([*good, 0])) == "body"
    good[6] = [[1, "k", b"", [], 0]]
    assert reason(header + msgpack.packb(good)) == "body"


@pytest.mark.parametrize(
    "body",
    [
        [-1, 8, 9, 10, 11, [1], [[1, "k"]]],
        [2**64 - 1, 8, 9, 10, 11, [-1], [[1, "k"]]],
        [7, 8, 9, 10, 11, [1, 2], [[1, "k"]]],
        [7, 8, 9, 10, 11, [], [[1, "k"]]],
        [7, 8, 9, 10, 11.5, [1], [[1, "k"]]],
        [7, 8, 9, 10, 11, [1], [[1, b"k"]]],
        [7, 8, 9, 10, 11, [1], [[1]]],
        [7, 8, 9, 10, 11, [1], [[99, "k"]]],
        [7, 8, 9, 10, 11, [1] * (OPERATIONS + 1), [[2, "k"]] * (OPERATIONS + 1)],
        [7],
        {},
        None,
    ],
)
def test_wrong_asks_are_refused(body: Any) -> None:
    assert reason(pack(Kind.ASK, plugin_code("toy"), CLUSTER) + msgpack.packb(body)) == "body"


def test_frames_are_cut_and_nothing_is_lost() -> None:
    messages = [Vote(n, (b"x" * 300_000,)) for n in range(20)]
    frames = CODEC.encode_peer("toy", CLUSTER, "n", 1, 2, messages)
    assert len(frames) == 7 and all(len(frame) <= CUT_BYTES + 100 for frame in frames)
    decoded: list[Any] = [decode(frame) for frame in frames]
    assert [message for envelope in decoded for message in envelope.messages] == messages

    frames = ask(OPERATIONS * 2 + 1)
    asked: list[Any] = [decode(frame) for frame in frames]
    assert [len(a.operations) for a in asked] == [OPERATIONS, OPERATIONS, 1]
    assert [n for a in asked for n in a.sequences] == list(range(OPERATIONS * 2 + 1))

    results = [Got(b"x" * 500_000)] * 5
    answered: list[Any] = [
        decode(frame) for frame in CODEC.encode_answer("toy", CLUSTER, 1, [1, 2, 3, 4, 5], results)
    ]
    assert [a.sequences for a in answered] == [[1, 2], [3, 4], [5]]
    assert [decode(frame) for frame in CODEC.encode_tell("toy", CLUSTER, [])] == [Tell([])]


def test_one_large_message_stays_whole_up_to_the_limit() -> None:
    largest = PEER_FRAME_BYTES - 100
    frames = CODEC.encode_peer(
        "toy", CLUSTER, "n", 1, 2, [Vote(0), Vote(1, (b"x" * largest,)), Vote(2)]
    )
    decoded: list[Any] = [decode(frame) for frame in frames]
    assert [m.term for envelope in decoded for m in envelope.messages] == [0, 1, 2]
    assert max(map(len, frames)) <= PEER_FRAME_BYTES
    with pytest.raises(TooLarge) as caught:
        CODEC.encode_peer("toy", CLUSTER, "n", 1, 2, [Vote(1, (b"x" * PEER_FRAME_BYTES,))])
    assert caught.value.limit == PEER_FRAME_BYTES < caught.value.size
    with pytest.raises(TooLarge):
        CODEC.encode_publish("toy", CLUSTER, "n", 1, 2, [Vote(1, (b"x" * PEER_FRAME_BYTES,))])
    assert len(ask(1, b"x" * CUT_BYTES)) == 1  # a body of 1 MiB fits
    with pytest.raises(TooLarge):
        ask(1, b"x" * CLIENT_FRAME_BYTES)


@pytest.mark.parametrize("kind", Kind)
def test_oversize_frames_are_refused(kind: Kind) -> None:
    header = pack(kind, plugin_code("toy"), CLUSTER)
    assert reason(header + bytes(FRAME_BYTES[kind])) == "oversize"


ASK_SO_FAR = bytes([0x97, 7, 8, 9, 10, 11])
BOMBS = {
    "nested": b"\x91" * 100_000,
    "huge array": b"\xdd\xff\xff\xff\xff",
    "maps": b"\x80" * CUT_BYTES,
    "huge list": ASK_SO_FAR + b"\xdd\xff\xff\xff\xff" + bytes(1000),
    "huge operations": ASK_SO_FAR + b"\x90\xdd\xff\xff\xff\xff" + bytes(1000),
    "many operations": ASK_SO_FAR + b"\x90\xdd\x00\x0f\x00\x00" + b"\x92\x02\xa0" * 300_000,
    "huge inside": ASK_SO_FAR + b"\x91\x01\x91\x94\x01\xa0\xc4\0\xdd\xff\xff\xff\xff" + bytes(1000),
    "nested inside": ASK_SO_FAR + b"\x91\x01\x91\x92\x01" + b"\x91" * 100_000,
    "huge bytes": ASK_SO_FAR + b"\x91\x01\x91\x93\x01\xa0\xc6\xff\xff\xff\xff" + bytes(1000),
    "huge string": ASK_SO_FAR + b"\x91\x01\x91\x92\x01\xdb\xff\xff\xff\xff" + bytes(1000),
    "skipped by peers": b"\x95\xa1n\x01\x01\x90" + b"\x91" * 100_000,
    "skipped huge": b"\x95\xa1n\x01\x01\x90" + b"\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_cost_little_memory(bomb: bytes, kind: Kind) -> None:
    frame = pack(kind, plugin_code("toy"), CLUSTER) + bomb
    tracemalloc.start()
    try:
        assert reason(frame) == "body"
        assert tracemalloc.get_traced_memory()[1] < 4 * CUT_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", Kind)
@settings(max_examples=600, deadline=None)
@given(body=st.binary(max_size=200))
def test_only_malformed_escapes_random_bodies(kind: Kind, body: bytes) -> None:
    try:
        decode(pack(kind, plugin_code("toy"), CLUSTER) + body)
    except Malformed as malformed:
        assert malformed.reason == "body"


@settings(max_examples=2000, deadline=None)
@given(
    golden=st.sampled_from([frame for frame, *_ in GOLDEN]),
    at=st.integers(0, 60),
    put=st.binary(max_size=6),
    cut=st.integers(0, 60),
)
def test_only_malformed_escapes_damaged_frames(
    golden: bytes, at: int, put: bytes, cut: int
) -> None:
    """Valid frames with some bytes replaced, inserted or lost: these get far into the decoder."""
    damaged = golden[:at] + put + golden[at + cut % 7 :]
    with contextlib.suppress(Malformed):
        CODEC.decode(damaged, CLUSTER, ALL, first_contact=True)


def test_types_that_may_not_travel() -> None:
    class Untagged(Operation, frozen=True):
        key: str

    class Anything(Operation, frozen=True, tag=1):
        value: list[dict[str, Any]]

    class Mapped(msgspec.Struct, tag=1):
        key: str

    for wrong in (Untagged, Anything, Mapped, Tree, int):
        with pytest.raises(TypeError):
            Codec({"toy": Vocabulary(asked=[wrong])})
    with pytest.raises(TypeError):
        Codec({"toy": Vocabulary(asked=[Put, Twin])})
    Codec({"toy": Vocabulary(asked=[Nested])})


class Tree(Operation, frozen=True, tag=1):
    branches: list[Tree]


class Twin(Operation, frozen=True, tag=1):
    """It has the tag of `Put`."""


class Pair(msgspec.Struct, array_like=True):
    left: bytes
    right: bytes


class Nested(Operation, frozen=True, tag=9):
    """A struct twice in one message is no recursion."""

    one: Pair
    many: tuple[Pair, ...] | None = None
    raw: msgspec.Raw = msgspec.Raw()


def test_colliding_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.bus.codec.plugin_code", lambda name: b"same")
    with pytest.raises(ValueError, match="one and two"):
        Codec({"one": WORDS, "two": WORDS})
