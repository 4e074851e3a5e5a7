"""What the lock plugin refuses before the log, and what its leader proposes."""

from __future__ import annotations

from typing import Any

import pytest
from control_group import TTL_US, ControlGroup, DirectPort

from coterie.protocols.errors import Code
from coterie.protocols.lock.messages import (
    Acquire,
    Granted,
    Inspect,
    ListLocks,
    OpenLock,
    Queued,
    Release,
    Released,
)
from coterie.protocols.lock.plugin import LockPlugin, name_is_good
from coterie.protocols.plugin import CONTROL, Cancel, Cancelled, Failure
from coterie.protocols.session.messages import ExpireSession


@pytest.fixture
def port() -> DirectPort:
    return DirectPort(ControlGroup(), LockPlugin())


def code(result: Any) -> Code:
    assert isinstance(result, Failure), result
    return result.code


@pytest.mark.parametrize(
    "name", ["a", "orders/42", "...", " ", "x" * 255, "ä" * 127, "日本", "a\u00a0b", "~"]
)
def test_good_names(name: str) -> None:
    assert name_is_good(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a\nb", "\x00", "\x7f", "a\x85b", "x" * 256, "ä" * 128, "\ud800"]
)
def test_bad_names(name: str) -> None:
    assert not name_is_good(name)


def test_a_frame_is_answered_when_it_is_applied(port: DirectPort) -> None:
    session = port.group.open(7)
    port.request([Acquire("a"), Acquire("a"), Cancel(2)], session=session)
    assert not port.answers
    port.commit()
    granted, queued, cancelled = port.answered()
    assert isinstance(granted, Granted) and isinstance(queued, Queued)
    assert cancelled == Cancelled()
    port.request([Release("a", granted.grant)], session=session, first=4)
    port.commit()
    assert port.answered() == [Released()]


def test_bad_operations_are_refused_and_the_others_go_on(port: DirectPort) -> None:
    session = port.group.open(7)
    operations = [
        Acquire("."),
        Acquire("a"),
        Acquire("b", lock_delay_us=-1),
        Release("", 1),
        Acquire("c"),
        Acquire("d", lock_delay_us=3_600_000_001),
    ]
    port.request(operations, session=session, first=11)
    ((command, _),) = port.proposals
    assert list(command.sequences) == [12, 15]
    port.commit()
    results = port.answered()
    assert [code(results[place]) for place in (0, 2, 3, 5)] == [
        Code.BAD_NAME,
        Code.MALFORMED,
        Code.BAD_NAME,
        Code.MALFORMED,
    ]
    assert all(isinstance(results[place], Granted) for place in (1, 4))
    assert list(port.group.locks.holders) == ["a", "c"]


def test_an_empty_frame_is_answered_empty(port: DirectPort) -> None:
    port.request([])
    assert port.answered() == [] and not port.proposals


def test_a_frame_of_bad_operations_is_never_proposed(port: DirectPort) -> None:
    port.request([Acquire(""), Acquire("..")], session=port.group.open(7))
    assert [code(result) for result in port.answered()] == [Code.BAD_NAME] * 2
    assert not port.proposals


def test_refusals_of_the_log_are_passed_on(port: DirectPort) -> None:
    session = port.group.open(7)
    failure = Failure(Code.NOT_LEADER, "ask node2", ("node2",))
    port.request([Acquire("a")], session=session)
    port.request([Acquire("."), Acquire("a")], session=session)
    port.fail(failure)
    first, second = (list(results) for _, results in port.answers)
    assert first == [failure] and second[1] == failure and code(second[0]) is Code.BAD_NAME


def test_queries_are_answered_after_a_round(port: DirectPort) -> None:
    session = port.group.open(7)
    port.group.ask(session, Acquire("a"))
    port.request([Inspect("a"), ListLocks()])
    assert not port.answers and not port.proposals
    port.confirm_reads()
    inspected, listed = port.answered()
    assert inspected == listed and inspected.locks[0].name == "a"


def test_mixed_and_misdirected_frames_are_refused(port: DirectPort) -> None:
    session = port.group.open(7)
    for operations in ([Acquire("a"), Inspect("a")], [Acquire("."), Inspect("a")]):
        port.request(operations, session=session)
        assert [code(result) for result in port.answered()] == [Code.MALFORMED] * 2
    port.request([Acquire("a")], session=session, group=1)
    assert code(port.answered()[0]) is Code.MALFORMED
    assert not port.proposals and not port.reads


def test_the_leader_opens_a_lock_after_its_delay(port: DirectPort) -> None:
    group, plugin = port.group, port.plugin
    session = group.open(7)
    group.ask(session, Acquire("a", lock_delay_us=3_000_000))
    assert plugin.deadline() is None
    group.time_us += TTL_US
    deadline_us = group.sessions.sessions[session].deadline_us
    group.one("session", ExpireSession(session, deadline_us))
    assert plugin.deadline() == port.clock + 3
    assert plugin.status()["deferred"] == 1
    plugin.on_deadline()
    assert not port.proposals
    group.time_us += 3_000_000
    port.leading = False
    plugin.on_deadline()
    assert plugin.deadline() is None and not port.proposals, "only the leader looks"
    port.leading = True
    plugin.on_deadline()
    assert [list(command.operations) for command, _ in port.proposals] == [
        [OpenLock("a", group.time_us)]
    ]
    assert plugin.deadline() is None
    plugin.on_deadline()
    assert len(port.proposals) == 1, "not again before it was applied"
    port.fail(Failure(Code.BUSY))
    assert plugin.deadline() > port.clock
    port.clock = plugin.deadline()
    plugin.on_deadline()
    plugin.on_leader(CONTROL, "node2", 8)
    assert plugin.deadline() == port.clock, "a new term asks again"
    port.commit()
    assert plugin.deadline() is None and not group.locks.deferred
