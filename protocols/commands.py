"""Commands as the bytes of entries, and what is remembered of them: the windows of answers.

The law: what is encoded decodes to the same, with each plugin's own types; windows keep their order
and that of their answers, so that one state has one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from .plugin import (
    Cancel,
    Cancelled,
    ClientId,
    Command,
    Failure,
    Internal,
    Message,
    Operation,
    Result,
    SessionId,
)

CHUNK_ANSWERS, CHUNK_BYTES = 1_000, 64 * 1024
"""About so much of the windows makes one chunk of a snapshot."""


class Payload(msgspec.Struct, array_like=True, gc=False):
    """A `Command` inside an entry; `operations` is decoded with the plugin's own types."""

    plugin: str
    client: ClientId
    session: SessionId
    done_below: int
    not_after_us: int
    sequences: list[int]
    operations: msgspec.Raw
    principals: list[int] = []


class WindowRow(msgspec.Struct, array_like=True, gc=False):
    """A window in a snapshot, or more answers of the one before: sequence, whose plugin's type
    ("": common to all), and the answer."""

    key: int
    client: ClientId
    done_below: int
    last_not_after_us: int
    answers: list[tuple[int, str, msgspec.Raw]]


class CommandCodec:
    """Bytes of an entry from commands, and back; the same for remembered answers.
    `vocabularies`: plugin name to its messages."""

    def __init__(self, vocabularies: Mapping[str, Sequence[type[Message]]]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._outer = msgspec.msgpack.Decoder(list[Payload])
        self._inner: dict[str, msgspec.msgpack.Decoder[Any]] = {}
        self._owners: dict[type[Any], str] = {Failure: "", Cancelled: ""}
        self._results = {"": msgspec.msgpack.Decoder(Failure | Cancelled)}
        self._rows = msgspec.msgpack.Decoder(list[WindowRow])
        for plugin, messages in vocabularies.items():
            results: list[Any] = [m for m in messages if issubclass(m, Result)]
            if results:
                self._owners.update(dict.fromkeys(results, plugin))
                kind: Any = results[0]
                for result in results[1:]:
                    kind |= result
                self._results[plugin] = msgspec.msgpack.Decoder(kind)
            kinds: tuple[Any, ...] = tuple(
                m for m in messages if issubclass(m, Operation | Internal)
            )
            if kinds:
                union: Any = Cancel
                for kind in kinds:
                    union |= kind
                self._inner[plugin] = msgspec.msgpack.Decoder(list[union])

    def encode_windows(self, windows: Iterable[tuple[int, Window]]) -> Iterator[bytes]:
        """Windows as chunks of a snapshot."""
        encode, owners = self._encoder.encode, self._owners
        rows: list[WindowRow] = []
        count = size = 0
        for key, window in windows:
            head = (key, window.client, window.done_below, window.last_not_after_us)
            rows.append(row := WindowRow(*head, []))
            count += 1
            for sequence, answer in window.answers.items():
                encoded = encode(answer)
                row.answers.append((sequence, owners[type(answer)], msgspec.Raw(encoded)))
                count += 1
                size += len(encoded)
                if count >= CHUNK_ANSWERS or size >= CHUNK_BYTES:
                    yield encode(rows)
                    rows = [row := WindowRow(*head, [])]
                    count = size = 0
            if count >= CHUNK_ANSWERS:
                yield encode(rows)
                rows, count, size = [], 0, 0
        if rows:
            yield encode(rows)

    def decode_windows(self, chunk: bytes, windows: dict[int, Window]) -> None:
        """Put the windows of a chunk behind those there are."""
        for row in self._rows.decode(chunk):
            window = windows.get(row.key)
            if window is None:
                head = (row.client, row.done_below, row.last_not_after_us)
                window = windows[row.key] = Window(*head, answers={})
            for sequence, owner, answer in row.answers:
                window.answers[sequence] = self._results[owner].decode(answer)

    def encode(self, commands: Sequence[Command]) -> bytes:
        return self._encoder.encode([msgspec.structs.astuple(command) for command in commands])

    def decode(self, payload: bytes) -> list[Command]:
        return [
            Command(
                outer.plugin,
                outer.client,
                outer.session,
                outer.done_below,
                outer.not_after_us,
                outer.sequences,
                self._inner[outer.plugin].decode(outer.operations),
                outer.principals,
            )
            for outer in self._outer.decode(payload)
        ]


class Window(msgspec.Struct):
    """The answers that `client` may still ask for again: within a session, or in a partition."""

    client: ClientId = 0
    done_below: int = 0
    last_not_after_us: int = 0
    answers: dict[int, Result] = {}

    def forget_below(self, done_below: int) -> None:
        """Drop what the client has done with; a late `done_below` changes nothing."""
        answers = self.answers
        if done_below - self.done_below > len(answers):
            self.answers = {n: answer for n, answer in answers.items() if n >= done_below}
        else:
            for sequence in range(self.done_below, done_below):
                answers.pop(sequence, None)
        self.done_below = done_below
