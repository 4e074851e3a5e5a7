"""One test per sentence of the Raft paper (Ongaro & Ousterhout, 2014), §5 and §8.

Each docstring cites its section; "pitfall n" is something that broke in other implementations.
"""

from __future__ import annotations

import pytest
from raft_world import World

from coterie.protocols.errors import Code
from coterie.protocols.raft.group import Role
from coterie.protocols.raft.messages import (
    Appended,
    AppendEntries,
    Heard,
    Heartbeat,
    PreVoted,
    Rejected,
    RequestPreVote,
    RequestVote,
    Voted,
)
from coterie.protocols.raft.settings import Settings
from coterie.protocols.records import COMMANDS, NOOP, Entry, EntryRecord, StateRecord


def entry(index: int, term: int, kind: int = NOOP) -> Entry:
    return Entry(index, term, index, kind)


def append(
    term: int, previous: tuple[int, int], *entries: Entry, commit: int = 0, round_number: int = 0
) -> AppendEntries:
    return AppendEntries(0, term, *previous, commit, round_number, entries)


# --- §5.1 terms -----------------------------------------------------------------------------------


def test_a_larger_term_is_adopted() -> None:
    """§5.1: if one server's current term is smaller than the other's, it updates it."""
    world = World()
    world.hand("n1", "n2", Heartbeat(0, 9, 0, 0, 1))
    assert world.group("n2").term == 9
    assert world.nodes["n2"].leader(0) == ("n1", 9)
    world.restart("n2")
    assert world.group("n2").term == 9


def test_a_new_term_is_durable_before_it_is_answered_in() -> None:
    """Figure 2: currentTerm is updated on stable storage before responding."""
    world = World()
    world.autosync = False
    world.hand("n1", "n2", Heartbeat(0, 9, 0, 0, 1))
    world.hand("n1", "n2", Heartbeat(0, 9, 0, 0, 2))
    assert not world.wire
    world.sync("n2")
    assert [letter.message.round for letter in world.wire] == [1, 2]
    world.hand("n1", "n2", Heartbeat(0, 9, 0, 0, 3))
    assert len(world.wire) == 3


def test_a_leader_in_a_new_term_is_told_even_if_it_is_the_same() -> None:
    """§5.1: terms are what leaderships are told apart by."""
    world = World()
    for term in (9, 9, 11):
        world.hand("n1", "n2", Heartbeat(0, term, 0, 0, 1))
    assert world.ports["n2"].leaders == [(0, "n1", 9), (0, "n1", 11)]


@pytest.mark.parametrize("role", [Role.CANDIDATE, Role.LEADER])
def test_a_candidate_or_leader_whose_term_is_out_of_date_becomes_a_follower(role: Role) -> None:
    """§5.1: if a candidate or leader discovers that its term is out of date, it reverts."""
    world = World()
    if role is Role.LEADER:
        world.elect("n1")
    else:
        world.fire("n1")
        world.deliver(kind=RequestPreVote)
        world.deliver(kind=PreVoted)
    assert world.group("n1").role is role
    world.hand("n2", "n1", Heard(0, 9, 0, 102))
    world.hand("n2", "n1", Voted(0, 9, False, 102))
    assert (world.group("n1").role, world.group("n1").term) == (Role.FOLLOWER, 9)


def test_a_request_with_a_stale_term_is_rejected_and_told_the_term() -> None:
    """§5.1: a server rejects a request with a stale term number."""
    world = World()
    term = world.elect("n1")
    world.wire.clear()
    world.hand("n3", "n2", append(term - 1, (0, 0), entry(1, 1), entry(2, 1), commit=2))
    assert world.group("n2").leader == "n1"
    [letter] = world.wire
    assert letter.message == Heard(0, term, 0, 102)


