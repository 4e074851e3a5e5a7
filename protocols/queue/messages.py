"""What clients and the queue plugin say to each other, and what its leader writes into the log.

The law: positions in `MESSAGES` are wire codes; append only. A message id is (operation number of
its put) * 2**14 + its place in that put; a lease token the same of its `Lease`: both are unique in
the partition and rise for ever. All durations are microseconds; deadlines are log time.
"""

from __future__ import annotations

from ..plugin import Failure, Hint, Internal, Message, Operation, Query, Result

PLACES = 1 << 14
"""Messages that one operation may put or lease stay below this."""

REJECT, DROP_OLDEST, BLOCK = 0, 1, 2
"""What becomes of a put that finds the queue full (`QueueSettings.on_full`). BLOCK is refused like
REJECT; the client waits for room and asks again."""

ACK, NACK, RELEASE, REJECTED, EXTEND, BEGIN = 0, 1, 2, 3, 4, 5
"""Verbs of a `Settlement`."""

DONE, STALE = 0, 1
"""How a settlement ended. STALE: the message was leased again since, or is gone."""

ROOM, DRAINED = 1, 2
"""What an `Await` waits for: room for more; nothing ready, delayed or leased."""


class QueueSettings(Message, frozen=True):
    """Settings of a queue. `max_length` counts what is ready or delayed, `max_bytes` their bodies
    and headers; 0: no limit. `dedup_us`: how long a `dedup_id` is remembered."""

    visibility_us: int = 30_000_000
    max_deliveries: int = 20
    max_length: int = 0
    max_bytes: int = 0
    on_full: int = REJECT
    dedup_us: int = 300_000_000


class Row(Message, frozen=True):
    """A message to put. `ttl_us` 0: for ever. `wall_us`: the producer's wall clock, for display
    only. `headers`: (name, value)."""

    body: bytes
    delay_us: int = 0
    ttl_us: int = 0
    priority: int = 0
    dedup_id: str = ""
    group: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    wall_us: int = 0


class Declare(Operation, frozen=True, tag=0):
    """Make the queue with these settings, if there is none by this name; else change nothing."""

    queue: str
    settings: QueueSettings


class Configure(Operation, frozen=True, tag=1):
    """Replace the settings of a queue (NO_QUEUE), and pause or resume it: while paused nothing is
    delivered. None: as it was."""

    queue: str
    settings: QueueSettings | None = None
    paused: bool | None = None


class Declared(Result, frozen=True, tag=2):
    """The settings now stored. `created`: there was no such queue before."""

    settings: QueueSettings
    paused: bool = False
    created: bool = False


class Put(Operation, frozen=True, tag=3):
    """Put messages, at most 10,000. `whole`: all or none; else as many as there is room for, in
    order (the puts of several callers of one turn)."""

    queue: str
    rows: tuple[Row, ...]
    whole: bool = False


class Stored(Result, frozen=True, tag=4):
    """`ids[i]` is the message of `rows[i]` (an older one's for a known `dedup_id`); if they are
    fewer than the rows, `failure` says why the rest was refused."""

    ids: tuple[int, ...]
    failure: Failure | None = None


class Settlement(Message, frozen=True):
    """What a consumer says of one message. `argument_us`: the delay of a NACK, or what the lease
    shall last from now on (EXTEND). `reason`: of REJECTED."""

    id: int
    token: int
    verb: int
    argument_us: int = 0
    reason: str = ""


class Settle(Operation, frozen=True, tag=5):
    """Settle messages of a queue, at most 1,000. An expired lease still counts as long as the
    message was not leased again.

    ACK: done with. NACK: back to its place, after a delay. RELEASE: back at once; a delivery that
    was counted is taken back. REJECTED: to the dead letters. EXTEND. BEGIN: a message fetched ahead
    is now in the program's hands: the delivery is counted and its visibility starts."""

    queue: str
    rows: tuple[Settlement, ...]


class Settled(Result, frozen=True, tag=6):
    """DONE or STALE, by row."""

    outcomes: tuple[int, ...]


class Attending(Message, frozen=True):
    """One consumer's wish. It has all that was leased to it up to the token `known`, and takes up
    to `credit` messages beyond that, `hungry` of them for hands that are idle now (served before
    anybody's reserve). `begun`: what it is given counts as begun at once. `again`: tell once more
    what was leased to it beyond `known`. `credit` 0 ends it (what is leased stays so)."""

    queue: str
    consumer: int
    known: int
    credit: int
    hungry: int
    begun: bool
    again: bool = False


class Attend(Query, frozen=True, tag=7):
    """Consumers of this client say that they are there: whenever their credit changes, and in the
    pulse. Kept by the leader in memory for a second; answered at once."""

    rows: tuple[Attending, ...]


