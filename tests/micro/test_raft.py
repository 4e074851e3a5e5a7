"""What a round of Raft costs in CPU: three engines in memory, no sockets, disks that never wait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from coterie.nodes.assembly import assemble
from coterie.nodes.engine import Effects, Engine
from coterie.protocols.lock.messages import Acquire, Granted, Release, Released
from coterie.protocols.plugin import CONTROL, Message, NodeId, Operation, Request, Result
from coterie.protocols.raft.settings import Settings
from coterie.protocols.records import Identity, Member
from coterie.protocols.registry import builtin
from coterie.protocols.session.messages import OpenSession, SessionOpened

pytestmark = pytest.mark.benchmark(group="raft", max_time=0.3, min_rounds=5, disable_gc=True)

NODES = ("node1", "node2", "node3")
TASKS = 128
DEADLINE_S = 60.0


class Trio:
    """Three engines whose messages arrive in the next turn and whose writes are durable then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.numbers = count(1)
        self.mail: dict[NodeId, list[tuple[NodeId, str, list[Message]]]] = defaultdict(list)
        self.written: dict[NodeId, int] = {}
        self.results: dict[int, Sequence[Result]] = {}
        configured = [Member(node, 0, True) for node in NODES]
        self.engines: dict[NodeId, Engine] = {
            node: assemble(
                Identity(0, node, number),
                builtin(),
                Settings(),
                configured,
                {},
                seed=number,
            )
            for number, node in enumerate(NODES, 1)
        }
        for node, engine in self.engines.items():
            self.carry_out(node, engine.start(self.now))
        while self.leader() is None:
            self.turn(step_s=0.01)
            assert self.now < DEADLINE_S, "no leader"

    def leader(self) -> Engine | None:
        for node, engine in self.engines.items():
            if engine.log.leader(CONTROL)[0] == node:
                return engine
        return None

    def carry_out(self, node: NodeId, effects: Effects) -> None:
        assert effects.stop is None, effects.stop
        for (to, plugin), messages in effects.messages.items():
            self.mail[to].append((node, plugin, messages))
        if effects.records:
            self.written[node] = effects.write_number
        for request, results in effects.answers:
            self.results[request.sequences[0]] = results

    def turn(self, step_s: float = 0.0) -> None:
        """One turn of every node with what has come for it."""
        self.now += step_s
        mail, self.mail = self.mail, defaultdict(list)
        written, self.written = self.written, {}
        for node, engine in self.engines.items():
            engine.begin(self.now)
            if node in written:
                engine.durable(written[node])
            for sender, plugin, messages in mail[node]:
                incarnation = self.engines[sender].identity.incarnation
                engine.receive(sender, incarnation, engine.identity.incarnation, plugin, messages)
            self.carry_out(node, engine.end())

    def ask(self, plugin: str, session: int, operations: list[Operation]) -> Sequence[Result]:
        """Ask the leader, and take turns until it answers."""
        leader = self.leader()
        assert leader is not None
        sequences = [next(self.numbers) for _ in operations]
        first = sequences[0]
        request = Request(plugin, 7, session, CONTROL, first, 0, sequences, operations)
        leader.begin(self.now)
        leader.ask(request)
        self.carry_out(leader.identity.node, leader.end())
        while first not in self.results:
            self.turn()
        return self.results.pop(first)


def test_round_of_acquires_and_releases(benchmark: BenchmarkFixture) -> None:
    """256 operations in two entries, stepped, replicated and applied on all three."""
    trio = Trio()
    (opened,) = trio.ask("session", 0, [OpenSession(1, 10_000_000)])
    assert isinstance(opened, SessionOpened), opened
    acquires: list[Operation] = [Acquire(f"bench/{number}") for number in range(TASKS)]

    def acquire_and_release() -> Sequence[Result]:
        granted = trio.ask("lock", opened.session, acquires)
        releases: list[Operation] = [
            Release(f"bench/{number}", grant.grant)
            for number, grant in enumerate(granted)
            if isinstance(grant, Granted)
        ]
        return trio.ask("lock", opened.session, releases)

    assert list(benchmark(acquire_and_release)) == [Released()] * TASKS
