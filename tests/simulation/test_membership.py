"""A cluster of one node becomes three, five, and three again, while clients work and nodes fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coterie.nodes.simulator import LIVENESS_S, Options, World

STEP_S = 15.0
"""So long each size may take to come about."""


class ScriptedWorld(World):
    """The operator follows a script; faults, if any, come between."""

    def begin(self) -> None:
        for node in self.nodes.values():
            node.start()
        self.clients.start()
        self.membership.start()
        self.until(lambda: not self.membership.unplaced(), "founded")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = self.now + STEP_S
        while not condition():
            assert self.now < end, f"{what}: {self.membership.unplaced()}\n{self.story()[-3000:]}"
            self._run_until(self.now + 0.05)

    def settle(self, count: int) -> None:
        self.until(lambda: not self.membership.unplaced(), f"{count} nodes")
        assert len(self.nodes) == len(self.membership.wanted) == count

    def grow(self) -> None:
        self.until(lambda: not self.membership.operator.busy, "the operator")
        assert self.membership.add()

    def shrink(self) -> str:
        self.until(lambda: not self.membership.operator.busy, "the operator")
        name = self.membership.remove()
        assert name
        return name

    def end(self) -> None:
        self.clients.finish()
        self.membership.finish()
        self.until(lambda: not self._unsettled(), "the end")
        self._judge()


@pytest.mark.parametrize("seed", range(1, 6))
def test_one_three_five_three_under_load(seed: int) -> None:
    world = ScriptedWorld(seed, Options(seconds=6 * STEP_S - LIVENESS_S, nodes=1, groups=4))
    world.begin()
    for count in (2, 3):
        world.grow()
        world.settle(count)
    world.grow()
    world.grow()
    world.settle(5)
    world.shrink()
    world.shrink()
    world.settle(3)
    world.end()
    assert world.clients.completed and world.membership.completed


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_dead_node_does_not_keep_another_from_joining(seed: int) -> None:
    """Pitfall 25: a learner, or a voter, that is dead never blocks what a majority commits."""
    world = ScriptedWorld(seed, Options(seconds=3 * STEP_S, groups=3))
    world.begin()
    down = world.nodes["node2"]
    down.crash()
    world.grow()
    newcomer = list(world.nodes)[-1]

    def joined() -> bool:
        engine = world.nodes[newcomer].engine
        return engine is not None and engine.replicas[0].applied > 10

    world.until(joined, "the newcomer follows")
    down.start()
    world.settle(4)
    world.end()


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_dead_node_can_be_removed(seed: int) -> None:
    world = ScriptedWorld(seed, Options(seconds=3 * STEP_S, nodes=4, groups=3))
    world.begin()
    name = world.shrink()
    world.nodes[name].crash()
    world.until(lambda: not world.membership.unplaced(), "it goes")
    assert name not in world.nodes and len(world.nodes) == 3
    world.end()