def test_terms_survive_a_restart_of_the_whole_cluster() -> None:
    """§5.1, figure 2 (persistent state). Pitfall 3: no term goes back, nothing applied goes."""
    world = World()
    world.elect("n1")
    world.propose("n1", "a")
    world.settle()
    terms = {name: world.group(name).term for name in world.names}
    applied = world.group("n1").commit
    for name in world.names:
        world.restart(name)
    assert {name: world.group(name).term for name in world.names} == terms
    world.advance(2.0)
    [leader] = world.leaders()
    assert world.group(leader).term > terms["n1"]
    assert all(world.texts(name) == ["a"] for name in world.names)
    assert world.terms(leader)[:applied] == [1, *[2] * (applied - 1)]


# --- §5.2 elections -------------------------------------------------------------------------------


def test_servers_start_as_followers() -> None:
    """§5.2: when servers start up, they begin as followers."""
    world = World()
    assert {world.group(name).role for name in world.names} == {Role.FOLLOWER}


def test_a_leader_sends_heartbeats_to_all_followers() -> None:
    """§5.2: leaders send periodic heartbeats to all followers."""
    world = World()
    world.elect("n1")
    world.beat("n1")
    assert [letter.to for letter in world.on_wire(kind=Heartbeat)] == ["n2", "n3"]


def test_a_follower_that_hears_its_leader_stays_one() -> None:
    """§5.2: a server remains a follower as long as it hears from a leader."""
    world = World()
    term = world.elect("n1")
    world.advance(5.0)
    assert world.leaders() == ["n1"] and world.group("n1").term == term


def test_a_follower_that_hears_nobody_begins_an_election() -> None:
    """§5.2: over an election timeout without communication it begins an election."""
    world = World()
    world.elect("n1")
    world.crash("n1")
    world.advance(2.0)
    [leader] = world.leaders()
    assert leader != "n1" and world.ports[leader].leaders[-1] == (0, leader, 3)


def test_a_candidate_votes_for_itself_and_asks_the_others() -> None:
    """§5.2: it increments its term, votes for itself and sends RequestVote to all others."""
    world = World()
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.deliver(kind=PreVoted)
    group = world.group("n1")
    assert (group.role, group.term, group.vote) == (Role.CANDIDATE, 2, "n1")
    assert [letter.to for letter in world.on_wire(kind=RequestVote)] == ["n2", "n3"]


@pytest.mark.parametrize(
    ("nodes", "votes", "elected"),
    [(1, 0, True), (3, 0, False), (3, 1, True), (5, 1, False), (5, 2, True)],
)
def test_a_majority_elects(nodes: int, votes: int, elected: bool) -> None:
    """§5.2: a candidate wins if it receives votes from a majority for the same term."""
    world = World(nodes)
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.deliver(kind=PreVoted)
    world.deliver(kind=RequestVote)
    world.deliver(votes, kind=Voted)
    assert (world.group("n1").role is Role.LEADER) is elected


def test_a_vote_counts_once() -> None:
    """§5.2: a majority of servers, not of messages."""
    world = World(5)
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.deliver(kind=PreVoted)
    for _ in range(4):
        world.hand("n2", "n1", Voted(0, 2, True, 102))
    assert world.group("n1").role is Role.CANDIDATE


def test_each_server_votes_for_one_candidate_per_term_first_come_first_served() -> None:
    """§5.2: at most one vote in a given term."""
    world = World()
    world.hand("n1", "n3", RequestVote(0, 2, 1, 1))
    world.hand("n2", "n3", RequestVote(0, 2, 1, 1))
    world.hand("n1", "n3", RequestVote(0, 2, 1, 1))
    voted = [(letter.to, letter.message) for letter in world.on_wire(kind=Voted)]
    yes, no = Voted(0, 2, True, 103), Voted(0, 2, False, 103)
    assert voted == [("n1", yes), ("n2", no), ("n1", yes)]


def test_a_vote_survives_a_crash() -> None:
    """§5.2, figure 2. Pitfall 2: a crash right after a vote; the second candidate is refused."""
    world = World()
    world.hand("n1", "n3", RequestVote(0, 2, 1, 1))
    world.restart("n3")
    world.wire.clear()
    world.hand("n2", "n3", RequestVote(0, 2, 1, 1))
    assert [letter.message for letter in world.wire] == [Voted(0, 2, False, 103)]


