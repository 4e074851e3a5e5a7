"""Deadlocks, found when they close and by the leader's sweep alone: the same, on every replica."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from control_group import ControlGroup, DirectPort, restore

from coterie.protocols.errors import Code
from coterie.protocols.lock import owners
from coterie.protocols.lock.deadlock import Search
from coterie.protocols.lock.messages import (
    Abort,
    AbortedLater,
    Acquire,
    AcquireAll,
    BeginTransaction,
    BreakDeadlock,
    Commit,
    Converted,
    Ended,
    Granted,
    GrantedLater,
    Queued,
    Release,
    SetDetection,
    Upgrade,
    Withdraw,
)
from coterie.protocols.lock.plugin import DETECTIONS, LockPlugin
from coterie.protocols.lock.sweep import SLICE, Sweep
from coterie.protocols.lock.table import LockTable
from coterie.protocols.plugin import Cancel, Failure


class World:
    """A control group, a session for each owner, and what became of them."""

    def __init__(self, mode: str) -> None:
        self.group = ControlGroup()
        self.plugin = LockPlugin(mode)
        self.port = DirectPort(self.group, self.plugin)
        self.table: LockTable = self.group.locks
        self.plugin.on_deadline()
        self.port.commit()
        assert DETECTIONS[self.table.detection] == mode
        self.session_of: dict[int, int] = {}
        self.aborted: dict[int, AbortedLater] = {}
        self.granted: dict[int, int] = {}

    def begin(self, first: int = 0) -> int:
        session = self.group.open(len(self.session_of) + 1)
        owner: int = self.group.ask(session, BeginTransaction(first)).transaction
        self.session_of[owner] = session
        return owner

    def ask(self, owner: int, operation: Any) -> Any:
        result = self.group.ask(self.session_of[owner], operation)
        self.listen()
        return result

    def lock(self, owner: int, name: str, *, shared: bool = False) -> Any:
        return self.ask(owner, Acquire(name, shared, owner=owner))

    def listen(self) -> None:
        for _, hint in self.group.replica.take_hints():
            if isinstance(hint, AbortedLater):
                self.aborted[hint.owner] = hint
            elif isinstance(hint, GrantedLater):
                self.granted[hint.wait] = hint.token

    def sweep(self) -> None:
        """5.5 seconds of the leader's life."""
        end = self.port.clock + 5.5
        while True:
            deadline = self.plugin.deadline()
            if deadline is None or deadline > end:
                break
            self.port.clock = max(self.port.clock, deadline)
            self.plugin.on_deadline()
            self.port.commit()
            self.listen()
        self.port.clock = end

    def settle(self) -> None:
        if self.table.detection == owners.SWEEP:
            self.sweep()

    def victims(self) -> list[int]:
        found = (t for of_session in self.table.transactions.values() for t in of_session.values())
        return sorted(transaction.number for transaction in found if transaction.cycle)

    def has(self, owner: int) -> dict[str, bool]:
        """What an owner has, and whether it holds it."""
        found = self.table.owners.get(owner)
        claims = found.claims.values() if found is not None else ()
        return {claim.name: claim.token > 0 for claim in claims}


