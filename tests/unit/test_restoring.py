"""A replica, its stream, and the replica made from that: the same to the last byte."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from control_group import ControlGroup

from coterie.nodes.simulation.counter import Add, Counter
from coterie.protocols import commands
from coterie.protocols.lock.messages import Acquire, Granted, Queued, Release
from coterie.protocols.plugin import Cancel, Command, Plugin
from coterie.protocols.records import COMMANDS, Entry
from coterie.protocols.registry import Registry, builtin
from coterie.protocols.replica import RELEASE_STEP, CommandCodec, Replica, Replicas
from coterie.protocols.restoring import Restoring, restore
from coterie.protocols.session.messages import EndSession, ExpireSession
from coterie.protocols.snapshot import DamagedSnapshot


def fresh(group: ControlGroup, counter: Plugin | None = None) -> Replica:
    registry = Registry([*builtin(), counter or Counter()])
    number = group.replica.group
    return Replica(number, registry.machines(number), group.codec)


def stream_of(replica: Replica) -> bytes:
    return b"".join(replica.snapshot(3, 1, b"members"))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.fixture
def group() -> ControlGroup:
    """Sessions, some ended; grants, waits, deferrals, cancelled and remembered answers."""
    group = ControlGroup(Counter())
    sessions = [group.open(client, name=f"client{client}") for client in range(1, 9)]
    for turn in range(30):
        for place, session in enumerate(sessions):
            name = f"lock{(turn * 7 + place * 3) % 5}"
            delay_us = 1_000_000 * (place == 1)
            result = group.ask(session, Acquire(name, (turn + place) % 3 == 0, True, 0, delay_us))
            if turn % 4 == place % 4:
                group.ask(session, Cancel(group.sequences[session]))
            elif turn % 5 == place % 5 and isinstance(result, Granted):
                group.ask(session, Release(name, result.grant))
            group.ask(session, Add(place), plugin="counter")
        group.time_us += 1_000
    group.one("session", EndSession(sessions[0]), client=1)
    group.time_us += 10_000_000
    deadline_us = group.sessions.sessions[sessions[1]].deadline_us
    group.one("session", ExpireSession(sessions[1], deadline_us))
    assert group.locks.waits and group.locks.holders and group.locks.deferred
    return group


def go_on(group: ControlGroup, replica: Replica, seed: int) -> list[Any]:
    """What the next operations are answered; some of them were asked before."""
    source = random.Random(seed)
    answers = []
    for number in range(60):
        session = source.choice(list(group.sessions.sessions))
        client = group.sessions.sessions[session].client
        sequence = source.randint(1, group.sequences[session] + 5)
        operation = source.choice((Acquire("lock1"), Acquire("lock2", True), Cancel(sequence - 1)))
        command = Command("lock", client, session, 0, 0, [sequence], [operation])
        payload = group.codec.encode([command])
        entry = Entry(len(group.log) + 1 + number, 4, group.time_us + number, COMMANDS, payload)
        answers.append(replica.apply(entry))
    return answers


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_a_restored_replica_has_the_same_stream(
    group: ControlGroup, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "CHUNK_ANSWERS", 11)
    data = stream_of(group.replica)
    other = fresh(group)
    header = restore(other, pieces(data, size))
    other.check()
    assert stream_of(other) == data
    kept = group.replica
    assert (other.applied, other.number, other.time_us, other.digest_at) == (
        (kept.applied, kept.number, kept.time_us, kept.digest_at)
    )
    assert other.header == header
    assert (header.term, header.configuration_index, header.configuration) == (3, 1, b"members")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_go_on_alike(group: ControlGroup, seed: int) -> None:
    """Windows, operation number and log time are in it: copies are answered from memory, and the
    next grant has the same token (references/locks.md §5, 14)."""
    other = fresh(group)
    restore(other, [stream_of(group.replica)])
    assert go_on(group, other, seed) == go_on(group, group.replica, seed)
    assert stream_of(other) == stream_of(group.replica)


def test_a_stream_is_of_the_moment_it_was_asked_for(group: ControlGroup) -> None:
    before = stream_of(group.replica)
    stream = group.replica.snapshot(3, 1, b"members")
    go_on(group, group.replica, 1)
    group.replica.windows.popitem()
    assert b"".join(stream) == before != stream_of(group.replica)


def test_windows_of_a_partition_keep_their_order() -> None:
    class Partitioned(Counter):
        placement = "partitioned"

    group = ControlGroup(Partitioned(), group=2)
    for client in (9, 4, 7, 4):
        group.one(
            "counter", Add(1), client=client, sequence=len(group.log),
            not_after_us=group.time_us + client,
        )  # fmt: skip
    other = fresh(group, Partitioned())
    restore(other, [stream_of(group.replica)])
    assert list(other.windows.items()) == list(group.replica.windows.items())
    assert list(other.windows) == [9, 7, 4]


def test_a_stream_that_is_not_whole_is_refused(group: ControlGroup) -> None:
    data = stream_of(group.replica)
    restoring = Restoring(fresh(group))
    restoring.feed(data[:-1])
    with pytest.raises(DamagedSnapshot):
        restoring.finish()


def test_two_streams_are_never_mixed(group: ControlGroup) -> None:
    """(references/locks.md §5, 13)"""
    one = stream_of(group.replica)
    go_on(group, group.replica, 5)
    two = stream_of(group.replica)
    half = len(one) // 2
    restoring = Restoring(fresh(group))
    with pytest.raises(DamagedSnapshot):
        restoring.feed(one[:half])
        restoring.feed(two[half:])
        restoring.finish()


@pytest.mark.parametrize("place", [3, 40, 1_000, -30])
def test_a_changed_byte_is_seen(group: ControlGroup, place: int) -> None:
    data = bytearray(stream_of(group.replica))
    data[place] ^= 1
    with pytest.raises(DamagedSnapshot):
        restore(fresh(group), [bytes(data)])


def test_a_snapshot_of_a_plugin_that_is_not_here_is_refused(group: ControlGroup) -> None:
    other = fresh(group)
    del other.machines["counter"]
    with pytest.raises(DamagedSnapshot, match="counter"):
        restore(other, [stream_of(group.replica)])


def test_the_next_comparison_is_put_off_alike(group: ControlGroup) -> None:
    other = fresh(group)
    restore(other, [stream_of(group.replica)])
    for replica in (group.replica, other):
        replica.put_off_digest()
    assert group.replica.digest_at == other.digest_at > group.replica.number
    assert other.size() == group.replica.size() > 100


def test_replicas_make_fresh_ones() -> None:
    group = ControlGroup()
    replicas = Replicas(lambda number: {"counter": Counter().machine(number)}, group.codec, 50)
    made = replicas.make(3)
    assert (made.group, made.applied, made.digest_at, dict(replicas)) == (3, 0, 50, {})
    assert made.machines["counter"] is not replicas.make(3).machines["counter"]


def test_waits_of_one_lock_stand_in_order_of_number(group: ControlGroup) -> None:
    sessions = list(group.sessions.sessions)
    group.ask(sessions[5], Acquire("z"))
    for place in (3, 1, 4, 1, 0):
        assert isinstance(group.ask(sessions[place], Acquire("z")), Queued)
    other = fresh(group)
    restore(other, [stream_of(group.replica)])
    other.check()
    locks: Any = other.machines["lock"]
    assert list(locks.waits["z"]) == list(group.locks.waits["z"])


def end_the_first_session(group: ControlGroup) -> None:
    session = next(iter(group.sessions.sessions.values()))
    ending = Command("session", session.client, 0, 0, 0, [-1], [EndSession(session.number)])
    payload = group.codec.encode([ending])
    index = group.replica.applied + 1
    group.replica.apply(Entry(index, 4, group.time_us, COMMANDS, payload))


def test_claims_change_while_they_are_written(group: ControlGroup) -> None:
    """Sessions are copied when they change; two streams at once, and one that waits."""
    before = stream_of(group.replica)
    idle = group.replica.snapshot(3, 1, b"members")
    first = group.replica.snapshot(3, 1, b"members")
    begun = next(first)
    go_on(group, group.replica, 3)
    between = stream_of(group.replica)
    second = group.replica.snapshot(3, 1, b"members")
    begun_again = next(second)
    end_the_first_session(group)
    assert begun + b"".join(first) == before
    begun_again += next(second)
    end_the_first_session(group)
    assert begun_again + b"".join(second) == between
    assert b"".join(idle) == before
    group.replica.check()


def test_only_what_a_machine_names_is_emptied() -> None:
    limits = {"x": 1}

    class Foreign:
        """It has no `__dict__`, and refers to what all of its kind share."""

        __slots__ = ("limits", "rows")

        def __init__(self) -> None:
            self.limits = limits
            self.rows = {number: str(number) for number in range(2 * RELEASE_STEP)}

        def release(self) -> list[dict[int, str]]:
            return [self.rows]

    foreign: Any = Foreign()
    replica = Replica(1, {"foreign": foreign}, CommandCodec({}))
    assert len(list(replica.release())) == 2
    assert not foreign.rows and limits == {"x": 1}


def test_a_released_replica_leaves_nothing_to_the_collector(group: ControlGroup) -> None:
    replica = group.replica
    locks: Any = replica.machines["lock"]
    stream = replica.snapshot(3, 1, b"members")
    before = stream_of(replica)
    assert list(replica.release()), "in steps"
    assert not locks.claims and not locks.holders and not replica.machines
    assert b"".join(stream) == before
