"""What can be read off the lock table: locks, their lists, and who waits for whom.

The law: it changes nothing, and an answer fits a frame however large the table is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from ..plugin import SessionId
from .messages import GraphEdges, ListLocks, LockState, LockStates

if TYPE_CHECKING:
    from .table import Claim

Index: TypeAlias = "Mapping[str, Mapping[int, Claim]]"
NameOf: TypeAlias = Callable[[SessionId], str]

LOCKS_MAX = 1_000
"""Locks in one answer."""

CLAIMS_MAX = 1_000
"""Holders, and waiters, told of one lock in one answer."""

ANSWER_BYTES_MAX = 256 * 1024
"""A list ends with the lock that makes it heavier than about this."""

EDGES_MAX = 10_000


def inspect(holders: Index, waits: Index, name: str, name_of: NameOf) -> LockStates:
    """One lock, or none if nobody holds it or waits for it."""
    if name not in holders and name not in waits:
        return LockStates(())
    return LockStates((_state(holders, waits, name, name_of),))


def list_locks(holders: Index, waits: Index, query: ListLocks, name_of: NameOf) -> LockStates:
    """The next page in order of name.

    The names are not kept in order, for the sake of those who only lock: a page looks at all of
    them and sorts those that match. Measured on one core: 6 ms with 10,000 locks, 39 ms with
    100,000, of which 30 ms are the sort; a narrow prefix spares that."""
    prefix, after = query.prefix, query.after
    names = [name for name in holders if name > after and name.startswith(prefix)]
    names += [
        name for name in waits if name not in holders and name > after and name.startswith(prefix)
    ]
    page = sorted(names)[:LOCKS_MAX]
    states: list[LockState] = []
    size = 0
    for name in page:
        state = _state(holders, waits, name, name_of)
        states.append(state)
        size += _weight(state)
        if size > ANSWER_BYTES_MAX:
            break
    return LockStates(tuple(states), more=len(states) < len(names))


def graph(holders: Index, waits: Index) -> GraphEdges:
    """The wait-for graph: each wait waits for the incompatible holders of its lock, and for the
    nearest earlier wait that it may not overtake. By waiting operation number."""
    edges: list[tuple[int, int, str]] = []
    for name, waiting in waits.items():
        holding = holders.get(name, {})
        first = next(iter(holding.values()), None)
        held_shared = first is None or first.shared  # an exclusive holder is alone
        last = last_exclusive = 0
        for number, wait in waiting.items():
            if not (wait.shared and held_shared):
                room = EDGES_MAX - len(edges)
                edges += [(number, holder, name) for holder in islice(holding, room)]
            nearest = last_exclusive if wait.shared else last
            if nearest:
                edges.append((number, nearest, name))
            last = number
            if not wait.shared:
                last_exclusive = number
            if len(edges) >= EDGES_MAX:
                return GraphEdges(tuple(sorted(edges[:EDGES_MAX])))
    return GraphEdges(tuple(sorted(edges)))


def _state(holders: Index, waits: Index, name: str, name_of: NameOf) -> LockState:
    holding, waiting = holders.get(name, {}), waits.get(name, {})
    told = [
        tuple(
            (name_of(claim.session), claim.session, claim.number, claim.shared)
            for claim in islice(claims.values(), CLAIMS_MAX)
        )
        for claims in (holding, waiting)
    ]
    first = next(iter(holding.values()), None)
    return LockState(
        name,
        shared=first is not None and first.shared,
        token=first.token if first is not None else 0,
        holders=told[0],
        waiters=told[1],
        omitted=len(holding) + len(waiting) - len(told[0]) - len(told[1]),
    )


def _weight(state: LockState) -> int:
    """About how many bytes a state takes in a frame, generously."""
    claims = sum(len(client.encode()) + 24 for client, *_ in (*state.holders, *state.waiters))
    return len(state.name.encode()) + 32 + claims
