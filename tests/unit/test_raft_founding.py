"""How clusters begin, how nodes join them, and how a node whose disk was lost comes back."""

from __future__ import annotations

from raft_world import PLUGINS, Disk, World

from coterie.protocols.errors import Code
from coterie.protocols.raft.group import Role
from coterie.protocols.raft.messages import Introduce, Introduced, RequestPreVote, RequestVote
from coterie.protocols.records import Member


def clusters(world: World) -> set[int]:
    return {world.nodes[name].cluster for name in world.nodes}


def found(nodes: int = 3) -> World:
    world = World(nodes, founded=False)
    world.advance(2.0)
    return world


def test_an_empty_cluster_is_founded() -> None:
    world = found()
    [cluster] = clusters(world)
    assert cluster and {disk.cluster for disk in world.disks.values()} == {cluster}
    assert len(world.leaders()) == 1
    for name in world.names:
        assert world.group(name).log.get(1) == world.group("n1").log.get(1)
        members = world.group(name).members.values()
        assert {member.node: member.incarnation for member in members} == world.incarnations


def test_a_single_node_founds_at_once() -> None:
    world = World(1, founded=False)
    world.advance(0.4)
    assert world.leaders() == ["n1"]


def test_only_the_first_configured_node_founds() -> None:
    world = World(founded=False)
    world.crash("n1")
    world.advance(5.0)
    assert clusters(world) == {0}
    world.boot("n1")
    world.advance(2.0)
    assert len(clusters(world)) == 1 and world.leaders()


def test_nobody_founds_without_a_majority() -> None:
    world = World(5, founded=False)
    for name in ("n3", "n4", "n5"):
        world.crash(name)
    world.advance(5.0)
    assert clusters(world) == {0}


def test_who_was_not_heard_of_is_recorded_later() -> None:
    """A majority founds after a second; the third has incarnation 0 until it presents itself."""
    world = World(founded=False)
    world.crash("n3")
    world.advance(0.9)
    assert clusters(world) == {0}
    world.advance(2.0)
    [leader] = world.leaders()
    assert world.group(leader).members["n3"].incarnation == 0
    assert world.group(leader).voters == 3
    world.boot("n3")
    world.advance(2.0)
    member = world.group(leader).members["n3"]
    assert (member.incarnation, member.voter) == (103, True)
    assert world.group("n3").voting and world.group("n3").commit == world.group(leader).commit
    world.crash(leader)
    world.advance(2.0)
    assert len(world.leaders()) == 1


def test_the_cluster_is_told_only_when_its_entry_is_durable() -> None:
    world = World(founded=False)
    world.autosync = False
    world.advance(1.5)
    assert world.group("n1").log.last_index == 1
    assert world.nodes["n1"].cluster == 0 and clusters(world) == {0}
    assert all(not letter.message.cluster for letter in world.on_wire(kind=Introduced))
    # It is no longer empty, and not of a cluster yet: it answers nobody.
    world.wire.clear()
    world.hand("n2", "n1", Introduce(0, Member("n2", 102, True), PLUGINS))
    assert not world.wire
    world.restart("n1")
    assert world.group("n1").log.last_index == 0
    world.autosync = True
    world.advance(2.0)
    assert len(world.leaders()) == 1


def test_the_cluster_is_known_after_a_restart() -> None:
    world = found()
    [cluster] = clusters(world)
    world.disks["n2"].cluster = 0  # it ended between the log's write and that of node.json
    world.restart("n2")
    assert world.nodes["n2"].cluster == cluster == world.disks["n2"].cluster


def test_a_node_without_a_cluster_never_votes() -> None:
    world = World(founded=False)
    world.wire.clear()
    world.hand("n2", "n1", RequestVote(0, 5, 9, 9))
    world.hand("n2", "n1", RequestPreVote(0, 5, 9, 9))
    assert not world.wire and world.group("n1").term == 0


def test_an_old_answer_of_an_empty_node_does_not_found() -> None:
    """The answer must be to a question of this incarnation: else a first node whose disk was
    lost could found a second cluster on what its peers said before the first."""
    world = World(founded=False)
    for name in ("n2", "n3"):
        world.crash(name)
    for name in ("n2", "n3"):
        member = Member(name, world.incarnations[name], True)
        world.hand(name, "n1", Introduced(0, member, PLUGINS, asker=55))
    world.advance(3.0)
    assert clusters(world) == {0}


def test_only_configured_nodes_count_for_founding() -> None:
    world = World(founded=False)
    for name in ("n2", "n3"):
        world.crash(name)
    world.hand("x9", "n1", Introduced(0, Member("x9", 5, True), PLUGINS, asker=101))
    world.advance(3.0)
    assert clusters(world) == {0}


def test_the_first_node_does_not_found_twice() -> None:
    """Its disk is lost while the others live, or one of them: it joins them."""
    world = found()
    [cluster] = clusters(world)
    world.crash("n3")
    world.wipe("n1", 999)
    world.advance(5.0)
    assert world.nodes["n1"].cluster == cluster