@pytest.fixture(params=["enqueue", "sweep", "both"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def code(result: Any) -> Code:
    assert isinstance(result, Failure), result
    return result.code


def closes(cycle: tuple[str, ...]) -> list[int]:
    """The owners of a told cycle, after a look that it is one."""
    edges = [cycle[place : place + 3] for place in range(0, len(cycle), 3)]
    for (_, holder, _), (waiter, _, _) in zip(edges, edges[1:] + edges[:1], strict=True):
        assert holder == waiter
    return [int(waiter) for waiter, _, _ in edges]


@pytest.mark.parametrize("size", [2, 3, 10])
@pytest.mark.parametrize("seed", range(6))
def test_a_cycle_costs_its_youngest_owner(world: World, size: int, seed: int) -> None:
    members = [world.begin() for _ in range(size)]
    order = list(range(size))
    random.Random(seed).shuffle(order)
    ring = [members[place] for place in order]
    for place, owner in enumerate(ring):
        world.lock(owner, f"lock{place}")
    steps = list(range(size))
    random.Random(seed + 1).shuffle(steps)
    answers = {}
    for place in steps:
        assert not world.victims(), "before the last step there is no cycle"
        owner = ring[place]
        answers[owner] = world.lock(owner, f"lock{(place + 1) % size}")
    world.settle()
    victim = max(members)
    assert world.victims() == [victim]
    assert not world.has(victim), "its locks are gone at once"
    last = ring[steps[-1]]
    if last == victim and world.table.detection != owners.SWEEP:
        told = answers[victim]
    else:
        told = world.aborted[victim].failure
        assert world.aborted[victim].waits == (answers[victim].wait,)
    assert code(told) is Code.DEADLOCK
    assert sorted(closes(told.detail)) == sorted(members)
    place = ring.index(victim)
    follower = ring[place - 1]
    assert world.has(follower) == {f"lock{(place - 1) % size}": True, f"lock{place}": True}


def test_through_shared_holders(world: World) -> None:
    one, two, three = (world.begin() for _ in range(3))
    world.lock(one, "a", shared=True)
    world.lock(two, "a", shared=True)
    world.lock(three, "b")
    world.lock(three, "a")
    world.settle()
    assert not world.victims(), "it waits for two that wait for nobody"
    world.lock(two, "b")
    world.settle()
    assert world.victims() == [three]
    assert world.has(two) == {"a": True, "b": True} and world.has(one) == {"a": True}


def test_through_an_earlier_wait(world: World) -> None:
    """A reader waits for a writer that only waits itself; holders alone would show no cycle."""
    reader, writer, late = (world.begin() for _ in range(3))
    world.lock(reader, "a", shared=True)
    world.lock(late, "b")
    world.lock(writer, "a")
    world.lock(late, "a", shared=True)
    world.settle()
    assert not world.victims()
    world.lock(reader, "b")
    world.settle()
    assert world.victims() == [late]
    assert world.has(reader) == {"a": True, "b": True} and world.has(writer) == {"a": False}


def test_through_the_wait_of_one_who_holds_nothing(world: World) -> None:
    """The youngest is the writer in between: without it the reader may share the lock."""
    reader, late = world.begin(), world.begin()
    writer = world.begin()
    world.lock(reader, "a", shared=True)
    world.lock(late, "b")
    world.lock(writer, "a")
    world.lock(late, "a", shared=True)
    world.lock(reader, "b")
    world.settle()
    assert world.victims() == [writer]
    assert world.has(late) == {"a": True, "b": True} and world.has(reader)["b"] is False


def test_two_upgrades(world: World) -> None:
    one, two = world.begin(), world.begin()
    grants = {owner: world.lock(owner, "a", shared=True).grant for owner in (one, two)}
    assert isinstance(world.ask(one, Upgrade("a", grants[one])), Queued)
    world.ask(two, Upgrade("a", grants[two]))
    world.settle()
    assert world.victims() == [two]
    (claim,) = world.table.holders["a"].values()
    assert claim.owner == one and not claim.shared


def test_two_upgrades_of_grants_that_are_owners_by_themselves(world: World) -> None:
    group = world.group
    sessions = [group.open(client) for client in (1, 2)]
    grants = [group.ask(session, Acquire("a", shared=True)).grant for session in sessions]
    first = group.ask(sessions[0], Upgrade("a", grants[0]))
    group.ask(sessions[1], Upgrade("a", grants[1]))
    world.listen()
    world.settle()
    assert world.victims() == [grants[1]]
    assert world.granted == {first.wait: world.table.holders["a"][grants[0]].token}
    moment = group.replica.moment
    assert group.locks.news(moment, sessions[0], first.wait).token > 0
    assert group.ask(sessions[1], Abort(grants[1])) == Ended() and not world.victims()


def test_through_an_upgrade(world: World) -> None:
    one, two = world.begin(), world.begin()
    grant = world.lock(one, "a", shared=True).grant
    world.lock(two, "a", shared=True)
    world.lock(one, "b")
    world.ask(one, Upgrade("a", grant))
    world.lock(two, "b")
    world.settle()
    assert world.victims() == [two]
    assert [claim.shared for claim in world.table.holders["a"].values()] == [False]


def test_a_reader_behind_a_pending_upgrade_waits_for_it(world: World) -> None:
    one, other, late = (world.begin() for _ in range(3))
    grant = world.lock(one, "a", shared=True).grant
    world.lock(other, "a", shared=True)
    world.lock(late, "b")
    world.ask(one, Upgrade("a", grant))
    assert isinstance(world.lock(late, "a", shared=True), Queued), "nobody joins any more"
    world.lock(other, "b")
    world.settle()
    assert world.victims() == [late]


def test_two_cycles_closed_at_once_share_their_oldest(world: World) -> None:
    one, two, three = (world.begin() for _ in range(3))
    world.lock(one, "a")
    for owner in (two, three):
        world.lock(owner, "b", shared=True)
        world.lock(owner, "a")
    world.lock(one, "b")
    world.settle()
    assert world.victims() == [two, three]
    assert world.has(one) == {"a": True, "b": True}


def test_two_cycles_closed_at_once_share_their_youngest(world: World) -> None:
    one, two, three = (world.begin() for _ in range(3))
    world.lock(three, "a")
    for owner in (one, two):
        world.lock(owner, "b", shared=True)
        world.lock(owner, "a")
    world.lock(three, "b")
    world.settle()
    assert world.victims() == [three], "one is enough"
    assert world.has(one)["a"] is True and world.has(two)["a"] is False


def test_several_cycles_that_share_members_in_the_middle(world: World) -> None:
    """1 -> 2 -> 3 -> 1 and 2 -> 3 -> 4 -> 2: the youngest of each, and no more."""
    one, two, three, four = (world.begin() for _ in range(4))
    world.lock(one, "a")
    world.lock(two, "b", shared=True)
    world.lock(four, "d", shared=True)
    world.lock(three, "c")
    world.lock(one, "b", shared=True)
    world.lock(four, "b", shared=True)
    world.lock(one, "d", shared=True)
    world.lock(two, "c")
    world.lock(three, "d")
    world.lock(one, "c")
    world.settle()
    victims = world.victims()
    assert three in victims and set(victims) <= {three, four}


def test_two_nests_of_threads_that_take_locks_one_within_the_other(world: World) -> None:
    group = world.group
    one, two = group.open(1), group.open(2)
    a = group.ask(one, Acquire("a")).grant
    b = group.ask(two, Acquire("b")).grant
    wait = group.ask(one, Acquire("b", owner=a)).wait
    group.ask(two, Acquire("a", owner=b))
    world.listen()
    world.settle()
    assert world.victims() == [b]
    assert list(world.granted) == [wait] and list(group.locks.holders["b"]) == [wait]
    assert code(group.ask(two, Acquire("c", owner=b))) is Code.DEADLOCK, "until it says it knows"
    assert group.ask(two, Abort(b)) == Ended()
    assert code(group.ask(two, Acquire("c", owner=b))) is Code.NOT_HELD, "that nest is over"


def test_a_thread_that_asks_for_what_it_holds(world: World) -> None:
    group = world.group
    one = group.open(1)
    grant = group.ask(one, Acquire("a")).grant
    group.ask(one, Acquire("a", owner=grant))
    world.settle()
    assert world.victims() == [grant] and not group.locks.holders
    other = group.ask(one, Acquire("b")).grant
    group.ask(one, Acquire("b"))
    world.settle()
    assert world.victims() == [grant] and other in group.locks.holders["b"], "two owners"


def test_who_asks_again_for_what_it_waits_for_is_no_victim(world: World) -> None:
    """Its first wait was given up; the withdrawal is only late."""
    group = world.group
    one, two = group.open(1), group.open(2)
    group.ask(two, Acquire("a"))
    nest = group.ask(one, Acquire("b")).grant
    waits = [group.ask(one, Acquire("a", owner=nest)).wait for _ in range(2)]
    world.settle()
    assert not world.victims() and list(group.locks.waits["a"]) == waits


def test_through_several_locks_asked_for_at_once(world: World) -> None:
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    assert isinstance(world.ask(one, AcquireAll(("x", "b"), owner=one)), Queued)
    assert "x" not in world.table.holders, "all or none"
    world.ask(two, AcquireAll(("y", "a"), owner=two))
    world.settle()
    assert world.victims() == [two]
    assert world.has(one) == {"a": True, "x": True, "b": True}


def test_behind_several_locks_asked_for_at_once(world: World) -> None:
    """Who waits only behind one that waits for another lock too."""
    holder, asker, late = (world.begin() for _ in range(3))
    world.lock(holder, "b")
    world.ask(asker, AcquireAll(("a", "b"), owner=asker))
    world.lock(late, "c")
    assert isinstance(world.lock(late, "a"), Queued), "the lock is free, but not its turn"
    world.lock(holder, "c")
    world.settle()
    assert world.victims() == [late]


def test_an_owner_with_two_waits_that_holds_nothing(world: World) -> None:
    one, two, other = (world.begin() for _ in range(3))
    world.lock(other, "a")
    world.lock(one, "a")
    world.lock(two, "b")
    world.lock(two, "a")
    world.lock(one, "b")
    world.settle()
    assert world.victims() == [two]


def test_no_victim_for_an_edge_that_is_gone(world: World) -> None:
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    wait = world.lock(one, "b").wait
    world.ask(one, Release("b", wait))
    world.lock(two, "a")
    world.settle()
    assert not world.victims()


def test_an_old_proposal_of_the_sweep_harms_nobody() -> None:
    world = World("sweep")
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    wait = world.lock(one, "b").wait
    world.lock(two, "a")
    world.plugin.on_deadline()
    ((command, _),) = world.port.proposals
    (broken,) = command.operations
    assert isinstance(broken, BreakDeadlock) and len(broken.edges) == 2
    world.ask(one, Release("b", wait))
    world.port.commit()
    assert not world.victims()
    world.lock(one, "b")
    world.group.one("lock", BreakDeadlock(broken.edges[:1]))
    world.group.one("lock", broken)
    assert not world.victims(), "the wait is another one"
    world.sweep()
    assert world.victims() == [two]
    world.group.one("lock", broken)
    assert world.victims() == [two], "nor a second time"


def test_a_proposal_is_believed_only_if_every_edge_stands_and_they_close() -> None:
    world = World("sweep")
    one, two, three = (world.begin() for _ in range(3))
    a = world.lock(one, "a").grant
    b = world.lock(two, "b").grant
    shared = world.lock(three, "s", shared=True).grant
    one_b = world.lock(one, "b").wait
    two_s = world.lock(two, "s", shared=True).grant
    three_a = world.lock(three, "a").wait
    for edges in (
        (),
        (("b", one_b, b),),  # an open path
        (("b", one_b, b), ("a", three_a, a)),  # two edges that do not meet
        (("s", two_s, shared), ("a", three_a, a), ("b", one_b, b)),  # one that holds, not waits
        (("b", b, one_b), ("b", one_b, b)),  # a holder waits for nobody
        (("a", three_a, three_a),),
        (("x", 1, 2),),
    ):
        world.group.one("lock", BreakDeadlock(edges))
        assert not world.victims(), edges
    two_a = world.lock(two, "a").wait
    closed = (("b", one_b, b), ("a", two_a, a))
    early = (("b", one_b, b), ("a", two_a, three_a), ("a", three_a, a))
    reader = world.begin()
    late = world.lock(reader, "a").wait
    world.group.one("lock", BreakDeadlock((("a", three_a, late), ("a", late, three_a))))
    assert not world.victims(), "nobody waits for who came later"
    assert early != closed
    world.group.one("lock", BreakDeadlock(closed))
    assert world.victims() == [two]


def test_the_owner_of_another_session_is_nobodys(world: World) -> None:
    one, other = world.begin(), world.begin()
    grant = world.group.ask(world.session_of[one], Acquire("a")).grant
    world.group.ask(world.session_of[one], Acquire("b", owner=grant))
    for owner in (one, grant):
        for operation in (Acquire("c", owner=owner), AcquireAll(("c",), owner=owner)):
            assert code(world.ask(other, operation)) is Code.NOT_HELD
        assert world.ask(other, Abort(owner)) == Ended()
    assert code(world.ask(other, Commit(one))) is Code.NOT_HELD
    assert sorted(world.table.holders) == ["a", "b"] and one in world.table.owners


def test_a_proposal_that_is_refused_is_made_again() -> None:
    world = World("sweep")
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    world.lock(one, "b")
    world.lock(two, "a")
    world.plugin.on_deadline()
    world.port.fail(Failure(Code.BUSY))
    began = world.port.clock
    world.port.clock = world.plugin.deadline() or 0.0
    assert world.port.clock <= began + 0.2
    world.plugin.on_deadline()
    world.port.commit()
    assert world.victims() == [two]


def test_only_a_leader_sweeps_and_not_when_told_otherwise() -> None:
    for mode, leading in (("enqueue", True), ("sweep", False)):
        world = World(mode)
        one, two = world.begin(), world.begin()
        world.lock(one, "a")
        world.lock(two, "a")
        world.port.leading = leading
        assert world.plugin.deadline() is None
        world.plugin.on_deadline()
        assert world.plugin.status()["sweeps"] == 0


def test_the_victim_learns_it_whatever_is_lost(world: World) -> None:
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    wait = world.lock(two, "a").wait
    world.lock(one, "b")
    world.settle()
    session, moment = world.session_of[two], world.group.replica.moment
    found = world.table.news(moment, session, wait)
    assert code(found) is Code.DEADLOCK and closes(found.detail) == [one, two]
    assert world.table.news(moment, world.session_of[one], wait) is None
    for operation in (
        Acquire("c", owner=two),
        AcquireAll(("d",), owner=two),
        Commit(two),
    ):
        assert code(world.ask(two, operation)) is Code.DEADLOCK
    assert not world.victims(), "to commit is to end it"
    assert world.table.news(moment, session, wait) is None
    assert code(world.ask(two, Commit(two))) is Code.NOT_HELD


@pytest.mark.parametrize("by_number", [False, True])
def test_a_victim_that_gave_up_waiting_learns_it_all_the_same(
    world: World, by_number: bool
) -> None:
    """It would go on with locks it no longer has, if only a hint told it."""
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    wait = world.lock(two, "a").wait
    session = world.session_of[two]
    sequence = world.group.sequences[session]
    world.lock(one, "b")
    world.settle()
    for _ in range(2):
        answer = world.ask(two, Withdraw(wait) if by_number else Cancel(sequence))
        failure = answer if by_number else answer.failure
        assert code(failure) is Code.DEADLOCK and closes(failure.detail) == [one, two]


def test_a_victim_at_once_that_gave_up_asking_learns_it(world: World) -> None:
    if world.table.detection == owners.SWEEP:
        return
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    world.lock(one, "b")
    assert code(world.lock(two, "a")) is Code.DEADLOCK
    sequence = world.group.sequences[world.session_of[two]]
    assert code(world.ask(two, Cancel(sequence)).failure) is Code.DEADLOCK


def test_a_victim_repeats_with_its_first_id_and_ages(world: World) -> None:
    one, two = world.begin(), world.begin()
    session = world.session_of[two]
    world.ask(two, Abort(two))
    again = world.group.ask(session, BeginTransaction(two)).transaction
    assert again == two
    other = world.group.ask(session, BeginTransaction(two)).transaction
    assert other > two, "it is in use"
    young = world.begin()
    world.lock(two, "a")
    world.lock(young, "b")
    world.lock(two, "b")
    world.lock(young, "a")
    world.settle()
    assert world.victims() == [young] and one


def test_the_same_victims_on_every_replica(world: World) -> None:
    test_two_cycles_closed_at_once_share_their_oldest(world)
    other = ControlGroup()
    for entry in world.group.log:
        other.feed(entry)
    assert list(other.locks.snapshot()) == list(world.table.snapshot())
    assert other.locks.victims == world.table.victims


def test_a_replica_made_from_a_snapshot_finds_the_same(world: World) -> None:
    members = [world.begin() for _ in range(4)]
    one, two, three, four = members
    grant = world.lock(one, "s", shared=True).grant
    world.lock(two, "s", shared=True)
    for owner, name in zip(members, "abcd", strict=True):
        world.lock(owner, name)
    world.ask(four, AcquireAll(("e", "c"), owner=four))
    world.lock(three, "s")
    world.ask(one, Upgrade("s", grant))
    table = LockTable()
    table.attach(world.group.replica)
    restore(table, world.table.snapshot())
    table.check()
    steps = [
        Acquire("e", owner=two),
        Acquire("d", owner=two),
        Acquire("a", owner=two),
    ]
    for operation in steps:
        moment = world.group.replica.moment
        moment.number += 1
        moment.session, moment.client = world.session_of[two], 2
        number = moment.number
        results = []
        for one_table in (world.table, table):
            moment.number = number
            results.append(one_table.apply(moment, operation))
        assert results[0] == results[1]
        assert list(table.snapshot()) == list(world.table.snapshot())


def test_a_victim_is_told_of_in_the_log_and_in_the_status(world: World) -> None:
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    world.lock(one, "b")
    world.lock(two, "a")
    world.settle()
    world.plugin.flush()
    (note,) = world.port.notes
    assert f"{two} waits for {one} by 'a'" in note
    status = world.plugin.status()
    assert status["deadlocks"] == 1 and status["victims"][0]["owner"] == two
    world.plugin.flush()
    assert len(world.port.notes) == 1


def test_the_mode_is_the_tables_and_follows_the_leader() -> None:
    world = World("sweep")
    world.group.one("lock", SetDetection(owners.BOTH))
    assert world.plugin.deadline() == world.port.clock
    world.plugin.on_deadline()
    assert [c.operations for c, _ in world.port.proposals] == [[SetDetection(owners.SWEEP)]]
    world.port.commit()
    assert world.table.detection == owners.SWEEP and world.plugin.deadline() is None
    other = LockTable()
    other.attach(world.group.replica)
    restore(other, world.table.snapshot())
    assert other.detection == owners.SWEEP


def test_a_search_that_is_cut_short_leaves_it_to_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "SEARCH_MAX", 3)
    world = World("both")
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    world.lock(one, "b")
    world.lock(two, "a")
    assert not world.victims()
    world.sweep()
    assert world.victims() == [two]


def test_an_ended_session_is_in_no_cycle(world: World) -> None:
    """What it has goes by itself, though not at once."""
    one, two = world.begin(), world.begin()
    world.lock(one, "a")
    world.lock(two, "b")
    world.lock(two, "a")
    sessions = world.group.sessions
    ended = sessions.sessions.pop(world.session_of[two])
    world.table.apply(_moment(world, one), Acquire("b", owner=one))
    search = Search(world.table, world.table.alive, world.table.owners)
    assert search.go_on(1_000) is None and search.finished
    assert not world.victims()
    sessions.sessions[ended.number] = ended


def _moment(world: World, owner: int) -> Any:
    moment = world.group.replica.moment
    moment.number += 1
    moment.session = world.session_of[owner]
    return moment


def test_a_sweep_of_a_large_graph_goes_in_slices() -> None:
    """5,000 owners in a chain that ends in a cycle: every slice is short, and it is found."""
    group = ControlGroup()
    table, moment = group.locks, group.replica.moment
    moment.session, moment.client = group.open(1), 1
    table.detection = owners.SWEEP

    def do(operation: Any) -> Any:
        moment.number += 1
        return table.apply(moment, operation)

    chain = [do(BeginTransaction()).transaction for _ in range(5_000)]
    for place, owner in enumerate(chain):
        do(Acquire(f"n{place}", owner=owner))
    for place, owner in enumerate(chain[:-1]):
        do(Acquire(f"n{place + 1}", owner=owner))
    do(Acquire("n4990", owner=chain[-1]))
    sweep, found, slices = Sweep(), [], 0
    while not sweep.count:
        found += sweep.go_on(table, table.alive, 1.0)
        slices += 1
    assert slices > 3 and len(found) == 1 and len(found[0].edges) == 10
    search = Search(table, table.alive, table.owners)
    search.go_on(SLICE)
    assert search.looked == SLICE


def test_converted_in_a_transaction(world: World) -> None:
    """A transaction that asks again has the lock already; it upgrades by asking for more."""
    one = world.begin()
    first = world.lock(one, "a", shared=True)
    assert isinstance(first, Granted)
    again = world.lock(one, "a", shared=True)
    assert again == Converted(first.grant, first.token, True)
    more = world.lock(one, "a")
    assert isinstance(more, Converted) and (more.grant, more.shared) == (first.grant, False)
    assert more.token > first.token and more.upgrade == more.token
    assert len(world.table.holders["a"]) == 1


def test_ten_random_owners_always_come_to_an_end(world: World) -> None:
    """Random requests; in the end everybody has committed and nothing is left."""
    for seed in range(5):
        source = random.Random(seed)
        members = [world.begin() for _ in range(10)]
        for owner, _ in itertools.product(members, range(4)):
            if owner not in world.victims() and all(world.has(owner).values()):
                world.lock(owner, source.choice("abcdef"), shared=source.random() < 0.4)
        world.settle()
        for _ in members:
            ready = [o for o in members if all(world.has(o).values()) and o in world.table.owners]
            assert ready, "somebody can always go on"
            for owner in ready:
                world.ask(owner, Commit(owner))
            members = [owner for owner in members if owner in world.table.owners]
            if not members:
                break
        assert not world.table.holders and not world.table.waits and not world.table.owners
