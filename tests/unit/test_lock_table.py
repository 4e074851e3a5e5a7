"""The lock table: by hand where it matters, and against a naive model in any order of events."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from control_group import TTL_US, ControlGroup
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coterie.protocols.errors import Code
from coterie.protocols.lock import granting, inspection, snapshot, table
from coterie.protocols.lock.messages import (
    Acquire,
    Granted,
    GrantedLater,
    Graph,
    Inspect,
    ListLocks,
    OpenLock,
    Queued,
    Release,
    Released,
)
from coterie.protocols.lock.table import LockTable
from coterie.protocols.plugin import Cancel, Cancelled, Command, Failure, Operation
from coterie.protocols.registry import Registry, builtin
from coterie.protocols.replica import Replica
from coterie.protocols.restoring import restore
from coterie.protocols.session import machine
from coterie.protocols.session.messages import (
    EmptySession,
    EndSession,
    ExpireSession,
    KeepAlive,
)


@pytest.fixture
def group() -> ControlGroup:
    return ControlGroup()


def hints(group: ControlGroup) -> list[tuple[int, int, int]]:
    """(client, wait, token) of the hints since this was last asked."""
    told = []
    for client, hint in group.replica.take_hints():
        assert isinstance(hint, GrantedLater)
        told.append((client, hint.wait, hint.token))
    return told


def code(result: Any) -> Code:
    assert isinstance(result, Failure), result
    return result.code


def expire(group: ControlGroup, session: int) -> None:
    group.time_us += TTL_US
    deadline_us = group.sessions.sessions[session].deadline_us
    group.one("session", ExpireSession(session, deadline_us))


def assert_nothing_left(group: ControlGroup) -> None:
    locks: LockTable = group.locks
    assert not locks.holders and not locks.waits and not locks.deferred
    assert not any(locks.claims.values())


def test_exclusive_waits_in_order_and_tokens_rise(group: ControlGroup) -> None:
    sessions = [group.open(client) for client in (1, 2, 3)]
    first = group.ask(sessions[0], Acquire("a"))
    second, third = (group.ask(session, Acquire("a")) for session in sessions[1:])
    assert isinstance(second, Queued) and isinstance(third, Queued)
    assert group.ask(sessions[0], Release("a", first.grant)) == Released()
    ((client, wait, token),) = hints(group)
    assert (client, wait) == (2, second.wait) and token > first.token
    group.ask(sessions[1], Release("a", second.wait))
    ((client, wait, later),) = hints(group)
    assert (client, wait) == (3, third.wait) and later > token
    group.ask(sessions[2], Release("a", third.wait))
    assert_nothing_left(group)
    again = group.ask(sessions[0], Acquire("a"))
    assert again.token > later, "also after the lock was free and forgotten"


def test_a_run_of_shared_grants_has_one_token(group: ControlGroup) -> None:
    sessions = [group.open(client) for client in (1, 2, 3)]
    one = group.ask(sessions[0], Acquire("a", shared=True))
    two = group.ask(sessions[1], Acquire("a", shared=True))
    assert two.token == one.token != two.grant
    group.ask(sessions[0], Release("a", one.grant))
    three = group.ask(sessions[2], Acquire("a", shared=True))
    assert three.token == one.token, "the run had no gap"
    group.ask(sessions[1], Release("a", two.grant))
    group.ask(sessions[2], Release("a", three.grant))
    new = group.ask(sessions[0], Acquire("a", shared=True))
    assert new.token == new.grant > one.token


def test_nobody_barges_and_no_writer_starves(group: ControlGroup) -> None:
    sessions = [group.open(client) for client in (1, 2, 3, 4)]
    reader = group.ask(sessions[0], Acquire("a", shared=True))
    writer = group.ask(sessions[1], Acquire("a"))
    late = group.ask(sessions[2], Acquire("a", shared=True))
    assert isinstance(late, Queued), "a reader waits behind the writer"
    assert code(group.ask(sessions[3], Acquire("a", shared=True, wait=False))) is Code.WOULD_BLOCK
    group.ask(sessions[0], Release("a", reader.grant))
    assert [wait for _, wait, _ in hints(group)] == [writer.wait]
    group.ask(sessions[1], Release("a", writer.wait))
    assert [wait for _, wait, _ in hints(group)] == [late.wait]


def test_a_cancelled_writer_lets_the_readers_in(group: ControlGroup) -> None:
    sessions = [group.open(client) for client in (1, 2, 3)]
    reader = group.ask(sessions[0], Acquire("a", shared=True))
    group.ask(sessions[1], Acquire("a"))
    late = group.ask(sessions[2], Acquire("a", shared=True))
    group.ask(sessions[1], Cancel(group.sequences[sessions[1]]))
    assert hints(group) == [(3, late.wait, reader.token)], "it joins the run"


def test_a_try_leaves_no_trace(group: ControlGroup) -> None:
    one, two = group.open(1), group.open(2)
    grant = group.ask(one, Acquire("a")).grant
    assert code(group.ask(two, Acquire("a", wait=False))) is Code.WOULD_BLOCK
    assert not group.locks.waits and not group.locks.claims[two]
    group.ask(one, Release("a", grant))
    assert_nothing_left(group)


def test_only_the_holder_releases_and_only_once(group: ControlGroup) -> None:
    one, two = group.open(1), group.open(2)
    grant = group.ask(one, Acquire("a")).grant
    wait = group.ask(two, Acquire("a")).wait
    for session, name, number in ((two, "a", grant), (one, "a", wait), (one, "b", grant)):
        assert code(group.ask(session, Release(name, number))) is Code.NOT_HELD
    assert group.ask(one, Release("a", grant)) == Released()
    assert code(group.ask(one, Release("a", grant))) is Code.NOT_HELD
    assert list(group.locks.holders["a"]) == [wait]


def test_releasing_a_wait_withdraws_it(group: ControlGroup) -> None:
    """Of a wait given up so late that its sequence is forgotten only the number is known."""
    one, two, three = (group.open(client) for client in (1, 2, 3))
    grant = group.ask(one, Acquire("a")).grant
    wait = group.ask(two, Acquire("a")).wait
    other = group.ask(three, Acquire("a")).wait
    assert group.ask(two, Release("a", wait)) == Released()
    assert code(group.ask(two, Release("a", wait))) is Code.NOT_HELD
    group.ask(one, Release("a", grant))
    assert [told for _, told, _ in hints(group)] == [other]


def test_a_lock_needs_a_session(group: ControlGroup) -> None:
    assert code(group.one("lock", Acquire("a"), client=7)) is Code.MALFORMED
    assert_nothing_left(group)


def test_the_wait_of_a_dead_session_is_never_granted(
    group: ControlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "EXPIRY_STEP", 1)
    one, two, three = (group.open(client) for client in (1, 2, 3))
    grant = group.ask(one, Acquire("a")).grant
    group.ask(two, Acquire("other"))
    group.ask(two, Acquire("a"))
    wait = group.ask(three, Acquire("a")).wait
    group.time_us += TTL_US // 2
    for session, client in ((one, 1), (three, 3)):
        group.one("session", KeepAlive(), client=client, session=session)
    group.time_us += TTL_US // 2
    group.one("session", ExpireSession(two, group.sessions.sessions[two].deadline_us))
    assert group.sessions.ending == {two: True}, "its wait is still to be let go"
    group.ask(one, Release("a", grant))
    assert hints(group) == [] and "a" not in group.locks.holders
    assert code(group.ask(one, Acquire("a", wait=False))) is Code.WOULD_BLOCK
    group.one("session", EmptySession(two))
    assert [told for _, told, _ in hints(group)] == [wait], "its end lets the queue move"


def test_a_session_that_holds_and_waits_for_the_same_lock_ends(group: ControlGroup) -> None:
    one, two = group.open(1), group.open(2)
    first = group.ask(one, Acquire("a"))
    group.ask(one, Acquire("a"))
    wait = group.ask(two, Acquire("a")).wait
    group.one("session", EndSession(one), client=1)
    ((client, told, token),) = hints(group)
    assert (client, told) == (2, wait) and token > first.token
    assert group.locks.holders["a"][wait].token == token


def test_one_end_lets_several_locks_go_with_an_era_each(group: ControlGroup) -> None:
    one, two = group.open(1), group.open(2)
    for name in "abc":
        group.ask(one, Acquire(name))
    waits = [group.ask(two, Acquire(name)).wait for name in "abc"]
    group.one("session", EndSession(one), client=1)
    told = hints(group)
    assert [wait for _, wait, _ in told] == waits
    assert len({token for *_, token in told}) == 1, "one operation number, one era per lock"


def test_news_of_a_wait(group: ControlGroup) -> None:
    one, two = group.open(1), group.open(2)
    first = group.ask(one, Acquire("a"))
    wait = group.ask(two, Acquire("a")).wait
    moment = group.replica.moment
    assert group.locks.news(moment, two, wait) == Queued(wait)
    assert group.locks.news(moment, one, wait) is None, "of its own session only"
    group.ask(one, Release("a", first.grant))
    assert group.locks.news(moment, two, wait) == Granted(wait, moment.number)
    group.ask(two, Release("a", wait))
    assert group.locks.news(moment, two, wait) is None


class TestLockDelay:
    def test_after_an_expiry_nobody_gets_the_lock_for_a_while(self, group: ControlGroup) -> None:
        one = group.open(1)
        group.ask(one, Acquire("a", lock_delay_us=5_000_000))
        group.ask(one, Acquire("b"))
        two = group.open(2, ttl_us=60_000_000)
        wait = group.ask(two, Acquire("a")).wait
        expire(group, one)
        assert hints(group) == [] and "a" not in group.locks.holders
        assert isinstance(group.ask(two, Acquire("b")), Granted), "no delay was asked for"
        deadline_us = group.time_us + 5_000_000
        assert group.locks.deferred == {"a": deadline_us}
        assert group.replica.deadlines_pending()
        group.one("lock", OpenLock("a", deadline_us))
        assert hints(group) == [], "too early"
        group.time_us = deadline_us
        group.one("lock", OpenLock("a", deadline_us - 1))
        assert hints(group) == [], "of another deadline"
        group.one("lock", OpenLock("a", deadline_us))
        assert [told for _, told, _ in hints(group)] == [wait]

    def test_the_longest_delay_of_those_that_shared_it_counts(self, group: ControlGroup) -> None:
        one, two = group.open(1), group.open(2)
        group.ask(one, Acquire("a", shared=True, lock_delay_us=9_000_000))
        group.ask(two, Acquire("a", shared=True, lock_delay_us=1_000_000))
        expire(group, one)
        deadline_us = group.time_us + 9_000_000
        group.one("session", ExpireSession(two, group.sessions.sessions[two].deadline_us))
        assert group.locks.deferred == {"a": deadline_us}
        assert not group.replica.windows and group.replica.deadlines_pending()

    def test_is_kept_by_a_snapshot(self, group: ControlGroup) -> None:
        one = group.open(1)
        group.ask(one, Acquire("a", lock_delay_us=5_000_000))
        expire(group, one)
        other = restored(group)
        assert other.deferred == group.locks.deferred
        assert other.openable(group.time_us + 5_000_000, 9) == [
            OpenLock("a", group.time_us + 5_000_000)
        ]

    def test_a_clean_end_grants_at_once(self, group: ControlGroup) -> None:
        one, two = group.open(1), group.open(2)
        group.ask(one, Acquire("a", lock_delay_us=5_000_000))
        wait = group.ask(two, Acquire("a")).wait
        group.one("session", EndSession(one), client=1)
        assert [told for _, told, _ in hints(group)] == [wait]
        group.ask(two, Release("a", wait))
        assert_nothing_left(group)

    def test_an_acquire_meanwhile_waits(self, group: ControlGroup) -> None:
        one = group.open(1)
        group.ask(one, Acquire("a", lock_delay_us=5_000_000))
        expire(group, one)
        two = group.open(2)
        assert code(group.ask(two, Acquire("a", wait=False))) is Code.WOULD_BLOCK
        assert isinstance(group.ask(two, Acquire("a")), Queued)

    def test_the_delay_of_a_wait_that_expired_is_none(self, group: ControlGroup) -> None:
        one = group.open(1, ttl_us=60_000_000)
        two = group.open(2)
        grant = group.ask(one, Acquire("a")).grant
        group.ask(two, Acquire("a", lock_delay_us=5_000_000))
        expire(group, two)
        group.ask(one, Release("a", grant))
        assert_nothing_left(group)


def test_a_thousand_readers_are_let_in_by_steps(
    group: ControlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "STEP", 3)
    monkeypatch.setattr(granting, "STEP", 3)
    one, two = group.open(1), group.open(2)
    grant = group.ask(one, Acquire("a")).grant
    waits = [group.ask(two, Acquire("a", shared=True)).wait for _ in range(7)]
    writer = group.ask(one, Acquire("a")).wait
    group.ask(one, Release("a", grant))
    told = hints(group)
    for _ in range(2):
        ((name, deadline_us),) = group.locks.deferred.items()
        (opening,) = group.locks.openable(group.time_us, 9)
        assert opening == OpenLock(name, deadline_us)
        group.one("lock", opening)
        told += hints(group)
    assert [wait for _, wait, _ in told] == waits
    assert len({token for *_, token in told}) == 1
    assert not group.locks.deferred and list(group.locks.waits["a"]) == [writer]


def test_limits(group: ControlGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "WAITS_PER_LOCK_MAX", 2)
    monkeypatch.setattr(table, "HOLDERS_PER_LOCK_MAX", 2)
    monkeypatch.setattr(table, "LOCKS_MAX", 2)
    one = group.open(1)
    group.ask(one, Acquire("a"))
    assert [type(group.ask(one, Acquire("a"))) for _ in range(3)] == [Queued, Queued, Failure]
    group.ask(one, Acquire("s", shared=True))
    group.ask(one, Acquire("s", shared=True))
    assert code(group.ask(one, Acquire("s", shared=True))) is Code.BUSY
    assert code(group.ask(one, Acquire("third"))) is Code.BUSY
    monkeypatch.setattr(table, "CLAIMS_PER_SESSION_MAX", 6)
    assert isinstance(group.ask(one, Acquire("s")), Queued)
    assert code(group.ask(one, Acquire("s"))) is Code.BUSY


def restored(group: ControlGroup) -> LockTable:
    """Another table made from a snapshot."""
    other = from_chunks(group, group.locks.snapshot())
    other.check()
    return other


def from_chunks(group: ControlGroup, chunks: Iterable[bytes]) -> LockTable:
    other = LockTable()
    other.attach(group.replica)
    for chunk in chunks:
        other.restore(chunk)
    other.restored()
    return other


def test_a_snapshot_keeps_the_order_of_waits_of_many_sessions(
    group: ControlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "ROWS_MAX", 2)
    sessions = [group.open(client) for client in (1, 2, 3)]
    for session in (0, 2, 1, 0, 1, 2, 0, 0, 0):
        group.ask(sessions[session], Acquire("a", shared=session == 1))
    idle = group.open(4)
    grant = group.ask(idle, Acquire("b")).grant
    group.ask(idle, Release("b", grant))
    locks: LockTable = group.locks
    other = restored(group)
    assert list(other.waits["a"].items()) == list(locks.waits["a"].items())
    assert other.holders == locks.holders and list(other.claims) == list(locks.claims)
    assert list(other.snapshot()) == list(locks.snapshot())


def test_a_snapshot_is_of_the_moment_it_was_taken(group: ControlGroup) -> None:
    session = group.open(1)
    group.ask(session, Acquire("a"))
    chunks = group.locks.snapshot()
    group.ask(session, Acquire("b"))
    group.ask(session, Acquire("a"))
    other = from_chunks(group, chunks)
    assert list(other.holders) == ["a"] and not other.waits


def query(group: ControlGroup, what: Any) -> Any:
    return group.locks.query(group.replica.moment, what)


def test_inspect(group: ControlGroup) -> None:
    one, two = group.open(1, name="host:1"), group.open(2, name="host:2")
    assert query(group, Inspect("a")).locks == ()
    first = group.ask(one, Acquire("a"))
    wait = group.ask(two, Acquire("a", shared=True)).wait
    (state,) = query(group, Inspect("a")).locks
    assert (state.name, state.shared, state.token, state.omitted) == ("a", False, first.token, 0)
    assert state.holders == (("host:1", one, first.grant, False),)
    assert state.waiters == (("host:2", two, wait, True),)


def test_lists_come_in_pages_by_name(group: ControlGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LOCKS_MAX", 3)
    session = group.open(1)
    for number in (3, 1, 7, 5, 2, 6, 4):
        group.ask(session, Acquire(f"a{number}"))
    group.ask(session, Acquire("b"))
    found: list[str] = []
    more, pages = True, 0
    while more:
        page = query(group, ListLocks("a", found[-1] if found else ""))
        found += [state.name for state in page.locks]
        more, pages = page.more, pages + 1
    assert found == [f"a{number}" for number in range(1, 8)] and pages == 3
    monkeypatch.setattr(inspection, "ANSWER_BYTES_MAX", 1)
    page = query(group, ListLocks())
    assert len(page.locks) == 1 and page.more


def test_a_crowded_lock_is_told_in_part(
    group: ControlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "CLAIMS_MAX", 2)
    session = group.open(1)
    for _ in range(5):
        group.ask(session, Acquire("a"))
    (state,) = query(group, Inspect("a")).locks
    assert (len(state.holders), len(state.waiters), state.omitted) == (1, 2, 2)


def test_the_graph_has_holders_and_the_nearest_wait_before(
    group: ControlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = group.open(1)
    r1 = group.ask(session, Acquire("a", shared=True)).grant
    r2 = group.ask(session, Acquire("a", shared=True)).grant
    w1 = group.ask(session, Acquire("a")).wait
    r3 = group.ask(session, Acquire("a", shared=True)).wait
    r4 = group.ask(session, Acquire("a", shared=True)).wait
    w2 = group.ask(session, Acquire("a")).wait
    expected = [(w1, r1), (w1, r2), (r3, w1), (r4, w1), (w2, r1), (w2, r2), (w2, r4)]
    assert query(group, Graph()).edges == tuple((one, other, "a") for one, other in expected)
    monkeypatch.setattr(inspection, "EDGES_MAX", 2)
    assert len(query(group, Graph()).edges) == 2


def test_ten_thousand_grants_and_waits_fit_in_30_mib(group: ControlGroup) -> None:
    sessions = [group.open(client) for client in range(1, 101)]
    table = group.locks
    moment = group.replica.moment
    tracemalloc.start()
    try:
        for count in range(20_000):
            moment.number += 1
            moment.session = sessions[count % 100]
            result = table.apply(moment, Acquire(f"orders/{count % 10_000}"))
            assert isinstance(result, Granted if count < 10_000 else Queued)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used <= 30 * 2**20, used


@dataclasses.dataclass
class Request:
    """A claim of the model; `token` 0 while it waits."""

    number: int
    session: int
    name: str
    shared: bool
    delay_us: int
    token: int = 0


class Model:
    """The law, naively: one list in order of arrival, everything found by looking through it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.alive: dict[int, int] = {}
        self.deferred: dict[str, int] = {}
        self.told: list[tuple[int, int, int]] = []

    def of(self, name: str) -> list[Request]:
        return [request for request in self.requests if request.name == name]

    def acquire(self, request: Request, wait: bool) -> Any:
        others = self.of(request.name)
        holders = [other for other in others if other.token]
        blocked = len(holders) < len(others) or request.name in self.deferred
        if holders and not (request.shared and holders[0].shared):
            blocked = True
        if blocked and not wait:
            return Code.WOULD_BLOCK
        self.requests.append(request)
        if blocked:
            return Queued(request.number)
        request.token = holders[0].token if holders else request.number
        return Granted(request.number, request.token)

    def remove(self, request: Request, number: int) -> None:
        self.requests.remove(request)
        self.settle(request.name, number)

    def settle(self, name: str, number: int) -> None:
        while name not in self.deferred:
            waiting = [other for other in self.of(name) if not other.token]
            holders = [other for other in self.of(name) if other.token]
            if not waiting or waiting[0].session not in self.alive:
                return
            if holders and not (waiting[0].shared and all(other.shared for other in holders)):
                return
            waiting[0].token = holders[0].token if holders else number
            self.told.append((self.alive[waiting[0].session], waiting[0].number, waiting[0].token))

    def let_go(self, session: int, limit: int, number: int, expired: bool, time_us: int) -> int:
        doomed = [request for request in self.requests if request.session == session][:limit]
        for request in doomed:
            if expired and request.token and request.delay_us:
                deadline_us = time_us + request.delay_us
                name = request.name
                self.deferred[name] = max(deadline_us, self.deferred.get(name, 0))
            self.remove(request, number)
        return len(doomed)