class Attended(Result, frozen=True, tag=8):
    """By row: the highest token ever told to this consumer in this term (at least its `known`), or
    -1 if there is no such queue."""

    told: tuple[int, ...]


class Delivery(Message, frozen=True):
    """A leased message. `deliveries` counts this one. `left_us`: until the lease runs out, when it
    was told."""

    id: int
    token: int
    deliveries: int
    body: bytes
    headers: tuple[tuple[str, str], ...]
    wall_us: int
    left_us: int


class Delivered(Hint, frozen=True, tag=9):
    """To a consumer, who had all up to the token `after` (else something was lost, and it asks
    `again`). Deliveries are in order of token."""

    queue: str
    consumer: int
    after: int
    deliveries: tuple[Delivery, ...]


class Await(Query, frozen=True, tag=10):
    """Tell me when there is room for `size` messages, or the queue is drained; kept by the leader
    in memory for a second, so it is repeated in the pulse. Answered at once by how it stands,
    after a confirmed round."""

    queue: str
    what: int
    size: int = 1


class Awaited(Result, frozen=True, tag=11):
    there: bool


class Came(Hint, frozen=True, tag=12):
    """What an `Await` waited for may be there: ask."""

    queue: str
    what: int


class Purge(Operation, frozen=True, tag=13):
    """Drop all that is ready or delayed; what is leased stays."""

    queue: str


class DeleteQueue(Operation, frozen=True, tag=14):
    queue: str


class Redrive(Operation, frozen=True, tag=15):
    """Dead letters with these ids, at most 1,000, or the oldest 1,000 with an id up to `up_to`,
    become ready again, their deliveries forgotten."""

    queue: str
    ids: tuple[int, ...] = ()
    up_to: int = 0


class Counted(Result, frozen=True, tag=16):
    """How many messages an operation concerned (0 also where there was no queue to delete).
    `more`: some are left, ask again."""

    count: int
    more: bool = False
    found: bool = True


class Peek(Query, frozen=True, tag=17):
    """The next messages that would be delivered, at most 1,000 and 1 MiB, or the dead letters."""

    queue: str
    count: int = 1
    dead: bool = False


class Seen(Message, frozen=True):
    """A message as it stands. `reason`: why it is dead."""

    id: int
    deliveries: int
    body: bytes
    headers: tuple[tuple[str, str], ...]
    wall_us: int
    priority: int = 0
    group: str = ""
    reason: str = ""


class Peeked(Result, frozen=True, tag=18):
    messages: tuple[Seen, ...]


class Look(Query, frozen=True, tag=19):
    """How do queues whose names begin with `prefix`, beyond the name `after`, stand? At most 1,000
    of this partition, in order of name. A `prefix` with `exact` is a name."""

    prefix: str = ""
    after: str = ""
    exact: bool = False


class Standing(Message, frozen=True):
    """A queue: what it holds now, and counts since it was made. `oldest_us`: how long the oldest
    ready message has been in the queue, in log time."""

    queue: str
    settings: QueueSettings
    paused: bool
    ready: int
    delayed: int
    leased: int
    dead: int
    bytes: int
    oldest_us: int
    put: int
    delivered: int
    redelivered: int
    acked: int
    dropped: int
    expired: int
    duplicates: int
    consumers: int = 0


class Looked(Result, frozen=True, tag=20):
    queues: tuple[Standing, ...]


class Lease(Internal, frozen=True, tag=21):
    """Proposed by the leader: give up to `count` ready messages to a consumer of a client."""

    queue: str
    client: int
    consumer: int
    count: int
    begun: bool


class Leased(Result, frozen=True, tag=22):
    deliveries: tuple[Delivery, ...]


class Expire(Internal, frozen=True, tag=23):
    """Proposed by the leader: these deadlines have passed, as (queue, message id, deadline), at
    most 256: delays end, leases run out, messages outlive their ttl."""

    rows: tuple[tuple[str, int, int], ...]


class Discard(Internal, frozen=True, tag=24):
    """Proposed by the leader: free the next 1,000 of what was purged or deleted."""


class Stepped(Result, frozen=True, tag=25):
    """An internal command did so much."""

    count: int


MESSAGES: tuple[type[Message], ...] = (
    Declare, Configure, Declared, Put, Stored, Settle, Settled, Attend, Attended, Delivered, Await,
    Awaited, Came, Purge, DeleteQueue, Redrive, Counted, Peek, Peeked, Look, Looked, Lease, Leased,
    Expire, Discard, Stepped,
)  # fmt: skip
