"""Semaphores, events, barriers, conditions, elections and fences, on the real replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from control_group import TTL_US, ControlGroup, DirectPort, restore

from coterie.protocols.coordination import plugin as plugins
from coterie.protocols.coordination import serving, table
from coterie.protocols.coordination.messages import (
    BarrierState,
    BreakBarrier,
    Campaign,
    CheckFence,
    ClearEvent,
    ConditionState,
    Elected,
    ElectionState,
    EventState,
    FailedLater,
    FencePassed,
    Given,
    GivePermits,
    GoOn,
    InspectBarrier,
    InspectCondition,
    InspectElection,
    InspectEvent,
    InspectSemaphore,
    Leave,
    Left,
    Notified,
    NotifyCondition,
    Passed,
    Permitted,
    ResetBarrier,
    Resign,
    SemaphoreState,
    SetEvent,
    TakePermit,
    WaitBarrier,
    WaitCondition,
    WaitEvent,
    Waiting,
    WokenLater,
)
from coterie.protocols.coordination.plugin import CoordinationPlugin
from coterie.protocols.coordination.table import CoordinationTable
from coterie.protocols.errors import Code
from coterie.protocols.plugin import CONTROL, Cancel, Failure, Operation
from coterie.protocols.session.messages import EmptySession, EndSession, ExpireSession


class World:
    """A control group with a few sessions, and what their clients were told."""

    def __init__(self) -> None:
        self.group = ControlGroup()
        self.sessions = [self.group.open(client, name=f"c{client}") for client in range(1, 6)]

    @property
    def table(self) -> CoordinationTable:
        machine = self.group.replica.machines["coordination"]
        assert isinstance(machine, CoordinationTable)
        return machine

    def ask(self, who: int, operation: Operation) -> Any:
        return self.group.ask(self.sessions[who], operation, "coordination")

    def query(self, query: Any) -> Any:
        return self.table.query(self.group.replica.moment, query)

    def cancel(self, who: int) -> None:
        """What it asked for last."""
        session = self.sessions[who]
        self.ask(who, Cancel(self.group.sequences[session]))

    def end(self, who: int) -> None:
        session = self.sessions[who]
        self.group.one("session", EndSession(session), client=who + 1)

    def told(self) -> list[tuple[int, int]]:
        """(wait, token) of those woken since this was last asked; -1 for a failure."""
        found = []
        for client, hint in self.group.replica.take_hints():
            assert isinstance(hint, WokenLater | FailedLater)
            assert self.sessions[client - 1] == hint.session
            failed = isinstance(hint, FailedLater)
            found.append((hint.wait, -1 if isinstance(hint, FailedLater) else hint.token))
            news = self.table.news(self.group.replica.moment, hint.session, hint.wait)
            assert isinstance(news, Failure) if failed else getattr(news, "token", 0) > 0
        return found

    def assert_empty(self) -> None:
        table = self.table
        assert not (table.things or table.rows or table.uses or table.queues or table.held)


@pytest.fixture
def world() -> World:
    return World()


def code(result: Any) -> Code:
    assert isinstance(result, Failure), result
    return result.code


class TestSemaphores:
    def test_permits_are_passed_on_in_order(self, world: World) -> None:
        permits = [world.ask(0, TakePermit("s", 2)).permit for _ in range(2)]
        waits = [world.ask(who, TakePermit("s", 2)).wait for who in (1, 2)]
        assert code(world.ask(3, TakePermit("s", 2, wait=False))) is Code.WOULD_BLOCK
        assert world.query(InspectSemaphore("s")) == SemaphoreState(True, 2, False, 0, 2, 2)
        assert world.ask(0, GivePermits("s", 2)) == Given()
        assert world.told() == [(waits[0], waits[0])]
        assert world.ask(0, Leave(permits[1])) == Left()
        assert world.told() == [(waits[1], waits[1])]
        for who in (1, 2):
            world.ask(who, GivePermits("s", 2))
        assert world.query(InspectSemaphore("s")) == SemaphoreState(True, 2, False, 2, 0, 0)

    def test_nobody_barges(self, world: World) -> None:
        world.ask(0, TakePermit("s"))
        wait = world.ask(1, TakePermit("s")).wait
        world.ask(0, GivePermits("s"))
        assert isinstance(world.ask(0, TakePermit("s")), Waiting)
        assert world.told() == [(wait, wait)]

    def test_what_a_session_has_goes_with_it(self, world: World) -> None:
        world.ask(0, TakePermit("s"))
        world.ask(1, TakePermit("s"))
        wait = world.ask(2, TakePermit("s")).wait
        world.end(1)
        assert world.told() == []
        world.end(0)
        assert world.told() == [(wait, wait)]
        world.end(2)
        world.assert_empty()

    def test_an_unbounded_one_can_be_given_more(self, world: World) -> None:
        world.ask(0, GivePermits("s", 0, count=3))
        for who in (1, 2, 3):
            assert isinstance(world.ask(who, TakePermit("s", 0)), Permitted)
        assert isinstance(world.ask(4, TakePermit("s", 0)), Waiting)

    def test_a_bounded_one_takes_back_only_what_was_taken(self, world: World) -> None:
        world.ask(0, TakePermit("s", 2, True))
        assert code(world.ask(1, GivePermits("s", 2, True))) is Code.NOT_HELD
        assert code(world.ask(0, GivePermits("s", 2, True, 2))) is Code.NOT_HELD, "none at all"
        assert world.query(InspectSemaphore("s")).held == 1
        assert world.ask(0, GivePermits("s", 2, True)) == Given()

    def test_a_value_given_later_is_refused(self, world: World) -> None:
        world.ask(0, TakePermit("s", 3))
        for other in (TakePermit("s", 5), TakePermit("s", 3, True), GivePermits("s", 4)):
            for who in (0, 1):
                result = world.ask(who, other)
                assert code(result) is Code.SETTINGS_DIFFER
                assert result.detail[0] == "value 3" and len(result.detail) == 2
        assert world.sessions[1] not in world.table.uses
        world.end(0)
        assert isinstance(world.ask(1, TakePermit("s", 5)), Permitted), "gone with its users"

    def test_the_wait_of_a_dead_session_is_never_served(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from coterie.protocols.session import machine

        monkeypatch.setattr(machine, "STEP", 1)
        world.ask(0, TakePermit("s"))
        world.ask(1, TakePermit("other"))
        world.ask(1, TakePermit("s"))
        wait = world.ask(2, TakePermit("s")).wait
        world.end(1)
        world.ask(0, GivePermits("s"))
        assert world.told() == []
        assert isinstance(world.ask(3, TakePermit("s")), Waiting), "nor does anybody barge"
        world.group.one("session", EmptySession(world.sessions[1]))
        assert world.told() == [(wait, wait)]

    @pytest.mark.parametrize("queued", [False, True])
    def test_a_cancelled_take_holds_nothing(self, world: World, queued: bool) -> None:
        if queued:
            world.ask(0, TakePermit("s"))
        world.ask(1, TakePermit("s"))
        world.cancel(1)
        if queued:
            world.ask(0, GivePermits("s"))
        assert world.query(InspectSemaphore("s")) == SemaphoreState(True, 1, False, 1, 0, 0)


class TestEvents:
    def test_who_waits_is_woken_and_who_comes_later_passes(self, world: World) -> None:
        assert world.ask(0, WaitEvent("e", wait=False)) == EventState(False)
        waits = [world.ask(who, WaitEvent("e")).wait for who in (1, 2, 1)]
        assert world.query(InspectEvent("e")) == EventState(False, 3)
        assert world.ask(0, SetEvent("e")) == EventState(True)
        number = world.group.replica.number
        assert world.told() == [(wait, number) for wait in waits]
        assert world.ask(3, WaitEvent("e")) == EventState(True)
        assert world.ask(0, ClearEvent("e")) == EventState(False)
        assert isinstance(world.ask(3, WaitEvent("e")), Waiting)
        for who, wait in zip((1, 2, 1), waits, strict=True):
            world.ask(who, Leave(wait))
        assert list(world.table.rows) == [world.sessions[3]]

    def test_many_are_woken_by_steps_even_if_it_is_cleared(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "STEP", 2)
        waits = [world.ask(1, WaitEvent("e")).wait for _ in range(5)]
        world.ask(0, SetEvent("e"))
        world.ask(0, ClearEvent("e"))
        later = world.ask(2, WaitEvent("e")).wait
        woken = [wait for wait, _ in world.told()]
        port = DirectPort(world.group, CoordinationPlugin())
        while port.plugin.deadline() is not None:
            port.plugin.on_deadline()
            port.commit()
            woken += [wait for wait, _ in world.told()]
        assert woken == waits and later not in woken

    def test_it_is_unset_when_its_last_user_is_gone(self, world: World) -> None:
        world.ask(0, SetEvent("e"))
        world.ask(1, WaitEvent("e"))
        world.end(0)
        assert world.query(InspectEvent("e")).is_set
        world.end(1)
        assert not world.query(InspectEvent("e")).is_set
        world.assert_empty()


class TestBarriers:
    def test_the_last_to_arrive_lets_all_pass(self, world: World) -> None:
        for _ in range(2):
            waits = [world.ask(who, WaitBarrier("b", 3)).wait for who in (0, 1)]
            assert world.query(InspectBarrier("b")) == BarrierState(3, 2, False)
            assert world.ask(2, WaitBarrier("b", 3)) == Passed(2)
            assert world.told() == [(waits[0], 1), (waits[1], 2)], "1 + the index"
            assert world.query(InspectBarrier("b")) == BarrierState(3, 0, False)

    def test_one_party(self, world: World) -> None:
        assert world.ask(0, WaitBarrier("b", 1)) == Passed(0)

    def test_broken_until_it_is_reset(self, world: World) -> None:
        wait = world.ask(0, WaitBarrier("b", 2)).wait
        assert world.ask(1, BreakBarrier("b", 2)) == BarrierState(2, 0, True)
        assert world.told() == [(wait, -1)]
        assert code(world.ask(1, WaitBarrier("b", 2))) is Code.BROKEN_BARRIER
        assert world.ask(1, ResetBarrier("b", 2)) == BarrierState(2, 0, False)
        assert isinstance(world.ask(1, WaitBarrier("b", 2)), Waiting)

    def test_a_reset_fails_those_who_wait(self, world: World) -> None:
        wait = world.ask(0, WaitBarrier("b", 2)).wait
        world.ask(1, ResetBarrier("b", 2))
        assert world.told() == [(wait, -1)]

    def test_who_leaves_does_not_break_it_but_who_dies_does(self, world: World) -> None:
        world.ask(0, WaitBarrier("b", 3))
        world.cancel(0)
        first = world.ask(1, WaitBarrier("b", 3)).wait
        world.ask(0, WaitBarrier("b", 3))
        assert world.told() == []
        world.end(0)
        assert world.told() == [(first, -1)]
        assert world.query(InspectBarrier("b")).broken

    def test_other_parties_are_refused(self, world: World) -> None:
        world.ask(0, WaitBarrier("b", 2))
        result = world.ask(1, WaitBarrier("b", 3))
        assert code(result) is Code.SETTINGS_DIFFER and result.detail == ("2 parties", "3 parties")


class TestConditions:
    def test_the_longest_waiting_are_woken(self, world: World) -> None:
        waits = [world.ask(who, WaitCondition("c")).wait for who in (0, 1, 2, 3)]
        assert world.ask(4, NotifyCondition("c", 2)) == Notified(2)
        assert [wait for wait, _ in world.told()] == waits[:2]
        assert world.ask(4, NotifyCondition("c", 0)) == Notified(2)
        assert [wait for wait, _ in world.told()] == waits[2:]
        assert world.ask(4, NotifyCondition("c")) == Notified(0)
        assert world.ask(4, NotifyCondition("nobody")) == Notified(0)
        assert world.query(InspectCondition("c")) == ConditionState(0)

    def test_a_notification_is_not_lost_with_who_was_cancelled(self, world: World) -> None:
        world.ask(0, WaitCondition("c"))
        other = world.ask(1, WaitCondition("c")).wait
        world.ask(2, NotifyCondition("c"))
        world.told()
        world.cancel(0)
        assert [wait for wait, _ in world.told()] == [other]

    def test_one_that_is_about_to_be_woken_is_not_counted_again(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "STEP", 1)
        for _ in range(4):
            world.ask(0, WaitCondition("c"))
        assert world.ask(1, NotifyCondition("c", 2)) == Notified(2)
        assert world.ask(1, NotifyCondition("c", 1)) == Notified(1)
        for _ in range(3):
            world.group.one("coordination", GoOn(3, "c"))
        assert len(world.told()) == 3
        assert world.query(InspectCondition("c")) == ConditionState(1)


class TestElections:
    def test_candidates_lead_in_turn_by_rising_tokens(self, world: World) -> None:
        first = world.ask(0, Campaign("e", b"one"))
        waits = [world.ask(who, Campaign("e", b"two")).wait for who in (1, 2)]
        assert isinstance(first, Elected)
        state = world.query(InspectElection("e"))
        assert state == ElectionState("c1", world.sessions[0], b"one", first.token, 2)
        assert code(world.ask(1, Resign("e", first.leadership))) is Code.NOT_HELD
        assert world.ask(0, Resign("e", first.leadership)) == Left()
        ((wait, token),) = world.told()
        assert wait == waits[0] and token > first.token
        world.end(1)
        ((wait, later),) = world.told()
        assert wait == waits[1] and later > token
        assert world.query(InspectElection("e")).client == "c3"
        assert world.ask(2, Resign("e", wait)) == Left()
        assert world.query(InspectElection("e")) == ElectionState("", 0, b"", 0, 0)
        assert world.ask(3, Campaign("e")).token > later

    def test_a_try(self, world: World) -> None:
        world.ask(0, Campaign("e"))
        assert code(world.ask(1, Campaign("e", wait=False))) is Code.WOULD_BLOCK

    @pytest.mark.parametrize("queued", [False, True])
    def test_a_cancelled_campaign_leads_nothing(self, world: World, queued: bool) -> None:
        leader = world.ask(0, Campaign("e")) if queued else None
        world.ask(1, Campaign("e"))
        world.cancel(1)
        if leader is not None:
            world.ask(0, Resign("e", leader.leadership))
        assert world.query(InspectElection("e")).token == 0


def test_fences_never_forget(world: World) -> None:
    assert world.ask(0, CheckFence("f", 7)) == FencePassed()
    assert world.ask(1, CheckFence("f", 7)) == FencePassed(), "an equal one passes"
    assert world.ask(1, CheckFence("f", 9)) == FencePassed()
    for who in range(5):
        world.end(who)
    result = world.group.one("coordination", CheckFence("f", 8), client=9)
    assert code(result) is Code.STALE_TOKEN and getattr(result, "detail", ()) == ("9",)


def test_an_expired_session_is_as_one_that_ended(world: World) -> None:
    permit = world.ask(0, TakePermit("s"))
    assert isinstance(permit, Permitted)
    world.group.time_us += TTL_US
    deadline_us = world.group.sessions.sessions[world.sessions[0]].deadline_us
    world.group.one("session", ExpireSession(world.sessions[0], deadline_us))
    world.assert_empty()


def test_one_without_a_session_gets_nothing(world: World) -> None:
    for operation in (TakePermit("s"), WaitEvent("e"), Campaign("x"), WaitBarrier("b", 2)):
        result = world.group.one("coordination", operation, client=3)
        assert code(result) is Code.MALFORMED


def test_limits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WAITS_PER_THING_MAX", 1)
    monkeypatch.setattr(serving, "THINGS_PER_SESSION_MAX", 2)
    monkeypatch.setattr(serving, "THINGS_MAX", 3)
    monkeypatch.setattr(serving, "ROWS_PER_SESSION_MAX", 3)
    monkeypatch.setattr(table, "FENCES_MAX", 1)
    world.ask(0, TakePermit("s"))
    world.ask(1, TakePermit("s"))
    assert code(world.ask(2, TakePermit("s"))) is Code.BUSY, "waits of one name"
    world.ask(0, SetEvent("e"))
    assert code(world.ask(0, SetEvent("f"))) is Code.BUSY, "names of one session"
    world.ask(3, TakePermit("t", 9))
    assert code(world.ask(4, SetEvent("f"))) is Code.BUSY, "names"
    for _ in range(2):
        world.ask(3, TakePermit("t", 9))
    assert code(world.ask(3, TakePermit("t", 9))) is Code.BUSY, "rows of one session"
    world.ask(0, CheckFence("f", 1))
    assert code(world.ask(0, CheckFence("g", 1))) is Code.BUSY
    assert world.ask(0, CheckFence("f", 2)) == FencePassed()


def test_a_snapshot_gives_the_same_and_the_same_bytes(world: World) -> None:
    steps: list[Callable[[], Any]] = [
        lambda: world.ask(0, TakePermit("s", 2)),
        lambda: world.ask(1, TakePermit("s", 2)),
        lambda: world.ask(1, TakePermit("s", 2)),
        lambda: world.ask(0, GivePermits("s", 2)),
        lambda: world.ask(2, WaitEvent("e")),
        lambda: world.ask(3, SetEvent("e")),
        lambda: world.ask(4, WaitBarrier("b", 2)),
        lambda: world.ask(3, BreakBarrier("b", 2)),
        lambda: world.ask(4, WaitCondition("c")),
        lambda: world.ask(0, Campaign("x", b"v")),
        lambda: world.ask(1, Campaign("x", b"w")),
        lambda: world.ask(1, CheckFence("f", 3)),
        lambda: world.end(0),
        lambda: world.ask(2, NotifyCondition("c")),
    ]
    for step in steps:
        step()
        other = CoordinationTable()
        other.attach(world.group.replica)
        chunks = list(world.table.snapshot())
        restore(other, chunks)
        other.check()
        assert list(other.snapshot()) == chunks
        assert other.queues == world.table.queues and other.held == world.table.held
        world.group.replica.machines["coordination"] = other


class TestThePlugin:
    @pytest.fixture
    def port(self) -> DirectPort:
        return DirectPort(ControlGroup(), CoordinationPlugin())

    @pytest.mark.parametrize(
        ("operation", "expected"),
        [
            (TakePermit(""), Code.BAD_NAME),
            (TakePermit("s", -1), Code.MALFORMED),
            (GivePermits("s", count=0), Code.MALFORMED),
            (GivePermits("s", count=1_001), Code.MALFORMED),
            (WaitBarrier("b", 0), Code.MALFORMED),
            (WaitBarrier("b", 1_001), Code.MALFORMED),
            (CheckFence("f", 0), Code.MALFORMED),
            (NotifyCondition("c", -1), Code.MALFORMED),
            (Campaign("e", b"x" * (plugins.VALUE_BYTES_MAX + 1)), Code.TOO_LARGE),
            (SetEvent("."), Code.BAD_NAME),
        ],
    )
    def test_what_has_no_meaning_is_refused(
        self, port: DirectPort, operation: Operation, expected: Code
    ) -> None:
        port.request([operation], session=port.group.open(7))
        (result,) = port.answered()
        assert code(result) is expected and not port.proposals

    def test_an_observer_is_answered_when_the_leader_changes(self, port: DirectPort) -> None:
        session = port.group.open(7)
        state = self.observe(port, after=0)
        assert state is None
        port.request([Campaign("e", b"v")], session=session)
        port.commit()
        port.answers.clear()
        port.plugin.flush()
        (state,) = port.answered()
        assert state.value == b"v" and state.token > 0
        assert self.observe(port, after=0) == state, "it has changed already"
        assert self.observe(port, after=state.token) is None
        port.clock = port.plugin.deadline()
        port.plugin.on_deadline()
        port.plugin.flush()
        assert port.answered() == [state] and port.plugin.deadline() is None

    def observe(self, port: DirectPort, after: int) -> ElectionState | None:
        port.request([InspectElection("e", after, 1_000_000)])
        port.confirm_reads()
        return port.answered()[0] if port.answers else None

    def test_a_new_leader_goes_on(self, port: DirectPort, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serving, "STEP", 1)
        session = port.group.open(7)
        operations = [WaitEvent("e"), WaitEvent("e"), SetEvent("e")]
        port.request(operations, session=session)
        port.commit()
        assert port.plugin.deadline() is not None
        port.plugin.on_deadline()
        assert port.plugin.deadline() is None
        port.plugin.on_leader(CONTROL, "node1", 8)
        assert port.plugin.deadline() is not None
        port.commit()
        assert port.plugin.deadline() is None
