"""Rate limits for coterie: token buckets in log time, replicated like the locks.

The law: what a bucket grants within any span of log time is at most its burst plus its rate times
the span, whoever leads. The clock of no machine decides, so every replica decides alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from coterie.protocols.errors import Code
from coterie.protocols.plugin import Failure, Message, Moment, Operation, Replicated, Result

BUCKETS_MAX = 100_000
CHUNK = 1_000
FILL_S_MAX = 86_400
"""An empty bucket is full again within a day; then it is forgotten."""


class Take(Operation, frozen=True, tag=0):
    """Take `amount` from the bucket `key`, which holds `burst` and gains `rate_per_s`."""

    key: str
    amount: int
    rate_per_s: float
    burst: int


class Taken(Result, frozen=True, tag=1):
    """Allowed and taken; or not, and then worth asking again in `wait_us` microseconds."""

    allowed: bool
    wait_us: int


class Buckets:
    """The state machine. A bucket is the log time at which it will be full again."""

    def __init__(self) -> None:
        self.full_at_us: OrderedDict[str, int] = OrderedDict()

    def apply(self, moment: Moment, take: Take) -> Result:
        good = 0 < take.amount <= take.burst and 0 < len(take.key) <= 255
        if not (good and take.rate_per_s > 0 and take.burst / take.rate_per_s <= FILL_S_MAX):
            return Failure(
                Code.MALFORMED,
                "needs a key of at most 255 characters, 0 < amount <= burst, "
                f"and a rate that fills the bucket within {FILL_S_MAX} s",
            )
        self._forget_full(moment.time_us)
        now_full_us = max(self.full_at_us.get(take.key, 0), moment.time_us)
        if take.key not in self.full_at_us and len(self.full_at_us) >= BUCKETS_MAX:
            return Failure(Code.BUSY, f"{BUCKETS_MAX} buckets are in use; retry later")
        then_full_us = now_full_us + round(take.amount / take.rate_per_s * 1e6)
        wait_us = then_full_us - moment.time_us - round(take.burst / take.rate_per_s * 1e6)
        if wait_us > 0:
            return Taken(False, wait_us)
        self.full_at_us[take.key] = then_full_us
        return Taken(True, 0)

    def _forget_full(self, time_us: int) -> None:
        """Look at two buckets in turn: the table shrinks faster than it can grow."""
        for _ in range(min(2, len(self.full_at_us))):
            key, full_at_us = self.full_at_us.popitem(last=False)
            if full_at_us > time_us:
                self.full_at_us[key] = full_at_us

    def query(self, moment: Moment, query: Any) -> Result:
        return Failure(Code.MALFORMED, "there is nothing to ask but Take")

    def end_session(self, moment: Moment, session: int, limit: int) -> int:
        return 0

    def cancel(self, moment: Moment, answered: Result) -> None:
        """What was taken stays taken: the limit errs to the safe side."""

    def news(self, moment: Moment, session: int, number: int) -> Result | None:
        return None

    def snapshot(self) -> Iterable[bytes]:
        """A copy is made now, so that later takes do not show; encoding waits for each chunk."""
        buckets = list(self.full_at_us.items())
        starts = range(0, len(buckets), CHUNK)
        return (msgspec.msgpack.encode(buckets[start : start + CHUNK]) for start in starts)

    def restore(self, chunk: bytes) -> None:
        self.full_at_us.update(msgspec.msgpack.decode(chunk, type=list[tuple[str, int]]))

    def restored(self) -> None:
        """Nothing is derived from the buckets."""

    def size(self) -> int:
        return len(self.full_at_us)

    def check(self) -> None:
        assert len(self.full_at_us) <= BUCKETS_MAX


class RateLimit(Replicated):
    """The plugin, in group 0 beside the locks: all but the machine is `Replicated`'s."""

    name = "ratelimit"
    version = 1
    messages: Sequence[type[Message]] = (Take, Taken)

    def machine(self, group: int) -> Buckets:
        return Buckets()