def test_a_node_that_lost_its_disk_comes_back_as_a_learner_then_as_a_voter() -> None:
    world = found()
    [leader] = world.leaders()
    world.propose(leader, "a")
    world.settle()
    other = next(name for name in world.names if name != leader)
    world.wipe(other, 999)
    while not world.nodes[other].cluster:
        world.advance(0.001, deliver=False)
        world.deliver()
    assert world.group(other).log.last_index == 0
    seen = []
    for _ in range(300):
        world.advance(0.01)
        member = world.group(leader).members[other]
        if (member.incarnation, member.voter) not in seen:
            seen.append((member.incarnation, member.voter))
    assert seen[-2:] == [(999, False), (999, True)]
    assert world.texts(other) == ["a"] and world.group(other).voting
    assert world.leaders() == [leader]


def test_a_lost_disk_never_votes_twice() -> None:
    """n2 voted for n1, lost its disk, and votes again: that vote does not count."""
    world = World()
    world.cut = lambda letter: "n3" in (letter.sender, letter.to)
    world.elect("n1")
    world.wipe("n2", 999)
    world.cut = lambda letter: "n1" in (letter.sender, letter.to)
    world.advance(5.0)
    assert world.group("n3").role is not Role.LEADER
    assert world.group("n3").term <= world.group("n1").term + 1


def test_a_follower_behind_follows_a_leader_it_has_not_recorded() -> None:
    """n2 came back under a new incarnation while n3 was away, and leads when n3 returns."""
    world = found(5)
    world.elect("n1")
    world.crash("n3")
    world.wipe("n2", 999)
    world.advance(3.0)
    assert world.group("n1").members["n2"].voter
    assert world.nodes["n1"].hand_over(0, "n2")
    world.settle()
    world.crash("n1")
    world.heed_incarnations()
    world.boot("n3")
    world.advance(3.0)
    assert world.leaders() == ["n2"] and world.group("n3").members["n2"].incarnation == 999


def test_the_loss_is_healed() -> None:
    world = found()
    world.elect("n1")
    world.wipe("n3", 999)
    world.advance(4.0)
    member = world.group("n1").members["n3"]
    assert (member.incarnation, member.voter) == (999, True)
    world.wire.clear()
    world.advance(1.0, deliver=False)
    assert not world.on_wire(kind=Introduce)


def test_a_late_introduction_of_a_lost_incarnation_heals() -> None:
    """An hour late the leader hears of an incarnation that is gone, and records it."""
    world = World()
    world.elect("n1")
    world.wipe("n3", 999)
    world.advance(2.0)
    late = Introduce(world.nodes["n1"].cluster, Member("n3", 103, True), PLUGINS)
    world.hand("n3", "n1", late)
    assert world.group("n1").members["n3"].incarnation == 103
    world.misdeliver_nothing()
    world.advance(4.0)
    member = world.group("n1").members["n3"]
    assert (member.incarnation, member.voter) == (999, True)
    assert world.leaders() == ["n1"]


def test_other_plugins_do_not_join() -> None:
    world = found()
    world.crash("n3")
    world.disks["n3"] = Disk()
    world.incarnations["n3"] = 999
    world.plugins["n3"] = (("other", 1), ("raft", 1))
    world.boot("n3")
    world.advance(0.01)
    failure = world.ports["n3"].stopped
    assert failure is not None and failure.code is Code.PLUGINS_DIFFER
    assert "lacks note 1" in failure.text and "has other 1 too many" in failure.text
    assert world.nodes["n3"].cluster == 0


def test_other_plugins_do_not_restart() -> None:
    world = found()
    world.plugins["n3"] = (*PLUGINS, ("late", 2))
    world.restart("n3")
    failure = world.ports["n3"].stopped
    assert failure is not None and failure.code is Code.PLUGINS_DIFFER
    assert failure.text.startswith("this node has late 2 too many")


def test_a_node_of_another_cluster_is_not_answered() -> None:
    world = found()
    world.wire.clear()
    stranger = Member("n3", 5, True)
    world.hand("n3", "n1", Introduce(4711, stranger, PLUGINS))
    world.hand("x9", "n1", Introduce(world.nodes["n1"].cluster, Member("x9", 5, True), PLUGINS))
    assert [type(letter.message) for letter in world.wire] == [Introduced]
    assert world.group("n1").log.last_index == world.group("n2").log.last_index


def test_recorded_incarnations() -> None:
    world = found()
    world.elect("n1")
    raft = world.nodes["n3"]
    assert raft.recorded_incarnation("n2") == 102 and raft.recorded_incarnation("x") is None
    # Of our leader anything is heeded: only it could tell us that it is another one by now.
    assert raft.recorded_incarnation("n1") is None
    assert World(founded=False).nodes["n1"].recorded_incarnation("n2") is None