def test_a_vote_leaves_only_when_it_is_durable() -> None:
    """Figure 2: updated on stable storage before responding to RPCs. Pitfall 4."""
    world = World()
    world.autosync = False
    world.hand("n1", "n3", RequestVote(0, 2, 1, 1))
    assert world.wire == []
    world.sync("n3")
    assert [letter.message for letter in world.wire] == [Voted(0, 2, True, 103)]


def test_a_candidate_asks_for_votes_only_when_its_log_is_durable() -> None:
    """Figure 2: else, after a crash, votes for a log that is gone could elect a shorter one."""
    world = World()
    world.autosync = False
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.deliver(kind=PreVoted)
    assert world.group("n1").role is Role.CANDIDATE and not world.on_wire(kind=RequestVote)
    world.sync("n1")
    assert len(world.on_wire(kind=RequestVote)) == 2


def test_the_own_vote_counts_only_when_durable() -> None:
    """§5.2 and figure 2, for the candidate itself."""
    world = World(1)
    world.autosync = False
    world.fire("n1")
    assert world.group("n1").role is Role.CANDIDATE
    world.sync("n1")
    assert world.group("n1").role is Role.LEADER


@pytest.mark.parametrize("term", [2, 3])
def test_a_candidate_recognizes_a_leader(term: int) -> None:
    """§5.2: AppendEntries of a leader whose term is at least its own: back to follower."""
    world = World()
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.deliver(kind=PreVoted)
    world.hand("n2", "n1", append(term, (1, 1), entry(2, term)))
    group = world.group("n1")
    assert (group.role, group.leader, group.term) == (Role.FOLLOWER, "n2", term)


def test_election_timeouts_are_random_within_their_range() -> None:
    """§5.2: election timeouts are chosen randomly from a fixed interval (150 to 300 ms)."""
    world = World()
    group, drawn = world.group("n1"), set()
    for _ in range(200):
        group.rearm()
        drawn.add(group.timeout_s)
        assert 0.150 <= group.timeout_s < 0.300
    assert len(drawn) > 150


def test_split_votes_are_resolved() -> None:
    """§5.2: randomized timeouts ensure that split votes are rare and resolved quickly."""
    for seed in range(20):
        world = World(4, seed=seed)
        for name in ("n1", "n2"):
            world.fire(name)
        world.advance(3.0)
        assert len(world.leaders()) == 1


# --- §5.3 replication -----------------------------------------------------------------------------


def test_the_leader_appends_and_sends_in_parallel() -> None:
    """§5.3: it appends the command to its log, then issues AppendEntries in parallel."""
    world = World()
    world.elect("n1")
    world.propose("n1", "a")
    sent = [letter.message for letter in world.on_wire(kind=AppendEntries)]
    assert [letter.to for letter in world.on_wire(kind=AppendEntries)] == ["n2", "n3"]
    assert all(message.entries[-1].kind == COMMANDS for message in sent)


def test_all_commands_of_a_turn_share_an_entry_and_a_write() -> None:
    """§5.3, and batching as in thesis §10.2.2: one entry per group and turn, one write for all."""
    world = World(groups=2)
    world.elect("n1", 0)
    world.elect("n1", 1)
    raft, port = world.nodes["n1"], world.ports["n1"]
    last, writes = world.group("n1").log.last_index, port.writes
    with world.one_turn("n1"):
        for number in range(5):
            for group in (0, 1):
                world.propose("n1", f"{group}/{number}", group=group)
    assert port.writes == writes + 1
    assert world.group("n1").log.last_index == last + 1
    world.settle()
    assert world.texts("n1", 0) == [f"0/{number}" for number in range(5)]
    assert len(port.applied_results) == 10
    assert raft.status()["groups"][0]["commit"] == last + 1


