"""The ring: balance, few moves, one answer everywhere; and the plan made from it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from coterie.protocols.placement.machine import Placed
from coterie.protocols.placement.planner import MOVING_MAX, plan, remaining
from coterie.protocols.placement.ring import LOAD, place

NAMES = tuple(f"node{number}" for number in range(1, 21))


def copies(placement: tuple[tuple[str, ...], ...], node: str) -> int:
    return sum(node in nodes for nodes in placement)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 20])
@pytest.mark.parametrize("partitions", [1, 12, 100])
def test_load_is_bounded(count: int, partitions: int) -> None:
    nodes = NAMES[:count]
    placement = place(nodes, partitions, 3)
    size = min(3, count)
    assert len(placement) == partitions
    for chosen in placement:
        assert len(set(chosen)) == len(chosen) == size
    for node in nodes:
        assert copies(placement, node) <= math.ceil(LOAD * partitions * size / count) + 1
        primaries = sum(chosen[0] == node for chosen in placement)
        assert primaries <= math.ceil(LOAD * partitions / count) + 1


def test_the_placement_is_the_same_for_ever() -> None:
    assert place(("a", "b", "c", "d"), 6, 3) == place(("d", "c", "b", "a"), 6, 3)
    assert place(("node1", "node2", "node3", "node4"), 4, 3) == GOLDEN


GOLDEN = (
    ("node4", "node2", "node3"),
    ("node1", "node2", "node3"),
    ("node1", "node4", "node2"),
    ("node3", "node1", "node4"),
)


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_few_copies_move_when_a_node_comes_or_goes(count: int) -> None:
    partitions = 100
    few, many = place(NAMES[:count], partitions, 3), place(NAMES[: count + 1], partitions, 3)
    moved = sum(len(set(new) - set(old)) for old, new in zip(few, many, strict=True))
    gained = copies(many, NAMES[count])
    # What the newcomer holds has to move; bounded loads cost some moves beside.
    assert gained <= moved <= 2 * gained
    back = sum(len(set(old) - set(new)) for old, new in zip(few, many, strict=True))
    assert back == moved


def rows(placement: tuple[tuple[str, ...], ...]) -> list[Placed]:
    return [
        Placed(group, nodes, 1, tuple((node, 1, True) for node in sorted(nodes)))
        for group, nodes in enumerate(placement, start=1)
    ]


def test_two_groups_move_at_a_time_until_all_stand_as_the_ring_says() -> None:
    before, after = NAMES[:3], NAMES[:5]
    groups = rows(place(before, 12, 3))
    left = [remaining(after, groups, 3)]
    assert left[0] > MOVING_MAX
    for _ in range(50):
        for step in plan(after, groups, 3):
            row = groups[step.group - 1]
            groups[step.group - 1] = Placed(row.group, step.nodes, row.index, row.members)
        assert sum(row.moving for row in groups) <= MOVING_MAX
        moving = next((row for row in groups if row.moving), None)
        if moving is None:
            break
        members = tuple((node, 1, True) for node in sorted(moving.nodes))
        groups[moving.group - 1] = Placed(moving.group, moving.nodes, 2, members)
        left.append(remaining(after, groups, 3))
    assert all(now == then - 1 for then, now in pairwise(left)) and left[-1] == 0
    assert tuple(row.nodes for row in groups) == place(after, 12, 3)
    assert not plan(after, groups, 3)


def test_without_nodes_nothing_is_planned() -> None:
    groups = rows(place(NAMES[:3], 12, 3))
    assert not plan((), groups, 3)