NAMES = st.sampled_from(["a", "b", "c"])
CLIENTS = st.integers(1, 4)
BOOLEANS = st.booleans()
STEP = 2


class LockTableMatchesTheModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(machine, "STEP", STEP)
        self.patch.setattr(machine, "EXPIRY_STEP", STEP)
        self.group = ControlGroup()
        self.model = Model()
        self.sessions: dict[int, int] = {}
        self.ending: dict[int, bool] = {}
        self.attempts = 0
        self.answers: dict[tuple[int, int], tuple[Operation, Any]] = {}
        self.highest: dict[str, int] = {}
        self.exclusive: dict[str, int] = {}

    def teardown(self) -> None:
        self.patch.undo()

    @rule(client=CLIENTS)
    def open(self, client: int) -> None:
        self.attempts += 1
        older = self.sessions.get(client)
        session = self.group.open(client, attempt=self.attempts)
        if older is not None:
            self.ended(older, expired=False)
        self.sessions[client] = session
        self.model.alive[session] = client

    @precondition(lambda self: self.sessions)
    @rule(
        data=st.data(), name=NAMES, shared=st.booleans(), wait=st.booleans(), delayed=st.booleans()
    )
    def acquire(self, data: Any, name: str, shared: bool, wait: bool, delayed: bool) -> None:
        session = self.any_session(data)
        delay_us = 1_000_000 if delayed else 0
        operation = Acquire(name, shared, wait, lock_delay_us=delay_us)
        result = self.ask(session, operation)
        number = self.group.replica.number
        request = Request(number, session, name, shared, delay_us)
        expected = self.model.acquire(request, wait)
        assert (result.code if isinstance(result, Failure) else result) == expected

    @precondition(lambda self: self.model.requests)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        session = self.any_session(data)
        request = data.draw(st.sampled_from(self.model.requests))
        held = request.session == session
        result = self.ask(session, Release(request.name, request.number))
        assert result == Released() if held else code(result) is Code.NOT_HELD
        if held:
            self.model.remove(request, self.group.replica.number)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), ahead=st.integers(0, 2))
    def cancel(self, data: Any, ahead: int) -> None:
        """Of something asked before, or (ahead) of what may come later."""
        session = self.any_session(data)
        last = self.group.sequences.get(session, 0)
        sequence = data.draw(st.integers(1, last)) if last and not ahead else last + 1 + ahead
        assert self.ask(session, Cancel(sequence)) == Cancelled()
        _, answered = self.answers.get((session, sequence), (None, None))
        number = getattr(answered, "grant", getattr(answered, "wait", None))
        for request in list(self.model.requests):
            if request.number == number:
                self.model.remove(request, self.group.replica.number)
        tombstone = Failure(Code.CANCELLED, "the operation was cancelled")
        self.answers[session, sequence] = (Acquire("a"), tombstone)
        # What comes later does not take the number of a tombstone by chance.
        self.group.sequences[session] = max(self.group.sequences[session], sequence)

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def copy(self, data: Any) -> None:
        session, sequence = data.draw(st.sampled_from(sorted(self.answers)))
        operation, answer = self.answers[session, sequence]
        client = self.model.alive.get(session, 1)
        before = self.group.replica.number
        result = self.group.one(
            "lock", operation, client=client, session=session, sequence=sequence
        )
        if session in self.model.alive:
            assert result == answer
        else:
            assert code(result) is Code.SESSION_EXPIRED
        assert self.group.replica.number == before

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        session = self.any_session(data)
        client = self.model.alive[session]
        self.group.one("session", EndSession(session), client=client)
        self.ended(session, expired=False)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def expire(self, data: Any) -> None:
        session = self.any_session(data)
        expire(self.group, session)
        self.ended(session, expired=True)

    @precondition(lambda self: self.ending)
    @rule()
    def empty(self) -> None:
        session = next(iter(self.ending))
        self.group.one("session", EmptySession(session))
        self.let_go(session)

    @precondition(lambda self: self.model.deferred)
    @rule(data=st.data(), early=st.booleans())
    def open_lock(self, data: Any, early: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.deferred)))
        deadline_us = self.model.deferred[name]
        if not early:
            self.group.time_us = max(self.group.time_us, deadline_us)
        self.group.one("lock", OpenLock(name, deadline_us))
        if deadline_us <= self.group.time_us:
            del self.model.deferred[name]
            self.model.settle(name, self.group.replica.number)

    @rule()
    def restore(self) -> None:
        """Go on from a snapshot of both machines."""
        replica = self.group.replica
        stream = list(replica.snapshot(1, 0, b""))
        fresh = Replica(0, Registry(builtin()).machines(0), self.group.codec)
        restore(fresh, stream)
        assert list(fresh.snapshot(1, 0, b"")) == stream
        self.group.replica = fresh

    @invariant()
    def the_same_claims(self) -> None:
        locks: LockTable = self.group.locks
        found = {
            claim.number: (claim.session, claim.name, claim.shared, claim.token)
            for claims in locks.claims.values()
            for claim in claims.values()
        }
        assert found == {
            request.number: (request.session, request.name, request.shared, request.token)
            for request in self.model.requests
        }
        assert locks.deferred == self.model.deferred
        assert self.group.sessions.ending == self.ending
        assert hints(self.group) == self.model.told
        self.model.told = []

    @invariant()
    def tokens_rise(self) -> None:
        for request in self.model.requests:
            if request.token:
                name, token = request.name, request.token
                if token != self.highest.get(name):
                    assert token > self.highest.get(name, 0)
                    self.highest[name] = token
                    self.exclusive[name] = 0 if request.shared else request.number
                assert self.exclusive[name] == (0 if request.shared else request.number)

    def any_session(self, data: Any) -> int:
        if not self.sessions:
            self.open(1)
        return int(data.draw(st.sampled_from(sorted(self.sessions.values()))))

    def ask(self, session: int, operation: Operation) -> Any:
        result = self.group.ask(session, operation)
        if not isinstance(operation, Cancel):
            self.answers[session, self.group.sequences[session]] = (operation, result)
        return result

    def ended(self, session: int, *, expired: bool) -> None:
        del self.sessions[self.model.alive.pop(session)]
        self.ending[session] = expired
        self.let_go(session)

    def let_go(self, session: int) -> None:
        number = self.group.replica.number
        expired = self.ending[session]
        if self.model.let_go(session, STEP, number, expired, self.group.time_us) < STEP:
            del self.ending[session]


TestAgainstTheModel = LockTableMatchesTheModel.TestCase
TestAgainstTheModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_several_commands_in_one_entry_go_in_order(group: ControlGroup) -> None:
    one, two = group.open(1), group.open(2)
    first = Command("lock", 1, one, 0, 0, [1], [Acquire("a")])
    second = Command("lock", 2, two, 0, 0, [1], [Acquire("a")])
    ((granted,), (queued,)) = group.apply(first, second)
    assert isinstance(granted, Granted) and isinstance(queued, Queued)
