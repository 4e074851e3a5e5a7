"""Deadlines over long idle times, failovers and restarts: log time goes on from where it was.

Nobody asks anything of these worlds but one session each; their clocks run alike, so that what a
deadline is late or early by is the protocol's doing.
"""

from __future__ import annotations

from typing import Any

import pytest

from coterie.bus.codec import Ask
from coterie.nodes import simulator
from coterie.nodes.simulation.network import Weather
from coterie.nodes.simulation.node import Frame, SimulatedNode
from coterie.nodes.simulator import Options, World
from coterie.protocols.plugin import CONTROL
from coterie.protocols.raft.settings import Settings
from coterie.protocols.session.messages import OpenSession

MINUTE_S = 60.0


class QuietWorld(World):
    """Three nodes on a good network, without clients and without faults."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(simulator, "draw_settings", lambda *_: Settings(partitions=0))
        monkeypatch.setattr(simulator, "draw_weather", lambda _: Weather())
        monkeypatch.setattr(simulator, "EVENTS_MAX", 20_000_000)
        super().__init__(1, Options(seconds=100_000.0, groups=1))
        self.invariants._check_every = 1_000
        for node in self.nodes.values():
            node._clock_rate = 1.0
            node.start()
        self.until_led()

    def until_led(self) -> SimulatedNode:
        for _ in range(100):
            self._run_until(self.now + 0.1)
            for node in self.nodes.values():
                if node.leads() and self.sessions(node) is not None:
                    return node
        raise AssertionError("no leader")

    @staticmethod
    def sessions(node: SimulatedNode) -> dict[int, Any] | None:
        if node.engine is None:
            return None
        table: Any = node.engine.replicas[CONTROL].machines["session"]
        sessions: dict[int, Any] = table.sessions
        return sessions

    def open(self, ttl_s: float) -> float:
        """Open a session at the leader; the time at which it was granted."""
        leader = self.until_led()
        assert leader.engine is not None
        ask = Ask(77, 0, CONTROL, 0, 0, [-1], [OpenSession(1, int(ttl_s * 1e6), "quiet")])
        leader.receive("nobody", Frame("session", leader.engine.identity.cluster, ask))
        while not self.sessions(leader):
            self._run_until(self.now + 0.01)
        return self.now

    def expired_at(self, limit_s: float) -> float:
        """Run until no node that is up has the session any more; after a restart of all, first
        until one has read it from its disk."""
        while not any(self.sessions(node) for node in self.nodes.values()):
            assert self.now < limit_s, "the session is lost"
            self._run_until(self.now + 0.05)
        while any(self.sessions(node) for node in self.nodes.values()):
            assert self.now < limit_s, "the session does not end"
            self._run_until(self.now + 0.05)
        return self.now


def test_an_idle_group_keeps_a_deadline_of_half_an_hour_over_a_failover(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = QuietWorld(monkeypatch)
    world._run_until(30 * MINUTE_S)
    opened = world.open(30 * MINUTE_S)
    world._run_until(opened + 17 * MINUTE_S + 3.3)
    leader = world.until_led()
    leader.crash()
    world._run_until(world.now + 2.0)
    leader.start()
    late_s = world.expired_at(opened + 31 * MINUTE_S) - opened - 30 * MINUTE_S
    assert 0.0 <= late_s < 1.0


@pytest.mark.parametrize("down_s", [0.5, 600.0])
def test_a_restart_of_all_keeps_a_deadline(monkeypatch: pytest.MonkeyPatch, down_s: float) -> None:
    """Log time stands still while nobody leads; what was not written down is given again."""
    world = QuietWorld(monkeypatch)
    opened = world.open(2 * MINUTE_S)
    world._run_until(opened + MINUTE_S + 4.9)
    for node in world.nodes.values():
        node.crash()
    world._run_until(world.now + down_s)
    for node in world.nodes.values():
        node.start()
    late_s = world.expired_at(opened + down_s + 3 * MINUTE_S) - opened - down_s - 2 * MINUTE_S
    assert 0.0 <= late_s < 5.5
