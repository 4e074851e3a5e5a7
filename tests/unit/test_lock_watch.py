"""Watching locks without missing anything, taking them by force, and the limits of the family."""

from __future__ import annotations

from typing import Any

import pytest
from control_group import TTL_US, ControlGroup, DirectPort, restore

from coterie.protocols.errors import Code
from coterie.protocols.lock import granting, inspection, owners, table, watching
from coterie.protocols.lock.messages import (
    Acquire,
    AcquireAll,
    BeginTransaction,
    Downgrade,
    ForceRelease,
    Granted,
    GrantedAll,
    Graph,
    ListLocks,
    LockEvents,
    LostLater,
    OpenLock,
    Queued,
    Release,
    Upgrade,
    Watch,
)
from coterie.protocols.lock.plugin import LockPlugin
from coterie.protocols.plugin import CONTROL, Failure
from coterie.protocols.session.messages import EndSession, ExpireSession


@pytest.fixture
def port() -> DirectPort:
    return DirectPort(ControlGroup(), LockPlugin())


def code(result: Any) -> Code:
    assert isinstance(result, Failure), result
    return result.code


def query(group: ControlGroup, what: Any) -> Any:
    return group.locks.query(group.replica.moment, what)


def kinds(found: LockEvents) -> list[tuple[str, str, int]]:
    return [(kind, name, number) for kind, name, _, _, number, _ in found.events]


def test_every_change_is_told_once_and_in_order(port: DirectPort) -> None:
    group = port.group
    one, two = group.open(1, name="host:1"), group.open(2)
    start = query(group, ListLocks()).revision
    first = group.ask(one, Acquire("a", shared=True))
    wait = group.ask(two, Acquire("a")).wait
    group.ask(one, Upgrade("a", first.grant))
    group.ask(one, Downgrade("a", first.grant))
    group.ask(one, Release("a", first.grant))
    group.one("session", EndSession(two), client=2)
    group.time_us += TTL_US
    group.ask(one, Acquire("b"))
    group.one("session", ExpireSession(one, group.sessions.sessions[one].deadline_us))
    found = query(group, Watch("a", start))
    assert found.complete and kinds(found) == [
        ("granted", "a", first.grant),
        ("waiting", "a", wait),
        ("upgraded", "a", first.grant),
        ("downgraded", "a", first.grant),
        ("released", "a", first.grant),
        ("granted", "a", wait),
        ("released", "a", wait),
    ]
    others = query(group, Watch("b", start))
    assert [kind for kind, *_ in others.events] == ["granted", "expired"]
    assert query(group, Watch("", others.revision)).events == ()
    assert query(group, ListLocks()).revision == others.revision


def test_pages_and_forgotten_events(port: DirectPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "EVENTS_TOLD_MAX", 3)
    group = port.group
    session = group.open(1)
    grants = [group.ask(session, Acquire(f"a{number}")).grant for number in range(8)]
    found, after = [], 0
    while True:
        page = query(group, Watch("", after))
        assert page.complete and len(page.events) <= 3
        if not page.events:
            break
        found += [number for *_, number, _ in page.events]
        after = page.revision
    assert found == grants
    chunks = list(group.locks.snapshot())
    group.locks.clear()
    restore(group.locks, chunks)
    assert query(group, Watch("", after)).complete, "nothing was missed"
    behind = query(group, Watch("", after - 1))
    assert not behind.complete and behind.revision == after
    assert not query(group, Watch("", after + 1)).complete, "of a revision that never was"


def test_a_watcher_is_answered_when_there_is_something(port: DirectPort) -> None:
    group, plugin = port.group, port.plugin
    session = group.open(1)
    port.request([Watch("a", group.locks.revision, 1_000_000)])
    port.confirm_reads()
    assert not port.answers and plugin.deadline() == port.clock + 1
    group.ask(session, Acquire("b"))
    port.clock = plugin.deadline()
    plugin.on_deadline()
    assert not port.answers, "not of its prefix"
    assert plugin.deadline() > port.clock, "it does not look again and again"
    grant = group.ask(session, Acquire("a")).grant
    port.clock = plugin.deadline()
    assert port.clock <= 100.0 + 3 * watching.PAUSE_S
    plugin.on_deadline()
    ((_, (found,)),) = port.answers
    assert kinds(found) == [("granted", "a", grant)]
    port.answers.clear()
    port.request([Watch("a", found.revision, 1_000_000)])
    port.confirm_reads()
    began = port.clock
    while not port.answers:
        port.clock = plugin.deadline()
        plugin.on_deadline()
    assert port.clock == began + 1
    assert port.answered() == [LockEvents((), found.revision, True)]
    assert plugin.deadline() is None


