"""Copies of groups that are begun, filled, given up and begun again; members removed for good.

What a copy acknowledged goes with it. So the tests here are about what must not be believed of a
node that had one before: its votes, its acknowledgements, its founding entry.
"""

from __future__ import annotations

import pytest
from raft_world import CLUSTER, World

from coterie.protocols.errors import Code
from coterie.protocols.raft.group import Role
from coterie.protocols.raft.membership import consider_promotion
from coterie.protocols.raft.messages import (
    Appended,
    AppendEntries,
    Introduce,
    Introduced,
    PreVoted,
    Rejected,
    RequestPreVote,
    RequestVote,
    Voted,
)
from coterie.protocols.records import Configuration, DropRecord, Member

GROUP = 1


def member(world: World, name: str, voter: bool = True) -> Member:
    return Member(name, world.incarnations[name], voter)


def configure(world: World, leader: str, *members: Member) -> int:
    """Change the group's members and let that be committed; the index of the change."""
    raft = world.nodes[leader]
    assert raft.reconfigure(GROUP, members) is None
    world.flush(leader)
    world.settle()
    assert world.group(leader, GROUP).commit == world.group(leader, GROUP).log.last_index
    return world.group(leader, GROUP).configurations[-1][0]


@pytest.fixture
def world() -> World:
    """Four nodes with two groups; of group 1 n1 is the leader and n4 was removed."""
    world = World(4, groups=2)
    world.turn_off_promotion()
    world.elect("n1", GROUP)
    world.propose("n1", "a", group=GROUP)
    world.settle()
    configure(world, "n1", *(member(world, name) for name in ("n1", "n2", "n3")))
    return world


def floor_of(world: World) -> int:
    return world.group("n1", GROUP).configurations[-1][0]


def give_up(world: World, name: str = "n4") -> None:
    world.nodes[name].holding.give_up(GROUP, floor_of(world))
    world.flush(name)


def begin(world: World, name: str = "n4") -> None:
    world.nodes[name].holding.begin(GROUP)
    world.flush(name)


def test_a_copy_is_given_up_for_good(world: World) -> None:
    term = world.group("n4", GROUP).term
    give_up(world)
    assert any(isinstance(record, DropRecord) for record in world.disks["n4"].records[-1])
    for _ in range(2):
        raft = world.nodes["n4"]
        assert raft.holding.held() == [0] and not raft.holding.unknown(GROUP)
        state = raft.holding.dormant[GROUP]
        assert (state.term, state.floor, state.held) == (term, floor_of(world), False)
        world.restart("n4")


def test_a_copy_is_given_up_only_by_a_configuration_that_is_not_older(world: World) -> None:
    floor = floor_of(world)
    index = configure(world, "n1", member(world, "n1"), member(world, "n2"))
    assert world.group("n2", GROUP).configurations[-1][0] == index > floor
    with pytest.raises(AssertionError):
        world.nodes["n2"].holding.give_up(GROUP, floor)


def test_a_leader_that_gives_its_copy_up_tells_who_proposed(world: World) -> None:
    world.drop()
    world.propose("n1", "late", group=GROUP)
    world.nodes["n1"].holding.give_up(GROUP, floor_of(world))
    assert world.ports["n1"].failures["late"].code is Code.LEADER_LOST
    assert world.nodes["n1"].leader(GROUP) == (None, 0)


def test_a_copy_begun_anew_has_no_vote_before_it_is_given_one(world: World) -> None:
    give_up(world)
    begin(world)
    world.time += 1.0
    for _ in range(2):
        group = world.group("n4", GROUP)
        last, term = group.log.last_index, group.term
        world.hand("n3", "n4", RequestPreVote(GROUP, term + 5, 900, term + 4))
        world.hand("n3", "n4", RequestVote(GROUP, term + 5, 900, term + 4))
        assert not world.on_wire(sender="n4", kind=PreVoted)
        assert not world.on_wire(sender="n4", kind=Voted)
        # Filled as far as the founding entry, in which it is a voter: still none.
        first = world.group("n1", GROUP).log.get(1)
        append = AppendEntries(GROUP, term, 0, 0, 0, 0, (first,))
        world.hand("n1", "n4", append)
        assert group.log.last_index == max(1, last) and not group.voting
        world.time += 1.0
        world.restart("n4")


def test_a_copy_begun_anew_is_filled_and_votes_again(world: World) -> None:
    give_up(world)
    begin(world)
    three = [member(world, name) for name in ("n1", "n2", "n3")]
    configure(world, "n1", *three, member(world, "n4", voter=False))
    world.beat("n1")
    world.settle()
    assert world.texts("n4", GROUP) == ["a"] and not world.group("n4", GROUP).voting
    configure(world, "n1", *three, member(world, "n4"))
    assert world.group("n4", GROUP).voting
    world.elect("n4", GROUP)


