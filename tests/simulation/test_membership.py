"""A cluster of one node becomes three, five, and three again, while clients work and nodes fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coterie.nodes.simulator import LIVENESS_S, Options, World
from coterie.protocols.errors import Code
from coterie.protocols.placement.messages import (
    Changed,
    DescribeRing,
    HandingOver,
    HandOver,
    ListMembers,
    MemberList,
    RemoveMember,
    Ring,
)
from coterie.protocols.plugin import Failure, Message, Result

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


def ask(world: ScriptedWorld, group: int, operation: Message) -> Result:
    """What the operator is answered; a hand-over is told to the one node asked, and no other."""
    answers: list[Result] = []
    world.membership.operator.ask("placement", group, operation, answers.append)
    world.until(lambda: bool(answers), f"{operation}")
    return answers[0]


def calm_world(seed: int = 4, nodes: int = 3) -> ScriptedWorld:
    world = ScriptedWorld(seed, Options(seconds=3 * STEP_S, nodes=nodes, groups=3))
    world.network.heal()
    world.begin()
    return world


def test_members_and_ring_are_told() -> None:
    world = calm_world()
    listed = ask(world, 0, ListMembers())
    assert isinstance(listed, MemberList)
    assert [row.node for row in listed.members] == ["node1", "node2", "node3"]
    for row in listed.members:
        assert row.incarnation == world.nodes[row.node].disk.incarnation
        assert (row.voter, row.state, row.groups, row.holds) == (True, "member", (1, 2), (1, 2))
    ring = ask(world, 0, DescribeRing())
    assert isinstance(ring, Ring)
    assert (ring.partitions, ring.replication, ring.remaining) == (2, 3, 0)
    for group in ring.groups:
        assert not group.moving and sorted(group.nodes) == [node for node, _ in group.members]
    refused = ask(world, 1, ListMembers())
    assert isinstance(refused, Failure) and refused.code is Code.MALFORMED


def test_a_leadership_is_handed_over_and_comes_back_to_the_preferred_node() -> None:
    world = calm_world()
    ring = ask(world, 0, DescribeRing())
    assert isinstance(ring, Ring)
    preferred, other, _ = ring.groups[0].nodes
    assert world.nodes[preferred].leads(1)
    assert ask(world, 1, HandOver(other)) == HandingOver()
    world.until(lambda: world.nodes[other].leads(1), "the other one leads")
    assert ask(world, 1, HandOver(other)) == HandingOver(), "it leads already"
    world.until(lambda: world.nodes[preferred].leads(1), "the preferred one leads again")
    for name in ("node9", ""):
        refused = ask(world, 1, HandOver(name))
        assert isinstance(refused, Failure) and refused.code is Code.MALFORMED
    world.end()


def test_the_last_node_stays() -> None:
    world = calm_world(nodes=1)
    refused = ask(world, 0, RemoveMember("node1"))
    assert isinstance(refused, Failure) and refused.code is Code.MALFORMED
    assert ask(world, 0, RemoveMember("node7")) == Changed()
    world.end()


def test_a_late_copy_does_not_remove_a_namesake() -> None:
    world = calm_world()
    world.grow()
    world.settle(4)
    listed = ask(world, 0, ListMembers())
    assert isinstance(listed, MemberList)
    (newcomer,) = [row for row in listed.members if row.node == "node4"]
    assert newcomer.added > 0 == listed.members[0].added
    assert ask(world, 0, RemoveMember("node4", newcomer.added - 1)) == Changed()
    assert not world.membership.unplaced()
    world.end()
