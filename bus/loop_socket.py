"""One ZeroMQ socket on the loop, and the set of sockets that share one notice.

The law: a ZeroMQ descriptor is edge-triggered, and every send, receive or look at EVENTS may eat
the edge. So after each of them somebody looks at EVENTS again before the loop sleeps: whoever
asks `pending()`, else a look scheduled with `call_soon`. Forgetting it is a hang that shows once
a day. (zmq_getsockopt, note at ZMQ_FD.)
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeAlias

import zmq

RawContext: TypeAlias = "zmq.Context[Any]"
RawSocket: TypeAlias = "zmq.Socket[Any]"

NOBLOCK, SNDMORE, EVENTS, RCVMORE = zmq.NOBLOCK, zmq.SNDMORE, zmq.EVENTS, zmq.RCVMORE
POLLIN, POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)

DISCARDED_PER_LOOK = 256


class BindFailed(OSError):
    """An endpoint could not be bound; nothing stays bound."""

    def __init__(self, endpoint: str, text: str) -> None:
        super().__init__(f"cannot listen on {endpoint}: {text}")
        self.endpoint = endpoint


class AddressInUse(BindFailed):
    """Another socket listens there."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, "the address is in use; stop who holds it or take another port")


class NotLoopback(BindFailed):
    """Without keys a node listens on loopback addresses only."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(
            endpoint,
            "anybody who reaches it could command the node; "
            "bind a loopback address, or accept that with --insecure",
        )


def is_loopback(endpoint: str) -> bool:
    """True if only programs of this machine can reach a `transport://host:port` endpoint."""
    transport, _, address = endpoint.partition("://")
    if transport != "tcp":
        return transport in ("inproc", "ipc")
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def has_port(endpoint: str) -> bool:
    """True if a tcp endpoint ends in a port, or `*`. libzmq would take 70001 for 4465."""
    port = endpoint.rpartition(":")[2]
    return port == "*" or (port.isascii() and port.isdigit() and int(port) < 1 << 16)


def bind(raw: RawSocket, endpoint: str) -> str:
    """Bind and return the endpoint as bound (a port `*` resolved). Raises `BindFailed`."""
    if endpoint.startswith("tcp://") and not has_port(endpoint):
        raise BindFailed(endpoint, "it ends in no port from 1 to 65535")
    try:
        raw.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(endpoint) from error
        raise BindFailed(endpoint, str(error)) from error
    return bytes(raw.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()


class LoopSocket:
    """A socket of which each message has one frame, after a prefix part for ROUTER and SUB."""

    def __init__(
        self, owner: SocketSet, raw: RawSocket, *, prefixed: bool, outbox: int = 0
    ) -> None:
        self.raw = raw
        self.readable = False
        self.unseen = True
        self._writable = False
        self._owner = owner
        self._prefixed = prefixed
        self._discarding = False
        self._outbox: deque[bytes] = deque()
        self._outbox_frames = outbox
        self._descriptor = int(raw.get(zmq.FD))
        owner.loop.add_reader(self._descriptor, self._on_descriptor)
        owner.add(self)

    def _on_descriptor(self) -> None:
        if self.look():
            self._owner.announce()

    def look(self) -> bool:
        """Look at EVENTS, send what the outbox holds; True if a message may be received."""
        self.unseen = False
        try:
            events = int(self.raw.get(EVENTS))
            while self._outbox and events & POLLOUT:
                sent = self._send_oldest()
                events = int(self.raw.get(EVENTS))
                if not sent:
                    break
        except zmq.ZMQError as error:
            self._failed(error)
            return False
        self._writable = bool(events & POLLOUT)
        self.readable = bool(events & POLLIN)
        return self.readable

    def _send_oldest(self) -> bool:
        try:
            self.raw.send(self._outbox[0], NOBLOCK)
        except zmq.Again:
            return False
        self._outbox.popleft()
        return True

    @property
    def writable(self) -> bool:
        """True if somebody is connected and takes more."""
        self.look()
        self._owner.touch()
        return self._writable

    def send(self, frame: bytes) -> bool:
        """Send now, or keep it in the outbox if there is one; False if it was dropped."""
        if not self._outbox:
            try:
                self.raw.send(frame, NOBLOCK)
                return True
            except zmq.Again:
                pass
            except zmq.ZMQError as error:
                self._failed(error)
                return False
            finally:
                self._touched()
        if len(self._outbox) >= self._outbox_frames:
            self._owner.counters["send_full"] += 1
            return False
        self._outbox.append(frame)
        return True

    def send_to(self, prefix: bytes, frame: bytes) -> bool:
        """Send behind a route or topic; False if it was dropped (gone, or its queue is full)."""
        try:
            self.raw.send(prefix, NOBLOCK | SNDMORE)
            self.raw.send(frame, NOBLOCK)
            return True
        except zmq.Again:
            self._owner.counters["send_full"] += 1
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                self._failed(error)
            else:
                self._owner.counters["send_unreachable"] += 1
        finally:
            self._touched()
        return False

    def receive(self, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` messages as (prefix or b"", frame), without waiting.

        Messages of another shape are dropped and counted. Each part of an overlong one counts as
        one towards `limit`, so that nobody can hold up the loop with it.
        """
        messages: list[tuple[bytes, bytes]] = []
        if not (self.readable or self.unseen):
            return messages
        receive, get, prefixed = self.raw.recv, self.raw.get, self._prefixed
        try:
            for _ in range(limit):
                frame = receive(NOBLOCK)
                more = get(RCVMORE)
                prefix = b""
                if self._discarding:
                    self._discarding = bool(more)
                    continue
                if prefixed and more:
                    prefix, frame = frame, receive(NOBLOCK)
                    more = get(RCVMORE)
                elif prefixed:
                    frame = b""
                if more or not frame:
                    self._discarding = bool(more)
                    self._owner.counters["multipart" if more else "empty"] += 1
                    continue
                messages.append((prefix, frame))
            self._touched()
        except zmq.Again:
            # a receive that finds nothing has seen everything; only the outbox may be ready now
            self.readable = self.unseen = False
            if self._outbox:
                self._touched()
        except zmq.ZMQError as error:
            self._failed(error)
        return messages

    def _touched(self) -> None:
        self.unseen = True
        self._owner.touch()

    def _failed(self, error: zmq.ZMQError) -> None:
        """The context is gone or the socket broken: count it and listen no more."""
        self._owner.counters[f"socket_{errno.errorcode.get(error.errno or 0, error.errno)}"] += 1
        self.readable = False
        if error.errno in (zmq.ETERM, zmq.ENOTSOCK):
            self._owner.loop.remove_reader(self._descriptor)

    def close(self, linger_ms: int = 0) -> None:
        """Leave the loop and close; what is queued is sent for at most `linger_ms`."""
        self._owner.remove(self)
        self._owner.loop.remove_reader(self._descriptor)
        self._outbox.clear()
        self.raw.close(linger_ms)


