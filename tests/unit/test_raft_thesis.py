"""One test per rule of Ongaro's thesis (2014) that is not in the paper: leadership transfer
(§3.10), membership (ch. 4), CheckQuorum (§6.2), reads (§6.4) and PreVote (§9.6).

Each docstring cites its section; "pitfall n" is something that broke in other implementations.
"""

from __future__ import annotations

import pytest
from raft_world import World

from coterie.protocols.errors import Code
from coterie.protocols.raft.group import Role
from coterie.protocols.raft.membership import encode
from coterie.protocols.raft.messages import (
    Appended,
    AppendEntries,
    Heard,
    Heartbeat,
    PreVoted,
    Rejected,
    RequestPreVote,
    RequestVote,
    TimeoutNow,
    Voted,
)
from coterie.protocols.records import CONFIGURATION, Configuration, Entry, Member


def members(world: World, *names: str, learners: tuple[str, ...] = ()) -> list[Member]:
    return [Member(name, world.incarnations[name], name not in learners) for name in names]


# --- §3.10 leadership transfer --------------------------------------------------------------------


def test_leadership_is_transferred_without_an_election_timeout() -> None:
    """§3.10: the target gets TimeoutNow once its log is complete, and stands at once."""
    world = World()
    term = world.elect("n1")
    world.propose("n1", "a")
    assert world.nodes["n1"].hand_over(0, "n3")
    before = world.time
    world.settle()
    assert (world.leaders(), world.time) == (["n3"], before)
    assert world.group("n3").term == term + 1
    assert "a" in world.ports["n1"].applied_results


def test_a_follower_told_to_stand_is_voted_for_in_spite_of_the_leader() -> None:
    """§3.10 and §4.2.3: the leader's permission is in the request."""
    world = World()
    term = world.elect("n1")
    world.hand("n3", "n2", RequestVote(0, term + 1, 9, 9))
    assert world.group("n2").term == term
    world.hand("n3", "n2", RequestVote(0, term + 1, 9, 9, transfer=True))
    assert world.group("n2").vote == "n3" and world.group("n2").term == term + 1


def test_proposals_are_refused_during_a_transfer() -> None:
    """§3.10: the prior leader stops accepting new client requests."""
    world = World()
    world.elect("n1")
    world.nodes["n1"].hand_over(0, "n3")
    world.propose("n1", "a")
    assert world.ports["n1"].failures["a"].code is Code.NOT_LEADER


def test_a_transfer_to_a_dead_node_is_given_up() -> None:
    """§3.10: after about an election timeout the leader resumes. Pitfall 26: no double leader."""
    world = World()
    term = world.elect("n1")
    world.crash("n3")
    world.propose("n1", "a")
    world.nodes["n1"].hand_over(0, "n3")
    world.settle()
    world.advance(world.settings.election_timeout_max_s + world.settings.heartbeat_s)
    world.propose("n1", "b")
    world.settle()
    assert "b" in world.ports["n1"].applied_results
    assert (world.leaders(), world.group("n1").term) == (["n1"], term)


def test_a_transfer_waits_for_a_lagging_target() -> None:
    """§3.10: the log of the target is brought up to date first. Pitfall 26."""
    world = World()
    world.elect("n1")
    world.propose("n1", "a")
    world.drop(to="n3", kind=AppendEntries)
    world.settle()
    world.nodes["n1"].hand_over(0, "n3")
    assert not world.on_wire(kind=TimeoutNow)
    world.beat("n1")
    world.settle()
    assert world.leaders() == ["n3"]


def test_an_old_order_to_stand_is_ignored() -> None:
    """§3.10: only the leader of the present term may end it."""
    world = World()
    term = world.elect("n1")
    world.hand("n1", "n2", TimeoutNow(0, term - 1))
    world.hand("n3", "n2", TimeoutNow(0, term))
    assert world.group("n2").role is Role.FOLLOWER


def test_all_leaderships_are_handed_over_at_the_end() -> None:
    """§3.10: a leader that is shut down; a cluster of one has nobody to hand over to."""
    world = World(groups=3)
    for group in range(3):
        world.elect("n1", group)
    assert not world.nodes["n1"].transfer()
    world.flush("n1")
    world.settle()
    assert world.nodes["n1"].transfer()
    assert all("n1" not in world.leaders(group) for group in range(3))
    alone = World(1)
    alone.elect("n1")
    assert alone.nodes["n1"].transfer()


# --- ch. 4 membership -----------------------------------------------------------------------------


