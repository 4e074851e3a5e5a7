"""What the core keeps of its calls and of a session.

The law: a call is completed exactly once, and leaves the table of its session only when nothing
more can come of it: so the lowest sequence of that table is what the cluster may forget up to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from ..protocols.plugin import Message
from .core_waits import Told

UNSENT, SENT, WAITING, CANCELLING, DONE = 0, 1, 2, 3, 4
"""States of a call: not yet numbered; asked; queued by the cluster; a `Cancel` for it is under
way; nothing more to come."""

EARLY_MAX = 4_096
"""Ends of waits kept that were told before the answer that names the wait."""

TAKEN_MAX = 100_000
"""Grants taken away, and owners aborted, that are remembered: as many as a session may hold."""


class Watched(Protocol):
    """A grant whose loss somebody wants to hear of."""

    @property
    def plugin(self) -> str: ...

    @property
    def number(self) -> int: ...

    @property
    def lost(self) -> bool: ...


class Call(msgspec.Struct, eq=False):
    """One operation or query under way.

    `future` is completed once, with a result or an exception as its value; None: nobody waits.
    `waits`: it waits for its turn, so an outage does not end it. `deadline`: when it is cancelled
    on the caller's behalf. `queued`: a future completed once the cluster has queued it, at the
    latest with the call itself. `copies`: of those sent, how many may still be applied. `target`:
    the call that this one (a `Cancel` or what takes back a result) undoes. `principal`: the client
    for whose session it is done, 0 for this one's own. `refused_at`: since when it is refused for
    want of room, 0 if it is not.
    """

    plugin: str
    operation: Message
    future: Any = None
    waits: bool = False
    deadline: float | None = None
    state: int = UNSENT
    sequence: int = 0
    session: Session | None = None
    submitted_at: float = 0.0
    sent_at: float = 0.0
    copies: int = 0
    wait: int = 0
    not_after_us: int = 0
    completed: bool = False
    queued: Any = None
    target: Call | None = None
    result: Any = None
    principal: int = 0
    refused_at: float = 0.0


class Session(msgspec.Struct, eq=False):
    """A session as its client sees it.

    `lost_at`: 0.95 x ttl after the sending of the last keep-alive whose commit was confirmed.
    `lost` is final: whoever reads the clock past `lost_at` sets it, on any thread. `early`: how
    waits ended that are not known by number yet. `taken` and `aborted`: grants that were taken
    away, and owners that lost all they held, while the session lives. `watched`: by grant, what to
    call when it is lost.
    """

    number: int
    ttl_s: float
    confirmed_at: float
    lost_at: float
    lost: bool = False
    open: dict[int, Call] = {}
    waits: dict[int, Call] = {}
    early: dict[int, Told] = {}
    taken: dict[int, None] = {}
    aborted: dict[int, None] = {}
    watched: dict[Watched, list[Callable[[], object]]] = {}

    def is_lost(self, now: float) -> bool:
        """True once `lost_at` has passed, and for ever after."""
        if now >= self.lost_at:
            self.lost = True
        return self.lost

    def renew(self, sent_at: float, part: float) -> None:
        """A keep-alive sent at `sent_at` was committed; it holds for `part` of the ttl."""
        if sent_at > self.confirmed_at:
            self.confirmed_at = sent_at
            self.lost_at = sent_at + part * self.ttl_s

    def everything(self) -> list[Call]:
        """The calls that are not done: those open, then the parked waits."""
        calls = list(self.open.values())
        calls.extend(call for call in self.waits.values() if call.sequence not in self.open)
        return calls

    def told_early(self, wait: int, told: Told) -> None:
        """Remember how a wait ended that is not known yet; the oldest gives way."""
        early = self.early
        if len(early) >= EARLY_MAX:
            del early[next(iter(early))]
        early[wait] = told

    def take(self, number: int) -> None:
        """A grant was taken away from this session."""
        _remember(self.taken, number)

    def abort(self, owner: int) -> None:
        """An owner lost all it held."""
        _remember(self.aborted, owner)


def _remember(numbers: dict[int, None], number: int) -> None:
    if len(numbers) >= TAKEN_MAX:
        del numbers[next(iter(numbers))]
    numbers[number] = None


class Beat(msgspec.Struct):
    """A pulse under way: of which session, when it was sent, whether it renews, and about which
    waits, and then which watched grants, it asked."""

    session: Session
    sent_at: float
    renews: bool
    calls: list[Call]
    grants: Sequence[Watched] = ()
