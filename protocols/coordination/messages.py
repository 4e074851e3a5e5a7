"""What clients and the coordination plugin say to each other: semaphores, events, barriers,
conditions, elections and fences.

The law: positions in `MESSAGES` are wire codes; append only. Each kind has names of its own. What
is there by a name (all but a fence) is made by the first session that uses it and goes with the
last one that did; settings given at first use are stored, others are refused with SETTINGS_DIFFER
(`detail`: stored, given).

*Waits* are as those of locks: `Waiting` names one by its operation number, the outcome comes by
`WokenLater` or `FailedLater`, and by the pulse under plugin "coordination" (granted with its
token, or failed). A wait that came to its end stays until its client has sent `Leave`, or `Cancel`
for its sequence; a permit and an election stay for as long as they are held, and `Leave` gives
them back.
"""

from __future__ import annotations

from ..plugin import Failure, Hint, Internal, Message, Operation, Query, Result


class Waiting(Result, frozen=True, tag=0):
    """In the FIFO under this operation number."""

    wait: int


class WokenLater(Hint, frozen=True, tag=1):
    """Told to the client of a wait that came to its end. `token` (> 0): of a permit its number
    (that of the wait); of an event or condition the number of the command that woke it; of a
    barrier 1 + the index among the parties; of an election its fencing token."""

    session: int
    wait: int
    token: int


class FailedLater(Hint, frozen=True, tag=2):
    """Told to the client of a wait that failed (BROKEN_BARRIER)."""

    session: int
    wait: int
    failure: Failure


class Leave(Operation, frozen=True, tag=3):
    """End whatever this operation number stands for in this session: a wait leaves, one that came
    to its end is forgotten, a permit is given back, an election is resigned. Always `Left`."""

    wait: int


class Left(Result, frozen=True, tag=4):
    pass


class TakePermit(Operation, frozen=True, tag=5):
    """Take a permit of a semaphore that was made with `value` of them: `Permitted` or `Waiting`;
    `wait` false: WOULD_BLOCK. The permit belongs to the session."""

    name: str
    value: int = 1
    bounded: bool = False
    wait: bool = True


class Permitted(Result, frozen=True, tag=6):
    permit: int


class GivePermits(Operation, frozen=True, tag=7):
    """Give back `count` (1 to 1,000) permits, this session's oldest first: `Given`. Beyond those
    it has, a bounded semaphore answers NOT_HELD and gives none back; any other gets new ones."""

    name: str
    value: int = 1
    bounded: bool = False
    count: int = 1


class Given(Result, frozen=True, tag=8):
    pass


class InspectSemaphore(Query, frozen=True, tag=9):
    name: str


class SemaphoreState(Result, frozen=True, tag=10):
    """`exists` false: nobody uses it, the rest is 0. `held`: permits in sessions' hands."""

    exists: bool
    value: int = 0
    bounded: bool = False
    free: int = 0
    held: int = 0
    waiting: int = 0


class SetEvent(Operation, frozen=True, tag=11):
    """Set an event and wake all who wait: `EventState`."""

    name: str


class ClearEvent(Operation, frozen=True, tag=12):
    """`EventState`. Who waited when it was set is woken all the same."""

    name: str


class WaitEvent(Operation, frozen=True, tag=13):
    """`EventState` (set) or `Waiting`; `wait` false: `EventState` however it is."""

    name: str
    wait: bool = True


class InspectEvent(Query, frozen=True, tag=14):
    name: str


class EventState(Result, frozen=True, tag=15):
    is_set: bool
    waiting: int = 0


class WaitBarrier(Operation, frozen=True, tag=16):
    """Arrive at a barrier of `parties` (1 to 1,000): `Waiting`, or for the last to arrive
    `Passed`. BROKEN_BARRIER if it is broken, or gets broken or reset. A wait that leaves by
    `Cancel` or `Leave` does not break it; a session that ends while it waits there does."""

    name: str
    parties: int


class Passed(Result, frozen=True, tag=17):
    """`index` from 0; the last to arrive has parties - 1."""

    index: int


class BreakBarrier(Operation, frozen=True, tag=18):
    """Break a barrier (`abort`, or a wait timed out): all who wait fail; `BarrierState`."""

    name: str
    parties: int


class ResetBarrier(Operation, frozen=True, tag=19):
    """Mend a barrier; who waits now fails with BROKEN_BARRIER; `BarrierState`."""

    name: str
    parties: int


class InspectBarrier(Query, frozen=True, tag=20):
    name: str


class BarrierState(Result, frozen=True, tag=21):
    """`parties` is 0 if nobody uses it."""

    parties: int
    waiting: int
    broken: bool


class WaitCondition(Operation, frozen=True, tag=22):
    """`Waiting`, always. Release the lock once this is answered, not before."""

    name: str


class NotifyCondition(Operation, frozen=True, tag=23):
    """Wake those who have waited longest, `count` of them (0: all): `Notified`. One that is woken
    and leaves by `Cancel` hands its notification on."""

    name: str
    count: int = 1


class Notified(Result, frozen=True, tag=24):
    """How many were woken, or are about to be."""

    count: int


class InspectCondition(Query, frozen=True, tag=25):
    name: str


class ConditionState(Result, frozen=True, tag=26):
    waiting: int


class Campaign(Operation, frozen=True, tag=27):
    """Stand for election with a value of at most 64 KiB (TOO_LARGE): `Elected` or `Waiting`;
    `wait` false: WOULD_BLOCK."""

    name: str
    value: bytes = b""
    wait: bool = True


class Elected(Result, frozen=True, tag=28):
    """`leadership` names it (for `Resign` or `Leave`); `token` rises from leader to leader."""

    leadership: int
    token: int


class Resign(Operation, frozen=True, tag=29):
    """`Left`; NOT_HELD if this session does not lead by that number."""

    name: str
    leadership: int


class InspectElection(Query, frozen=True, tag=30):
    """`ElectionState`. `after`: if the leader's token is this, the answer is held back until that
    changes, at most for `linger_us` (up to 2 s)."""

    name: str
    after: int = -1
    linger_us: int = 0


class ElectionState(Result, frozen=True, tag=31):
    """`token` 0: nobody leads. `client`: the name of the leader's client."""

    client: str
    session: int
    value: bytes
    token: int
    waiting: int


class CheckFence(Operation, frozen=True, tag=32):
    """Note a token: `FencePassed`, or STALE_TOKEN if a higher one was seen (`detail`: it). A fence
    is kept for ever."""

    name: str
    token: int


class FencePassed(Result, frozen=True, tag=33):
    pass


class GoOn(Internal, frozen=True, tag=34):
    """Proposed by the leader: one command wakes at most 1,000 waits; wake the next that are due at
    this name. `kind` is that of the table."""

    kind: int
    name: str


MESSAGES: tuple[type[Message], ...] = (
    Waiting, WokenLater, FailedLater, Leave, Left, TakePermit, Permitted, GivePermits, Given,
    InspectSemaphore, SemaphoreState, SetEvent, ClearEvent, WaitEvent, InspectEvent, EventState,
    WaitBarrier, Passed, BreakBarrier, ResetBarrier, InspectBarrier, BarrierState, WaitCondition,
    NotifyCondition, Notified, InspectCondition, ConditionState, Campaign, Elected, Resign,
    InspectElection, ElectionState, CheckFence, FencePassed, GoOn,
)  # fmt: skip