def test_a_configuration_counts_from_the_moment_it_is_in_the_log() -> None:
    """§4.1: a server always uses the latest configuration in its log, committed or not."""
    world = World(4)
    world.elect("n1")
    assert world.nodes["n1"].reconfigure(0, members(world, "n1", "n2", "n3")) is None
    world.flush("n1")
    assert (world.group("n1").voters, "n4" in world.group("n1").peers) == (3, False)
    world.deliver(kind=AppendEntries)
    assert world.group("n2").voters == 3 and world.group("n2").commit < 3


def test_a_truncated_configuration_no_longer_counts() -> None:
    """§4.1: it falls back to the previous one in its log. Pitfall 22."""
    world = World()
    payload = Configuration(77, tuple(members(world, "n1", "n2")), ())
    entry = Entry(2, 2, 0, CONFIGURATION, encode(payload))
    world.hand("n1", "n2", AppendEntries(0, 2, 1, 1, 0, 0, (entry,)))
    assert world.group("n2").voters == 2
    world.hand("n3", "n2", AppendEntries(0, 3, 1, 1, 0, 0, (Entry(2, 3, 0, 0),)))
    assert world.group("n2").voters == 3
    world.restart("n2")
    assert world.group("n2").voters == 3


def test_no_change_before_the_leader_committed_in_its_term() -> None:
    """Ongaro, raft-dev, 2015 (the bug in §4.1's single-server changes). Pitfall 22."""
    world = World(4)
    world.elect("n2")
    world.beat("n2")
    world.settle()
    world.time += 1.0
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.deliver(kind=PreVoted)
    world.deliver(kind=RequestVote)
    world.deliver(kind=Voted)
    raft = world.nodes["n1"]
    assert world.group("n1").role is Role.LEADER and world.group("n1").commit == 2
    refused = raft.reconfigure(0, members(world, "n1", "n2", "n3"))
    assert refused is not None and refused.code is Code.BUSY
    world.settle()
    assert raft.reconfigure(0, members(world, "n1", "n2", "n3")) is None


def test_one_change_at_a_time() -> None:
    """§4.1: one server at a time, and the next only when that one is committed. Pitfall 22."""
    world = World(5)
    world.elect("n1")
    raft = world.nodes["n1"]
    two = raft.reconfigure(0, members(world, "n1", "n2", "n3"))
    assert two is not None and two.code is Code.MALFORMED
    assert raft.reconfigure(0, members(world, "n1", "n2", "n3", "n4")) is None
    second = raft.reconfigure(0, members(world, "n1", "n2", "n3"))
    assert second is not None and second.code is Code.BUSY
    world.flush("n1")
    world.settle()
    assert raft.reconfigure(0, members(world, "n1", "n2", "n3")) is None


def test_a_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    """§4.2.2: it replicates without counting itself, then steps down. Pitfall 24."""
    world = World()
    world.elect("n1")
    assert world.nodes["n1"].reconfigure(0, members(world, "n2", "n3")) is None
    world.flush("n1")
    index = world.group("n1").log.last_index
    world.deliver(kind=AppendEntries)
    world.deliver(1, kind=Appended)
    assert world.group("n1").role is Role.LEADER and world.group("n1").commit < index
    world.deliver(kind=Appended)
    assert world.group("n1").role is Role.FOLLOWER and world.group("n1").commit == index
    world.advance(3.0)
    assert world.leaders() != ["n1"] and len(world.leaders()) == 1


def test_an_earlier_commit_does_not_end_a_leader_that_removes_itself() -> None:
    """§4.2.2: only the commit of that configuration does. Pitfall 24."""
    world = World()
    world.elect("n1")
    world.propose("n1", "before")
    appends = world.on_wire(kind=AppendEntries)
    assert world.nodes["n1"].reconfigure(0, members(world, "n2", "n3")) is None
    world.flush("n1")
    world.drop()
    for letter in appends:
        world.hand(letter.sender, letter.to, letter.message)
    world.deliver(kind=Appended)
    assert "before" in world.ports["n1"].applied_results
    assert world.group("n1").role is Role.LEADER


def test_two_members_become_one() -> None:
    """§4.2: also the smallest cluster can shrink. Pitfall 24."""
    world = World(2)
    world.elect("n1")
    assert world.nodes["n1"].reconfigure(0, members(world, "n1")) is None
    world.flush("n1")
    world.crash("n2")
    world.propose("n1", "alone")
    assert "alone" in world.ports["n1"].applied_results


