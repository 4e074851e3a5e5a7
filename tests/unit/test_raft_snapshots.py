"""Snapshots within raft: taken, forgotten logs, sent, installed, over lost pieces and crashes.

Numbers in parentheses are those of references/locks.md §5.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from raft_world import World

from coterie.protocols.errors import Code
from coterie.protocols.plugin import Message
from coterie.protocols.raft import catching_up, compaction, election
from coterie.protocols.raft.group import Role
from coterie.protocols.raft.messages import (
    Appended,
    AppendEntries,
    Digested,
    Heard,
    Heartbeat,
    InstallSnapshot,
    SnapshotReceived,
    Voted,
)
from coterie.protocols.raft.settings import Settings
from coterie.protocols.raft.snapshots import Incoming
from coterie.protocols.records import (
    CONFIGURATION,
    NOOP,
    DropRecord,
    Entry,
    EntryRecord,
    Member,
    Snapshot,
    SnapshotRecord,
)
from coterie.protocols.snapshot import Header

SMALL = Settings(tail_bytes=0, piece_bytes=32, piece_window=2, append_bytes=200)


@pytest.fixture
def world() -> World:
    """n1 leads; 12 notes are everywhere; n3 is cut off after them, and 12 more follow."""
    world = World(3, settings=SMALL)
    world.elect("n1")
    fill(world, 12)
    world.cut = lambda letter: "n3" in (letter.sender, letter.to)
    fill(world, 12)
    return world


def fill(world: World, count: int, name: str = "n1") -> None:
    for _ in range(count):
        world.propose(name, f"note {len(world.texts(name))}")
        world.settle()
    world.beat(name)
    world.settle()


def heal(world: World) -> None:
    world.cut = lambda letter: False
    world.wire = []


def beats(world: World, count: int, name: str = "n1") -> None:
    for _ in range(count):
        world.beat(name)
        world.settle()


def same(world: World) -> None:
    streams = [b"".join(world.group(n).replica.snapshot(0, 0, b"")) for n in world.nodes]
    assert len(set(streams)) == 1


def to_n3(world: World, kind: type[Message] = InstallSnapshot) -> list[Any]:
    return [letter.message for letter in world.on_wire(to="n3", kind=kind)]


def test_memory_keeps_only_the_tail_and_the_disk_the_rest(world: World) -> None:
    group = world.group("n1")
    assert not group.log.entries and group.log.base == group.log.last_index > 20
    heal(world)
    beats(world, 3)
    same(world)
    assert not any(isinstance(r, SnapshotRecord) for b in world.disks["n3"].records for r in b)


def test_nothing_is_forgotten_before_it_is_applied_and_on_disk(world: World) -> None:
    """Trimming must not overtake the disk or the commit index."""
    world.autosync = False
    group = world.group("n1")
    last = group.log.last_index
    world.propose("n1", "on the way")
    assert group.log.base == last and len(group.log.entries) == 1
    world.deliver(to="n2")
    world.sync("n2")
    world.deliver(sender="n2")
    assert group.commit == last, "our own disk is still writing"
    world.sync("n1")
    assert group.log.base == group.commit == last + 1


def test_who_lags_gets_the_snapshot_and_what_follows(world: World) -> None:
    snapshot = world.compact("n1")
    fill(world, 3)
    heal(world)
    beats(world, 8)
    same(world)
    n3 = world.group("n3")
    assert n3.snapshot == snapshot and n3.commit == world.group("n1").commit
    assert world.nodes["n3"].turn.snapshots.installed == 1
    restarted = world.restart("n3").groups[0]
    assert restarted.replica.applied == snapshot.index, "restored, the rest is applied when told"
    beats(world, 2)
    same(world)


def test_a_lost_piece_is_sent_again_after_a_heartbeat(world: World) -> None:
    """(13)"""
    world.compact("n1")
    heal(world)
    lost = 0
    for number in range(400):
        if number % 9 == 0:
            world.beat("n1")
        if number % 5 == 4:
            lost += world.drop(kind=InstallSnapshot)
        world.deliver()
    same(world)
    assert lost > 2
    assert world.nodes["n3"].turn.snapshots.installed == 1


def test_pieces_come_twice_and_in_any_order(world: World) -> None:
    """(13)"""
    world.compact("n1")
    heal(world)
    for _ in range(60):
        world.beat("n1")
        for _ in range(6):
            world.wire = [*world.wire[::-1], *world.on_wire(kind=InstallSnapshot)]
            world.deliver()
    same(world)


def test_another_leader_goes_on_where_the_first_stopped(world: World) -> None:
    """(13) Both have the same snapshot: its digest names it."""
    assert world.compact("n1") == world.compact("n2")
    heal(world)
    world.beat("n1")
    while not (incoming := world.nodes["n3"].turn.snapshots.incoming) or incoming[0].offset < 100:
        world.deliver()
    world.wire = []
    world.cut = lambda letter: "n1" in (letter.sender, letter.to)
    got = incoming[0].offset
    world.time += 1
    world.fire("n2")
    for _ in range(4):
        world.deliver()
    world.beat("n2")
    while not (pieces := [m for m in to_n3(world) if m.data]):
        assert world.deliver()
    assert pieces[0].offset == got and pieces[0].term > 2
    beats(world, 5, "n2")
    assert world.texts("n3") == world.texts("n2")
    assert world.nodes["n3"].turn.snapshots.resumed == 1


def test_two_snapshots_are_never_mixed(world: World) -> None:
    """(13) The new leader has another one: what came of the first is forgotten."""
    first = world.compact("n1")
    fill(world, 2)
    second = world.compact("n2")
    assert first != second
    heal(world)
    world.beat("n1")
    while not (incoming := world.nodes["n3"].turn.snapshots.incoming) or incoming[0].offset < 100:
        world.deliver()
    late = [letter.message for letter in world.on_wire(to="n3", kind=InstallSnapshot)]
    world.wire = []
    world.cut = lambda letter: "n1" in (letter.sender, letter.to)
    world.time += 1
    world.fire("n2")
    for _ in range(4):
        world.deliver()
    world.beat("n2")
    while world.nodes["n3"].turn.snapshots.incoming[0].snapshot != second:
        assert world.deliver()
    for message in late:
        world.hand("n1", "n3", message)
    assert world.nodes["n3"].turn.snapshots.incoming[0].snapshot == second
    beats(world, 6, "n2")
    assert world.texts("n3") == world.texts("n2") and world.group("n3").snapshot == second


def test_an_old_snapshot_does_not_touch_a_newer_log(world: World) -> None:
    """(11)"""
    snapshot = world.compact("n1")
    data = world.disks["n1"].snapshots[0, snapshot]
    heal(world)
    beats(world, 8)
    fill(world, 5)
    group = world.group("n3")
    before = (group.log.last_index, group.commit, world.texts("n3"), group.snapshot)
    world.wire = []
    for offset in range(0, len(data), 50):
        piece = data[offset : offset + 50]
        world.hand("n1", "n3", InstallSnapshot(0, group.term, 1, snapshot, offset, piece))
    answers = [letter.message for letter in world.on_wire(sender="n3")]
    assert {type(answer) for answer in answers} == {Appended}
    assert answers[0].index == snapshot.index
    assert (group.log.last_index, group.commit, world.texts("n3"), group.snapshot) == before


def test_what_conflicts_with_the_snapshot_goes_altogether() -> None:
    """(11) A tail of another term is no continuation, its configurations neither."""
    world = World(3, settings=SMALL)
    world.elect("n1")
    fill(world, 6)
    snapshot = world.compact("n1")
    data = world.disks["n1"].snapshots[0, snapshot]
    world.write_log("n3", [1] + [2] * (snapshot.index + 3), term=2)
    group = world.group("n3")
    assert group.log.last_index > snapshot.index
    term = world.group("n1").term
    group.log.entries[snapshot.index - 1] = Entry(snapshot.index, 1, 0, NOOP)
    world.hand("n1", "n3", InstallSnapshot(0, term, 1, snapshot, 0, data))
    assert (group.log.base, group.log.last_index, group.commit) == (snapshot.index,) * 3
    assert world.texts("n3") == world.texts("n1")
    records = [type(record) for batch in world.disks["n3"].records for record in batch]
    assert records.index(DropRecord) < records.index(SnapshotRecord)
    same_group = world.restart("n3").groups[0]
    assert same_group.log.last_index == snapshot.index == same_group.replica.applied


def test_a_suffix_that_follows_the_snapshot_stays() -> None:
    world = World(3, settings=SMALL)
    world.elect("n1")
    fill(world, 6)
    snapshot = world.compact("n1")
    data = world.disks["n1"].snapshots[0, snapshot]
    term = world.group("n1").term
    entries = [record.entry for batch in world.disks["n1"].records for record in batch
               if isinstance(record, EntryRecord)]  # fmt: skip
    world.wipe("n3", 103)
    group = world.group("n3")
    world.disks["n3"].cluster = world.disks["n1"].cluster
    world.nodes["n3"]._joined(world.disks["n1"].cluster)
    more = Entry(snapshot.index + 1, term, entries[-1].time_us, NOOP)
    tail = (*entries[: snapshot.index], more)
    world.hand("n1", "n3", AppendEntries(0, term, 0, 0, 0, 1, tail))
    assert group.commit == 0 and group.log.last_index == snapshot.index + 1
    world.hand("n1", "n3", InstallSnapshot(0, term, 1, snapshot, 0, data))
    assert (group.log.base, group.log.last_index) == (snapshot.index, snapshot.index + 1)
    assert group.replica.applied == snapshot.index


@pytest.mark.parametrize("crash_at", ["received", "saved", "written"])
def test_a_crash_at_any_point_of_an_installation(world: World, crash_at: str) -> None:
    """(12) Until the record is durable the old state counts, and nobody was told otherwise."""
    world.compact("n1")
    heal(world)
    world.autosync = False
    before = world.group("n3").log.last_index
    for _ in range(200):
        world.beat("n1")
        world.deliver()
        for name in ("n1", "n2"):
            world.work(name)
            world.sync(name)
        world.sync("n3")
        if any(task == "save" for task, _ in world.ports["n3"].tasks):
            break
    else:
        raise AssertionError("all of it never came")
    if crash_at != "received":
        world.work("n3")
        assert any(key[0] == 0 for key in world.disks["n3"].snapshots)
        answers = [m.message for m in world.on_wire(sender="n3", kind=Appended)]
        assert not answers, "it is acknowledged only when its record is durable"
    if crash_at == "written":
        world.sync("n3")
        assert world.on_wire(sender="n3", kind=Appended)
    world.autosync = True
    world.wire = []
    n3 = world.restart("n3").groups[0]
    if crash_at == "written":
        assert n3.snapshot == world.group("n1").snapshot
    else:
        assert n3.snapshot is None and n3.log.last_index == before
    beats(world, 12)
    same(world)


def test_the_record_is_written_only_when_the_file_is_there(world: World) -> None:
    world.autosync = False
    world.nodes["n1"].turn.snapshots.want(world.group("n1"))
    world.flush("n1")
    assert [task for task, _ in world.ports["n1"].tasks] == ["save"]
    assert world.group("n1").snapshot is None
    world.work("n1")
    written = world.disks["n1"].records[-1]
    assert [type(record) for record in written] == [SnapshotRecord]


def test_a_snapshot_is_of_its_index_whatever_comes_while_it_is_written(world: World) -> None:
    world.autosync = False
    world.nodes["n1"].turn.snapshots.want(world.group("n1"))
    world.flush("n1")
    index = world.group("n1").replica.applied
    world.autosync = True
    tasks, world.ports["n1"].tasks = world.ports["n1"].tasks, []
    fill(world, 4)
    world.ports["n1"].tasks = tasks
    world.work("n1")
    snapshot = world.group("n1").snapshot
    assert snapshot is not None and snapshot.index == index
    world.restart("n1")
    assert world.texts("n1") == [f"note {number}" for number in range(24)]


def test_one_group_is_saved_at_a_time() -> None:
    world = World(1, groups=3, settings=SMALL)
    world.fire("n1")
    world.autosync = False
    raft = world.nodes["n1"]
    for group in raft.groups.values():
        raft.turn.snapshots.want(group)
    world.flush("n1")
    saved = []
    while tasks := world.ports["n1"].tasks:
        assert len(tasks) == 1
        saved.append(tasks[0][1][0])
        world.work("n1")
    assert saved == [g for g in raft.groups if raft.groups[g].replica.applied]


def test_a_group_given_up_while_it_is_saved_does_not_stop_the_others() -> None:
    settings = Settings(tail_bytes=0, digest_operations=4, partitions=1)
    world = World(1, groups=2, settings=settings)
    world.advance(1.0)
    raft, port = world.nodes["n1"], world.ports["n1"]
    fill(world, 1)
    world.autosync = False
    raft.turn.snapshots.want(world.group("n1", 1))
    world.propose("n1", "a", "b", "c", "d", group=1)
    world.sync("n1")
    assert raft.turn.snapshots.saving == raft.turn.digests.busy == 1
    port.tasks = []  # as the disk does when it is told to drop the group
    raft.holding.give_up(1, world.group("n1", 1).commit)
    world.flush("n1")
    assert port.tasks == [], "its files stay until the record is durable"
    world.sync("n1")
    assert [task for task, _ in port.tasks] == ["drop"]
    assert raft.turn.snapshots.saving is raft.turn.digests.busy is None
    world.work("n1")
    raft.turn.snapshots.want(world.group("n1"))
    world.flush("n1")
    assert raft.turn.snapshots.saving == 0


def test_after_a_full_disk_a_snapshot_is_taken_after_a_pause(world: World) -> None:
    """Else the node would not save again before it is started again."""
    world.autosync = False
    raft, port = world.nodes["n2"], world.ports["n2"]
    raft.turn.snapshots.want(world.group("n2"))
    world.flush("n2")
    assert [task for task, _ in port.tasks] == ["save"]
    port.tasks = []
    raft.on_save_failed(0)
    world.flush("n2")
    assert raft.turn.snapshots.saving is None and not port.tasks
    world.time += SMALL.save_pause_s
    world.flush("n2")
    assert [task for task, _ in port.tasks] == ["save"]
    world.autosync = True
    world.flush("n2")
    assert world.group("n2").snapshot is not None


def test_what_came_and_found_the_disk_full_comes_again(world: World) -> None:
    snapshot = world.compact("n1")
    heal(world)
    failed = 0
    raft, port = world.nodes["n3"], world.ports["n3"]
    for _ in range(200):
        world.beat("n1")
        world.work("n1")
        while world.deliver(to="n1") + world.deliver(to="n2"):
            pass
        world.autosync = failed > 0
        world.deliver(to="n3")
        world.sync("n3")
        world.autosync = True
        if not failed and [task for task, _ in port.tasks] == ["save"]:
            port.tasks = []
            raft.on_save_failed(0)
            assert not raft.turn.snapshots.incoming
            failed = 1
    same(world)
    assert failed and world.group("n3").snapshot == snapshot


def test_a_group_that_grew_is_saved_by_itself() -> None:
    world = World(3, settings=Settings(snapshot_bytes=600))
    world.elect("n1")
    fill(world, 30)
    snapshot = world.group("n1").snapshot
    assert snapshot is not None and snapshot.index < world.group("n1").commit
    assert world.group("n2").snapshot is not None


def test_many_operations_are_reason_enough_once_they_outgrew_the_snapshot() -> None:
    world = World(3, settings=Settings(snapshot_operations=10))
    world.elect("n1")
    fill(world, 12)
    first = world.group("n1").snapshot
    assert first is not None
    fill(world, 60)
    assert world.group("n1").snapshot != first


def test_a_long_log_has_each_group_saved_or_copied_forward(world: World) -> None:
    raft, group = world.nodes["n1"], world.group("n1")
    raft.compact([0, 99])
    world.flush("n1")
    snapshot = group.snapshot
    assert snapshot is not None and snapshot.index == group.replica.applied
    world.autosync = False
    world.propose("n1", "uncommitted")
    raft.compact([0])
    world.flush("n1")
    last = world.disks["n1"].records[-1]
    assert [r.entry.index for r in last if isinstance(r, EntryRecord)] == [snapshot.index + 1]
    world.autosync = True
    world.sync("n1")
    world.settle()
    world.restart("n1")
    assert world.group("n1").log.last_index == snapshot.index + 1


def test_many_small_entries_are_saved_rather_than_copied() -> None:
    """A copy is one batch, and no other write passes it."""
    world = World(1, settings=Settings(copy_entries=8))
    world.fire("n1")
    raft, group = world.nodes["n1"], world.group("n1")
    compaction.record(group, Snapshot(group.replica.applied, group.term, 1 << 20, b"x" * 16))
    fill(world, 8)
    before, writes = group.snapshot, len(world.disks["n1"].records)
    raft.compact([0])
    world.flush("n1")
    assert group.snapshot == before
    assert len(world.disks["n1"].records[writes]) == 8
    fill(world, 1)
    raft.compact([0])
    world.flush("n1")
    assert group.snapshot is not None and group.snapshot.index == group.replica.applied


def test_a_heartbeat_never_waits_for_a_snapshot(world: World) -> None:
    """(30) The peer answers nothing any more, and the others are served as before."""
    world.compact("n1")
    heal(world)
    for _ in range(4):
        world.beat("n1")
        world.deliver()
    world.drop(sender="n3")
    sent = 0
    for _ in range(4):
        world.wire = [letter for letter in world.wire if letter.to != "n3"]
        world.beat("n1")
        assert to_n3(world, Heartbeat)
        sent += sum(len(message.data) for message in to_n3(world))
        world.deliver(to="n2")
        world.deliver(sender="n2")
    assert sent <= SMALL.piece_bytes * SMALL.piece_window
    token = world.propose("n1", "served")
    world.deliver(to="n2")
    world.deliver(sender="n2")
    assert token in world.ports["n1"].applied_results


def test_a_snapshot_that_was_removed_is_replaced_by_the_newest(world: World) -> None:
    first = world.compact("n1")
    heal(world)
    world.beat("n1")
    while not (incoming := world.nodes["n3"].turn.snapshots.incoming) or incoming[0].offset < 60:
        world.deliver()
    world.cut = lambda letter: "n3" in (letter.sender, letter.to)
    fill(world, 2)
    second = world.compact("n1")
    del world.disks["n1"].snapshots[0, first]
    heal(world)
    beats(world, 12)
    same(world)
    assert world.group("n3").snapshot == second


def test_a_leader_without_a_snapshot_takes_one_first(world: World) -> None:
    world.disks["n1"].removed[0] = world.group("n1").log.last_index
    heal(world)
    beats(world, 12)
    same(world)
    assert world.group("n1").snapshot == world.group("n3").snapshot is not None


def test_who_waits_for_a_snapshot_that_is_being_taken_wants_no_other(world: World) -> None:
    world.disks["n1"].removed[0] = world.group("n1").log.last_index
    saves = world.nodes["n1"].turn.snapshots
    heal(world)
    beats(world, 2)
    world.disks["n1"].snapshots.clear()
    world.group("n1").snapshot = None
    world.autosync = False
    saves.want(world.group("n1"))
    world.flush("n1")
    assert saves.saving == 0 and not saves.wanted
    catching_up._wait_for_snapshot(world.group("n1"), world.group("n1").peers["n3"])
    assert not saves.wanted


def test_a_snapshot_has_the_configuration_as_it_is_in_the_log() -> None:
    """Another version may encode it otherwise, and then the digests would differ."""
    world = World(1)
    world.fire("n1")
    group = world.group("n1")
    fields = msgspec.structs.astuple(group.configuration)
    longer = msgspec.msgpack.encode([*fields, "of a later version"])
    group.lead(CONFIGURATION, longer)
    group.touch()
    world.flush("n1")
    snapshot = world.compact("n1")
    assert longer in world.disks["n1"].snapshots[0, snapshot]
    world.restart("n1")
    world.fire("n1")
    fill(world, 1)
    assert longer in world.disks["n1"].snapshots[0, world.compact("n1")]


def test_so_many_come_at_once_and_the_others_wait() -> None:
    world = World(3, groups=3, settings=SMALL)
    for group in range(3):
        world.elect("n1", group)
    world.cut = lambda letter: "n3" in (letter.sender, letter.to)
    for group in range(3):
        for number in range(8):
            world.propose("n1", f"{group} {number}", group=group)
            world.settle()
        world.compact("n1", group)
    heal(world)
    most = 0
    for _ in range(30):
        world.beat("n1")
        while world.deliver():
            most = max(most, len(world.nodes["n3"].turn.snapshots.incoming))
    assert most == SMALL.incoming_snapshots
    assert all(world.texts("n3", group) == world.texts("n1", group) for group in range(3))


def test_what_makes_another_state_is_refused_and_the_third_time_the_node_stops(
    world: World,
) -> None:
    snapshot = world.compact("n1")
    data = world.disks["n1"].snapshots[0, snapshot]
    wrong = Snapshot(snapshot.index, snapshot.term, snapshot.size, bytes(16))
    term, port = world.group("n1").term, world.ports["n3"]
    for count in range(3):
        assert port.stopped is None, count
        world.hand("n1", "n3", InstallSnapshot(0, term, 1, wrong, 0, data))
        assert world.group("n3").commit < snapshot.index
    assert port.stopped is not None and port.stopped.code is Code.STATE_DIVERGED


def test_what_was_refused_is_forgotten_once_a_snapshot_is_right(world: World) -> None:
    """Two accidents in a node's life and a third a year later are no rule."""
    snapshot = world.compact("n1")
    data = world.disks["n1"].snapshots[0, snapshot]
    wrong = Snapshot(snapshot.index, snapshot.term, snapshot.size, bytes(16))
    term, came = world.group("n1").term, world.nodes["n3"].turn.snapshots
    for _ in range(2):
        world.hand("n1", "n3", InstallSnapshot(0, term, 1, wrong, 0, data))
    assert came.damaged == {0: 2}
    world.hand("n1", "n3", InstallSnapshot(0, term, 1, snapshot, 0, data))
    assert world.group("n3").snapshot == snapshot and not came.damaged


