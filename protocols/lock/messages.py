"""What clients and the lock plugin say to each other.

The law: positions in `MESSAGES` are wire codes; append only. A grant is named by the operation
number of the Acquire that asked for it; its token is the number at which the present era began
(an exclusive grant, an upgrade, or the first of a run of shared grants).

*Owners* are the nodes of the wait-for graph: a transaction, or a nest of locks of one thread or
task. An owner is named by the operation number of its beginning: that of `BeginTransaction`, or of
the first Acquire of the nest, which is sent with `owner` 0; what is asked for within the nest
names it. A grant whose number nobody names as owner is an owner by itself.

A *victim* of a deadlock loses everything at once, and its waits, told by `AbortedLater` and the
pulse, and every later request that names it, fail with DEADLOCK until its client has sent `Abort`
(or `Commit`, which fails with it too). `Failure.detail` of DEADLOCK is the cycle, three strings
for each edge: waiting owner, holding owner, lock name; the victim is the highest of the waiting.
"""

from __future__ import annotations

from ..plugin import Failure, Hint, Internal, Message, Operation, Query, Result


class Acquire(Operation, frozen=True, tag=0):
    """Ask for a lock: `Granted` or `Queued`. `wait` false: WOULD_BLOCK instead of queueing.

    `owner`: see above; NOT_HELD if there is no such owner (any more) in this session, DEADLOCK if
    it is a victim, or this very wait made it one. A transaction that holds the lock already is
    answered `Converted`, or its shared grant is upgraded; BUSY if it waits for the lock already.
    `lock_delay_us`: how long nobody gets the lock after this session expired while holding it.
    `once`: the session has one such claim of a lock; who asks again is given that one, and counts
    on it too (`Cancel` and `Withdraw` let it go with the last of them). Without `owner` only."""

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
    """Release a grant of this session; NOT_HELD if it does not hold it. The number of a wait is
    taken as `Withdraw` would. `grant` 0: the one asked for by `once`. `token`, if not 0: only if
    the grant has it."""

    name: str
    grant: int
    token: int = 0


class Released(Result, frozen=True, tag=4):
    pass


class GrantedLater(Hint, frozen=True, tag=5):
    """Told to the client of a wait (also of an upgrade) when it is granted."""

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
    upgrades: tuple[int, ...] = ()
    """The grants among the holders that wait to be upgraded."""


class LockStates(Result, frozen=True, tag=8):
    """Answers Inspect (none or one) and ListLocks; `more`: ask again after the last name.
    `revision`: this shows every change up to it; `Watch` from there."""

    locks: tuple[LockState, ...]
    more: bool = False
    revision: int = 0


class Graph(Query, frozen=True, tag=9):
    """The wait-for graph."""


class GraphEdges(Result, frozen=True, tag=10):
    """(waiting owner, holding owner, lock name), at most 10,000. `owners`: (owner, name of its
    client, session, whether it is a transaction) of those in the edges, in order."""

    edges: tuple[tuple[int, int, str], ...]
    owners: tuple[tuple[int, str, int, bool], ...] = ()


class OpenLock(Internal, frozen=True, tag=11):
    """Proposed by the leader: this lock was deferred until then, by a lock delay or because one
    command may grant only 1,000 waits; go on granting."""

    name: str
    deadline_us: int


class BeginTransaction(Operation, frozen=True, tag=12):
    """Begin a transaction: `Begun`. `first`: the id of the victim it repeats, to be its id again
    so that it ages; if that id is still in use the transaction gets a new one all the same."""

    first: int = 0


class Begun(Result, frozen=True, tag=13):
    """`transaction` is its id, an operation number: the `owner` of what is asked for within it."""

    transaction: int


class AcquireAll(Operation, frozen=True, tag=14):
    """Ask for 1 to 1,000 different locks at once: all of them are granted by one command, or none.

    `GrantedAll` or `Queued`, and then `GrantedAllLater`; otherwise as Acquire. It waits in the
    FIFO of every name. MALFORMED if its owner holds one of them already. With n the number of
    this operation, the grant of `names[i]` is n + i, and without an `owner` they are one of id n.
    """

    names: tuple[str, ...]
    shared: bool = False
    wait: bool = True
    owner: int = 0
    lock_delay_us: int = 0


class GrantedAll(Result, frozen=True, tag=15):
    """`grant` is the first grant; `tokens[i]` is that of `names[i]`."""

    grant: int
    tokens: tuple[int, ...]


class GrantedAllLater(Hint, frozen=True, tag=16):
    """Told to the client of an AcquireAll that waited (`Pulsed.tokens` tells it too)."""

    session: int
    wait: int
    tokens: tuple[int, ...]