def test_a_learner_gets_the_log_and_does_not_count() -> None:
    """§4.2.1: non-voting members catch up first. Pitfall 25: a dead one never blocks a commit."""
    world = World(4, learners=("n4",))
    world.turn_off_promotion()
    world.elect("n1")
    world.propose("n1", "a")
    world.drop(to="n2")
    world.drop(to="n3")
    world.settle()
    assert "a" not in world.ports["n1"].applied_results
    assert world.group("n4").log.last_index == world.group("n1").log.last_index
    world.crash("n4")
    world.beat("n1")
    world.settle()
    assert "a" in world.ports["n1"].applied_results
    assert world.group("n2").voters == 3


def test_a_learner_is_promoted_when_it_has_caught_up() -> None:
    """§4.2.1: close to the end of the log over a round, then a voter. Pitfall 25."""
    world = World(4, learners=("n4",))
    world.elect("n1")
    world.cut = lambda letter: letter.to == "n4" and isinstance(letter.message, AppendEntries)
    for number in range(100):
        world.propose("n1", f"{number}")
        world.settle()
    world.advance(1.0)
    assert not world.group("n1").members["n4"].voter
    world.cut = lambda letter: False
    world.advance(1.0)
    assert world.group("n1").members["n4"].voter and world.group("n4").voting


def test_a_learner_does_not_stand() -> None:
    """§4.2.1: non-voting; without a leader it waits."""
    world = World(4, learners=("n4",))
    assert world.group("n4").deadline == float("inf")
    world.turn_off_promotion()
    world.elect("n1")
    for name in ("n1", "n2", "n3"):
        world.crash(name)
    world.advance(2.0)
    assert world.group("n4").role is Role.FOLLOWER and not world.wire


def test_who_heard_a_leader_does_not_vote() -> None:
    """§4.2.3: within the minimum election timeout no vote and no new term. Pitfall 15."""
    world = World()
    term = world.elect("n1")
    world.beat("n1")
    world.settle()
    for request in (RequestVote(0, term + 5, 99, 99), RequestPreVote(0, term + 5, 99, 99)):
        world.hand("n3", "n2", request)
        world.hand("n3", "n1", request)
    assert not world.wire and world.group("n2").term == term and world.leaders() == ["n1"]
    world.time += world.settings.election_timeout_min_s
    world.hand("n3", "n2", RequestVote(0, term + 5, 99, 99))
    assert world.group("n2").vote == "n3"


def test_a_removed_server_cannot_disrupt() -> None:
    """§4.2.3: it never hears of its removal and keeps timing out. Pitfall 15."""
    world = World(4)
    world.elect("n1")
    assert world.nodes["n1"].reconfigure(0, members(world, "n1", "n2", "n3")) is None
    world.flush("n1")
    world.settle()
    term = world.group("n1").term
    assert "n4" in world.group("n4").members
    world.advance(5.0)
    assert (world.leaders(), world.group("n1").term) == (["n1"], term)


def test_a_vote_of_another_incarnation_does_not_count() -> None:
    """Members are (node, incarnation): a node that lost its disk never votes twice."""
    world = World()
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.hand("n2", "n1", PreVoted(0, 2, True, 999))
    assert world.group("n1").role is Role.PRE_CANDIDATE
    world.hand("n2", "n1", PreVoted(0, 2, True, 102))
    world.hand("n2", "n1", Voted(0, 2, True, 999))
    assert world.group("n1").role is Role.CANDIDATE
    world.hand("n2", "n1", Voted(0, 2, True, 102))
    group = world.group("n1")
    last = group.log.last_index
    world.hand("n2", "n1", Appended(0, 2, last, 1, 999))
    assert group.commit < last
    world.hand("n2", "n1", Appended(0, 2, last, 1, 102))
    assert group.commit == last


def test_a_member_without_incarnation_counts_in_the_majority_and_never_towards_it() -> None:
    world = World()
    unheard = (Member("n1", 101, True), Member("n2", 0, True), Member("n3", 0, True))
    world.found(unheard)
    for disk in world.disks.values():
        del disk.records[0]
    for name in world.names:
        world.restart(name)
    world.fire("n1")
    assert not world.on_wire(kind=RequestPreVote)
    world.hand("n2", "n1", PreVoted(0, 2, True, 102))
    world.hand("n2", "n1", PreVoted(0, 2, True, 0))
    assert world.group("n1").role is Role.PRE_CANDIDATE


# --- §6.2 CheckQuorum -----------------------------------------------------------------------------