def test_a_committed_entry_is_applied_and_its_result_handed_out_once() -> None:
    """§5.3: when safely replicated, the leader applies it and returns the result."""
    world = World()
    world.elect("n1")
    token = world.propose("n1", "a", "b")
    world.deliver(kind=AppendEntries)
    assert token not in world.ports["n1"].applied_results
    world.deliver(1, kind=Appended)
    assert len(world.ports["n1"].applied_results[token]) == 2
    world.settle()
    world.beat("n1")
    world.settle()
    assert world.texts("n2") == ["a", "b"]
    assert len(world.ports["n1"].told) == 2 and world.ports["n2"].told == []


def test_the_leaders_own_entry_counts_only_when_durable() -> None:
    """§5.3, thesis §10.2.1: writing to disk in parallel; it may commit before its own write."""
    world = World()
    world.elect("n1")
    world.autosync = False
    world.propose("n1", "a")
    world.deliver(kind=AppendEntries)
    world.sync("n2")
    world.deliver(kind=Appended)
    assert "a" not in world.ports["n1"].applied_results
    world.sync("n1")
    assert "a" in world.ports["n1"].applied_results
    world.propose("n1", "b")
    world.deliver(kind=AppendEntries)
    world.sync("n2")
    world.sync("n3")
    world.deliver(kind=Appended)
    assert "b" in world.ports["n1"].applied_results


def test_an_acknowledgement_leaves_only_when_durable() -> None:
    """Figure 2. Pitfall 4: what was acknowledged survives the loss of every unsynced byte."""
    world = World()
    world.elect("n1")
    world.autosync = False
    world.propose("n1", "a")
    world.deliver(kind=AppendEntries)
    world.flush("n2")
    assert not world.on_wire(kind=Appended)
    last = world.group("n2").log.last_index
    world.restart("n2")
    assert world.group("n2").log.last_index == last - 1


def test_a_repeated_append_is_acknowledged_only_when_the_first_is_durable() -> None:
    """Figure 2. Pitfall 4: a copy of an entry that is in memory, but not on disk yet."""
    world = World()
    world.elect("n1")
    world.autosync = False
    world.propose("n1", "a")
    [letter] = world.on_wire(to="n2", kind=AppendEntries)
    world.hand("n1", "n2", letter.message)
    world.hand("n1", "n2", letter.message)
    assert not world.on_wire(kind=Appended)
    world.sync("n2")
    assert len(world.on_wire(kind=Appended)) == 2


def test_followers_learn_the_commit_index() -> None:
    """§5.3: the leader includes the highest index it knows to be committed in future messages."""
    world = World()
    world.elect("n1")
    world.propose("n1", "a")
    world.settle()
    assert world.texts("n2") == []
    world.beat("n1")
    world.settle()
    assert world.texts("n2") == world.texts("n3") == ["a"]


def test_an_append_is_refused_without_the_entry_before_it() -> None:
    """§5.3: if the follower finds no entry with the same index and term, it refuses."""
    world = World()
    world.hand("n1", "n2", append(2, (5, 2), entry(6, 2), commit=6))
    assert [letter.message for letter in world.wire] == [Rejected(0, 2, 5, 2, 0, 0, 102)]
    world.wire.clear()
    world.hand("n1", "n2", append(2, (1, 2), entry(2, 2), commit=2))
    assert [letter.message for letter in world.wire] == [Rejected(0, 2, 1, 1, 1, 0, 102)]
    assert world.group("n2").commit == 0


def test_a_conflicting_entry_is_replaced_with_all_that_follow() -> None:
    """§5.3: if an existing entry conflicts with a new one, delete it and all that follow it."""
    world = World()
    world.hand("n1", "n2", append(2, (1, 1), entry(2, 2), entry(3, 2), entry(4, 2)))
    world.hand("n3", "n2", append(3, (2, 2), entry(3, 3)))
    assert world.terms("n2") == [1, 2, 3]
    world.restart("n2")
    assert world.terms("n2") == [1, 2, 3]