def test_damaged_pieces_are_refused(world: World) -> None:
    snapshot = world.compact("n1")
    data = bytearray(world.disks["n1"].snapshots[0, snapshot])
    data[60] ^= 1
    world.hand("n1", "n3", InstallSnapshot(0, 2, 1, snapshot, 0, bytes(data)))
    (answer,) = [m.message for m in world.on_wire(sender="n3", kind=SnapshotReceived)]
    assert answer.offset == 0 and not world.nodes["n3"].turn.snapshots.incoming


def test_proposals_of_a_deposed_leader_are_given_up_when_a_snapshot_takes_their_place() -> None:
    world = World(3, settings=SMALL)
    world.elect("n1")
    fill(world, 3)
    world.autosync = False
    group = world.group("n1")
    token = world.propose("n1", "committed, not yet applied here")
    world.deliver(kind=AppendEntries)
    for name in ("n2", "n3"):
        world.sync(name)
    group.commit = group.log.last_index  # as a heartbeat of the next leader tells it
    group.become_follower(group.term + 1, "n2")
    assert group.proposed
    world.autosync = True
    snapshot = Snapshot(group.commit + 1, group.term, 1, bytes(16))
    replica = world.nodes["n1"].replicas.make(0)
    replica.header = Header(1, 0, snapshot.index, snapshot.term, 0, 9, 99, 0, b"")
    replica.applied = snapshot.index
    compaction.install(group, snapshot, replica)
    assert world.ports["n1"].failures[token].code is Code.LEADER_LOST and not group.proposed


