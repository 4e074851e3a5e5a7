"""Exactly once: what a replica answers to copies, late copies and cancellations in every order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from control_group import ControlGroup

from coterie.protocols import replica as replica_module
from coterie.protocols.errors import Code
from coterie.protocols.lock import table as table_module
from coterie.protocols.lock.messages import (
    Acquire,
    Granted,
    GrantedLater,
    Queued,
    Release,
    Released,
)
from coterie.protocols.plugin import (
    Cancel,
    Cancelled,
    Command,
    Failure,
    Message,
    Moment,
    Operation,
    Replicated,
    Result,
)
from coterie.protocols.replica import MEMORYLESS, NOT_AFTER_MAX_US

HOUR_US = 3_600_000_000


def code(result: Result) -> Code:
    assert isinstance(result, Failure), result
    return result.code


@pytest.fixture
def group() -> ControlGroup:
    return ControlGroup()


def send(
    group: ControlGroup,
    session: int,
    sequence: int,
    operation: Operation,
    done_below: int = 0,
    client: int = 7,
) -> Any:
    return group.one(
        "lock",
        operation,
        client=client,
        session=session,
        sequence=sequence,
        done_below=done_below,
    )


def test_a_copy_is_answered_again_and_not_applied_again(group: ControlGroup) -> None:
    session = group.open(7)
    first = send(group, session, 1, Acquire("a"))
    number = group.replica.number
    assert send(group, session, 1, Acquire("a")) == first == Granted(number, number)
    assert group.replica.number == number
    assert len(group.locks.holders["a"]) == 1 and not group.locks.waits


def test_a_copy_in_the_same_entry_is_answered_again(group: ControlGroup) -> None:
    session = group.open(7)
    command = Command("lock", 7, session, 0, 0, [1, 1], [Acquire("a"), Acquire("a")])
    (one, two), (three, four) = group.apply(command, command)
    assert one == two == three == four


def test_answers_under_done_below_are_forgotten_and_late_copies_refused(
    group: ControlGroup,
) -> None:
    session = group.open(7)
    granted = send(group, session, 1, Acquire("a"))
    send(group, session, 2, Release("a", granted.grant), done_below=2)
    window = group.replica.windows[session]
    assert list(window.answers) == [2]
    assert code(send(group, session, 1, Acquire("a"))) is Code.STALE_REQUEST
    assert not group.locks.holders
    # A late, lower done_below brings nothing back.
    assert code(send(group, session, 1, Acquire("a"), done_below=0)) is Code.STALE_REQUEST


def test_a_far_done_below_costs_no_more_than_the_answers(group: ControlGroup) -> None:
    session = group.open(7)
    send(group, session, 1, Acquire("a"))
    result = send(group, session, 2**62 + 1, Acquire("b"), done_below=2**62)
    assert isinstance(result, Granted)
    assert list(group.replica.windows[session].answers) == [2**62 + 1]


def test_an_unknown_ended_or_foreign_session_is_refused(group: ControlGroup) -> None:
    session = group.open(7)
    number = group.replica.number
    assert code(send(group, 999, 1, Acquire("a"))) is Code.SESSION_EXPIRED
    assert code(send(group, session, 1, Acquire("a"), client=8)) is Code.PERMISSION_DENIED
    assert not group.locks.holders and group.replica.number == number
    assert 999 not in group.replica.windows


def test_a_request_after_its_time_is_refused(group: ControlGroup) -> None:
    session = group.open(7)
    group.time_us += 5
    command = Command("lock", 7, session, 0, group.time_us - 1, [1], [Acquire("a")])
    assert code(group.apply(command)[0][0]) is Code.STALE_REQUEST
    command.not_after_us = group.time_us
    assert isinstance(group.apply(command)[0][0], Granted)


def test_a_plugin_that_keeps_nothing_here_is_refused(group: ControlGroup) -> None:
    partition = ControlGroup(Counters(), group=3)
    result = partition.one("lock", Acquire("a"), client=7, session=1, sequence=1)
    assert code(result) is Code.UNKNOWN_PLUGIN


class TestCancel:
    def test_after_a_grant_releases_it(self, group: ControlGroup) -> None:
        session = group.open(7)
        send(group, session, 1, Acquire("a"))
        assert send(group, session, 2, Cancel(1)) == Cancelled()
        assert not group.locks.holders and not group.locks.claims[session]

    def test_of_a_wait_lets_it_leave(self, group: ControlGroup) -> None:
        one, two = group.open(7), group.open(8)
        send(group, one, 1, Acquire("a"))
        assert isinstance(send(group, two, 1, Acquire("a"), client=8), Queued)
        assert send(group, two, 2, Cancel(1), client=8) == Cancelled()
        assert not group.locks.waits and len(group.locks.holders["a"]) == 1

    def test_of_a_wait_granted_meanwhile_releases_it(self, group: ControlGroup) -> None:
        one, two = group.open(7), group.open(8)
        granted = send(group, one, 1, Acquire("a"))
        send(group, two, 1, Acquire("a"), client=8)
        send(group, one, 2, Release("a", granted.grant))
        assert group.locks.holders["a"]
        assert send(group, two, 2, Cancel(1), client=8) == Cancelled()
        assert not group.locks.holders

    @pytest.mark.parametrize("later_us", [0, HOUR_US])
    def test_before_the_operation_makes_its_late_copy_do_nothing(
        self, group: ControlGroup, later_us: int
    ) -> None:
        session = group.open(7)
        assert send(group, session, 2, Cancel(1)) == Cancelled()
        group.time_us += later_us
        assert code(send(group, session, 1, Acquire("a"))) is Code.CANCELLED
        assert not group.locks.holders

    def test_twice_and_with_copies_between(self, group: ControlGroup) -> None:
        session = group.open(7)
        for step in (Acquire("a"), Cancel(1), Acquire("a"), Cancel(1), Acquire("a")):
            sequence = 2 if isinstance(step, Cancel) else 1
            result = send(group, session, sequence, step)
        assert code(result) is Code.CANCELLED
        assert not group.locks.holders

    def test_a_late_copy_below_done_below_is_stale_for_ever(self, group: ControlGroup) -> None:
        session = group.open(7)
        send(group, session, 2, Cancel(1))
        send(group, session, 3, Acquire("b"), done_below=3)
        assert list(group.replica.windows[session].answers) == [3], "the tombstone is gone"
        assert code(send(group, session, 1, Acquire("a"))) is Code.STALE_REQUEST
        assert send(group, session, 2, Cancel(1)) == Cancelled(), "repeated until confirmed"
        assert list(group.replica.windows[session].answers) == [3], "no tombstone is needed"
        assert list(group.locks.holders) == ["b"]

    def test_of_a_released_grant_harms_no_other(self, group: ControlGroup) -> None:
        one, two = group.open(7), group.open(8)
        granted = send(group, one, 1, Acquire("a"))
        send(group, one, 2, Release("a", granted.grant))
        send(group, two, 1, Acquire("a"), client=8)
        assert send(group, one, 3, Cancel(1)) == Cancelled()
        assert send(group, one, 3, Cancel(2)) == Cancelled(), "a release cannot be undone"
        assert [claim.session for claim in group.locks.holders["a"].values()] == [two]

    def test_of_a_refusal_undoes_nothing(self, group: ControlGroup) -> None:
        session = group.open(7)
        send(group, session, 1, Acquire("a"))
        assert code(send(group, session, 2, Acquire("a", wait=False))) is Code.WOULD_BLOCK
        number = group.replica.number
        assert send(group, session, 3, Cancel(2)) == Cancelled()
        assert group.replica.number == number and group.locks.holders

    def test_without_a_session_is_refused(self, group: ControlGroup) -> None:
        assert code(group.one("lock", Cancel(1), client=7)) is Code.MALFORMED
        assert code(group.one("session", Cancel(1), client=0)) is Code.MALFORMED

    def test_that_releases_gives_the_next_a_higher_token(self, group: ControlGroup) -> None:
        one, two = group.open(7), group.open(8)
        first = send(group, one, 1, Acquire("a"))
        wait = send(group, two, 1, Acquire("a"), client=8).wait
        send(group, one, 2, Cancel(1))
        ((client, hint),) = group.replica.take_hints()
        assert isinstance(hint, GrantedLater)
        assert client == 8 and hint.wait == wait and hint.token > max(first.token, wait)


def test_a_window_is_bounded(group: ControlGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "WINDOW_MAX", 3)
    session = group.open(7)
    for sequence in (1, 2, 3):
        send(group, session, sequence, Acquire(f"lock{sequence}"))
    assert code(send(group, session, 4, Acquire("d"))) is Code.BUSY
    assert code(send(group, session, 5, Cancel(4))) is Code.BUSY, "a tombstone takes a place too"
    assert send(group, session, 5, Cancel(3)) == Cancelled(), "an answer becomes its tombstone"
    assert len(group.replica.windows[session].answers) == 3
    # Not remembered: the same sequence passes once there is room.
    assert isinstance(send(group, session, 4, Acquire("d"), done_below=2), Granted)


def test_busy_from_a_machine_is_remembered(
    group: ControlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered "did not and will not happen": so a late copy must not happen."""
    monkeypatch.setattr(table_module, "CLAIMS_PER_SESSION_MAX", 1)
    session = group.open(7)
    granted = send(group, session, 1, Acquire("a"))
    assert code(send(group, session, 2, Acquire("b"))) is Code.BUSY
    assert send(group, session, 3, Release("a", granted.grant)) == Released()
    assert code(send(group, session, 2, Acquire("b"))) is Code.BUSY
    assert isinstance(send(group, session, 4, Acquire("b")), Granted)


