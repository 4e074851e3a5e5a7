"""Sessions: how they open, live and end, and what the plugin answers and proposes."""

from __future__ import annotations

from typing import Any

import pytest
from control_group import TTL_US, ControlGroup, DirectPort

from coterie.protocols.errors import Code
from coterie.protocols.lock.messages import (
    Acquire,
    AcquireAll,
    BeginTransaction,
    Release,
    Upgrade,
)
from coterie.protocols.plugin import CONTROL, Cancel, Failure
from coterie.protocols.session import machine
from coterie.protocols.session import plugin as plugin_module
from coterie.protocols.session.machine import SessionTable
from coterie.protocols.session.messages import (
    FAILED,
    GONE,
    GRANTED,
    WAITING,
    Describe,
    Described,
    EmptySession,
    EndSession,
    ExpireSession,
    KeepAlive,
    KeptAlive,
    ListSessions,
    Locate,
    Located,
    OpenSession,
    Pulse,
    Pulsed,
    SessionEnded,
    SessionOpened,
)
from coterie.protocols.session.plugin import SessionPlugin


@pytest.fixture
def group() -> ControlGroup:
    return ControlGroup()


@pytest.fixture
def port(group: ControlGroup) -> DirectPort:
    return DirectPort(group, SessionPlugin())


def code(result: Any) -> Code:
    assert isinstance(result, Failure), result
    return result.code


class TestTable:
    def test_the_same_attempt_opens_the_same_session(self, group: ControlGroup) -> None:
        session = group.open(7)
        assert group.open(7) == session
        assert len(group.sessions.sessions) == 1
        assert group.open(8) != session

    def test_a_higher_attempt_ends_the_older_a_lower_is_refused(self, group: ControlGroup) -> None:
        first = group.open(7)
        group.ask(first, Acquire("a"))
        second = group.open(7, attempt=2)
        assert list(group.sessions.sessions) == [second] == list(group.replica.windows)
        assert not group.locks.holders
        late = group.one("session", OpenSession(1, TTL_US), client=7)
        assert code(late) is Code.STALE_REQUEST

    @pytest.mark.parametrize("ttl_us", [-1, 0, 999_999, 3_600_000_001])
    def test_ttl_has_bounds(self, group: ControlGroup, ttl_us: int) -> None:
        result = group.one("session", OpenSession(1, ttl_us), client=7)
        assert code(result) is Code.MALFORMED
        assert not group.sessions.sessions

    def test_a_keep_alive_moves_the_deadline(self, group: ControlGroup) -> None:
        session = group.open(7)
        group.time_us += 4_000_000
        result = group.one("session", KeepAlive(), client=7, session=session)
        assert result == KeptAlive(10_000_000)
        assert group.sessions.sessions[session].deadline_us == group.time_us + TTL_US

    def test_an_expiry_is_checked_again(self, group: ControlGroup) -> None:
        session = group.open(7)
        deadline_us = group.sessions.sessions[session].deadline_us
        group.time_us = deadline_us - 1
        group.one("session", ExpireSession(session, deadline_us))
        assert session in group.sessions.sessions, "too early"
        group.one("session", KeepAlive(), client=7, session=session)
        group.time_us = deadline_us
        group.one("session", ExpireSession(session, deadline_us))
        assert session in group.sessions.sessions, "it was renewed since the leader looked"
        group.time_us += TTL_US
        group.one("session", ExpireSession(session, deadline_us))
        assert session in group.sessions.sessions, "nobody saw the new deadline pass yet"
        deadline_us = group.sessions.sessions[session].deadline_us
        group.one("session", ExpireSession(session, deadline_us))
        assert not group.sessions.sessions and not group.replica.windows
        result = group.one("session", KeepAlive(), client=7, session=session)
        assert code(result) is Code.SESSION_EXPIRED

    def test_only_its_client_ends_a_session(self, group: ControlGroup) -> None:
        session = group.open(7)
        result = group.one("session", EndSession(session), client=8)
        assert code(result) is Code.PERMISSION_DENIED
        for _ in range(2):
            result = group.one("session", EndSession(session), client=7)
            assert result == SessionEnded(), "repeatable"
        assert not group.sessions.sessions

    def test_a_large_session_ends_in_steps(
        self, group: ControlGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "STEP", 3)
        session = group.open(7)
        for number in range(7):
            group.ask(session, Acquire(f"lock{number}"))
        group.one("session", EndSession(session), client=7)
        left = [len(group.locks.holders)]
        while group.sessions.ending:
            group.one("session", EmptySession(session))
            left.append(len(group.locks.holders))
        assert left == [4, 1, 0]
        group.one("session", EmptySession(session))

    def test_sessions_are_bounded_the_ending_included(
        self, group: ControlGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "SESSIONS_MAX", 1)
        monkeypatch.setattr(machine, "STEP", 1)
        session = group.open(7)
        assert code(group.one("session", OpenSession(1, TTL_US), client=8)) is Code.BUSY
        group.ask(session, Acquire("a"))
        group.ask(session, Acquire("b"))
        group.one("session", EndSession(session), client=7)
        assert code(group.one("session", OpenSession(1, TTL_US), client=8)) is Code.BUSY
        group.one("session", EmptySession(session))
        group.one("session", EmptySession(session))
        assert group.open(8)

    def test_the_earliest_deadline_is_found_though_sessions_move(self, group: ControlGroup) -> None:
        table: SessionTable = group.sessions
        assert table.next_deadline_us() is None
        one, two = group.open(1), group.open(2, ttl_us=2 * TTL_US)
        start_us = group.time_us
        assert table.next_deadline_us() == start_us + TTL_US
        group.time_us += 5_000_000
        group.one("session", KeepAlive(), client=1, session=one)
        assert table.next_deadline_us() == start_us + TTL_US + 5_000_000
        group.one("session", EndSession(one), client=1)
        assert table.next_deadline_us() == start_us + 2 * TTL_US
        assert table.due(start_us + 2 * TTL_US - 1, 9) == []
        for _ in range(2):
            due = table.due(start_us + 2 * TTL_US, 9)
            assert due == [ExpireSession(two, start_us + 2 * TTL_US)], "until it is applied"

    def test_the_heap_stays_small(self, group: ControlGroup) -> None:
        for client in range(1, 2_500):
            session = group.open(client)
            group.one("session", EndSession(session), client=client)
        assert len(group.sessions._heap) <= 2 * machine.STEP

    def test_a_snapshot_comes_back(
        self, group: ControlGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "STEP", 1)
        monkeypatch.setattr(machine, "_CHUNK", 2)
        for client in (1, 2, 3):
            group.open(client, name=f"client{client}")
        session = group.open(4)
        group.ask(session, Acquire("a"))
        group.ask(session, Acquire("b"))
        group.one("session", EndSession(session), client=4)
        table = SessionTable()
        table.attach(group.replica)
        for chunk in group.sessions.snapshot():
            table.restore(chunk)
        table.restored()
        table.check()
        assert table.sessions == group.sessions.sessions
        assert table.by_client == group.sessions.by_client
        assert table.ending == {session: False}
        assert table.next_deadline_us() == group.sessions.next_deadline_us()

    def test_a_snapshot_is_of_the_moment_it_was_taken(self, group: ControlGroup) -> None:
        group.open(1)
        chunks = group.sessions.snapshot()
        group.open(2)
        table = SessionTable()
        for chunk in chunks:
            table.restore(chunk)
        assert len(table.sessions) == 1

    def test_a_list_names_who_is_there(self, group: ControlGroup) -> None:
        session = group.open(7, name="host:7")
        group.time_us += 2_500_000
        group.tick()
        result = group.sessions.query(group.replica.moment, ListSessions())
        assert result.sessions == ((session, "host:7", 7_500),)


