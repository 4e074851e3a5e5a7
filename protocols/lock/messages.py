"""What clients and the lock plugin say to each other.

The law: positions in `MESSAGES` are wire codes; append only. A grant is named by the operation
number of the Acquire that asked for it; its token is the number at which the present era began
(an exclusive grant, or the first of a run of shared grants).
"""

from __future__ import annotations

from ..plugin import Hint, Internal, Message, Operation, Query, Result


class Acquire(Operation, frozen=True, tag=0):
    """Ask for a lock. `wait` false: answer WOULD_BLOCK instead of queueing. `owner` names who asks
    within the session (0: the grant itself), for the wait-for graph. `lock_delay_us`: how long
    nobody gets the lock after this session expired while holding it. `once`: the session has one
    such claim of a lock; who asks again is given that one, and counts on it too."""

    name: str
    shared: bool = False
    wait: bool = True
    owner: int = 0
    lock_delay_us: int = 0
    once: bool = False


class Granted(Result, frozen=True, tag=1):
    """`grant`: the operation number that names the grant; `token` fences the resource."""

    grant: int
    token: int


class Queued(Result, frozen=True, tag=2):
    """In the FIFO under this operation number; the outcome comes by `GrantedLater` or the pulse."""

    wait: int


class Release(Operation, frozen=True, tag=3):
    """Release a grant of this session; NOT_HELD if it does not hold it. `grant` 0: the one asked
    for by `once`. `token`, if not 0: only if the grant has it. `ask`: one of those who asked for it
    counts on it no more; it is released when none is left."""

    name: str
    grant: int
    token: int = 0
    ask: bool = False


class Released(Result, frozen=True, tag=4):
    pass


class GrantedLater(Hint, frozen=True, tag=5):
    """Told to the client of a wait when it is granted."""

    session: int
    wait: int
    token: int


class Inspect(Query, frozen=True, tag=6):
    """One lock."""

    name: str


class ListLocks(Query, frozen=True, tag=7):
    """The locks whose name begins with `prefix`, in order of name, after `after`; at most 1,000."""

    prefix: str = ""
    after: str = ""


class LockState(Message, frozen=True):
    """`holders` and `waiters`: (client name, session, operation number, shared)."""

    name: str
    shared: bool
    token: int
    holders: tuple[tuple[str, int, int, bool], ...]
    waiters: tuple[tuple[str, int, int, bool], ...]
    omitted: int = 0
    """Holders and waiters beyond the first 1,000 of each."""


class LockStates(Result, frozen=True, tag=8):
    """Answers Inspect (none or one) and ListLocks; `more`: ask again after the last name."""

    locks: tuple[LockState, ...]
    more: bool = False


class Graph(Query, frozen=True, tag=9):
    """The wait-for graph."""


class GraphEdges(Result, frozen=True, tag=10):
    """(waiting operation number, holding operation number, lock name), at most 10,000."""

    edges: tuple[tuple[int, int, str], ...]


class OpenLock(Internal, frozen=True, tag=11):
    """Proposed by the leader: this lock was deferred until then, by a lock delay or because one
    command may grant only 1,000 waits; go on granting."""

    name: str
    deadline_us: int


MESSAGES: tuple[type[Message], ...] = (
    Acquire, Granted, Queued, Release, Released, GrantedLater, Inspect, ListLocks, LockStates,
    Graph, GraphEdges, OpenLock,
)  # fmt: skip

NAME_BYTES_MAX = 255