def test_too_many_watchers_are_answered_at_once(
    port: DirectPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WATCHERS_MAX", 1)
    for _ in range(2):
        port.request([Watch("", 0, 1_000_000)])
    port.confirm_reads()
    assert len(port.answers) == 1


def test_a_lock_is_taken_by_force_and_that_is_written_down(port: DirectPort) -> None:
    group = port.group
    one, two, three = (group.open(client, name=f"c{client}") for client in (1, 2, 3))
    grant = group.ask(one, Acquire("a")).grant
    wait = group.ask(two, Acquire("a")).wait
    taken = group.ask(three, ForceRelease("a"))
    assert taken.holders == (("c1", one, grant),)
    told = [hint for client, hint in group.replica.take_hints() if client == 1]
    assert told == [LostLater(one, grant, "a")]
    assert list(group.locks.holders["a"]) == [wait]
    assert code(group.ask(one, Release("a", grant))) is Code.NOT_HELD
    assert group.ask(three, ForceRelease("free")).holders == ()
    port.plugin.flush()
    (note,) = port.notes
    assert "'a'" in note and "'c1'" in note and "'c3'" in note
    (event,) = [e for e in query(group, Watch("", 0)).events if e[0] == "forced"]
    assert event[1:5] == ("a", "c1", one, grant)


def test_only_the_leader_writes_it_down(port: DirectPort) -> None:
    group = port.group
    session = group.open(1)
    group.ask(session, Acquire("a"))
    group.ask(session, ForceRelease("a"))
    port.leading = False
    port.plugin.flush()
    assert not port.notes and not group.locks.notes


def test_the_graph_tells_owners(port: DirectPort) -> None:
    group = port.group
    one, two = group.open(1, name="c1"), group.open(2, name="c2")
    owner = group.ask(one, BeginTransaction()).transaction
    grant = group.ask(one, Acquire("a", shared=True, owner=owner)).grant
    other = group.ask(two, Acquire("a", shared=True)).grant
    group.ask(one, Upgrade("a", grant))
    late = group.ask(two, Acquire("a", shared=True)).wait
    found = query(group, Graph())
    assert found.edges == ((owner, other, "a"), (late, owner, "a"))
    assert found.owners == (
        (owner, "c1", one, True),
        (other, "c2", two, False),
        (late, "c2", two, False),
    )


class TestLimits:
    def test_of_a_transaction(self, port: DirectPort) -> None:
        group = port.group
        session = group.open(1)
        owner = group.ask(session, BeginTransaction()).transaction
        names = tuple(f"n{number}" for number in range(999))
        assert isinstance(group.ask(session, AcquireAll(names, owner=owner)), GrantedAll)
        assert isinstance(group.ask(session, Acquire("a", owner=owner)), Granted)
        result = group.ask(session, Acquire("b", owner=owner))
        assert code(result) is Code.BUSY and "1000" in result.text
        assert code(group.ask(session, AcquireAll(("b",), owner=owner))) is Code.BUSY
        assert isinstance(group.ask(session, Acquire("b")), Granted), "of that transaction only"

    def test_of_a_session(self, port: DirectPort, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(table, "CLAIMS_PER_SESSION_MAX", 3)
        monkeypatch.setattr(owners, "CLAIMS_PER_SESSION_MAX", 3)
        group = port.group
        session = group.open(1)
        group.ask(session, Acquire("a"))
        assert code(group.ask(session, AcquireAll(("b", "c", "d")))) is Code.BUSY
        for _ in range(2):
            group.ask(session, BeginTransaction())
        assert code(group.ask(session, BeginTransaction())) is Code.BUSY

    def test_of_a_name(self, port: DirectPort, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(table, "WAITS_PER_LOCK_MAX", 1)
        group = port.group
        session = group.open(1)
        group.ask(session, Acquire("a"))
        assert isinstance(group.ask(session, AcquireAll(("a", "b"))), Queued)
        assert code(group.ask(session, AcquireAll(("b", "c")))) is Code.BUSY
        assert code(group.ask(session, Acquire("a"))) is Code.BUSY

    def test_of_one_command(self, port: DirectPort, monkeypatch: pytest.MonkeyPatch) -> None:
        """One command grants so many waits, over all locks; the leader goes on with the rest."""
        for module in (table, granting):
            monkeypatch.setattr(module, "STEP", 3)
        group = port.group
        one, two = group.open(1), group.open(2)
        owner = group.ask(one, BeginTransaction()).transaction
        group.ask(one, AcquireAll(("a", "b", "c"), owner=owner))
        for _ in range(2):
            for name in "ab":
                group.ask(two, Acquire(name, shared=True))
        group.one("session", EndSession(one), client=1)
        assert sum(map(len, group.locks.holders.values())) == 3
        self.open_all(port)
        assert not group.locks.waits

    def test_of_one_command_that_grants_several_locks_at_once(
        self, port: DirectPort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (table, granting):
            monkeypatch.setattr(module, "STEP", 3)
        group = port.group
        one, two = group.open(1), group.open(2)
        group.ask(one, AcquireAll(("a", "c")))
        for _ in range(2):
            group.ask(two, Acquire("a", shared=True))
        group.ask(two, AcquireAll(("c", "d", "e")))
        group.one("session", EndSession(one), client=1)
        assert list(group.locks.holders) == ["a"]
        self.open_all(port)
        assert not group.locks.waits

    def open_all(self, port: DirectPort) -> None:
        for _ in range(8):
            port.plugin.on_deadline()
            for command, _ in port.proposals:
                assert all(type(operation) is OpenLock for operation in command.operations)
            port.commit()
        assert not port.group.locks.deferred


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (AcquireAll(()), Code.MALFORMED),
        (AcquireAll(("a", "a")), Code.MALFORMED),
        (AcquireAll(tuple(map(str, range(1_001)))), Code.MALFORMED),
        (AcquireAll(("a", "")), Code.BAD_NAME),
        (AcquireAll(("a",), lock_delay_us=-1), Code.MALFORMED),
        (Upgrade("", 1), Code.BAD_NAME),
        (Downgrade(".", 1), Code.BAD_NAME),
        (ForceRelease(".."), Code.BAD_NAME),
    ],
)
def test_what_has_no_meaning_is_refused(port: DirectPort, operation: Any, expected: Code) -> None:
    port.request([operation], session=port.group.open(7), group=CONTROL)
    (result,) = port.answered()
    assert code(result) is expected and not port.proposals