def test_old_copies_of_appends_below_the_base_are_acknowledged(world: World) -> None:
    """(8) What a follower has forgotten is committed: an old copy is answered, nothing is cut."""
    group = world.group("n2")
    old = Entry(3, 2, 0, NOOP)
    world.wire = []
    world.hand("n1", "n2", AppendEntries(0, group.term, 2, 2, 0, 1, (old,)))
    (answer,) = [letter.message for letter in world.on_wire(sender="n2")]
    assert isinstance(answer, Appended) and answer.index == group.log.base
    assert world.texts("n2") == world.texts("n1")


def test_votes_and_terms_outlive_the_log() -> None:
    world = World(3, settings=SMALL)
    world.elect("n1")
    fill(world, 4)
    for name in world.names:
        world.compact(name)
        group = world.restart(name).groups[0]
        assert group.term == 2 and group.vote == "n1"
        assert (group.log.last_index, group.log.last_term) == (
            (group.snapshot.index, group.snapshot.term) if group.snapshot else None
        )
    world.advance(1.0)
    assert world.leaders()


def test_members_come_with_the_snapshot(world: World) -> None:
    """(14)"""
    world.compact("n1")
    heal(world)
    beats(world, 8)
    world.restart("n3")
    assert world.group("n3").configuration == world.group("n1").configuration
    assert world.group("n3").voting