class Commit(Operation, frozen=True, tag=17):
    """End a transaction: all its locks and waits go; `Ended`. NOT_HELD if this session has no such
    transaction (any more); DEADLOCK if it was a victim: it is ended by this as by `Abort`."""

    transaction: int


class Abort(Operation, frozen=True, tag=18):
    """End an owner, a transaction or a nest: all its locks and waits go; always `Ended`. Also says
    that its client knows that it was a victim."""

    owner: int


class Ended(Result, frozen=True, tag=19):
    pass


class Upgrade(Operation, frozen=True, tag=20):
    """Make a shared grant exclusive, ahead of all who wait: `Converted`, or `Queued` and then
    `GrantedLater` with the number of this operation. Until then the grant stays shared, and no
    further shared grants are made. DEADLOCK for one of two that upgrade at once. `wait` false:
    WOULD_BLOCK instead of queueing. NOT_HELD if it is not held; `Cancel` or `Withdraw` leaves it
    shared with the token it had."""

    name: str
    grant: int
    wait: bool = True


class Downgrade(Operation, frozen=True, tag=21):
    """Make an exclusive grant shared; those who wait to share it get it now. `Converted`, with the
    same token; NOT_HELD."""

    name: str
    grant: int


class Converted(Result, frozen=True, tag=22):
    """A grant that was held before, as it is now. `upgrade`: the operation that made it exclusive,
    if it is this one."""

    grant: int
    token: int
    shared: bool
    upgrade: int = 0


class AbortedLater(Hint, frozen=True, tag=23):
    """Told to the client of a victim: these waits of it ended with `failure` (a DEADLOCK), and
    whatever `owner` held is lost."""

    session: int
    owner: int
    waits: tuple[int, ...]
    failure: Failure


class Withdraw(Operation, frozen=True, tag=24):
    """Undo the acquire or upgrade of this number, as `Cancel` would by its sequence: a wait leaves,
    a grant is released (all of an AcquireAll), an upgrade is undone. `Released`, or DEADLOCK if it
    failed that way; so is `Cancelled.failure`."""

    wait: int


class ForceRelease(Operation, frozen=True, tag=25):
    """Take a lock from whoever holds it; `ForceReleased`. Those who wait get it; the holders'
    clients are told `LostLater`. At most 1,000 holders: repeat while there are any."""

    name: str


class ForceReleased(Result, frozen=True, tag=26):
    """(client name, session, grant) of those it was taken from; none: nobody held it."""

    holders: tuple[tuple[str, int, int], ...]


class LostLater(Hint, frozen=True, tag=27):
    """Told to the client of a grant that was taken away by `ForceRelease`."""

    session: int
    grant: int
    name: str


class Watch(Query, frozen=True, tag=28):
    """What happened to the locks whose name begins with `prefix` after revision `after`; at most
    1,000 events an answer. `linger_us`: with nothing to tell, the answer is held back until there
    is something, at most so long (up to 2 s)."""

    prefix: str
    after: int
    linger_us: int = 0


class LockEvents(Result, frozen=True, tag=29):
    """(kind, lock name, client name, session, operation number, token) in order. Kinds: granted,
    released, waiting, withdrawn, upgraded, downgraded, aborted (lost as a victim), expired (lost
    with its session), forced. A client whose session has ended has no name ("").

    `revision`: watch on from here; further events may be there already. `complete` false: what
    came after `after` is partly forgotten (10,000 events are kept, and none over a restart): list
    anew, and watch from that list's revision."""

    events: tuple[tuple[str, str, str, int, int, int], ...]
    revision: int
    complete: bool


class SetDetection(Internal, frozen=True, tag=30):
    """Proposed by a leader configured otherwise than the table: where deadlocks are looked for
    (0 at each enqueue and by the sweep, 1 at each enqueue, 2 by the sweep)."""

    mode: int


class BreakDeadlock(Internal, frozen=True, tag=31):
    """Proposed by the leader's sweep: a cycle it found. Each edge: lock name, number of the claim
    that waits (a wait, or a grant to be upgraded), number of the claim that it waits for. The
    latter belongs to the owner that waits by the next edge. Nothing happens if one is gone."""

    edges: tuple[tuple[str, int, int], ...]


MESSAGES: tuple[type[Message], ...] = (
    Acquire, Granted, Queued, Release, Released, GrantedLater, Inspect, ListLocks, LockStates,
    Graph, GraphEdges, OpenLock, BeginTransaction, Begun, AcquireAll, GrantedAll, GrantedAllLater,
    Commit, Abort, Ended, Upgrade, Downgrade, Converted, AbortedLater, Withdraw, ForceRelease,
    ForceReleased, LostLater, Watch, LockEvents, SetDetection, BreakDeadlock,
)  # fmt: skip