class SendOnly(LoopSocket):
    """A socket nobody reads: what comes in (subscriptions, junk) is counted as `cause`, dropped."""

    def __init__(self, owner: SocketSet, raw: RawSocket, cause: str) -> None:
        super().__init__(owner, raw, prefixed=False)
        self._cause = cause

    def look(self) -> bool:
        if super().look():
            self._owner.counters[self._cause] += len(self.receive(DISCARDED_PER_LOOK))
            self.readable = False  # if more is there, the receive has asked for another look
        return False


class SocketSet:
    """Sockets with one owner: one notice for all of them, and counters by cause.

    `on_readable()` is called at most once until something is received; it should begin a turn or
    schedule one. A turn that leaves a socket unread ends by asking `pending()` and, if that is
    true, schedules the next itself.
    """

    def __init__(
        self,
        context: RawContext,
        loop: asyncio.AbstractEventLoop,
        on_readable: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.counters: Counter[str] = Counter()
        self._context = context
        self._on_readable = on_readable
        self._sockets: list[LoopSocket] = []
        self._announced = False
        self._look_scheduled = False
        self._closed = False

    def add(self, socket: LoopSocket) -> None:
        self._sockets.append(socket)
        self.touch()

    def remove(self, socket: LoopSocket) -> None:
        if socket in self._sockets:
            self._sockets.remove(socket)

    def announce(self) -> None:
        """Tell the owner, once until it receives, that something may be waiting."""
        if not self._announced and not self._closed:
            self._announced = True
            self._on_readable()

    def touch(self) -> None:
        """A socket was used: look at its EVENTS before the loop sleeps."""
        if not self._look_scheduled:
            self._look_scheduled = True
            self.loop.call_soon(self._look)

    def _look(self) -> None:
        self._look_scheduled = False
        if self.pending():
            self.announce()

    def pending(self) -> bool:
        """True if a message may be waiting in any socket. Looks only at those used since."""
        found = False
        for socket in self._sockets:
            if (socket.unseen and socket.look()) or socket.readable:
                found = True
        return found

    def close(self) -> None:
        """Close every socket. Idempotent."""
        self._closed = True
        for socket in list(self._sockets):
            socket.close()
