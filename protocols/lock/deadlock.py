"""Deadlocks: cycles of the wait-for graph.

The law: a wait waits for every holder of its lock that it cannot share it with, for every grant to
be upgraded there, if it would share, and for every earlier wait that it may not overtake. An owner
needs all that it waits for. So a cycle of owners stays until one of them gives up, and where there
is no cycle there is no deadlock. Only of an owner that asks for a lock while it still waits for the
same lock is it not said that it waits for itself: its first wait was most likely given up. If it is
granted after all, the sweep finds it. (Coffman, Elphick & Shoshani 1971; the earlier waits are the
"soft edges" of PostgreSQL's detector.)

The walk is depth-first and holds its own path: no recursion. Its nodes are owners, waits, the
holders of a lock taken together, and the beginnings of a lock's queue; so it looks at each claim
once, however many wait for it. In a queue it goes only to those who wait for something else too:
of all others it is known where they lead, to the holders and the waits before them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from ..plugin import SessionId
from .claims import Claim, ClaimIndex, Owner

Node: TypeAlias = int | str | tuple[str, int]
"""An owner; the holders of a lock; a claim that waits; (minus) a wait and all before it."""

Cycle: TypeAlias = list[tuple[Claim, Claim]]
"""Each claim that waits, with a claim it waits for, which is of the owner that waits next."""


def owner_id(claim: Claim) -> int:
    return claim.owner or claim.number


def victim_of(cycle: Cycle) -> Claim:
    """The waiting claim of the youngest owner."""
    return max((wait for wait, _ in cycle), key=owner_id)


def blocks(claim: Claim, wait: Claim) -> bool:
    """Whether `wait` cannot be granted while `claim`, of the same lock, stands."""
    if claim.number == wait.number:
        return False
    if wait.token:  # it wants to be upgraded
        return claim.token > 0
    if claim.token:
        return not (claim.shared and wait.shared) or claim.upgrading
    return claim.number < wait.number and not (claim.shared and wait.shared)


def may_be_in_cycle(index: ClaimIndex, root: int, limit: int) -> bool:
    """Whether an owner may wait for itself: False only if surely not. It is looked for backwards,
    among those who wait for it, for at most so many waits: mostly they are few, or nobody, however
    far the search forwards would go."""
    seen, ahead = {root: None}, [root]
    while ahead:
        for claim in index.owners[ahead.pop()].claims.values():
            behind: list[Claim] = []
            for wait in reversed(index.waits.get(claim.name, {}).values()):
                limit -= 1
                if limit < 0:
                    return True
                if not claim.token and wait.number <= claim.number:
                    break
                behind.append(wait)
            if claim.token:
                behind += index.upgrading.get(claim.name, {}).values()
            for wait in behind:
                number = owner_id(wait)
                if number == root:
                    return True
                if number not in seen and index.owner_of(wait) is not None:
                    seen[number] = None
                    ahead.append(number)
    return False


class Search:
    """A walk from each of some owners. `finished`: there was nothing more to be found."""

    def __init__(
        self, index: ClaimIndex, alive: Mapping[SessionId, object], roots: Iterable[int]
    ) -> None:
        self.finished = False
        self.looked = 0
        """How many nodes and edges were looked at."""
        self._index = index
        self._alive = alive
        self._roots = iter(list(roots))
        self._done: dict[Node, None] = {}
        self._path: dict[Node, None] = {}
        self._branches: list[Iterator[Node]] = []
        self._exclusive: dict[str, list[int]] = {}

    def go_on(self, limit: int) -> Cycle | None:
        """The next cycle; None after `limit` steps, or when there is none. The index may change
        from call to call: a cycle that is there all the time is found all the same."""
        self._exclusive.clear()
        end = self.looked + limit
        while self.looked < end:
            self.looked += 1
            if not self._branches:
                root = next(self._roots, None)
                if root is None:
                    self.finished = True
                    return None
                if root not in self._done:
                    self._enter(root)
                continue
            node = next(self._branches[-1], None)
            if node is None:
                self._branches.pop()
                left, _ = self._path.popitem()
                self._done[left] = None
            elif node in self._path:
                cycle = self._cycle(node)
                if cycle is not None:
                    return cycle
            elif node not in self._done:
                self._enter(node)
        return None

    def pass_over(self, victim: Claim) -> None:
        """Go on as if the owner of this wait were gone."""
        nodes: tuple[Node, ...] = (owner_id(victim), (victim.name, victim.number))
        while any(node in self._path for node in nodes):
            self._branches.pop()
            self._path.popitem()
        for node in nodes:
            self._done[node] = None

    def _enter(self, node: Node) -> None:
        self._path[node] = None
        self._branches.append(iter(self._next(node)))

    def _next(self, node: Node) -> list[Node]:
        if isinstance(node, int):
            owner = self._index.owners.get(node)
            if owner is None or owner.session not in self._alive:
                return []  # what an ended session has goes by itself
            return [(wait.name, wait.number) for wait in owner.waits.values()]
        if isinstance(node, str):
            return self._waiting(self._index.holders.get(node, {}).values())
        name, number = node
        if number < 0:
            return self._queue(name, -number)
        wait = self._claim(name, number)
        return self._beyond(wait) if wait is not None else []

    def _beyond(self, wait: Claim) -> list[Node]:
        """What a claim that waits is waiting for."""
        index, name, number = self._index, wait.name, wait.number
        if wait.session not in self._alive:
            return []
        holders = index.holders.get(name)
        if wait.token:
            others = [claim for claim in (holders or {}).values() if claim.number != number]
            return self._waiting(others)
        found: list[Node] = []
        if holders is not None:
            if wait.shared and next(iter(holders.values())).shared:
                found += self._waiting(index.upgrading.get(name, {}).values())
            else:
                found.append(name)
        if not wait.shared:
            return found + self._before(name, number)
        earlier = self._nearest_exclusive(name, number)
        if earlier is not None:
            owner = index.owner_of(earlier)
            found.append((name, earlier.number) if owner is None else owner_id(earlier))
        return found

    def _waiting(self, claims: Iterable[Claim]) -> list[Node]:
        """The owners of these claims that wait for something themselves."""
        owners, found = self._index.owners, []
        for claim in claims:
            owner = owners.get(claim.owner or claim.number)
            if owner is not None and owner.waits and claim.number in owner.claims:
                found.append(claim.owner or claim.number)
        return found  # type: ignore[return-value]

    def _before(self, name: str, number: int) -> list[Node]:
        """The waits before this one, from the last whose owner waits for something else too."""
        branching = self._index.branching.get(name)
        place = bisect_left(branching, number) if branching else 0
        return [(name, -branching[place - 1])] if branching and place else []

    def _queue(self, name: str, number: int) -> list[Node]:
        wait = self._index.waits.get(name, {}).get(number)
        found = self._before(name, number)
        return [owner_id(wait), *found] if wait is not None else found

    def _nearest_exclusive(self, name: str, number: int) -> Claim | None:
        waiting = self._index.waits[name]
        exclusive = self._exclusive.get(name)
        if exclusive is None:
            exclusive = [n for n, wait in waiting.items() if not wait.shared]
            self._exclusive[name] = exclusive
        place = bisect_left(exclusive, number)
        return waiting[exclusive[place - 1]] if place else None

    def _claim(self, name: str, number: int) -> Claim | None:
        wait = self._index.waits.get(name, {}).get(number)
        return wait or self._index.upgrading.get(name, {}).get(number)

    def _cycle(self, start: Node) -> Cycle | None:
        """The cycle that the path closes at `start`, if it stands as a whole."""
        nodes = list(self._path)
        waits: list[Claim] = []
        for node in nodes[nodes.index(start) :]:
            if isinstance(node, tuple) and node[1] > 0:
                wait = self._claim(*node)
                if wait is None:
                    return None
                waits.append(wait)
        cycle: Cycle = []
        for wait, following in zip(waits, [*waits[1:], waits[0]], strict=True):
            claim = self._blocker(wait, following)
            if claim is None:
                return None
            cycle.append((wait, claim))
        return cycle

    def _blocker(self, wait: Claim, following: Claim) -> Claim | None:
        """A claim of the owner of `following` that `wait` waits for. An owner that asks again for
        a lock it waits for does not wait for itself: its first wait may yet be withdrawn."""
        owner: Owner | None = self._index.owner_of(following)
        claims = [following] if owner is None else list(owner.claims.values())
        own = owner_id(wait) == owner_id(following)
        for claim in claims:
            if claim.name == wait.name and blocks(claim, wait) and (claim.token or not own):
                return claim
        return None