def test_votes_under_the_configuration_before_the_snapshot_do_not_count() -> None:
    """Two of five became two of three: n2 is no member any more when the votes are counted."""
    world = World(5, settings=SMALL)
    world.turn_off_promotion()
    world.elect("n1")
    world.cut = lambda letter: "n4" in (letter.sender, letter.to)
    staying = {name: Member(name, world.incarnations[name], True) for name in world.names}
    for gone in ("n5", "n2"):
        del staying[gone]
        assert world.nodes["n1"].reconfigure(0, tuple(staying.values())) is None
        world.flush("n1")
        world.settle()
    snapshot = world.compact("n1")
    n4, data = world.group("n4"), world.disks["n1"].snapshots[0, snapshot]
    world.autosync = False
    world.hand("n1", "n4", InstallSnapshot(0, n4.term, 1, snapshot, 0, data))
    world.sync("n4")
    election.stand(n4, transfer=False)
    n4.touch()
    world.flush("n4")
    world.hand("n2", "n4", Voted(0, n4.term, True, world.incarnations["n2"]))
    assert n4.voters == 5 and n4.votes == {"n2": True}
    world.work("n4")
    assert n4.commit == snapshot.index and n4.voters == 3
    world.sync("n4")
    assert n4.role is Role.CANDIDATE and n4.votes == {"n4": True}


