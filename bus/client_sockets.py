"""The sockets of a client: one DEALER for each node it speaks to.

The law: a send never waits and never fails loudly. While an endpoint is not connected yet, a few
frames wait in an outbox and leave the moment it is; so the first request of a program costs no
retry. What does not fit is dropped, and the caller told: it repeats its requests anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

from .frame import PEER_FRAME_BYTES
from .loop_socket import LoopSocket, RawContext, SocketSet, has_port
from .options import new_socket

OUTBOX_FRAMES = 16
"""Frames that wait for a connection, for each endpoint."""

LINGER_MS = 500
"""How long a closed client still tries to send its last frames (the end of its session)."""


class ClientSockets(SocketSet):
    """All sockets of one client. Makes no context of its own: after a fork, make both anew."""

    def __init__(
        self,
        context: RawContext,
        loop: asyncio.AbstractEventLoop,
        on_readable: Callable[[], None],
    ) -> None:
        super().__init__(context, loop, on_readable)
        self._links: dict[str, LoopSocket] = {}

    @property
    def endpoints(self) -> list[str]:
        """The endpoints connected to, reachable or not."""
        return sorted(self._links)

    def connect(self, endpoint: str) -> None:
        """Connect to a node's clients endpoint and go on trying. Nothing if it is known already.

        Raises ValueError for what is no endpoint.
        """
        if endpoint in self._links:
            return
        if endpoint.startswith("tcp://") and not has_port(endpoint):
            raise ValueError(f"cannot connect to {endpoint!r}: it ends in no port from 1 to 65535")
        raw = new_socket(self._context, zmq.DEALER, endpoint, max_bytes=PEER_FRAME_BYTES)
        try:
            raw.connect(endpoint)
        except zmq.ZMQError as error:
            raw.close(0)
            raise ValueError(f"cannot connect to {endpoint!r}: {error}") from error
        self._links[endpoint] = LoopSocket(self, raw, prefixed=False, outbox=OUTBOX_FRAMES)

    def disconnect(self, endpoint: str) -> None:
        """Close the connection to a node; sends what ZeroMQ holds for up to 500 ms. Idempotent."""
        link = self._links.pop(endpoint, None)
        if link is not None:
            link.close(LINGER_MS)

    def send(self, endpoint: str, frame: bytes) -> bool:
        """Send, or keep until connected; False if it was dropped (outbox full, not connected to).

        True promises nothing: frames are lost with a connection.
        """
        link = self._links.get(endpoint)
        if link is None:
            self.counters["send_unreachable"] += 1
            return False
        return link.send(frame)

    def connected(self, endpoint: str) -> bool:
        """True if the endpoint is connected and takes frames now."""
        link = self._links.get(endpoint)
        return link is not None and link.writable

    def receive(self, limit: int) -> list[tuple[str, bytes]]:
        """Up to `limit` (endpoint, frame), from all endpoints in turn."""
        self._announced = False
        frames: list[tuple[str, bytes]] = []
        for endpoint in list(self._links):
            received = self._links[endpoint].receive(limit - len(frames))
            if received:
                self._links[endpoint] = self._links.pop(endpoint)  # next time begin with another
                frames.extend((endpoint, frame) for _, frame in received)
            if len(frames) >= limit:
                break
        return frames

    def close(self) -> None:
        """Close every socket; the context's `term()` waits up to 500 ms for their last frames."""
        for endpoint in self.endpoints:
            self.disconnect(endpoint)
        super().close()
