"""How much goes through the sockets of one role.

The law: counted once per frame, where it is handed over; what was dropped is not counted here.
"""

from __future__ import annotations

from collections.abc import Sequence


class Traffic:
    """Frames and bytes received and sent, without ZeroMQ's own."""

    __slots__ = ("bytes_in", "bytes_out", "frames_in", "frames_out")

    def __init__(self) -> None:
        self.frames_in = self.bytes_in = self.frames_out = self.bytes_out = 0

    def received(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """(prefix, frame) each; the prefix does not count."""
        size = 0
        for _, frame in messages:
            size += len(frame)
        self.frames_in += len(messages)
        self.bytes_in += size

    def sent(self, frame: bytes) -> None:
        self.frames_out += 1
        self.bytes_out += len(frame)

    def status(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in sorted(self.__slots__)}
