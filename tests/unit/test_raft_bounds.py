"""What bounds Raft: windows, frames, the uncommitted tail, the work of one turn.

"Pitfall n" is something that broke in other implementations.
"""

from __future__ import annotations

import msgspec
import pytest
from raft_world import Note, World

from coterie.protocols.errors import Code
from coterie.protocols.plugin import Command
from coterie.protocols.raft.log import Log, size
from coterie.protocols.raft.messages import MESSAGES, Appended, AppendEntries, Heartbeat
from coterie.protocols.raft.settings import Settings
from coterie.protocols.records import NOOP, Entry, EntryRecord

KIB = 1024


def test_a_tag_is_a_position() -> None:
    for position, message in enumerate(MESSAGES):
        assert message.__struct_config__.tag == position
        assert issubclass(message, msgspec.Struct)


def test_the_uncommitted_tail_is_bounded() -> None:
    """Pitfall 29: without a quorum proposals are refused and memory stays flat."""
    world = World(settings=Settings(uncommitted_bytes=64 * KIB))
    world.elect("n1")
    world.cut = lambda letter: True
    refused = 0
    for number in range(100):
        world.propose("n1", "x" * KIB, token=number)
        failure = world.ports["n1"].failures.get(number)
        refused += failure is not None and failure.code is Code.BUSY
    assert 30 < refused < 40
    with world.one_turn("n1"):
        world.propose("n1", "early")
        assert world.ports["n1"].failures["early"].code is Code.BUSY
    assert world.group("n1").log.bytes < 70 * KIB
    world.wire.clear()
    world.cut = lambda letter: False
    world.beat("n1")
    world.settle()
    world.beat("n1")
    world.settle()
    world.propose("n1", "again")
    world.settle()
    assert "again" in world.ports["n1"].applied_results
    assert world.group("n1").uncommitted_bytes == 0


def test_one_turn_cannot_pass_the_bound_by_much() -> None:
    """Pitfall 29: what one turn proposes is cut into entries, and those above it refused."""
    settings = Settings(uncommitted_bytes=64 * KIB, entry_bytes=16 * KIB)
    world = World(settings=settings)
    world.elect("n1")
    with world.one_turn("n1"):
        for number in range(200):
            world.propose("n1", "x" * KIB, token=number)
    entries = world.group("n1").log.entries[2:]
    assert all(len(entry.payload) <= 16 * KIB for entry in entries) and len(entries) > 3
    world.settle()
    port = world.ports["n1"]
    assert len(port.applied_results) + len(port.failures) == 200
    assert world.texts("n1") == ["x" * KIB] * len(port.applied_results)
    assert 50 < len(port.applied_results) < 90


def test_a_window_of_messages() -> None:
    """Pitfall 30: a peer that does not answer gets no more than its window."""
    world = World(settings=Settings(window_messages=8))
    world.elect("n1")
    world.beat("n1")
    world.settle()
    world.cut = lambda letter: letter.to == "n3"
    for number in range(30):
        world.propose("n1", f"{number}")
    assert len(world.on_wire(to="n3", kind=AppendEntries)) == 8
    world.settle()
    assert len(world.ports["n1"].applied_results) == 30
    world.cut = lambda letter: False
    world.advance(1.0)
    assert world.texts("n3") == world.texts("n1")


def test_a_window_of_bytes_over_all_groups() -> None:
    """Pitfall 30: many groups share what may be under way to one node."""
    world = World(groups=4, settings=Settings(window_bytes=64 * KIB))
    for group in range(4):
        world.elect("n1", group)
    world.beat("n1")
    world.settle()
    for number in range(100):
        world.propose("n1", "x" * 4 * KIB, group=number % 4, token=number)
    under_way = sum(
        size(entry)
        for letter in world.on_wire(to="n2", kind=AppendEntries)
        for entry in letter.message.entries
    )
    assert 60 * KIB < under_way < 84 * KIB
    world.settle()
    assert len(world.ports["n1"].applied_results) == 100
    assert world.nodes["n1"].turn.windows["n2"].bytes == 0


def test_a_frame_of_entries_is_bounded() -> None:
    world = World(settings=Settings(append_bytes=16 * KIB))
    world.elect("n1")
    world.crash("n3")
    for number in range(100):
        world.propose("n1", "x" * KIB, token=number)
        world.settle()
    world.boot("n3")
    largest = 0
    world.advance(0.1, deliver=False)
    for _ in range(1000):
        for letter in world.on_wire(to="n3", kind=AppendEntries):
            largest = max(largest, sum(map(size, letter.message.entries)))
        if not world.deliver():
            break
    assert 8 * KIB < largest <= 16 * KIB
    assert world.group("n3").log.last_index == world.group("n1").log.last_index


@pytest.mark.parametrize("tail_bytes", [16 * KIB, 0])
def test_a_frame_of_small_entries_is_bounded_too(tail_bytes: int) -> None:
    """From memory, and from the disk: a megabyte of ticks is 32,768 entries."""
    world = World(settings=Settings(append_entries=16, tail_bytes=tail_bytes))
    world.elect("n1")
    world.crash("n3")
    for number in range(100):
        world.propose("n1", "x", token=number)
        world.settle()
    world.boot("n3")
    largest = 0
    for _ in range(100):
        for letter in world.on_wire(to="n3", kind=AppendEntries):
            largest = max(largest, len(letter.message.entries))
        if not world.deliver():
            if world.group("n3").log.last_index == world.group("n1").log.last_index:
                break
            world.beat("n1")
    assert largest == 16
    assert world.group("n3").log.last_index == world.group("n1").log.last_index


