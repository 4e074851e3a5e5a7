"""A counter, replicated: the smallest plugin there is, and the simulator's measure of exactly once.

The law: every `Add` that was answered is in the total exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ...protocols.plugin import Message, Moment, Operation, Query, Replicated, Result, SessionId


class Add(Operation, frozen=True, tag=0):
    amount: int


class Get(Query, frozen=True, tag=1):
    pass


class Value(Result, frozen=True, tag=2):
    total: int


class AddHere(Operation, frozen=True, tag=0):
    amount: int


class GetHere(Query, frozen=True, tag=1):
    pass


class ValueHere(Result, frozen=True, tag=2):
    total: int


class CounterMachine:
    def __init__(self, value: type[Value | ValueHere]) -> None:
        self.total = 0
        self._value = value

    def apply(self, moment: Moment, operation: Any) -> Result:
        self.total += operation.amount
        return self._value(self.total)

    def query(self, moment: Moment, query: Any) -> Result:
        return self._value(self.total)

    def end_session(self, moment: Moment, session: SessionId, limit: int) -> int:
        return 0

    def cancel(self, moment: Moment, answered: Result) -> None:
        """What was added stays added."""

    def news(self, moment: Moment, session: SessionId, number: int) -> Result | None:
        return None

    def snapshot(self) -> Iterable[bytes]:
        return [self.total.to_bytes(16, "big")]

    def restore(self, chunk: bytes) -> None:
        self.total = int.from_bytes(chunk, "big")

    def restored(self) -> None:
        """The one chunk was all."""

    def size(self) -> int:
        return 1

    def check(self) -> None:
        assert self.total >= 0


class Counter(Replicated):
    name = "counter"
    messages: Sequence[type[Message]] = (Add, Get, Value)

    def machine(self, group: int) -> CounterMachine:
        return CounterMachine(Value)


class Tally(Replicated):
    """The same in every partition."""

    name = "tally"
    placement: Literal["control", "partitioned"] = "partitioned"
    messages: Sequence[type[Message]] = (AddHere, GetHere, ValueHere)

    def machine(self, group: int) -> CounterMachine:
        return CounterMachine(ValueHere)
