"""What applying an entry of 128 lock operations costs: the replica, exactly once, and the table."""

from __future__ import annotations

from itertools import count

import pytest
from control_group import ControlGroup
from pytest_benchmark.fixture import BenchmarkFixture

from coterie.protocols.lock.messages import Acquire, Granted, Release, Released
from coterie.protocols.plugin import Command, Operation, Result
from coterie.protocols.records import COMMANDS, Entry

pytestmark = pytest.mark.benchmark(group="lock", max_time=0.3, min_rounds=5, disable_gc=True)

TASKS = 128


class Applier:
    """One session that sends frames of operations, each under new sequences."""

    def __init__(self) -> None:
        self.group = ControlGroup()
        self.session = self.group.open(client=7)
        self.sequences = count(1)
        self.index = count(2)

    def apply(self, operations: list[Operation]) -> list[Result]:
        sequences = [next(self.sequences) for _ in operations]
        command = Command("lock", 7, self.session, sequences[0], 0, sequences, operations)
        payload = self.group.codec.encode([command])
        (results,) = self.group.replica.apply(
            Entry(next(self.index), 1, self.group.time_us, COMMANDS, payload)
        )
        return results


def test_apply_acquires_and_releases(benchmark: BenchmarkFixture) -> None:
    applier = Applier()
    acquires: list[Operation] = [Acquire(f"bench/{number}") for number in range(TASKS)]

    def acquire_and_release() -> list[Result]:
        granted = applier.apply(acquires)
        return applier.apply(
            [
                Release(f"bench/{number}", grant.grant)
                for number, grant in enumerate(granted)
                if isinstance(grant, Granted)
            ]
        )

    assert benchmark(acquire_and_release) == [Released()] * TASKS


def test_hand_over_from_wait_to_wait(benchmark: BenchmarkFixture) -> None:
    """One lock that 128 wait for: each release grants the next."""
    applier = Applier()
    numbers = [
        result.grant if isinstance(result, Granted) else result.wait  # type: ignore[attr-defined]
        for result in applier.apply([Acquire("bench") for _ in range(TASKS)])
    ]

    def hand_over() -> Result:
        released, queued = applier.apply([Release("bench", numbers.pop(0)), Acquire("bench")])
        numbers.append(queued.wait)  # type: ignore[attr-defined]
        return released

    assert benchmark(hand_over) == Released()