def test_a_heartbeat_is_not_behind_a_full_window() -> None:
    """Pitfall 30: heartbeats leave although nothing else may."""
    world = World(settings=Settings(window_messages=1))
    world.elect("n1")
    for number in range(5):
        world.propose("n1", f"{number}")
    world.wire.clear()
    world.beat("n1")
    assert [letter.to for letter in world.on_wire(kind=Heartbeat)] == ["n2", "n3"]


def test_a_turn_applies_only_so_much() -> None:
    """A restart replays the log over many turns, not in one."""
    world = World(1, settings=Settings(apply_operations=100))
    world.elect("n1")
    for number in range(50):
        world.propose("n1", *[f"{number}/{i}" for i in range(20)])
    raft = world.restart("n1")
    world.fire("n1")
    assert len(world.texts("n1")) == 1000
    raft = world.restart("n1")
    raft.on_deadline()
    group = world.group("n1")
    group.commit = group.log.last_index
    group.touch()
    raft.flush()
    assert 80 < len(world.texts("n1")) < 130 and raft.deadline() == world.time


def test_all_heartbeats_leave_at_one_beat() -> None:
    world = World(groups=5)
    for group in range(5):
        world.elect("n1", group)
    world.beat("n1")
    beats = [letter.message.group for letter in world.on_wire(to="n2", kind=Heartbeat)]
    assert beats == [0, 1, 2, 3, 4]
    assert world.nodes["n1"].deadline() == world.time + world.settings.heartbeat_s


def test_an_idle_turn_sends_and_writes_nothing() -> None:
    world = World(groups=5)
    for group in range(5):
        world.elect("n1", group)
    world.beat("n1")
    world.settle()
    writes = world.ports["n1"].writes
    for name in world.names:
        world.flush(name)
    assert not world.wire and world.ports["n1"].writes == writes


def test_reads_that_wait_are_bounded() -> None:
    world = World(settings=Settings(waiting_reads=10))
    world.elect("n1")
    world.cut = lambda letter: True
    for number in range(12):
        world.read("n1", number)
    assert [f.code for f in world.ports["n1"].failures.values()] == [Code.BUSY, Code.BUSY]


def test_a_proposal_for_a_group_that_is_not_here() -> None:
    world = World()
    command = Command("note", 0, 0, 0, 0, [-1], [Note("x")])
    world.nodes["n1"].propose("note", 9, command, "t")
    world.nodes["n1"].read("note", 9, "r")
    codes = {failure.code for failure in world.ports["n1"].failures.values()}
    assert codes == {Code.UNKNOWN_GROUP}


def test_a_truncated_write_no_longer_counts_as_durable() -> None:
    """A write that is durable may hold an entry that was replaced meanwhile, not durably yet."""
    world = World()
    world.autosync = False
    old, new = Entry(2, 2, 0, NOOP), Entry(2, 3, 0, NOOP)
    world.hand("n1", "n2", AppendEntries(0, 2, 1, 1, 0, 0, (old, Entry(3, 2, 0, NOOP))))
    world.hand("n3", "n2", AppendEntries(0, 3, 1, 1, 0, 0, (new,)))
    raft, group = world.nodes["n2"], world.group("n2")
    raft.on_durable(1)
    assert group.durable_index == 1
    raft.on_durable(2)
    assert group.durable_index == 2
    assert [type(letter.message) for letter in world.wire] == [Appended, Appended]
    assert world.disks["n2"].records[-1][-1] == EntryRecord(0, new)


def test_the_log_finds_terms() -> None:
    log = Log([Entry(i, t, 0, NOOP) for i, t in enumerate([1, 1, 2, 2, 2, 5], start=1)])
    assert [log.first_of_term(t) for t in (1, 2, 3, 5, 6)] == [1, 3, 6, 6, 7]
    assert [log.last_of_term(t) for t in (0, 1, 2, 4, 5)] == [0, 2, 5, 5, 6]
    assert [log.term_at(i) for i in (0, 1, 6, 7)] == [0, 1, 5, None]
    assert log.bytes == sum(map(size, log.entries))
    log.truncate(3)
    assert (log.last_index, log.last_term, log.bytes) == (2, 1, sum(map(size, log.entries)))
    log.truncate(1)
    assert (log.last_index, log.last_term, log.bytes) == (0, 0, 0)


@pytest.mark.parametrize("bytes_max", [1, 64, 10_000])
def test_a_batch_is_never_empty(bytes_max: int) -> None:
    log = Log([Entry(i, 1, 0, NOOP, b"x" * 20) for i in range(1, 11)])
    batch = log.batch(3, bytes_max, 5)
    assert batch and batch[0].index == 3 and len(batch) <= 5
    assert len(batch) == 1 or sum(map(size, batch)) <= bytes_max