def test_an_old_copy_of_an_append_truncates_nothing() -> None:
    """§5.3: only a conflict deletes. Pitfall 8: duplicated and reordered appends."""
    world = World()
    first = append(2, (1, 1), entry(2, 2))
    world.hand("n1", "n2", first)
    world.hand("n1", "n2", append(2, (2, 2), entry(3, 2), entry(4, 2)))
    world.hand("n1", "n2", first)
    world.hand("n1", "n2", append(2, (1, 1)))
    assert world.terms("n2") == [1, 2, 2, 2]


def test_a_follower_commits_no_more_than_matched() -> None:
    """§5.3, figure 2: min(leaderCommit, index of last new entry). Pitfall 10."""
    world = World()
    world.hand("n1", "n2", append(2, (1, 1), entry(2, 2), entry(3, 2), entry(4, 2)))
    world.hand("n3", "n2", append(3, (2, 2), commit=4))
    assert world.group("n2").commit == 2


@pytest.mark.parametrize(
    "terms",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
    ids="abcdef",
)
def test_the_leader_brings_every_log_of_figure_7_to_its_own(terms: list[int]) -> None:
    """§5.3, figure 7: the leader finds where the logs agree and overwrites what follows."""
    world = World()
    leader_terms = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    for name, log in (("n1", leader_terms), ("n2", leader_terms), ("n3", terms)):
        world.write_log(name, log, term=7)
    world.elect("n1")
    world.beat("n1")
    world.settle()
    assert world.terms("n3") == world.terms("n1") == [*leader_terms, world.group("n1").term]


def test_a_conflict_costs_one_round_per_term_not_per_entry() -> None:
    """§5.3, end: the follower tells the conflicting term and its first index."""
    world = World()
    world.write_log("n1", [1, *[4] * 50])
    world.write_log("n2", [1, *[4] * 50])
    world.write_log("n3", [1, *[2] * 30, *[3] * 30])
    world.fire("n1")
    world.cut = lambda letter: letter.to == "n3" and isinstance(letter.message, RequestVote)
    world.deliver(kind=RequestPreVote)
    rejected = 0
    while world.wire:
        rejected += len(world.on_wire(kind=Rejected))
        world.deliver()
    assert world.terms("n3") == world.terms("n1")
    assert 1 <= rejected <= 3


def test_a_leader_never_overwrites_its_own_log() -> None:
    """§5.3: Leader Append-Only."""
    world = World()
    term = world.elect("n1")
    with pytest.raises(AssertionError, match="two leaders"):
        world.hand("n2", "n1", append(term, (1, 1)))


# --- §5.4 safety ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [(2, 2, True), (3, 2, True), (1, 3, True), (1, 2, False), (9, 1, False)],
)
def test_a_vote_is_denied_to_a_log_that_is_less_up_to_date(
    last_index: int, last_term: int, granted: bool
) -> None:
    """§5.4.1: the later last term, then the longer log, is more up-to-date."""
    world = World()
    world.write_log("n2", [1, 2])
    world.hand("n1", "n2", RequestPreVote(0, 9, last_index, last_term))
    world.hand("n1", "n2", RequestVote(0, 9, last_index, last_term))
    assert [letter.message.granted for letter in world.wire] == [granted, granted]


def test_entries_of_earlier_terms_are_not_committed_by_counting() -> None:
    """§5.4.2, figure 8. Pitfall 1: only an entry of the current term commits those before it."""
    world = World(5)
    for name in ("n1", "n2"):
        world.write_log(name, [1, 2], term=3)
    world.write_log("n5", [1, 3])
    for name in ("n3", "n4"):
        world.write_log(name, [1], term=3)
    world.cut = lambda letter: "n5" in (letter.sender, letter.to)
    world.fire("n1")
    world.deliver(kind=RequestPreVote)
    world.deliver(kind=PreVoted)
    world.deliver(kind=RequestVote)
    world.deliver(kind=Voted)
    group = world.group("n1")
    assert group.role is Role.LEADER and world.terms("n1") == [1, 2, group.term]
    world.drop(kind=AppendEntries)
    # The entry of term 2 is on a majority; the one of our own term is not.
    for name, incarnation in (("n2", 102), ("n3", 103), ("n4", 104)):
        world.hand(name, "n1", Appended(0, group.term, 2, 1, incarnation))
    assert group.commit == 0
    for name, incarnation in (("n2", 102), ("n3", 103)):
        world.hand(name, "n1", Appended(0, group.term, 3, 1, incarnation))
    assert group.commit == 3