def test_what_an_earlier_copy_acknowledged_says_nothing_of_this_one(world: World) -> None:
    group = world.group("n1", GROUP)
    old = Appended(GROUP, group.term, group.log.last_index, group.reads.round, 104)
    give_up(world)
    three = [member(world, name) for name in ("n1", "n2", "n3")]
    assert world.nodes["n1"].reconfigure(GROUP, [*three, member(world, "n4", voter=False)]) is None
    world.flush("n1")
    world.hand("n4", "n1", old)
    assert group.peers["n4"].match == 0


def test_a_learner_that_gave_up_its_copy_is_filled_from_the_start(world: World) -> None:
    three = [member(world, name) for name in ("n1", "n2", "n3")]
    world.cut = lambda letter: letter.to == "n4"
    configure(world, "n1", *three, member(world, "n4", voter=False))
    group = world.group("n1", GROUP)
    round_number = group.reads.round
    world.hand("n4", "n1", Appended(GROUP, group.term, 2, round_number, 104))
    assert group.peers["n4"].match == 2
    world.nodes["n4"].holding.give_up(GROUP, floor_of(world) - 1)
    begin(world)
    world.hand("n4", "n1", Rejected(GROUP, group.term, 2, 1, 0, round_number, 104))
    assert group.peers["n4"].match == 0
    world.cut = lambda letter: False
    world.advance(1.0)
    assert group.peers["n4"].match == group.log.last_index


def test_a_learner_becomes_a_voter_only_with_the_entry_that_made_it_one() -> None:
    """Before it has that entry it may still give up the copy it acknowledged from."""
    world = World(4, groups=2, learners=("n4",))
    world.elect("n1", GROUP)
    group = world.group("n1", GROUP)
    peer = group.peers["n4"]
    world.cut = lambda letter: "n4" in (letter.sender, letter.to)
    three = [member(world, name) for name in ("n1", "n2", "n3")]
    configure(world, "n1", *three)
    configure(world, "n1", *three, member(world, "n4", voter=False))
    peer = group.peers["n4"]
    peer.match = group.configurations[-1][0] - 1
    for _ in range(3):
        world.beat("n1")
        consider_promotion(group, peer, group.reads.round)
    assert not group.members["n4"].voter
    peer.match = group.log.last_index
    for _ in range(3):
        world.beat("n1")
        consider_promotion(group, peer, group.reads.round)
    assert group.members["n4"].voter


def test_a_group_is_founded_alike_on_all_its_members_and_by_none_that_knew_it() -> None:
    world = World(3)
    founding = Configuration(CLUSTER, tuple(member(world, name) for name in world.names))
    for name in world.names:
        world.nodes[name].holding.found(5, founding, name == "n2")
        world.flush(name)
        with pytest.raises(AssertionError):
            world.nodes[name].holding.found(5, founding, False)
    world.advance(0.140)
    assert world.leaders(5) == ["n2"], "the preferred node does not wait for its timer"
    assert {world.group(name, 5).log.get(1) for name in world.names} == {
        world.group("n1", 5).log.get(1)
    }
    world.restart("n3")
    assert world.nodes["n3"].holding.held() == [0, 5]


def test_who_was_removed_is_told_and_does_not_come_back() -> None:
    world = World(4)
    world.elect("n1")
    assert world.nodes["n1"].reconfigure(0, [member(world, n) for n in ("n1", "n2", "n3")]) is None
    world.flush("n1")
    world.settle()
    assert world.group("n2").configuration.removed == (("n4", 104),)  # type: ignore[union-attr]
    world.advance(5.0)
    stopped = world.ports["n4"].stopped
    assert stopped is not None and stopped.code is Code.REMOVED and "removed" in stopped.text
    world.hand(
        "n4", "n1", Introduce(CLUSTER, member(world, "n4"), world.nodes["n1"].founding.plugins)
    )
    assert "n4" not in world.group("n1").members
    assert world.nodes["n2"].groups[0].role is Role.FOLLOWER


def test_who_is_known_is_recorded_for_good() -> None:
    world = World()
    world.elect("n1")
    world.beat("n1")
    world.settle()
    world.cut = lambda letter: True
    again = Member("n3", 203, False)
    present = [member(world, name) for name in ("n1", "n2")]
    assert world.nodes["n1"].reconfigure(0, [*present, again]) is None
    world.flush("n1")
    assert world.group("n1").members["n3"] == again
    assert world.nodes["n1"].holding.known()["n3"] == member(world, "n3")


def test_what_is_not_committed_removes_nobody() -> None:
    world = World(4)
    world.elect("n1")
    world.beat("n1")
    world.settle()
    world.cut = lambda letter: isinstance(letter.message, AppendEntries)
    assert world.nodes["n1"].reconfigure(0, [member(world, n) for n in ("n1", "n2", "n3")]) is None
    world.flush("n1")
    world.hand(
        "n4", "n1", Introduce(CLUSTER, member(world, "n4"), world.nodes["n1"].founding.plugins)
    )
    [answer] = [letter.message for letter in world.on_wire(kind=Introduced)]
    assert isinstance(answer, Introduced) and not answer.removed
