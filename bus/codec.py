"""Envelopes, and the codec between message objects and frames.

The law: a frame is decoded by the types its role allows and by no others, so a client can never
send what only a node may say. Values are opaque bytes and there is no `Any`: what a body may
become in memory is bounded by the size of its frame. Whatever is wrong with a frame, decoding it
raises `Malformed` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Generic, TypeAlias, TypeVar, Union

import msgspec
from msgspec import Meta

from .frame import (
    CUT_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    Kind,
    Malformed,
    pack,
    plugin_code,
    unpack,
)

T = TypeVar("T")

OPERATIONS = 10_000
"""At most so many operations stand in one `Ask`, and so many results in one `Answer`."""

Count = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(max_length=255)]
UpTo = Annotated[list[T], Meta(max_length=OPERATIONS)]


class PeerFrame(msgspec.Struct, Generic[T], array_like=True, frozen=True, gc=False):
    """One turn's messages of one plugin from one node to another.

    A node is (id, incarnation); `to_incarnation` is whom the sender means, 0 if it does not know.
    """

    sender: Name
    incarnation: Count
    to_incarnation: Count
    messages: list[T]


class Ask(
    msgspec.Struct, Generic[T], array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """Numbered operations or queries of one client to one plugin and group; see `Request`.

    `not_after_us` is log time of the group in microseconds, 0 for no bound. `principals`, if any,
    are one per operation: the client for whose session it is done, 0 for the asker's own.
    """

    client: Count
    session: Count
    group: Count
    done_below: Count
    not_after_us: Count
    sequences: UpTo[Count]
    operations: UpTo[T]
    principals: UpTo[Count] = []


class Answer(msgspec.Struct, Generic[T], array_like=True, frozen=True, gc=False):
    """`results[i]` answers the operation that its client numbered `sequences[i]`."""

    group: Count
    sequences: UpTo[Count]
    results: UpTo[T]


class Tell(msgspec.Struct, Generic[T], array_like=True, frozen=True, gc=False):
    """Hints to a client; any of them may be lost."""

    hints: list[T]


class Publish(msgspec.Struct, Generic[T], array_like=True, frozen=True, gc=False):
    """Published messages. `number` counts the sender's published frames: a gap shows a loss."""

    sender: Name
    incarnation: Count
    number: Count
    messages: list[T]


Envelope: TypeAlias = PeerFrame[Any] | Ask[Any] | Answer[Any] | Tell[Any] | Publish[Any]


class Vocabulary(msgspec.Struct, frozen=True):
    """The message types of one plugin by role: `peer` between nodes (also published), `asked`
    operations and queries, `answered` results, `told` hints. Each has an integer tag."""

    peer: Sequence[type[Any]] = ()
    asked: Sequence[type[Any]] = ()
    answered: Sequence[type[Any]] = ()
    told: Sequence[type[Any]] = ()