def test_stale_acknowledgements_change_nothing() -> None:
    """§5.4. Pitfall 9: an answer of an earlier term, or an old one, does not move matchIndex."""
    world = World()
    world.elect("n1")
    world.propose("n1", "a")
    world.settle()
    peer = world.group("n1").peers["n2"]
    match = peer.match
    world.hand("n2", "n1", Appended(0, 2, match - 1, 0, 102))
    assert peer.match == match
    world.crash("n3")
    world.restart("n1")
    world.elect("n1")
    peer = world.group("n1").peers["n2"]
    world.cut = lambda letter: letter.to == "n2"
    world.propose("n1", "b")
    match = peer.match
    world.hand("n2", "n1", Appended(0, 2, match + 1, 0, 102))
    assert peer.match == match and "b" not in world.ports["n1"].applied_results


def test_a_rejection_never_moves_back_what_matched() -> None:
    """§5.4. Pitfall 9: matchIndex is monotone, and so is what is sent after a late refusal."""
    world = World()
    world.elect("n1")
    world.propose("n1", "a")
    world.settle()
    peer = world.group("n1").peers["n2"]
    match = peer.match
    world.hand("n2", "n1", Rejected(0, 2, 1, 1, 1, 0, 102))
    world.hand("n2", "n1", Rejected(0, 2, match, 1, 1, 0, 102))
    assert (peer.match, peer.next, peer.probing) == (match, match + 1, False)
    world.hand("n2", "n1", Rejected(0, 2, match + 1, 1, 0, 0, 102))
    assert (peer.match, peer.next) == (match, match + 1)


# --- §5.5, §8 -------------------------------------------------------------------------------------


def test_a_leader_opens_its_term_with_a_noop() -> None:
    """§8: each leader commits a blank no-op entry at the start of its term."""
    world = World()
    world.elect("n1")
    log = world.group("n1").log
    assert (log.entries[-1].kind, log.last_term) == (NOOP, 2)
    assert world.group("n1").commit == log.last_index


def test_lost_appends_are_sent_again() -> None:
    """§5.5: if a follower crashes or is slow or packets are lost, the leader retries."""
    world = World()
    world.elect("n1")
    world.beat("n1")
    world.settle()
    world.propose("n1", "lost")
    world.drop(kind=AppendEntries)
    world.propose("n1", "next")
    world.settle()
    # The append after the lost one is refused, which brings both at once, without a heartbeat.
    assert "next" in world.ports["n1"].applied_results
    world.propose("n1", "last")
    world.drop(kind=AppendEntries)
    world.beat("n1")
    world.settle()
    assert "last" in world.ports["n1"].applied_results


def test_one_loss_is_answered_once() -> None:
    """§5.5: many pipelined appends are refused after one that was lost; one answer is enough."""
    world = World()
    world.elect("n1")
    world.crash("n3")
    world.propose("n1", "lost")
    world.drop(kind=AppendEntries)
    for text in "abcde":
        world.propose("n1", text)
    world.drop(to="n3")
    world.deliver(kind=AppendEntries)
    assert len(world.on_wire(kind=Rejected)) == 5
    world.deliver(kind=Rejected)
    [letter] = world.on_wire(to="n2", kind=AppendEntries)
    assert len(letter.message.entries) == 6


