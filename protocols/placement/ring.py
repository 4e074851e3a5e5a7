"""The ring: which nodes should hold which partitions.

The law: a function of its arguments alone, the same on every machine and in every version that
shares a cluster. Consistent hashing (Karger et al., 1997) keeps most copies where they are when a
node comes or goes; bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016) keep the few partitions
there are from heaping up on one node.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b

from ..records import GroupId, NodeId

VIRTUAL_NODES = 100
LOAD = 1.25
"""No node holds more than this times the average, of copies and of preferred primaries."""


@lru_cache(maxsize=8)
def place(
    nodes: tuple[NodeId, ...], partitions: int, replication: int
) -> tuple[tuple[NodeId, ...], ...]:
    """The nodes of partitions 1 … `partitions`, the preferred primary first; as many for each as
    `replication` says, or as there are."""
    if not nodes:
        return ((),) * partitions
    size = min(replication, len(nodes))
    copies_max = math.ceil(LOAD * partitions * size / len(nodes))
    primaries_max = math.ceil(LOAD * partitions / len(nodes))
    copies = dict.fromkeys(sorted(nodes), 0)
    primaries = dict(copies)
    ring = _ring(list(copies))
    placement = []
    for partition in range(1, partitions + 1):
        order = list(_clockwise(ring, _point(f"partition {partition}"), len(copies)))
        free = [node for node in order if copies[node] < copies_max]
        # Bounds that cannot be kept for want of distinct nodes give way where the load is least.
        full = sorted((node for node in order if node not in free), key=lambda node: copies[node])
        chosen = (free + full)[:size]
        primary = next(
            (node for node in chosen if primaries[node] < primaries_max),
            min(chosen, key=lambda node: primaries[node]),
        )
        primaries[primary] += 1
        for node in chosen:
            copies[node] += 1
        placement.append((primary, *(node for node in chosen if node != primary)))
    return tuple(placement)


def partition_of(key: str, partitions: int) -> GroupId:
    """The partition of 1 … `partitions` that a queue's name or a cache key belongs to."""
    return 1 + _point(key) % partitions


def _point(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _ring(nodes: Sequence[NodeId]) -> list[tuple[int, NodeId]]:
    return sorted(
        (_point(f"{node}#{number}"), node) for node in nodes for number in range(VIRTUAL_NODES)
    )


def _clockwise(ring: Sequence[tuple[int, NodeId]], point: int, count: int) -> Iterator[NodeId]:
    """The distinct nodes from a point on, nearest first."""
    start = bisect_right(ring, (point, "\U0010ffff"))
    met: dict[NodeId, None] = {}
    for position in range(len(ring)):
        node = ring[(start + position) % len(ring)][1]
        if node not in met:
            met[node] = None
            yield node
            if len(met) == count:
                return