def test_memoryless_operations_take_numbers_too(group: ControlGroup) -> None:
    session = group.open(7)
    before = group.replica.number
    send(group, session, MEMORYLESS, Acquire("a"))
    send(group, session, MEMORYLESS, Acquire("a"))
    assert group.replica.number == before + 2
    assert not group.replica.windows[session].answers


def test_log_time_never_goes_back(group: ControlGroup) -> None:
    group.tick()
    group.time_us -= 500_000
    group.tick()
    assert group.replica.time_us == group.time_us + 500_000


class Add(Operation, frozen=True, tag=0):
    amount: int


class Sum(Result, frozen=True, tag=1):
    value: int


class CounterMachine:
    """The smallest machine: a copy applied twice shows."""

    def __init__(self) -> None:
        self.value = 0

    def apply(self, moment: Moment, operation: Add) -> Result:
        self.value += operation.amount
        return Sum(self.value)

    def query(self, moment: Moment, query: Any) -> Result:
        return Sum(self.value)

    def end_session(self, moment: Moment, session: int, limit: int) -> int:
        return 0

    def cancel(self, moment: Moment, answered: Result) -> None:
        pass

    def news(self, moment: Moment, session: int, number: int) -> Result | None:
        return None

    def snapshot(self) -> Iterable[bytes]:
        return [msgspec.msgpack.encode(self.value)]

    def restore(self, chunk: bytes) -> None:
        self.value = msgspec.msgpack.decode(chunk)

    def restored(self) -> None:
        pass

    def size(self) -> int:
        return 1

    def check(self) -> None:
        pass