class TestRequests:
    def test_locate_is_answered_at_once_by_any_node(self, port: DirectPort) -> None:
        port.leading = False
        port.request([Locate(), Locate()])
        first, second = port.answered()
        assert isinstance(first, Located) and first == second
        assert (first.cluster, first.node, first.leader, first.term) == (42, "node1", "node2", 7)
        assert first.settled and not port.reads

    def test_an_empty_frame_is_answered_empty(self, port: DirectPort) -> None:
        port.request([])
        assert port.answered() == [] and not port.proposals

    def test_describe_is_answered_at_once_by_any_node(self, port: DirectPort) -> None:
        port.leading = False
        port.request([Describe()])
        assert port.answered() == [Described(b"{}")]
        port.request([Locate(), Describe()])
        port.confirm_reads()
        located, refused = port.answered()
        assert isinstance(located, Located) and code(refused) is Code.MALFORMED

    def test_open_and_end(self, port: DirectPort) -> None:
        port.request([OpenSession(1, TTL_US, "x")])
        assert not port.answers
        port.commit()
        (opened,) = port.answered()
        assert isinstance(opened, SessionOpened)
        port.request([EndSession(opened.session)])
        port.commit()
        assert port.answered() == [SessionEnded()]

    @pytest.mark.parametrize("name", ["x" * 256, "a\nb", "ä" * 128])
    def test_a_bad_name_never_reaches_the_log(self, port: DirectPort, name: str) -> None:
        port.request([OpenSession(1, TTL_US, name)])
        assert code(port.answered()[0]) is Code.BAD_NAME and not port.proposals

    def test_refusals_of_the_log_are_passed_on(self, port: DirectPort) -> None:
        failure = Failure(Code.NOT_LEADER, "ask node2", ("node2",))
        port.request([OpenSession(1, TTL_US)])
        port.fail(failure)
        assert port.answered() == [failure]
        port.request([Pulse(False)])
        port.plugin.on_failed(CONTROL, port.reads.pop(), failure)
        assert port.answered() == [failure]

    def test_mixed_frames_are_refused(self, port: DirectPort) -> None:
        for operations in (
            [Pulse(False), Pulse(False)],
            [Locate(), Pulse(False)],
            [KeepAlive(), ListSessions()],
        ):
            port.request(operations)
            assert {code(result) for result in port.answered()} == {Code.MALFORMED}
        port.request([Locate()], group=1)
        assert code(port.answered()[0]) is Code.MALFORMED

    def test_a_list_is_read_after_a_round(self, port: DirectPort) -> None:
        port.request([ListSessions(), Locate()])
        assert not port.answers
        port.confirm_reads()
        listed, located = port.answered()
        assert listed.sessions == () and isinstance(located, Located)


