"""The bus over real TCP on loopback, on an asyncio loop.

What is tested: nothing hangs, nobody disturbs another, and whatever comes in is dropped and
counted at worst. Sockets are closed and contexts ended even when a test dies.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import zmq

from coterie.bus.client_sockets import OUTBOX_FRAMES, ClientSockets
from coterie.bus.frame import CLIENT_FRAME_BYTES
from coterie.bus.loop_socket import AddressInUse, BindFailed, NotLoopback, is_loopback
from coterie.bus.node_sockets import NodeSockets

FREE = "tcp://127.0.0.1:*"
DEADLINE_S = 30.0
TURN = 256


class Node:
    """Echoes clients, keeps what peers send and publish; works in turns, as a node does."""

    def __init__(self, clients: str = FREE, peers: str = FREE, publish: str = FREE) -> None:
        self.loop = asyncio.get_running_loop()
        self.context = new_context()
        self.turns = 0
        self.from_peers: list[bytes] = []
        self.published: list[bytes] = []
        self.routes: dict[bytes, int] = {}
        self.echo = True
        self.scheduled = False
        try:
            self.sockets = NodeSockets(
                self.context,
                self.loop,
                self.schedule,
                clients=clients,
                peers=peers,
                publish=publish,
            )
        except BaseException:
            self.context.term()
            raise

    def schedule(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.turn)

    def turn(self) -> None:
        self.scheduled = False
        self.turns += 1
        self.from_peers += self.sockets.receive_peers(TURN)
        self.published += self.sockets.receive_published(TURN)
        for route, frame in self.sockets.receive_clients(TURN):
            self.routes[route] = self.routes.get(route, 0) + 1
            if self.echo:
                self.sockets.send_client(route, frame)
        if self.sockets.pending():
            self.schedule()

    def close(self) -> None:
        self.sockets.close()
        self.context.term()


class Caller:
    """A client that keeps whatever comes back."""

    def __init__(self) -> None:
        self.context = new_context()
        self.received: list[tuple[str, bytes]] = []
        self.sockets = ClientSockets(self.context, asyncio.get_running_loop(), self.turn)

    def turn(self) -> None:
        self.received += self.sockets.receive(TURN)

    def close(self) -> None:
        self.sockets.close()
        self.context.term()


@asynccontextmanager
async def closing(*things: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for thing in things:
            thing.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fails after a deadline, naming what did not happen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < deadline, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.002)


contexts: list[zmq.Context[Any]] = []


def new_context() -> zmq.Context[Any]:
    contexts.append(zmq.Context())
    return contexts[-1]


@pytest.fixture(autouse=True)
def end_contexts() -> Iterator[None]:
    """A test that died before it closed its sockets must not hang in the context's end."""
    yield
    while contexts:
        contexts.pop().destroy(linger=0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a loop where any exception in a callback fails it."""
    failures: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context)
        )
        await test()

    asyncio.run(guarded())
    assert not failures


async def settled(node: Node) -> None:
    """Wait until a node has nothing to do: no turn comes and no descriptor is readable."""
    quiet, turns = 0, node.turns

    def still() -> bool:
        nonlocal quiet, turns
        descriptors = [int(link.raw.get(zmq.FD)) for link in node.sockets._sockets]
        busy = node.turns != turns or select.select(descriptors, [], [], 0)[0]
        quiet, turns = (0 if busy else quiet + 1), node.turns
        return quiet == 5

    await until(still, "an idle node")
    assert not node.sockets.pending()


def port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


@pytest.fixture
def foreign() -> Iterator[zmq.Context[Any]]:
    """A context for sockets that do what ours never would."""
    yield new_context()


async def answers(caller: Caller, endpoint: str, frame: bytes = b"are you there?") -> None:
    """Wait until an endpoint echoes a frame sent now (repeated, as clients do)."""
    before = len(caller.received)
    loop = asyncio.get_running_loop()
    sent_at = -1.0

    def answered() -> bool:
        nonlocal sent_at
        if loop.time() > sent_at + 0.5:
            sent_at = loop.time()
            caller.sockets.send(endpoint, frame)
        return (endpoint, frame) in caller.received[before:]

    await until(answered, f"an answer from {endpoint}")


def test_first_frame_needs_no_retry() -> None:
    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(caller, node):
            endpoint = node.sockets.clients_endpoint
            caller.sockets.connect(endpoint)
            assert caller.sockets.send(endpoint, b"first")
            assert caller.sockets.send(endpoint, b"second")
            await until(lambda: len(caller.received) == 2, "both answers")
            assert caller.received == [(endpoint, b"first"), (endpoint, b"second")]
            assert caller.sockets.connected(endpoint)

    run(test)


def test_peers_send_and_publish() -> None:
    async def test() -> None:
        one, two = Node(), Node()
        async with closing(one, two):
            one.sockets.connect_peer(
                "two", two.sockets.peers_endpoint, two.sockets.publish_endpoint
            )
            two.sockets.connect_peer(
                "one", one.sockets.peers_endpoint, one.sockets.publish_endpoint
            )
            await until(lambda: one.sockets.send_peer("two", b"hello"), "a connection")
            await until(lambda: b"hello" in two.from_peers, "the frame")

            def heard() -> bool:
                two.sockets.publish(b"topic", b"news")
                return b"news" in one.published

            await until(heard, "a subscription")
            assert not one.sockets.send_peer("three", b"x")
            one.sockets.disconnect_peer("two")
            one.sockets.disconnect_peer("two")
            assert not one.sockets.send_peer("two", b"x")
            assert one.sockets.counters["send_unreachable"] == 2

    run(test)


def test_nothing_hangs_in_ten_thousand_frames_both_ways() -> None:
    """Sends interleave with receives, so edges are eaten all the time; all must still come."""
    count, window = 10_000, 100

    async def test() -> None:
        one, two, caller = Node(), Node(), Caller()
        async with closing(caller, one, two):
            endpoint = one.sockets.clients_endpoint
            caller.sockets.connect(endpoint)
            await answers(caller, endpoint)
            caller.received.clear()
            for a, b, name in ((one, two, "two"), (two, one, "one")):
                a.sockets.connect_peer(name, b.sockets.peers_endpoint, b.sockets.publish_endpoint)
            await until(lambda: one.sockets.send_peer("two", b"x"), "a connection")
            await until(lambda: two.sockets.send_peer("one", b"x"), "a connection back")
            sent = {"caller": 0, "one": 1, "two": 1}
            while sent["caller"] < count:
                for _ in range(window):
                    assert caller.sockets.send(endpoint, b"%d" % sent["caller"])
                    sent["caller"] += 1
                    sent["one"] += one.sockets.send_peer("two", b"x")
                    sent["two"] += two.sockets.send_peer("one", b"x")
                await until(lambda: len(caller.received) == sent["caller"], "every answer")
                await until(lambda: len(two.from_peers) == sent["one"], "every frame of one")
                await until(lambda: len(one.from_peers) == sent["two"], "every frame of two")
            assert [frame for _, frame in caller.received] == [b"%d" % n for n in range(count)]

    run(test)


def test_a_callers_own_sends_do_not_hide_an_answer() -> None:
    """The answer comes while the client only sends: the send eats the edge of the descriptor."""

    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(caller, node):
            endpoint = node.sockets.clients_endpoint
            caller.sockets.connect(endpoint)
            await answers(caller, endpoint)
            for number in range(200):
                before = len(caller.received)
                caller.sockets.send(endpoint, b"ask")
                link = caller.sockets._links[endpoint]
                while not link.look():  # by this look the edge is gone
                    if node.sockets._client_router.look():
                        node.turn()
                caller.sockets.send(endpoint, b"more")
                await until(lambda n=before: len(caller.received) >= n + 2, f"answer {number}")  # type: ignore[misc]

    run(test)


def test_a_nodes_own_sends_do_not_hide_a_request() -> None:
    """The request is there, its edge not yet seen by the loop, and a hint to the client eats it."""

    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(caller, node):
            endpoint = node.sockets.clients_endpoint
            caller.sockets.connect(endpoint)
            await answers(caller, endpoint)
            (route,) = node.routes
            await settled(node)
            descriptor = int(node.sockets._client_router.raw.get(zmq.FD))
            caller.sockets.send(endpoint, b"ask")
            assert select.select([descriptor], [], [], DEADLINE_S)[0]
            while select.select([descriptor], [], [], 0)[0]:
                node.sockets.send_client(route, b"hint")
            await until(lambda: (endpoint, b"ask") in caller.received, "the answer")

    run(test)


def test_idle_sockets_do_not_spin() -> None:
    async def test() -> None:
        one, two = Node(), Node()
        async with closing(one, two):
            one.sockets.connect_peer(
                "two", two.sockets.peers_endpoint, two.sockets.publish_endpoint
            )
            await until(lambda: one.sockets.send_peer("two", b"hello"), "a connection")
            await until(lambda: two.sockets.counters["subscriptions"] == 1, "the subscription")
            for node in (one, two):
                await settled(node)

    run(test)


def test_oversize_frame_closes_only_its_sender(foreign: zmq.Context[Any]) -> None:
    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(caller, node):
            endpoint = node.sockets.clients_endpoint
            caller.sockets.connect(endpoint)
            await answers(caller, endpoint)
            big = foreign.socket(zmq.DEALER)
            big.linger = 0
            monitor = big.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            big.connect(endpoint)
            big.send(b"x" * (CLIENT_FRAME_BYTES + 1))
            await until(lambda: bool(monitor.poll(0)), "the sender disconnected")
            big.disable_monitor()
            await answers(caller, endpoint, b"x" * CLIENT_FRAME_BYTES)
            assert not any(len(frame) > CLIENT_FRAME_BYTES for _, frame in caller.received)

    run(test)


def test_raw_garbage_disturbs_nobody() -> None:
    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(caller, node):
            endpoint = node.sockets.clients_endpoint
            caller.sockets.connect(endpoint)
            await answers(caller, endpoint)
            bound = (endpoint, node.sockets.peers_endpoint, node.sockets.publish_endpoint)
            for junk in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(1 << 16), b"\xff" + b"\0" * 8):
                for target in bound:
                    with socket.create_connection(("127.0.0.1", port(target))) as raw:
                        with suppress(OSError):  # it may hang up at once
                            raw.sendall(junk)
                        await answers(caller, endpoint)
            # random bytes may pass for the first ZMTP, which had no greeting: the header drops them
            assert {frame for _, frame in caller.received} == {b"are you there?"}

    run(test)


def test_a_hundred_thousand_parts_disturb_nobody(foreign: zmq.Context[Any]) -> None:
    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(caller, node):
            endpoint = node.sockets.clients_endpoint
            caller.sockets.connect(endpoint)
            await answers(caller, endpoint)
            junk = foreign.socket(zmq.DEALER)
            junk.linger = 0
            junk.connect(endpoint)
            for _ in range(100_000):
                junk.send(b"part", zmq.SNDMORE)
            junk.send(b"end")
            await answers(caller, endpoint)
            await until(lambda: node.sockets.counters["multipart"] == 1, "the count")
            junk.send(b"")
            await until(lambda: node.sockets.counters["empty"] == 1, "the other count")
            junk.send(b"reformed")
            await until(lambda: junk.poll(0) != 0, "the stream is in step again")
            assert junk.recv() == b"reformed"
            await answers(caller, endpoint)

    run(test)


def zmtp_connection(endpoint: str) -> socket.socket:
    """A DEALER that speaks ZMTP 3.0 with the NULL mechanism (RFC 23) by hand."""
    raw = socket.create_connection(("127.0.0.1", port(endpoint)), DEADLINE_S)
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    with raw.makefile("rb") as replies:
        assert len(replies.read(64)) == 64
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
    return raw


def test_endless_parts_disturb_nobody() -> None:
    """libzmq keeps a message back until its last part; only a handwritten peer does this."""

    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(caller, node):
            endpoint = node.sockets.clients_endpoint
            caller.sockets.connect(endpoint)
            await answers(caller, endpoint)
            with zmtp_connection(endpoint) as raw:
                raw.sendall(b"\x00\x05hello")
                await until(lambda: len(node.routes) == 2, "the handwritten peer heard")
                raw.sendall(b"\x01\x04part" * 100_000)
                await answers(caller, endpoint)
                raw.sendall(b"\x00\x03end")
                await until(lambda: node.sockets.counters["multipart"] == 1, "the count")
                raw.sendall(b"\x01\x04part" * 1000)
            await answers(caller, endpoint)  # it left in the middle of a message
            assert len(node.routes) == 2

    run(test)


def test_junk_for_peers_and_subscribers_is_dropped(foreign: zmq.Context[Any]) -> None:
    async def test() -> None:
        node = Node()
        dealers = foreign.socket(zmq.ROUTER)
        publisher = foreign.socket(zmq.PUB)
        ports = [raw.bind_to_random_port("tcp://127.0.0.1") for raw in (dealers, publisher)]
        async with closing(node):
            node.sockets.connect_peer("bad", *(f"tcp://127.0.0.1:{number}" for number in ports))
            await until(lambda: node.sockets.send_peer("bad", b"hello"), "a connection")
            await until(lambda: dealers.poll(0) != 0, "the frame")
            route = dealers.recv_multipart()[0]
            for _ in range(1000):
                dealers.send_multipart([route, b"unasked"])
            await until(lambda: node.sockets.counters["unsolicited"] == 1000, "the junk dropped")

            def heard() -> bool:
                for parts in ([b"alone"], [b"t", b"x", b"y"], [b"t", b""], [b"t", b"good"]):
                    publisher.send_multipart(parts)
                return len(node.published) > 3

            await until(heard, "the good one")
            assert set(node.published) == {b"good"}
            assert node.sockets.counters["multipart"] and node.sockets.counters["empty"]

    run(test)


def test_both_sides_find_a_restarted_node_again() -> None:
    async def test() -> None:
        node, other, caller = Node(), Node(), Caller()
        async with closing(caller, other):
            endpoints = (
                node.sockets.clients_endpoint,
                node.sockets.peers_endpoint,
                node.sockets.publish_endpoint,
            )
            caller.sockets.connect(endpoints[0])
            other.sockets.connect_peer("node", endpoints[1], endpoints[2])
            await answers(caller, endpoints[0])
            await until(lambda: other.sockets.send_peer("node", b"before"), "a connection")
            await until(lambda: b"before" in node.from_peers, "the frame before")
            node.close()
            await until(lambda: not caller.sockets.connected(endpoints[0]), "the end seen")
            await until(lambda: not other.sockets.send_peer("node", b"lost"), "the peer's end seen")
            assert caller.sockets.send(endpoints[0], b"kept for the next")
            node = Node(*endpoints)
            async with closing(node):
                await until(lambda: other.sockets.send_peer("node", b"after"), "it is back")
                await until(lambda: b"after" in node.from_peers, "the frame after")
                assert b"lost" not in node.from_peers
                await until(
                    lambda: (endpoints[0], b"kept for the next") in caller.received, "the answer"
                )

    run(test)


def test_outbox_is_bounded_and_unknown_endpoints_are_told() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            nobody = f"tcp://127.0.0.1:{held.getsockname()[1]}"
        caller = Caller()
        async with closing(caller):
            caller.sockets.connect(nobody)
            caller.sockets.connect(nobody)
            assert caller.sockets.endpoints == [nobody]
            sent = [caller.sockets.send(nobody, b"x") for _ in range(OUTBOX_FRAMES + 5)]
            assert sent == [True] * OUTBOX_FRAMES + [False] * 5
            assert not caller.sockets.connected(nobody)
            assert not caller.sockets.send("tcp://127.0.0.1:1", b"x")
            assert caller.sockets.counters == {"send_full": 5, "send_unreachable": 1}
            with pytest.raises(ValueError, match="nonsense"):
                caller.sockets.connect("nonsense")
            with pytest.raises(ValueError, match="port"):
                caller.sockets.connect("tcp://127.0.0.1:70001")

    run(test)


def test_client_that_has_gone_is_counted() -> None:
    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(node):
            caller.sockets.connect(node.sockets.clients_endpoint)
            await answers(caller, node.sockets.clients_endpoint)
            (route,) = node.routes
            caller.close()
            await until(lambda: not node.sockets.send_client(route, b"x"), "the client gone")
            assert node.sockets.counters["send_unreachable"] >= 1
            assert not node.sockets.send_client(b"no such route", b"x")

    run(test)


def test_client_that_does_not_read_loses_frames_and_harms_nobody(
    foreign: zmq.Context[Any],
) -> None:
    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(caller, node):
            endpoint = node.sockets.clients_endpoint
            silent = foreign.socket(zmq.DEALER)
            silent.rcvhwm, silent.linger = 1, 0
            silent.connect(endpoint)
            silent.send(b"hello")
            await until(lambda: len(node.routes) == 1, "its route")
            (route,) = node.routes
            frame = b"x" * 65536
            await until(lambda: not node.sockets.send_client(route, frame), "its queue full")
            assert node.sockets.counters["send_full"] == 1
            caller.sockets.connect(endpoint)
            await answers(caller, endpoint)

    run(test)


def test_close_sends_the_last_frames() -> None:
    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(node):
            caller.sockets.connect(node.sockets.clients_endpoint)
            await answers(caller, node.sockets.clients_endpoint)
            before = sum(node.routes.values())
            node.echo = False
            for _ in range(20):
                caller.sockets.send(node.sockets.clients_endpoint, b"x" * (1 << 20))
            caller.sockets.send(node.sockets.clients_endpoint, b"goodbye")
            caller.sockets.close()
            caller.sockets.close()
            await until(lambda: sum(node.routes.values()) == before + 21, "the last frames")
            caller.close()

    run(test)


def test_addresses() -> None:
    async def test() -> None:
        node = Node()
        async with closing(node):
            with pytest.raises(AddressInUse, match=node.sockets.peers_endpoint) as caught:
                Node(peers=node.sockets.peers_endpoint)
            assert caught.value.endpoint == node.sockets.peers_endpoint
            with pytest.raises(NotLoopback, match="insecure"):
                Node(clients="tcp://*:0")
            with pytest.raises(BindFailed):
                Node(publish="tcp://127.0.0.1:999999")

    run(test)


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")

    async def test() -> None:
        node, caller = Node(clients="tcp://[::1]:*"), Caller()
        async with closing(caller, node):
            caller.sockets.connect(node.sockets.clients_endpoint)
            await answers(caller, node.sockets.clients_endpoint)

    run(test)


def test_what_is_loopback() -> None:
    for endpoint in ("tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "ipc:///x"):
        assert is_loopback(endpoint)
    for endpoint in ("tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://host:1", "udp://x", ""):
        assert not is_loopback(endpoint)


def test_context_ended_too_early_is_no_exception_in_the_loop() -> None:
    async def test() -> None:
        node, caller = Node(), Caller()
        async with closing(node):
            caller.sockets.connect(node.sockets.clients_endpoint)
            await answers(caller, node.sockets.clients_endpoint)
            caller.sockets._links[node.sockets.clients_endpoint].raw.close(0)
            assert not caller.sockets.send(node.sockets.clients_endpoint, b"x")
            assert caller.sockets.receive(1) == []
            assert caller.sockets.counters["socket_ENOTSOCK"] >= 1
            caller.close()

    run(test)