class Counters(Replicated):
    name = "counters"
    messages: Sequence[type[Message]] = (Add, Sum)
    placement: Literal["control", "partitioned"] = "partitioned"

    def machine(self, group: int) -> CounterMachine | None:
        return CounterMachine() if group else None


class TestPartition:
    @pytest.fixture
    def partition(self) -> ControlGroup:
        return ControlGroup(Counters(), group=3)

    def add(self, partition: ControlGroup, client: int, ahead_us: int, sequence: int = 1) -> Result:
        return partition.one(
            "counters",
            Add(1),
            client=client,
            sequence=sequence,
            not_after_us=partition.time_us + ahead_us,
        )

    def test_a_copy_counts_once_while_it_may_come(self, partition: ControlGroup) -> None:
        not_after_us = partition.time_us + 100
        command = Command("counters", 7, 0, 0, not_after_us, [1], [Add(1)])
        assert partition.apply(command) == partition.apply(command) == [[Sum(1)]]
        partition.time_us = not_after_us
        assert partition.apply(command) == [[Sum(1)]], "the last moment counts"
        partition.time_us += 1
        assert code(partition.apply(command)[0][0]) is Code.STALE_REQUEST
        assert not partition.replica.windows

    def test_a_window_goes_at_a_tick_and_with_it_the_need_for_ticks(
        self, partition: ControlGroup
    ) -> None:
        self.add(partition, 7, 100)
        assert partition.replica.deadlines_pending()
        partition.time_us += 101
        partition.tick()
        assert not partition.replica.windows and not partition.replica.deadlines_pending()

    def test_a_window_lasts_as_long_as_its_latest_bound(self, partition: ControlGroup) -> None:
        self.add(partition, 7, 1000)
        self.add(partition, 7, 10, sequence=2)
        self.add(partition, 8, 10)
        partition.time_us += 500
        partition.tick()
        assert 7 in partition.replica.windows
        self.add(partition, 7, 1000, sequence=3)
        partition.tick()
        assert list(partition.replica.windows) == [7], "in order of use: 8 came to the front"

    @pytest.mark.parametrize("ahead_us", [None, NOT_AFTER_MAX_US + 1])
    def test_a_bound_is_needed_and_near(
        self, partition: ControlGroup, ahead_us: int | None
    ) -> None:
        not_after_us = 0 if ahead_us is None else partition.time_us + ahead_us
        result = partition.one("counters", Add(1), client=7, sequence=1, not_after_us=not_after_us)
        assert code(result) is Code.MALFORMED
        assert not partition.replica.windows

    def test_clients_are_bounded(
        self, partition: ControlGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replica_module, "CLIENTS_MAX", 2)
        self.add(partition, 7, 100)
        self.add(partition, 8, 100)
        assert code(self.add(partition, 9, 100)) is Code.BUSY
        assert self.add(partition, 8, 100, sequence=2) == Sum(3)
        partition.time_us += 101
        assert self.add(partition, 9, 100) == Sum(4)

    def test_the_leader_itself_needs_no_window(self, partition: ControlGroup) -> None:
        assert partition.one("counters", Add(1)) == Sum(1)
        assert not partition.replica.windows