class TooLarge(ValueError):
    """A single message does not fit a frame. Nothing was sent; `size` and `limit` in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes; at most {limit} fit: send it in parts")
        self.size = size
        self.limit = limit


def _check_type(plugin: str, message: type[Any]) -> None:
    config = getattr(message, "__struct_config__", None)
    if config is None or not config.array_like or not isinstance(config.tag, int):
        raise TypeError(
            f"{plugin}: {message.__name__} must be an array_like msgspec.Struct with an integer tag"
        )
    if _holds_any(msgspec.inspect.type_info(message), ()):
        raise TypeError(
            f"{plugin}: {message.__name__} holds Any or itself; name its types, keep values bytes"
        )


def _holds_any(info: Any, above: tuple[type[Any], ...]) -> bool:
    """True if a type can hold a value of unbounded shape: `Any`, or itself somewhere inside."""
    if isinstance(info, msgspec.inspect.AnyType):
        return True
    if isinstance(info, msgspec.inspect.StructType):
        if info.cls in above:
            return True
        return any(_holds_any(field.type, (*above, info.cls)) for field in info.fields)
    inside: list[Any] = []
    for name in ("item_type", "key_type", "value_type", "type"):
        if isinstance(found := getattr(info, name, None), msgspec.inspect.Type):
            inside.append(found)
    inside.extend(getattr(info, "item_types", ()))
    inside.extend(getattr(info, "types", ()))
    return any(_holds_any(part, above) for part in inside)


class Codec:
    """Encodes and decodes the frames of a set of plugins. Holds no state between calls."""

    def __init__(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Raises TypeError for a type that may not travel, ValueError if two names collide."""
        self._encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
        self._codes: dict[str, bytes] = {}
        self._names: dict[bytes, str] = {}
        self._decoders: dict[bytes, tuple[str, Kind, Callable[[memoryview], Envelope]]] = {}
        for name, vocabulary in vocabularies.items():
            code = plugin_code(name)
            if code in self._names:
                raise ValueError(f"plugins {self._names[code]} and {name} have the same code")
            self._codes[name] = code
            self._names[code] = name
            self._add(name, code, Kind.PEER, PeerFrame, vocabulary.peer)
            self._add(name, code, Kind.PUBLISH, Publish, vocabulary.peer)
            self._add(name, code, Kind.ASK, Ask, vocabulary.asked)
            self._add(name, code, Kind.ANSWER, Answer, vocabulary.answered)
            self._add(name, code, Kind.TELL, Tell, vocabulary.told)

    def _add(
        self, name: str, code: bytes, kind: Kind, envelope: Any, types: Sequence[type[Any]]
    ) -> None:
        for message in types:
            _check_type(name, message)
        if types:
            decoder = msgspec.msgpack.Decoder(envelope[Union[tuple(types)]])  # noqa: UP007
            # the key is what precedes the cluster id in a frame
            self._decoders[pack(kind, code, 0)[:8]] = (name, kind, decoder.decode)

    def encode_peer(
        self,
        plugin: str,
        cluster: int,
        sender: str,
        incarnation: int,
        to_incarnation: int,
        messages: Sequence[Any],
    ) -> list[bytes]:
        """Frames of about 1 MiB with all messages in their order. Raises `TooLarge`."""

        def envelope(start: int, stop: int) -> Envelope:
            return PeerFrame(sender, incarnation, to_incarnation, list(messages[start:stop]))

        return self._frames(Kind.PEER, plugin, cluster, messages, len(messages), envelope)

    def encode_ask(
        self,
        plugin: str,
        cluster: int,
        client: int,
        session: int,
        group: int,
        done_below: int,
        not_after_us: int,
        sequences: Sequence[int],
        operations: Sequence[Any],
        principals: Sequence[int] = (),
    ) -> list[bytes]:
        """Frames of about 1 MiB and at most 10,000 operations. Raises `TooLarge`."""

        def envelope(start: int, stop: int) -> Envelope:
            numbers, asked = list(sequences[start:stop]), list(operations[start:stop])
            who = list(principals[start:stop])
            return Ask(client, session, group, done_below, not_after_us, numbers, asked, who)

        return self._frames(Kind.ASK, plugin, cluster, operations, OPERATIONS, envelope)

    def encode_answer(
        self,
        plugin: str,
        cluster: int,
        group: int,
        sequences: Sequence[int],
        results: Sequence[Any],
    ) -> list[bytes]:
        """Frames of about 1 MiB and at most 10,000 results. Raises `TooLarge`."""

        def envelope(start: int, stop: int) -> Envelope:
            return Answer(group, list(sequences[start:stop]), list(results[start:stop]))

        return self._frames(Kind.ANSWER, plugin, cluster, results, OPERATIONS, envelope)

    def encode_tell(self, plugin: str, cluster: int, hints: Sequence[Any]) -> list[bytes]:
        """Frames of about 1 MiB with all hints in their order. Raises `TooLarge`."""

        def envelope(start: int, stop: int) -> Envelope:
            return Tell(list(hints[start:stop]))

        return self._frames(Kind.TELL, plugin, cluster, hints, len(hints), envelope)

    def encode_publish(
        self,
        plugin: str,
        cluster: int,
        sender: str,
        incarnation: int,
        number: int,
        messages: Sequence[Any],
    ) -> bytes:
        """One frame with the messages of one topic; it is not cut. Raises `TooLarge`."""
        code = self._codes[plugin]
        body = self._encode(Publish(sender, incarnation, number, list(messages)))
        limit = FRAME_BYTES[Kind.PUBLISH]
        if HEADER_BYTES + len(body) > limit:
            raise TooLarge(len(body), limit)
        return pack(Kind.PUBLISH, code, cluster) + body

    def _frames(
        self,
        kind: Kind,
        plugin: str,
        cluster: int,
        items: Sequence[Any],
        most: int,
        envelope: Callable[[int, int], Envelope],
    ) -> list[bytes]:
        header = pack(kind, self._codes[plugin], cluster)
        if len(items) <= most:
            body = self._encode(envelope(0, len(items)))
            if len(body) <= CUT_BYTES:
                return [header + body]
        frames: list[bytes] = []
        for start, stop in self._cuts(items, most):
            frame = header + self._encode(envelope(start, stop))
            if len(frame) > FRAME_BYTES[kind]:
                raise TooLarge(len(frame), FRAME_BYTES[kind])
            frames.append(frame)
        return frames

    def _cuts(self, items: Sequence[Any], most: int) -> list[tuple[int, int]]:
        """Where to cut: greedily, at `most` items or before the sizes add up to `CUT_BYTES`.

        Each item is encoded once more to be measured; only turns beyond a frame pay for that.
        """
        cuts: list[tuple[int, int]] = []
        start = total = 0
        for index, item in enumerate(items):
            size = len(self._encode(item))
            if index > start and (total + size > CUT_BYTES or index - start >= most):
                cuts.append((start, index))
                start, total = index, 0
            total += size
        cuts.append((start, len(items)))
        return cuts

    def decode(
        self, frame: bytes, cluster: int, kinds: Collection[Kind], *, first_contact: bool = False
    ) -> tuple[str, int, Envelope]:
        """(plugin name, cluster id of the frame, envelope) of a frame.

        `kinds` are those this receiver takes. A frame of another cluster is dropped undecoded;
        with `first_contact` it passes if either side knows no cluster yet (id 0). Raises
        `Malformed`, for every possible input, and nothing else.
        """
        found = self._decoders.get(frame[:8])
        if found is None or len(frame) < HEADER_BYTES:
            raise self._refusal(frame)
        plugin, kind, decode = found
        if kind not in kinds:
            raise Malformed("role", f"no {kind.name} is taken here")
        theirs = int.from_bytes(frame[8:16], "big")
        unknown = not theirs or not cluster
        if not first_contact if unknown else theirs != cluster:
            raise Malformed("cluster", f"of cluster {theirs:x}, this is {cluster:x}")
        if len(frame) > FRAME_BYTES[kind]:
            raise Malformed("oversize", f"{len(frame)} bytes")
        try:
            envelope = decode(memoryview(frame)[HEADER_BYTES:])
        except Exception as error:  # also UnicodeDecodeError, RecursionError, …
            raise Malformed("body", str(error)) from error
        if kind is Kind.ASK or kind is Kind.ANSWER:
            self._check_lengths(envelope)
        return plugin, theirs, envelope

    @staticmethod
    def _check_lengths(envelope: Any) -> None:
        items = envelope.operations if type(envelope) is Ask else envelope.results
        if len(items) != len(envelope.sequences):
            raise Malformed("body", f"{len(envelope.sequences)} numbers for {len(items)} items")
        if type(envelope) is Ask and len(envelope.principals) not in (0, len(items)):
            text = f"{len(envelope.principals)} principals for {len(items)} items"
            raise Malformed("body", text)

    def _refusal(self, frame: bytes) -> Malformed:
        try:
            header = unpack(frame)
        except Malformed as malformed:
            return malformed
        if header.plugin not in self._names:
            return Malformed("plugin", f"code {header.plugin.hex()}")
        return Malformed("role", f"{self._names[header.plugin]} takes no {header.kind.name}")