def test_an_isolated_leader_steps_down() -> None:
    """§6.2: a leader steps down if an election timeout passes without a majority. Pitfall 18."""
    world = World()
    world.elect("n1")
    world.cut = lambda letter: "n1" in (letter.sender, letter.to)
    world.propose("n1", "lost")
    world.read("n1", "read")
    world.advance(world.settings.election_timeout_max_s + 3 * world.settings.heartbeat_s)
    port = world.ports["n1"]
    assert "n1" not in world.leaders()
    assert port.failures["lost"].code is Code.LEADER_LOST
    assert port.failures["read"].code is Code.NOT_LEADER
    assert port.read_tokens == [] and port.applied_results == {}
    assert port.leaders[-1] == (0, None, 2)


def test_a_leader_with_a_majority_does_not_step_down() -> None:
    """§6.2: one of three silent is no reason."""
    world = World()
    term = world.elect("n1")
    world.crash("n3")
    world.advance(3.0)
    assert (world.leaders(), world.group("n1").term) == (["n1"], term)


def test_a_leader_that_was_stopped_gives_everyone_the_time_it_slept() -> None:
    """A stopped process (SIGSTOP) hears its mail first; if nobody leads meanwhile it goes on.
    Pitfall 21: it answers no read from before without a round."""
    world = World()
    term = world.elect("n1")
    world.read("n1", "before")
    world.drop()
    world.time += 60.0
    world.beat("n1")
    assert world.group("n1").role is Role.LEADER and world.ports["n1"].read_tokens == []
    world.hand("n2", "n1", Heard(0, term + 1, 0, 102))
    assert world.ports["n1"].failures["before"].code is Code.NOT_LEADER


def test_a_partly_cut_leader_stays_alone_or_goes() -> None:
    """§6.2, §9.6. Pitfall 16: 1 of 5 reaches the others only in part; one stable leader soon."""
    world = World(5)
    world.elect("n1")
    world.cut = lambda letter: (
        {letter.sender, letter.to} & {"n1"} != set() and ("n2" not in (letter.sender, letter.to))
    )
    world.advance(5 * world.settings.election_timeout_max_s)
    [leader] = world.leaders()
    term = world.group(leader).term
    world.advance(5.0)
    assert world.leaders() == [leader] and world.group(leader).term == term and leader != "n1"


# --- §6.4 reads -----------------------------------------------------------------------------------


def test_a_read_is_answered_after_a_round() -> None:
    """§6.4: a round of heartbeats acknowledged by a majority, sent at once."""
    world = World()
    world.elect("n1")
    world.read("n1", "r")
    assert [letter.to for letter in world.on_wire(kind=Heartbeat)] == ["n2", "n3"]
    assert world.ports["n1"].read_tokens == []
    world.deliver(kind=Heartbeat)
    world.deliver(1, kind=Heard)
    assert world.ports["n1"].read_tokens == ["r"]


def test_a_new_leader_answers_reads_only_after_its_noop_is_committed() -> None:
    """§6.4, step 1. Pitfall 19."""
    world = World()
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.deliver(kind=PreVoted)
    world.deliver(kind=RequestVote)
    world.deliver(kind=Voted)
    world.read("n1", "r")
    world.cut = lambda letter: isinstance(letter.message, AppendEntries)
    world.settle()
    world.beat("n1")
    world.settle()
    assert world.group("n1").role is Role.LEADER and world.ports["n1"].read_tokens == []
    world.cut = lambda letter: False
    world.beat("n1")
    world.settle()
    assert world.ports["n1"].read_tokens == ["r"]


def test_a_round_started_before_the_read_does_not_confirm_it() -> None:
    """§6.4, step 3. Pitfall 20: late and duplicate answers of earlier rounds."""
    world = World()
    world.elect("n1")
    world.beat("n1")
    world.deliver(kind=Heartbeat)
    early = world.on_wire(kind=Heard)
    world.drop()
    world.read("n1", "r")
    world.drop()
    for letter in early * 2:
        world.hand(letter.sender, letter.to, letter.message)
    assert world.ports["n1"].read_tokens == []
    world.beat("n1")
    world.settle()
    assert world.ports["n1"].read_tokens == ["r"]