def test_the_leader_uses_its_own_end_of_the_conflicting_term() -> None:
    """§5.3, end: of a term that both have nothing is sent again that both have."""
    world = World()
    world.write_log("n1", [1, 4, 4, 4, 5, 5])
    world.write_log("n3", [1, 4, 4, 4, 4, 4, 4], term=5)
    world.crash("n2")
    world.elect("n1")
    peer = world.group("n1").peers["n3"]
    assert peer.match == 7 and world.terms("n3") == world.terms("n1")
    appends = [text for text in world.trace if text.startswith("n1 -> n3 AppendEntries")]
    assert "previous_index=4 previous_term=4" in appends[1]


def test_a_heartbeat_commits_only_what_the_follower_acknowledged() -> None:
    """§5.3, figure 2. Pitfall 10: the follower's own tail may be another one."""
    world = World()
    for name in ("n1", "n2"):
        world.write_log(name, [1, 2, 2, 2], term=3)
    world.write_log("n3", [1, 3, 3, 3], term=3)
    world.cut = lambda letter: letter.to == "n3" and isinstance(letter.message, AppendEntries)
    world.elect("n2")
    world.beat("n2")
    world.settle()
    world.advance(1.0)
    assert world.group("n2").commit == 5 and world.group("n3").commit == 0


def test_a_heartbeat_commits_nothing_before_an_append_of_its_term() -> None:
    """§5.3: n3 lost its disk, which the leader does not know yet, and has got another leader's
    late entries. What the leader believes to be there is not."""
    world = World()
    late = [Entry(index, 1, 0, NOOP) for index in range(2, 5)]
    world.hand("n2", "n3", AppendEntries(0, 1, 1, 1, 0, 0, tuple(late)))
    world.hand("n1", "n3", Heartbeat(0, 2, 4, 0, 1))
    n3 = world.group("n3")
    assert n3.log.last_index == 4 and n3.commit == 0
    world.hand("n1", "n3", AppendEntries(0, 2, 1, 1, 0, 0, (Entry(2, 2, 0, NOOP),)))
    assert n3.log.last_index == 2 and n3.commit == 0
    world.hand("n1", "n3", Heartbeat(0, 2, 2, 0, 2))
    assert n3.commit == 2


def test_who_starts_again_learns_what_is_committed_from_a_heartbeat() -> None:
    world = World()
    world.elect("n1")
    world.propose("n1", "a")
    world.settle()
    world.beat("n1")
    world.settle()
    world.restart("n3")
    world.drop(to="n3")
    assert world.group("n3").commit == 0
    world.beat("n1")
    world.deliver(to="n3", kind=Heartbeat)
    assert world.group("n3").commit == world.group("n1").commit and world.texts("n3") == ["a"]


def test_a_silent_peer_is_forgotten_until_it_answers() -> None:
    """§5.5: what was under way to a dead peer is no longer counted, nor sent any more."""
    world = World()
    world.elect("n1")
    world.beat("n1")
    world.settle()
    world.crash("n3")
    for text in "abc":
        world.propose("n1", text)
    world.settle()
    peer = world.group("n1").peers["n3"]
    assert len(peer.inflight) == 3 and peer.window.bytes > 0
    world.advance(1.0)
    assert not peer.inflight and peer.window.bytes == 0 and peer.probing
    for text in "def":
        world.propose("n1", text)
        assert len(world.on_wire(to="n3", kind=AppendEntries)) == 0
        world.settle()
    world.boot("n3")
    world.advance(0.2)
    assert world.texts("n3") == list("abcdef")


def test_a_lost_acknowledgement_is_asked_for() -> None:
    """§5.5: idempotent retries; the answer, not the append, was lost."""
    world = World()
    world.elect("n1")
    world.propose("n1", "a")
    world.deliver(kind=AppendEntries)
    world.drop(kind=Appended)
    world.beat("n1")
    sent = world.on_wire(kind=AppendEntries)
    world.deliver()
    world.deliver(kind=Heard)
    assert sent == [] and all(not x.message.entries for x in world.on_wire(kind=AppendEntries))
    world.settle()
    assert "a" in world.ports["n1"].applied_results


