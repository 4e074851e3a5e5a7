"""The sockets of a node: three it binds, two for each peer.

    clients  ROUTER  bound      asks in, answers and hints out
    peers    ROUTER  bound      frames of peers in
    publish  XPUB    bound      invalidations out
    per peer DEALER  connected  frames to that peer out
    per peer SUB     connected  what that peer publishes in

The law: limits belong to the role, so does the socket. Routing ids are chosen by ZeroMQ, never by
the sender: there is nothing to spoof or to squat. What cannot be sent now is dropped and counted:
raft tolerates loss, clients repeat what was not answered, what is published is a hint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

from .frame import CLIENT_FRAME_BYTES, PEER_FRAME_BYTES
from .loop_socket import (
    LoopSocket,
    NotLoopback,
    RawContext,
    RawSocket,
    SendOnly,
    SocketSet,
    bind,
    is_loopback,
)
from .options import new_socket
from .traffic import Traffic

SUBSCRIPTION_BYTES = 1024
"""A subscription longer than this disconnects who sent it."""


class NodeSockets(SocketSet):
    """All sockets of one node, drained by its turns: `receive_peers` first, then the others."""

    def __init__(
        self,
        context: RawContext,
        loop: asyncio.AbstractEventLoop,
        on_readable: Callable[[], None],
        *,
        clients: str,
        peers: str,
        publish: str,
        insecure: bool = False,
    ) -> None:
        """Bind the three endpoints (`tcp://host:port`, port `*` for any free one).

        Raises `NotLoopback` unless `insecure`, `AddressInUse`, `BindFailed`; then nothing is bound.
        """
        super().__init__(context, loop, on_readable)
        for endpoint in (clients, peers, publish):
            if not insecure and not is_loopback(endpoint):
                raise NotLoopback(endpoint)
        self._peers: dict[str, tuple[LoopSocket, LoopSocket]] = {}
        self._clients_traffic, self._peers_traffic = Traffic(), Traffic()
        self._published_traffic = Traffic()
        raws: list[RawSocket] = []
        try:
            for kind, endpoint, queue, limit in (
                (zmq.ROUTER, clients, 1000, CLIENT_FRAME_BYTES),
                (zmq.ROUTER, peers, 1000, PEER_FRAME_BYTES),
                (zmq.XPUB, publish, 10_000, SUBSCRIPTION_BYTES),
            ):
                raw = new_socket(context, kind, endpoint, max_bytes=limit, send_queue=queue)
                raws.append(raw)
                if kind == zmq.ROUTER:
                    raw.set(zmq.ROUTER_MANDATORY, 1)
            bound = [bind(raw, e) for raw, e in zip(raws, (clients, peers, publish), strict=True)]
        except BaseException:
            for raw in raws:
                raw.close(0)
            raise
        self.clients_endpoint, self.peers_endpoint, self.publish_endpoint = bound
        self._client_router = LoopSocket(self, raws[0], prefixed=True)
        self._peer_router = LoopSocket(self, raws[1], prefixed=True)
        self._publisher = SendOnly(self, raws[2], "subscriptions")

    def receive_peers(self, limit: int) -> list[bytes]:
        """Up to `limit` frames from peers. Who sent one, its envelope says."""
        self._announced = False
        received = self._peer_router.receive(limit)
        if received:
            self._peers_traffic.received(received)
        return [frame for _, frame in received]

    def receive_clients(self, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` (route, frame) from clients; answers go to the route, see `send_client`."""
        self._announced = False
        received = self._client_router.receive(limit)
        if received:
            self._clients_traffic.received(received)
        return received

    def receive_published(self, limit: int) -> list[bytes]:
        """Up to `limit` frames published by peers, from all of them in turn."""
        self._announced = False
        frames: list[bytes] = []
        for node in list(self._peers):
            received = self._peers[node][1].receive(limit - len(frames))
            if received:
                self._peers[node] = self._peers.pop(node)  # the next call begins with another
                self._published_traffic.received(received)
                frames.extend(frame for _, frame in received)
            if len(frames) >= limit:
                break
        return frames

    def send_peer(self, node: str, frame: bytes) -> bool:
        """Send to a connected peer; False if dropped (not reachable now, queue full, unknown)."""
        link = self._peers.get(node)
        if link is None:
            self.counters["send_unreachable"] += 1
            return False
        if not link[0].send(frame):
            return False
        self._peers_traffic.sent(frame)
        return True

    def send_client(self, route: bytes, frame: bytes) -> bool:
        """Send to a client; False if dropped because it has gone or does not read.

        Nothing is kept for later: a client repeats what was not answered, and the answer is
        remembered until it says it has it.
        """
        if not self._client_router.send_to(route, frame):
            return False
        self._clients_traffic.sent(frame)
        return True

    def publish(self, topic: bytes, frame: bytes) -> bool:
        """Publish to who subscribed to a prefix of `topic`; slow subscribers lose it unseen."""
        if not self._publisher.send_to(topic, frame):
            return False
        self._published_traffic.sent(frame)
        return True

    def traffic(self) -> dict[str, dict[str, int]]:
        """What went through, by role: clients, peers, publish."""
        return {
            "clients": self._clients_traffic.status(),
            "peers": self._peers_traffic.status(),
            "publish": self._published_traffic.status(),
        }

    def connect_peer(self, node: str, peers: str, publish: str) -> None:
        """Connect to a peer's two endpoints and go on trying. An earlier connection is replaced."""
        self.disconnect_peer(node)
        dealer = new_socket(
            self._context, zmq.DEALER, peers, max_bytes=PEER_FRAME_BYTES, send_queue=128
        )
        dealer.connect(peers)
        subscriber = new_socket(
            self._context, zmq.SUB, publish, max_bytes=PEER_FRAME_BYTES, receive_queue=10_000
        )
        subscriber.set(zmq.SUBSCRIBE, b"")
        subscriber.connect(publish)
        self._peers[node] = (
            SendOnly(self, dealer, "unsolicited"),
            LoopSocket(self, subscriber, prefixed=True),
        )

    def disconnect_peer(self, node: str) -> None:
        """Close the connections to a peer and drop what was queued for it. Idempotent."""
        for socket in self._peers.pop(node, ()):
            socket.close()

    def close(self) -> None:
        self._peers.clear()
        super().close()