STORY = """
import hashlib
from control_group import ControlGroup
from coterie.protocols.lock.messages import Acquire, Release
from coterie.protocols.plugin import Cancel
from coterie.protocols.replica import Replica
from coterie.protocols.registry import Registry, builtin
from coterie.protocols.session.messages import EndSession, ExpireSession
import msgspec

group = ControlGroup()
sessions = [group.open(client, name=f"client{client}") for client in range(1, 9)]
for round in range(40):
    for place, session in enumerate(sessions):
        name = f"lock{(round * 7 + place * 3) % 5}"
        result = group.ask(session, Acquire(name, shared=(round + place) % 3 == 0))
        if round % 4 == place % 4:
            group.ask(session, Cancel(group.sequences[session]))
        elif round % 5 == place % 5 and hasattr(result, "grant"):
            group.ask(session, Release(name, result.grant))
group.one("session", EndSession(sessions[0]), client=1)
group.time_us += 10_000_000
group.one("session", ExpireSession(sessions[1], group.time_us - 0))
for session in sessions[2:5]:
    group.one("session", ExpireSession(session, group.sessions.sessions[session].deadline_us))

def digest(replica):
    found = hashlib.blake2b(digest_size=8)
    found.update(msgspec.msgpack.encode([replica.number, replica.time_us, replica.windows]))
    for name, machine in replica.machines.items():
        for chunk in machine.snapshot():
            found.update(chunk)
    return found.hexdigest()

other = Replica(0, Registry(builtin()).machines(0), group.codec)
for entry in group.log:
    other.apply(entry)
assert digest(other) == digest(group.replica)
print(digest(other), len(group.log))
"""


def test_the_same_bytes_make_the_same_state_under_any_hash_seed() -> None:
    tests = str(Path(__file__).resolve().parents[1])
    found = []
    for seed in ("1", "2"):
        path = os.pathsep.join([tests, *filter(None, sys.path)])
        run = subprocess.run(
            [sys.executable, "-c", STORY],
            cwd="/",
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        found.append(run.stdout)
    assert found[0] == found[1]
