"""What the search for deadlocks costs when somebody begins to wait, and a slice of the sweep."""

from __future__ import annotations

import random
from typing import Any

import pytest
from control_group import ControlGroup
from pytest_benchmark.fixture import BenchmarkFixture

from coterie.protocols.lock.deadlock import Search
from coterie.protocols.lock.messages import Acquire, BeginTransaction, Withdraw
from coterie.protocols.lock.sweep import SLICE
from coterie.protocols.lock.table import LockTable

pytestmark = pytest.mark.benchmark(group="deadlock", max_time=0.5, min_rounds=5, disable_gc=True)

WAITS = 10_000


class Crowd:
    """A lock table with many waits, and one owner that has something others wait for."""

    def __init__(self) -> None:
        self.group = ControlGroup()
        self.moment = self.group.replica.moment
        self.session = self.group.open(client=7)
        self.table: LockTable = self.group.locks
        self.root = self.begin()
        self.do(Acquire("root", owner=self.root))
        self.do(Acquire("root"))

    def do(self, operation: Any) -> Any:
        self.moment.number += 1
        self.moment.session, self.moment.client = self.session, 7
        result = self.table.apply(self.moment, operation)
        self.group.replica.take_hints()
        return result

    def begin(self) -> int:
        owner: int = self.do(BeginTransaction()).transaction
        return owner

    def wait(self, name: str) -> None:
        """Begin to wait, which looks for a cycle, and leave again."""
        wait = self.do(Acquire(name, owner=self.root)).wait
        self.do(Withdraw(wait))


@pytest.mark.parametrize("holding", [False, True])
def test_ten_thousand_waits_of_one_name(benchmark: BenchmarkFixture, holding: bool) -> None:
    """`holding`: each of those who wait holds another lock."""
    crowd = Crowd()
    crowd.do(Acquire("crowded"))
    for number in range(WAITS - 1):
        owner = crowd.begin() if holding else 0
        if holding:
            crowd.do(Acquire(f"own/{number}", owner=owner))
        crowd.do(Acquire("crowded", shared=number % 3 == 0, owner=owner))
    benchmark(lambda: crowd.wait("crowded"))


def test_ten_thousand_waits_of_5000_names(benchmark: BenchmarkFixture) -> None:
    """Each of 5,000 owners holds one lock and waits for an earlier one's; as many wait beside."""
    crowd, source = Crowd(), random.Random(1)
    owners = [crowd.begin() for _ in range(WAITS // 2)]
    for number, owner in enumerate(owners):
        crowd.do(Acquire(f"lock/{number}", owner=owner))
    for number, owner in enumerate(owners[1:], 1):
        crowd.do(Acquire(f"lock/{source.randrange(number)}", owner=owner))
    for number in range(WAITS // 2):
        crowd.do(Acquire(f"lock/{number}"))
    benchmark(lambda: crowd.wait(f"lock/{len(owners) - 1}"))


def test_a_chain_of_5000_owners(benchmark: BenchmarkFixture) -> None:
    """The worst there is: everybody waits for the next, and the search goes to the end."""
    crowd = Crowd()
    owners = [crowd.begin() for _ in range(WAITS // 2)]
    for number, owner in enumerate(owners):
        crowd.do(Acquire(f"lock/{number}", owner=owner))
    for number, owner in enumerate(owners[:-1]):
        crowd.do(Acquire(f"lock/{number + 1}", owner=owner))
    benchmark(lambda: crowd.wait("lock/0"))


def test_a_slice_of_the_sweep(benchmark: BenchmarkFixture) -> None:
    crowd = Crowd()
    owners = [crowd.begin() for _ in range(WAITS // 2)]
    for number, owner in enumerate(owners):
        crowd.do(Acquire(f"lock/{number}", owner=owner))
    for number, owner in enumerate(owners[:-1]):
        crowd.do(Acquire(f"lock/{number + 1}", owner=owner))

    def first_slice() -> None:
        Search(crowd.table, crowd.table.alive, crowd.table.owners).go_on(SLICE)

    benchmark(first_slice)
