"""From the ring to the record: which groups are placed anew, and when.

The law: at most two groups are on the move at a time, so that a node that comes or goes costs the
others a trickle and not a flood; the next one begins when one of them has been reported.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..records import NodeId
from .messages import Place
from .ring import place

if TYPE_CHECKING:
    from .machine import Placed

MOVING_MAX = 2


def plan(nodes: Sequence[NodeId], groups: Collection[Placed], replication: int) -> list[Place]:
    """What to record now, for these nodes. Where only the preferred primary is another one
    nothing moves, and so nothing waits."""
    wanted = place(tuple(nodes), len(groups), replication) if nodes else ()
    moving = sum(row.moving for row in groups)
    places = []
    for row, new in zip(groups, wanted, strict=False):
        if new == row.nodes:
            continue
        moves = sorted(new) != [member[0] for member in row.members]
        if moves and not row.moving:
            if moving >= MOVING_MAX:
                continue
            moving += 1
        places.append(Place(row.group, new))
    return places


def remaining(nodes: Sequence[NodeId], groups: Collection[Placed], replication: int) -> int:
    """How many groups are moving, or have to."""
    wanted = place(tuple(nodes), len(groups), replication) if nodes else ()
    return sum(
        row.moving or sorted(new) != [member[0] for member in row.members]
        for row, new in zip(groups, wanted, strict=False)
    )
