"""What clients were told, judged: tokens, mutual exclusion, exactly once, real-time order.

The law: only what a client saw and when counts, not what a node says of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .shadow import Violation

if TYPE_CHECKING:
    from .clients import SimulatedClient

INDETERMINATE_MAX = 100_000


class Belief(msgspec.Struct, eq=False):
    """A client believes that it holds a lock, until it says so no more or its own clock does."""

    client: SimulatedClient
    name: str
    shared: bool
    token: int
    lost_at: object
    ended: bool = False
    suspended: bool = False
    """Its transaction waits for something, and counts on nothing meanwhile."""

    def may_stand(self) -> bool:
        """Now, or later on."""
        return not self.ended and self.client.counts_on(self.lost_at)

    def stands(self) -> bool:
        return not self.suspended and self.may_stand()


class Judge:
    """All histories of one world; raises `Violation`."""

    def __init__(self) -> None:
        self._beliefs: dict[str, list[Belief]] = {}
        self._last: dict[str, tuple[int, bool]] = {}
        self._acknowledged: dict[int, str] = {}
        self.high = 0
        """The highest total any client was told of so far."""
        self.indeterminate = 0
        """The sum of amounts of which nobody knows whether they were added."""
        self.grants = 0
        self.transactions = 0
        self.victims = 0

    def granted(self, belief: Belief) -> None:
        """A client begins to believe, now."""
        name, token = belief.name, belief.token
        self.grants += 1
        known = self._beliefs.get(name, ())
        others = [other for other in known if other.may_stand() and other is not belief]
        for other in others:
            if other.stands() and not (belief.shared and other.shared):
                raise Violation(
                    f"{belief.client.name} (token {token}) and {other.client.name} (token"
                    f" {other.token}) both believe that they hold {name!r}"
                )
        last, last_shared = self._last.get(name, (0, False))
        if belief not in known:  # else it goes on with what it had
            if token < last or (token == last and not (belief.shared and last_shared)):
                raise Violation(
                    f"{belief.client.name} holds {name!r} by token {token} after {last}"
                )
            self._last[name] = (token, belief.shared)
        self._beliefs[name] = [*others, belief]

    def shared(self, belief: Belief) -> None:
        """Who held a lock alone lets others share it from now on."""
        belief.shared = True
        if self._last.get(belief.name, (0, False))[0] == belief.token:
            self._last[belief.name] = (belief.token, True)

    def victim(self, owner: int, cycle: tuple[str, ...]) -> None:
        """A transaction was told that it was chosen to break this deadlock."""
        self.victims += 1
        edges = [cycle[place : place + 3] for place in range(0, len(cycle), 3)]
        follows = zip(edges, [*edges[1:], *edges[:1]], strict=True)
        closed = all(edge[1] == following[0] for edge, following in follows)
        if not edges or not closed:
            raise Violation(f"{owner} was aborted for {edges}, which is no cycle")
        if owner != max(int(waiter) for waiter, _, _ in edges):
            raise Violation(f"{owner} was aborted, and is not the youngest of {edges}")

    def lost(self, client: str, session: int, left_s: float) -> None:
        """A session is over for its client, which by its own clock had still so long."""
        if left_s > 0:
            raise Violation(f"session {session} of {client} ended {left_s:.3f} s before its time")

    def added(self, client: str, amount: int, total: int, floor: int) -> None:
        """An `Add` was answered with `total`; `floor` was `high` when it was first sent."""
        if total - amount < floor:
            raise Violation(f"{client}: adding {amount} gave {total}, but {floor} was told before")
        for point in range(total - amount + 1, total + 1):
            if self._acknowledged.setdefault(point, client) is not client:
                raise Violation(f"{client}: {total} was told to {self._acknowledged[point]} too")
        self.high = max(self.high, total)

    def read(self, client: str, total: int, floor: int) -> None:
        """A `Get` was answered with `total`; `floor` was `high` when it was first sent."""
        if total < floor:
            raise Violation(f"{client} reads {total}, but {floor} was told before")
        self.high = max(self.high, total)

    def total(self, total: int) -> None:
        """The run is over, and the counter stands at `total`."""
        least = len(self._acknowledged)
        if not least <= total <= least + self.indeterminate:
            raise Violation(
                f"the counter is {total}: {least} were acknowledged, {self.indeterminate} may"
                " have been added beside"
            )
