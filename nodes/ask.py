"""Asking nodes who leads and how they are, without a client and without a session.

The law: it takes part in nothing. It asks, waits for a bounded time and reports what it heard. Only
an operator's change (`administration.py`) changes anything, and that one may be sent twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import zmq

from ..bus.codec import Answer, Codec, Vocabulary
from ..bus.frame import PEER_FRAME_BYTES, Kind, Malformed
from ..bus.options import new_socket
from ..protocols.placement.messages import (
    AddMember,
    Changed,
    DescribeRing,
    HandingOver,
    HandOver,
    ListMembers,
    MemberList,
    RemoveMember,
    Ring,
)
from ..protocols.plugin import CONTROL, Failure, GroupId, Operation, Query, Result
from ..protocols.session.messages import (
    Describe,
    Described,
    ListSessions,
    Locate,
    Located,
    SessionList,
)

SESSION, PLACEMENT = "session", "placement"
ROUND_S = 0.25
"""How long a node that is there may take to answer, when others may be dead."""

PAUSE_MS = 10
"""Between two rounds of asking while something is awaited."""


class NodeAsker:
    """Connections to some nodes. A context manager; to be used by one thread."""

    def __init__(self) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._sockets: dict[str, zmq.Socket[Any]] = {}
        self._codec = Codec(
            {
                SESSION: Vocabulary(
                    asked=(Locate, Describe, ListSessions),
                    answered=(Located, Described, SessionList, Failure),
                ),
                PLACEMENT: Vocabulary(
                    asked=(AddMember, RemoveMember, HandOver, ListMembers, DescribeRing),
                    answered=(Changed, HandingOver, MemberList, Ring, Failure),
                ),
            }
        )
        self._client = random.SystemRandom().getrandbits(63) | 1
        self._sequence = 0

    def __enter__(self) -> NodeAsker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for endpoint in list(self._sockets):
            self._drop(endpoint)
        self._context.term()

    def ask(
        self,
        endpoints: Iterable[str],
        query: Query | Operation,
        *,
        plugin: str = SESSION,
        timeout_s: float = ROUND_S,
        group: GroupId = CONTROL,
        cluster: int = 0,
        enough: Callable[[dict[str, Result]], bool] | None = None,
    ) -> dict[str, Result]:
        """Ask every endpoint; what came within the time, by endpoint. A `Failure` is a result.

        `enough` ends the wait early: a node that is dead or paused then costs no time."""
        self._sequence += 1
        frame = self._codec.encode_ask(
            plugin, cluster, self._client, 0, group, self._sequence, 0, [self._sequence], [query]
        )[0]
        waiting = list(dict.fromkeys(endpoints))
        poller = zmq.Poller()
        sent: dict[Any, str] = {}
        for endpoint in waiting:
            socket = self._socket(endpoint)
            sent[socket] = endpoint
            poller.register(socket, zmq.POLLOUT)  # it may still be connecting
        answers: dict[str, Result] = {}
        deadline = time.monotonic() + timeout_s
        while len(answers) < len(waiting):
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms < 0:
                break
            for socket, event in poller.poll(left_ms):
                if event & zmq.POLLOUT:
                    self._send(socket, frame)
                    poller.modify(socket, zmq.POLLIN)
                else:
                    self._receive(socket, sent[socket], answers)
                    if enough is not None and enough(answers):
                        return answers
        for endpoint in waiting:
            if endpoint not in answers:
                self._drop(endpoint)  # a late answer or a waiting reconnect is not wanted
        return answers

    def _send(self, socket: Any, frame: bytes) -> None:
        try:
            socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return  # gone again; the time-out tells

    def _receive(self, socket: Any, endpoint: str, answers: dict[str, Result]) -> None:
        try:
            frame = socket.recv(zmq.NOBLOCK)
            _, _, answer = self._codec.decode(frame, 0, (Kind.ANSWER,), first_contact=True)
        except (zmq.Again, Malformed):
            return
        assert isinstance(answer, Answer)
        for sequence, result in zip(answer.sequences, answer.results, strict=True):
            if sequence == self._sequence:
                answers[endpoint] = result

    def _socket(self, endpoint: str) -> zmq.Socket[Any]:
        socket = self._sockets.get(endpoint)
        if socket is None:
            socket = new_socket(self._context, zmq.DEALER, endpoint, max_bytes=PEER_FRAME_BYTES)
            socket.set(zmq.RECONNECT_IVL, PAUSE_MS)
            socket.set(zmq.RECONNECT_IVL_MAX, 0)  # a node that starts is found at once
            try:
                socket.connect(endpoint)
            except zmq.ZMQError as error:
                socket.close(0)
                raise ValueError(f"{endpoint!r} is no endpoint such as tcp://127.0.0.1:7001: "
                                 f"{error}") from None  # fmt: skip
            self._sockets[endpoint] = socket
        return socket

    def _drop(self, endpoint: str) -> None:
        socket = self._sockets.pop(endpoint, None)
        if socket is not None:
            socket.close(0)


def located(answers: dict[str, Result]) -> dict[str, Located]:
    """The answers to a `Locate`, without failures."""
    return {e: answer for e, answer in answers.items() if isinstance(answer, Located)}


def leader_among(answers: Iterable[Located]) -> Located | None:
    """What the leader says of itself: nobody who answered knows a later term or another leader
    of its term. None while there is no such answer, as after the leader died or was paused."""
    known = list(answers)
    latest = max((answer.term for answer in known), default=0)
    for answer in known:
        if answer.leader and answer.leader == answer.node and answer.term == latest:
            return answer
    return None


def reads(asker: NodeAsker, leader: str, cluster: int, timeout_s: float = 1.0) -> bool:
    """True if the node at this endpoint answers a read, that is, leads with a majority."""
    answers = asker.ask([leader], ListSessions(), cluster=cluster, timeout_s=timeout_s)
    return isinstance(answers.get(leader), SessionList)


def find_leader(
    asker: NodeAsker, endpoints: Sequence[str], timeout_s: float = ROUND_S
) -> tuple[str, Located] | None:
    """The leader's endpoint and what it says of itself, as far as those know who answer: ask
    on, for only a read or a change shows that a majority follows it."""
    majority = len(endpoints) // 2 + 1

    def enough(answers: dict[str, Result]) -> bool:
        known = located(answers)
        return len(known) >= majority and leader_among(known.values()) is not None

    known = located(asker.ask(endpoints, Locate(), timeout_s=timeout_s, enough=enough))
    leader = leader_among(known.values())
    if leader is None:
        return None
    return next(endpoint for endpoint, answer in known.items() if answer is leader), leader


def all_agree(asker: NodeAsker, endpoints: Sequence[str], leader: str) -> bool:
    """True if every node answers that it has found its cluster and knows this leader."""
    known = located(asker.ask(endpoints, Locate()))
    return len(known) == len(endpoints) and all(
        answer.settled and answer.leader == leader for answer in known.values()
    )


def await_leader(
    asker: NodeAsker,
    endpoints: Sequence[str],
    deadline: float,
    *,
    everybody: bool = False,
    go_on: Callable[[], bool] = lambda: True,
) -> Located | None:
    """Wait until a leader serves reads (`everybody`: and every node knows it); None when the
    deadline (of `time.monotonic`) has passed or `go_on()` has become false."""
    for timeout_s in rounds(deadline):
        if not go_on():
            break
        found = find_leader(asker, endpoints, timeout_s)
        if found is not None:
            endpoint, leader = found
            agreed = not everybody or all_agree(asker, endpoints, leader.node)
            if agreed and reads(asker, endpoint, leader.cluster):
                return leader
    return None


def find_members(
    asker: NodeAsker, endpoints: Sequence[str], timeout_s: float = ROUND_S
) -> dict[str, str]:
    """The endpoints of all members and their names ("?" if unknown), the given ones among them:
    those at which a node gave its name, else those the cluster advertises."""

    def members_known(answers: dict[str, Result]) -> bool:
        return any(answer.leader for answer in located(answers).values())

    heard = located(asker.ask(endpoints, Locate(), timeout_s=timeout_s, enough=members_known))
    names = {endpoint: answer.node for endpoint, answer in heard.items()}
    for answer in heard.values():
        for member in answer.members:
            if member.node not in names.values() and member.client_endpoint:
                names.setdefault(member.client_endpoint, member.node)
    for endpoint in endpoints:
        names.setdefault(endpoint, "?")
    return names


def rounds(deadline: float) -> Iterator[float]:
    """How long to wait for answers, again and again until the deadline (of `time.monotonic`).

    First for a moment, as a dead node shall not delay what the others know; then for longer, as a
    busy one must get its chance."""
    timeout_s = ROUND_S / 8
    while time.monotonic() < deadline:
        yield timeout_s
        timeout_s = min(1.25 * timeout_s, 2 * ROUND_S)
        time.sleep(PAUSE_MS / 1000)