class TestStates:
    """(31)"""

    @pytest.fixture
    def world(self) -> World:
        world = World(3, settings=Settings(digest_operations=10))
        world.elect("n1")
        return world

    def test_equal_states_are_compared_and_nobody_stops(self, world: World) -> None:
        fill(world, 40)
        for name in world.names:
            assert world.nodes[name].turn.digests.compared >= 2
            assert world.ports[name].stopped is None

    def test_who_differs_stops_and_tells_the_story(self, world: World) -> None:
        fill(world, 5)
        machine: Any = world.group("n3").replica.machines["note"]
        machine.texts[2] = "another"
        fill(world, 10)
        stopped = world.ports["n3"].stopped
        assert stopped is not None and stopped.code is Code.STATE_DIVERGED
        assert "group 0" in stopped.text and "note Note" in stopped.text
        assert world.ports["n1"].stopped is world.ports["n2"].stopped is None

    def test_a_leader_that_differs_stops_too(self, world: World) -> None:
        fill(world, 5)
        machine: Any = world.group("n1").replica.machines["note"]
        machine.texts.append("one more")
        fill(world, 10)
        assert world.ports["n1"].stopped is not None and world.ports["n2"].stopped is None

    def test_a_digest_of_another_incarnation_does_not_count(self, world: World) -> None:
        fill(world, 12)
        for sender in ("n1", "n2"):
            world.hand(sender, "n3", Digested(0, 12, b"x" * 16, 999))
        assert world.ports["n3"].stopped is None

    def test_what_is_remembered_is_bounded(self, world: World) -> None:
        for index in range(1, 50):
            world.hand("n2", "n1", Digested(0, 10_000 + index, b"x" * 16, 102))
        assert len(world.nodes["n1"].turn.digests._told[0]) <= 4


def test_it_was_heard_that_it_waits(world: World) -> None:
    """A peer that has no room for a snapshot is alive all the same (CheckQuorum)."""
    world.compact("n1")
    term, snapshots = world.group("n1").term, world.nodes["n3"].turn.snapshots
    snapshots.turn.settings = SMALL
    heal(world)
    name = Snapshot(99, term, 10, bytes(16))
    for group in (7, 8):
        snapshots.incoming[group] = snapshots.incoming.get(0) or _incoming(world, name)
    world.hand("n1", "n3", InstallSnapshot(0, term, 5, name, 0, b""))
    (answer,) = [letter.message for letter in world.on_wire(sender="n3")]
    assert isinstance(answer, Heard)


def _incoming(world: World, name: Snapshot) -> Any:
    message = InstallSnapshot(0, 2, 1, name, 0, b"")
    made = Incoming(message, world.nodes["n3"].replicas.make(0))
    made.heard_at = world.time
    return made
