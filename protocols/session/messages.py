"""What clients and the session plugin say to each other.

The law: positions in `MESSAGES` are wire codes; append only.
"""

from __future__ import annotations

from ..plugin import Failure, Internal, Message, Operation, Query, Result
from ..records import Member


class Locate(Query, frozen=True, tag=0):
    """Who leads? Answered by any node at once, from what it knows; it may be out of date."""


class Located(Result, frozen=True, tag=1):
    """`leader` is "" while there is none known. `cluster` is 0 before the cluster is founded. `led`
    are the groups that the answering node leads as far as it knows, group 0 included: (group, term,
    log time in microseconds). `partitions` counts groups 1 …; 0 while it knows of none."""

    cluster: int
    node: str
    leader: str
    term: int
    log_time_us: int
    members: tuple[Member, ...]
    settled: bool = True
    """False while this node still looks for its cluster."""
    led: tuple[tuple[int, int, int], ...] = ()
    partitions: int = 0


class OpenSession(Operation, frozen=True, tag=2):
    """Open this client's session number `attempt` (1, 2, …; sent with session 0, MEMORYLESS).

    Idempotent: the same attempt answers with the same session while it lives; a lower attempt than
    the last one seen alive is refused (STALE_REQUEST); a higher one ends the older session first.
    Sent with `not_after_us`, so that a late copy opens nothing."""

    attempt: int
    ttl_us: int
    name: str = ""


class SessionOpened(Result, frozen=True, tag=3):
    session: int
    ttl_us: int


class KeepAlive(Operation, frozen=True, tag=4):
    """Move the deadline of the session to now + ttl (log time). MEMORYLESS."""


class KeptAlive(Result, frozen=True, tag=5):
    """The session lives for `ttl_us` from now (0: not told)."""

    ttl_us: int = 0


class EndSession(Operation, frozen=True, tag=6):
    """End the session of the request: its locks go at once. An unknown session is ended already.
    Sent with `session` = 0 in the request and the session here (MEMORYLESS): repeatable. For a
    principal `session` may be 0: whichever it has."""

    session: int


class SessionEnded(Result, frozen=True, tag=7):
    pass


class ExpireSession(Internal, frozen=True, tag=8):
    """Proposed by the leader: it saw this deadline pass."""

    session: int
    deadline_us: int


class EmptySession(Internal, frozen=True, tag=9):
    """Proposed by the leader: let go the next 1,000 things of an ended session."""

    session: int


class Pulse(Query, frozen=True, tag=10):
    """A client with something open asks every 333 ms. `keep_alive`: also renew the session of the
    request. `waits`: the (plugin, operation number) of its open waits, at most 1,000 a frame;
    `principals`, if any: per wait the client in whose session it stands, 0 for the asker's own."""

    keep_alive: bool
    waits: tuple[tuple[str, int], ...] = ()
    principals: tuple[int, ...] = ()


class Pulsed(Result, frozen=True, tag=11):
    """Answered by the leader after a confirmed round (or the commit of the keep-alive).

    `alive`: the session exists. `kept_alive`: the renewal this pulse asked for is committed.
    `news`: for each wait of the pulse, in order: 0 still waiting; 1 granted (with its token);
    2 gone (cancelled, let go, or never was); 3 failed. `failures`: why, as (position in `news`,
    failure); at most 16 a pulse, the others wait for the next. `tokens`: (position in `news`,
    tokens) of what is granted together, as by AcquireAll. `led` and `partitions` as in `Located`.
    """

    alive: bool
    kept_alive: bool
    leader: str
    term: int
    log_time_us: int
    news: tuple[tuple[int, int], ...] = ()
    members: tuple[Member, ...] = ()
    failures: tuple[tuple[int, Failure], ...] = ()
    tokens: tuple[tuple[int, tuple[int, ...]], ...] = ()
    led: tuple[tuple[int, int, int], ...] = ()
    partitions: int = 0


class ListSessions(Query, frozen=True, tag=12):
    pass


class SessionList(Result, frozen=True, tag=13):
    """(session, name, milliseconds left) of at most 10,000 sessions."""

    sessions: tuple[tuple[int, str, int], ...]


class Describe(Query, frozen=True, tag=14):
    """How is this node? Answered by any node at once."""


class Described(Result, frozen=True, tag=15):
    """`status` is JSON: what the node and its plugins say of themselves."""

    status: bytes


WAITING, GRANTED, GONE, FAILED = 0, 1, 2, 3
"""The kinds of news in `Pulsed.news`."""

MESSAGES: tuple[type[Message], ...] = (
    Locate, Located, OpenSession, SessionOpened, KeepAlive, KeptAlive, EndSession, SessionEnded,
    ExpireSession, EmptySession, Pulse, Pulsed, ListSessions, SessionList,
    Describe, Described,
)  # fmt: skip