def test_proposals_elsewhere_are_refused_with_the_leaders_name() -> None:
    """§8: a server that is not the leader rejects and tells the most recent leader it heard of."""
    world = World()
    world.propose("n2", "nobody")
    world.elect("n1")
    world.propose("n2", "a")
    failures = world.ports["n2"].failures
    assert (failures["nobody"].code, failures["nobody"].detail) == (Code.NOT_LEADER, ())
    assert (failures["a"].code, failures["a"].detail) == (Code.NOT_LEADER, ("n1",))


def test_a_deposed_leader_tells_who_proposed() -> None:
    """§8: what was not committed may still be, or not: the outcome is open. What was committed
    is answered although the leadership is over."""
    world = World(settings=Settings(apply_operations=1))
    term = world.elect("n1")
    world.propose("n1", "applied")
    world.propose("n1", "committed")
    world.deliver(kind=AppendEntries)
    raft, port = world.nodes["n1"], world.ports["n1"]
    for letter in world.on_wire(kind=Appended):
        raft.on_message(letter.sender, letter.message)
    world.wire.clear()
    with world.one_turn("n1"):
        world.propose("n1", "open")
        raft.flush()
        world.propose("n1", "refused")
        assert list(port.applied_results) == ["applied"]
        raft.on_message("n2", Heartbeat(0, term + 1, 0, 0, 1))
    assert list(port.applied_results) == ["applied", "committed"]
    assert port.failures["open"].code is Code.LEADER_LOST
    assert port.failures["refused"].code is Code.NOT_LEADER
    assert port.leaders[-1] == (0, "n2", term + 1)


def test_what_is_persisted_is_figure_2() -> None:
    """Figure 2: currentTerm, votedFor and log[]; a commit index is written only as a hint."""
    world = World()
    world.hand("n1", "n2", RequestVote(0, 2, 1, 1))
    world.hand("n1", "n2", append(2, (1, 1), entry(2, 2)))
    assert world.disks["n2"].records[1:] == [
        [StateRecord(0, 2, "n1", 0)],
        [EntryRecord(0, entry(2, 2))],
    ]


# --- log time -------------------------------------------------------------------------------------


def test_log_time_moves_with_the_leader_and_never_back() -> None:
    """The group's time: at most 100 ms per turn, on from where the last leader's stood."""
    world = World()
    world.elect("n1")
    raft = world.nodes["n1"]
    before = raft.log_time_us(0)
    world.time += 0.07
    assert raft.log_time_us(0) == before + 70_000
    world.time += 3600.0
    assert raft.log_time_us(0) == before + 170_000
    world.beat("n1")
    world.settle()
    reached = raft.log_time_us(0)
    assert world.nodes["n2"].log_time_us(0) == world.nodes["n3"].log_time_us(0) == reached
    world.crash("n1")
    world.time += 60.0
    assert world.nodes["n2"].log_time_us(0) == reached
    world.elect("n2")
    assert world.nodes["n2"].log_time_us(0) == reached
    assert world.group("n2").log.entries[-1].time_us == reached


def test_log_time_survives_a_restart_as_far_as_entries_tell() -> None:
    world = World()
    world.elect("n1")
    world.time += 0.05
    world.propose("n1", "a")
    world.settle()
    time_us = world.group("n1").log.entries[-1].time_us
    assert time_us == world.notes_time("n1") > 0
    world.restart("n1")
    assert world.nodes["n1"].log_time_us(0) == time_us


def test_a_tick_is_written_only_while_a_deadline_is_pending() -> None:
    world = World()
    world.elect("n1")
    last = world.group("n1").log.last_index
    world.advance(11.0)
    assert world.group("n1").log.last_index == last
    for name in world.names:
        world.remember_client(name)
    world.advance(11.0)
    assert [e.kind for e in world.group("n1").log.entries[last:]] == [NOOP, NOOP, NOOP]
