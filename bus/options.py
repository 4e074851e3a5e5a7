"""ZeroMQ socket options, in one place; the reasons stand beside them."""

from __future__ import annotations

import zmq

from .loop_socket import RawContext, RawSocket


def new_socket(
    context: RawContext,
    kind: int,
    endpoint: str,
    *,
    max_bytes: int,
    send_queue: int = 1000,
    receive_queue: int = 1000,
) -> RawSocket:
    """An unconnected socket for an endpoint, with every option set. Queues count messages."""
    raw: RawSocket = context.socket(kind)
    for option, value in (
        (zmq.LINGER, 0),  # a closing node owes nobody a frame; the default would wait for ever
        (zmq.IMMEDIATE, 1),  # queue nothing for who is not there, so nothing stale comes later
        (zmq.MAXMSGSIZE, max_bytes),  # a larger frame disconnects its sender
        (zmq.SNDHWM, send_queue),
        (zmq.RCVHWM, receive_queue),
        (zmq.HEARTBEAT_IVL, 1000),  # half-open connections after a power cut
        (zmq.HEARTBEAT_TIMEOUT, 3000),
        (zmq.HEARTBEAT_TTL, 3000),
        (zmq.HANDSHAKE_IVL, 3000),  # who connects and says nothing
        (zmq.CONNECT_TIMEOUT, 2000),
        (zmq.RECONNECT_IVL, 50),
        (zmq.RECONNECT_IVL_MAX, 1000),
        (zmq.TCP_MAXRT, 5000),
        (zmq.BACKLOG, 1024),  # everybody reconnects at once after a restart
        (zmq.IPV6, int("[" in endpoint)),
    ):
        raw.set(option, value)
    return raw