class TestPulse:
    def test_keeps_alive_once_it_is_committed(self, port: DirectPort) -> None:
        session = port.group.open(7)
        port.group.time_us += 1_000_000
        port.request([Pulse(True)], session=session)
        assert not port.answers and not port.reads
        port.commit()
        (pulsed,) = port.answered()
        assert isinstance(pulsed, Pulsed) and pulsed.alive and pulsed.kept_alive
        assert (pulsed.leader, pulsed.term) == ("node1", 7)
        deadline_us = port.group.sessions.sessions[session].deadline_us
        assert deadline_us == port.group.time_us + TTL_US

    def test_without_keep_alive_only_reads(self, port: DirectPort) -> None:
        session = port.group.open(7)
        port.request([Pulse(False)], session=session)
        assert not port.proposals and not port.answers
        port.confirm_reads()
        (pulsed,) = port.answered()
        assert pulsed.alive and not pulsed.kept_alive

    def test_tells_that_the_session_is_gone(self, port: DirectPort) -> None:
        session = port.group.open(7)
        port.group.one("session", EndSession(session), client=7)
        port.request([Pulse(True, (("lock", 5),))], session=session)
        port.commit()
        (pulsed,) = port.answered()
        assert not pulsed.alive and not pulsed.kept_alive and pulsed.news == ((GONE, 0),)

    def test_of_another_client_renews_nothing(self, port: DirectPort) -> None:
        session = port.group.open(8)
        before = port.group.sessions.sessions[session]
        port.group.time_us += 1
        port.request([Pulse(True)], client=7, session=session)
        port.commit()
        assert code(port.answered()[0]) is Code.PERMISSION_DENIED
        grant = port.group.ask(session, Acquire("a")).grant
        port.request([Pulse(False, (("lock", grant),))], client=7, session=session)
        port.confirm_reads()
        (pulsed,) = port.answered()
        assert not pulsed.alive and pulsed.news == ((GONE, 0),)
        assert port.group.sessions.sessions[session] == before

    def test_brings_news_of_waits(self, port: DirectPort) -> None:
        group = port.group
        one, two = group.open(1), group.open(7)
        grant = group.ask(one, Acquire("a")).grant
        other = group.ask(one, Acquire("b")).grant
        first, second = (group.ask(two, Acquire(name)).wait for name in "ab")
        gone = group.ask(two, Acquire("b")).wait
        group.ask(two, Cancel(group.sequences[two]))
        waits = tuple(("lock", number) for number in (first, second, gone, other))
        group.ask(one, Release("a", grant))
        for keep_alive in (False, True):
            port.request([Pulse(keep_alive, waits)], session=two)
            port.commit() if keep_alive else port.confirm_reads()
            (pulsed,) = port.answered()
            token = group.locks.claims[two][first].token
            assert pulsed.news == ((GRANTED, token), (WAITING, 0), (GONE, 0), (GONE, 0))

    def test_brings_failures_and_what_was_granted_together(
        self, port: DirectPort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group = port.group
        one, two = group.open(1), group.open(7)
        grant = group.ask(one, Acquire("s", shared=True)).grant
        group.ask(one, Upgrade("s", grant))
        waits = [group.ask(two, AcquireAll(("s", "t"))).wait]
        group.ask(one, Release("s", grant))
        older = group.ask(one, BeginTransaction()).transaction
        group.ask(one, Acquire("a", owner=older))
        for name in "bc":
            owner = group.ask(two, BeginTransaction()).transaction
            group.ask(two, Acquire(name, owner=owner))
            waits.append(group.ask(two, Acquire("a", owner=owner)).wait)
            group.ask(one, Acquire(name, owner=older))
        monkeypatch.setattr(plugin_module, "FAILURES_MAX", 1)
        port.request([Pulse(False, tuple(("lock", wait) for wait in waits))], session=two)
        port.confirm_reads()
        (pulsed,) = port.answered()
        tokens = tuple(group.locks.claims[two][waits[0] + place].token for place in (0, 1))
        assert pulsed.news[0] == (GRANTED, tokens[0]) and pulsed.tokens == ((0, tokens),)
        assert [kind for kind, _ in pulsed.news[1:]] == [FAILED, WAITING], "the rest comes later"
        ((place, failure),) = pulsed.failures
        assert place == 1 and failure.code is Code.DEADLOCK

    def test_asks_about_plugins_that_are_here_and_not_too_much(self, port: DirectPort) -> None:
        session = port.group.open(7)
        port.request([Pulse(False, (("nonsense", 1),))], session=session)
        port.confirm_reads()
        assert code(port.answered()[0]) is Code.UNKNOWN_PLUGIN
        port.request([Pulse(False, (("lock", 1),) * 1_001)], session=session)
        assert code(port.answered()[0]) is Code.MALFORMED


class TestDeadlines:
    def test_come_in_log_time(self, port: DirectPort) -> None:
        plugin = port.plugin
        assert plugin.deadline() is None
        port.group.open(7)
        assert plugin.deadline() == port.clock + TTL_US / 1e6
        port.clock += 20  # the clock moved, log time did not
        plugin.on_deadline()
        assert not port.proposals and plugin.deadline() == port.clock + TTL_US / 1e6
        port.leading = False
        assert plugin.deadline() is None

    def test_only_the_leader_proposes(self, port: DirectPort) -> None:
        port.group.open(7)
        port.group.time_us += TTL_US
        port.leading = False
        port.plugin.on_deadline()
        assert not port.proposals

    def test_one_batch_at_a_time(self, port: DirectPort, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugin_module, "EXPIRIES_MAX", 2)
        for client in (1, 2, 3):
            port.group.open(client)
        port.group.time_us += TTL_US
        port.plugin.on_deadline()
        assert [len(command.operations) for command, _ in port.proposals] == [2]
        assert port.plugin.deadline() is None
        port.plugin.on_deadline()
        assert len(port.proposals) == 1, "not again before it was applied"
        port.commit()
        assert len(port.group.sessions.sessions) == 1
        assert port.plugin.deadline() == port.clock
        port.plugin.on_deadline()
        port.commit()
        assert not port.group.sessions.sessions and port.plugin.deadline() is None

    def test_a_refused_batch_is_proposed_again_a_little_later(self, port: DirectPort) -> None:
        port.group.open(7)
        port.group.time_us += TTL_US
        port.plugin.on_deadline()
        port.fail(Failure(Code.BUSY))
        assert port.plugin.deadline() > port.clock
        port.plugin.on_deadline()
        assert not port.proposals
        port.clock = port.plugin.deadline()
        port.plugin.on_deadline()
        port.commit()
        assert not port.group.sessions.sessions

    def test_a_batch_of_an_earlier_term_stands_in_nobodys_way(self, port: DirectPort) -> None:
        port.group.open(7)
        port.group.time_us += TTL_US
        port.plugin.on_deadline()
        ((_, stale),) = port.proposals
        port.proposals = []
        port.plugin.on_leader(CONTROL, "node2", 8)
        port.plugin.on_leader(CONTROL, "node1", 9)
        port.plugin.on_deadline()
        assert len(port.proposals) == 1
        port.plugin.on_applied(CONTROL, stale, [])
        assert port.plugin.deadline() is None, "the answer to an old batch is not this one's"
        port.commit()
        assert not port.group.sessions.sessions

    def test_ended_sessions_are_emptied(
        self, port: DirectPort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "EXPIRY_STEP", 1)
        session = port.group.open(7)
        for name in "abc":
            port.group.ask(session, Acquire(name))
        port.group.time_us += TTL_US
        rounds = 0
        while port.plugin.deadline() is not None:
            port.plugin.on_deadline()
            port.commit()
            rounds += 1
        assert rounds == 2 and not port.group.locks.holders and not port.group.sessions.ending
        assert port.plugin.status() == {"sessions": 0, "ending": 0, "ended": 0, "expired": 1}
