"""CPython's own tests of locks, events, semaphores and barriers, run on ours against real nodes.

They come with the interpreter (its `test` package; Debian has it as libpython3-testsuite). Not
ours to pass, and named below: what looks into weak references, fork re-initialisation,
constructors, barrier actions, `repr` and recursion counts.
"""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, ClassVar

import pytest

import coterie

lock_tests = pytest.importorskip(
    "test.lock_tests",
    reason="this interpreter has no test.lock_tests; Debian: apt-get install libpython3-testsuite",
)

NOT_OURS = {
    "test_action",
    "test_at_fork_reinit",
    "test_constructor",
    "test_locked_repr",
    "test_recursion_count",
    "test_repr",
    "test_weakref_deleted",
    "test_weakref_exists",
}

names = (f"cpython/{number}" for number in count())


@pytest.fixture(scope="module", autouse=True)
def client(cluster: coterie.LocalCluster) -> Iterator[coterie.Client]:
    """One client for all: its thread must run before CPython counts threads."""
    with cluster.client(name="cpython") as client:
        client.locks()
        Ours.client = client
        yield client
        del Ours.client


class Ours(unittest.TestCase):
    """Where CPython's classes find what to test."""

    client: ClassVar[coterie.Client]


def chosen(tests: type, **made: Callable[..., Any]) -> type:
    """CPython's test class without the tests that are not ours to pass; `made`: what it tests."""
    without = {name: None for name in dir(tests) if name in NOT_OURS}
    makers = {name: staticmethod(make) for name, make in made.items()}
    return type(tests.__name__, (Ours, tests), {**without, **makers})


def lock() -> coterie.Lock:
    return Ours.client.lock(next(names))


def rlock() -> Any:
    return Ours.client.rlock(next(names))


def event() -> Any:
    return Ours.client.event(next(names))


def semaphore(value: int = 1) -> Any:
    return Ours.client.semaphore(next(names), value)


def bounded(value: int = 1) -> Any:
    return Ours.client.bounded_semaphore(next(names), value)


def barrier(parties: int, *, timeout: float | None = None) -> Any:
    return Ours.client.barrier(next(names), parties, timeout=timeout)


def condition(lock: Any = None) -> Any:
    return Ours.client.condition(lock or rlock())


TestLock = chosen(lock_tests.LockTests, locktype=lock)
TestRLock = chosen(lock_tests.RLockTests, locktype=rlock)
TestEvent = chosen(lock_tests.EventTests, eventtype=event)
TestCondition = chosen(lock_tests.ConditionTests, condtype=condition)
TestCondition.test_acquire = None  # on a lock of `threading`, which is none of the cluster's
TestSemaphore = chosen(lock_tests.SemaphoreTests, semtype=semaphore)
TestBoundedSemaphore = chosen(lock_tests.BoundedSemaphoreTests, semtype=bounded)
TestBarrier = chosen(lock_tests.BarrierTests, barriertype=barrier)
