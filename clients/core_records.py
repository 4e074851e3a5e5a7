"""What the core keeps of its calls and of a session.

The law: a call is completed exactly once, and leaves the table of its session only when nothing
more can come of it: so the lowest sequence of that table is what the cluster may forget up to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..protocols.plugin import Message

UNSENT, SENT, WAITING, CANCELLING, DONE = 0, 1, 2, 3, 4
"""States of a call: not yet numbered; asked; queued by the cluster; a `Cancel` for it is under
way; nothing more to come."""

EARLY_MAX = 4_096
"""Grants kept that were told before the answer that names their wait."""


class Call(msgspec.Struct, eq=False):
    """One operation or query under way.

    `future` is completed once, with a result or an exception as its value; None: nobody waits.
    `waits`: it waits for its turn, so an outage does not end it. `deadline`: when it is cancelled
    on the caller's behalf. `copies`: of those sent, how many may still be applied. `target`: the
    call that this one (a `Cancel` or `Release`) undoes. `unwanted`: a parked wait nobody waits
    for any more; it is released when it is granted. `principal`: the client for whose session it
    is done, 0 for this one's own.
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
    unwanted: bool = False
    target: Call | None = None
    result: Any = None
    principal: int = 0


class Session(msgspec.Struct, eq=False):
    """A session as its client sees it.

    `lost_at`: 0.95 x ttl after the sending of the last keep-alive whose commit was confirmed.
    `lost` is final: whoever reads the clock past `lost_at` sets it, on any thread. `watched`: by
    grant, what to call when it is lost.
    """

    number: int
    ttl_s: float
    confirmed_at: float
    lost_at: float
    lost: bool = False
    open: dict[int, Call] = {}
    waits: dict[int, Call] = {}
    early: dict[int, int] = {}
    watched: dict[int, list[Callable[[], object]]] = {}

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

    def grant_early(self, wait: int, token: int) -> None:
        """Remember a grant whose wait is not known yet; the oldest gives way."""
        early = self.early
        if len(early) >= EARLY_MAX:
            del early[next(iter(early))]
        early[wait] = token


class Beat(msgspec.Struct):
    """A pulse under way: of which session, when it was sent, whether it renews, and about which
    waits it asked."""

    session: Session
    sent_at: float
    renews: bool
    calls: list[Call]
