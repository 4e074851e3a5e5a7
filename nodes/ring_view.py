"""The ring for a terminal: who should hold each partition, who does, who leads, what moves.

The law: it shows what group 0 has recorded and what leaders say of themselves; where nobody leads
it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..clients.errors import CoterieError
from ..protocols.placement.messages import Ring
from ..protocols.plugin import GroupId
from .administration import Administration

COLUMNS = ("GROUP", "SHOULD HOLD", "HOLDS", "LEADER", "MOVING")
WAIT_S = 1.0
"""Longer than an election takes."""


class RingView(NamedTuple):
    """The ring, and who leads which group."""

    ring: Ring
    leaders: Mapping[GroupId, str]

    def as_json(self) -> dict[str, Any]:
        """Of JSON types: `remaining`, and for each partition what the columns show."""
        groups = [
            {
                "group": row.group,
                "should_hold": list(row.nodes),
                "holds": [{"node": node, "voter": voter} for node, voter in row.members],
                "leader": self.leaders.get(row.group),
                "moving": row.moving,
            }
            for row in self.ring.groups
        ]
        return {"remaining": self.ring.remaining, "groups": groups}

    def as_table(self) -> str:
        """A table, and below it how many partitions still have to move. A node in brackets has no
        vote yet: it is being filled."""
        cells = [
            (
                str(row.group),
                " ".join(row.nodes),
                " ".join(node if voter else f"({node})" for node, voter in row.members) or "-",
                self.leaders.get(row.group, "nobody"),
                "yes" if row.moving else "",
            )
            for row in self.ring.groups
        ]
        words = self.in_words()
        return f"{aligned([COLUMNS, *cells])}\n\n{words}" if cells else words

    def in_words(self) -> str:
        """How the placement is, in one sentence."""
        ring = self.ring
        if not ring.partitions:
            return "the partitions are not founded yet"
        if ring.remaining:
            verb = "has" if ring.remaining == 1 else "have"
            return f"{ring.remaining} of {ring.partitions} partitions still {verb} to move"
        return f"{ring.partitions} partitions, {ring.replication} copies each, are in their places"


def collect_ring(endpoints: Sequence[str]) -> RingView | None:
    """Ask the cluster at these endpoints; None if nobody tells it just now."""
    with Administration(endpoints, WAIT_S) as administration:
        try:
            return RingView(administration.ring(), administration.leaders())
        except CoterieError:
            return None


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of the same length as a text table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