def test_a_round_of_an_earlier_term_does_not_confirm() -> None:
    """§6.4. Pitfall 20: the same leader, two terms later."""
    world = World()
    world.elect("n1")
    term = world.group("n1").term
    world.elect("n2")
    world.beat("n2")
    world.settle()
    world.elect("n1")
    world.read("n1", "r")
    world.drop()
    round_number = world.group("n1").reads.round
    world.hand("n2", "n1", Heard(0, term, round_number, 102))
    assert world.ports["n1"].read_tokens == []
    world.hand("n2", "n1", Heard(0, world.group("n1").term, round_number, 102))
    assert world.ports["n1"].read_tokens == ["r"]


def test_an_append_carries_the_round() -> None:
    """§6.4: reads and writes of one turn share their messages."""
    world = World()
    world.elect("n1")
    world.beat("n1")
    world.settle()
    with world.one_turn("n1"):
        world.read("n1", "r")
        world.propose("n1", "a")
    assert not world.on_wire(kind=Heartbeat) and len(world.on_wire(kind=AppendEntries)) == 2
    world.settle()
    assert world.ports["n1"].read_tokens == ["r"]


def test_a_learners_echo_does_not_confirm() -> None:
    """§6.4: a majority of the voters."""
    world = World(4, learners=("n4",))
    world.turn_off_promotion()
    world.elect("n1")
    world.read("n1", "r")
    for name in ("n2", "n3"):
        world.drop(to=name)
    world.beat("n1")
    for name in ("n2", "n3"):
        world.drop(to=name)
    world.settle()
    assert world.ports["n1"].read_tokens == []


def test_reads_elsewhere_are_refused() -> None:
    """§6.4: only leaders answer reads here."""
    world = World()
    world.elect("n1")
    world.read("n2", "r")
    assert world.ports["n2"].failures["r"].detail == ("n1",)


# --- §9.6 PreVote ---------------------------------------------------------------------------------


def test_a_pre_vote_changes_nothing_at_who_is_asked() -> None:
    """§9.6: the term is not incremented until an election could be won."""
    world = World()
    world.fire("n1")
    group = world.group("n1")
    assert (group.role, group.term) == (Role.PRE_CANDIDATE, 1)
    world.deliver(kind=RequestPreVote)
    assert all(world.group(name).term == 1 for name in world.names)
    assert all(world.group(name).vote == "" for name in world.names)


def test_a_partitioned_server_does_not_disturb_when_it_returns() -> None:
    """§9.6: its term did not grow meanwhile. Pitfall 15."""
    world = World()
    term = world.elect("n1")
    world.cut = lambda letter: "n3" in (letter.sender, letter.to)
    world.advance(10.0)
    assert world.group("n3").term == term
    world.cut = lambda letter: False
    world.advance(2.0)
    assert (world.leaders(), world.group("n1").term) == (["n1"], term)
    assert world.group("n3").leader == "n1"


def test_pre_candidates_with_mixed_logs_and_terms_still_elect() -> None:
    """§9.6. Pitfall 17: no livelock while all ask each other."""
    for seed in range(10):
        world = World(5, seed=seed)
        for name, terms in zip(world.names, [[1, 2], [1], [1, 2, 3], [1], [1, 2]], strict=True):
            world.write_log(name, terms, term=5 if name == "n2" else None)
        world.advance(5.0)
        [leader] = world.leaders()
        assert world.terms(leader)[:2] == [1, 2]


def test_a_leader_behind_in_term_is_told() -> None:
    """§9.6: with PreVote a server can be stuck in a higher term; its answer frees it."""
    world = World()
    term = world.elect("n1")
    world.write_log("n3", [1], term=term + 3)
    world.advance(3.0)
    [leader] = world.leaders()
    assert world.group(leader).term > term + 3 and world.group("n3").leader in ("n3", leader)


def test_a_refusal_of_a_pre_vote_teaches_the_term() -> None:
    world = World()
    world.write_log("n2", [1, 4])
    world.fire("n1")
    world.settle()
    assert world.group("n1").term >= 4


def test_a_late_refusal_of_an_append_is_not_a_step_back() -> None:
    """§9.6 and §5.3: answers of a term gone by change no role and no progress."""
    world = World()
    term = world.elect("n1")
    peer = world.group("n1").peers["n2"]
    world.hand("n2", "n1", Rejected(0, term - 1, peer.next + 5, 1, 0, 0, 102))
    assert not peer.probing


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 7])
def test_every_size_elects_commits_and_reads(nodes: int) -> None:
    world = World(nodes)
    world.advance(3.0)
    [leader] = world.leaders()
    world.propose(leader, "a")
    world.read(leader, "r")
    world.settle()
    port = world.ports[leader]
    assert "a" in port.applied_results and port.read_tokens == ["r"]
