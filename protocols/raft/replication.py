"""Entries and heartbeats, what they are answered, and what becomes committed (paper §5.3, §5.4).

The law: an entry is committed when a majority has it on disk and it, or one above it, is of the
leader's own term. An acknowledgement of another term, or of an incarnation that is not recorded,
changes nothing. A follower commits only what it knows to be the leader's.
"""

from __future__ import annotations

from operator import attrgetter

from ..plugin import NodeId
from . import catching_up, election, membership
from .group import Group, Role
from .log import size
from .messages import Appended, AppendEntries, Heard, Heartbeat, Rejected, SnapshotReceived
from .progress import Progress

_match = attrgetter("match")
_round = attrgetter("round")
_heard_beat = attrgetter("heard_beat")


# --- follower -----------------------------------------------------------------------------------


def hear(group: Group, leader: NodeId, term: int) -> bool:
    """A leader speaks. False if its term is over: then it is told."""
    if term < group.term:
        group.respond(leader, Heard(group.group, group.term, 0, group.incarnation))
        return False
    if term > group.term or group.role is not Role.FOLLOWER or group.leader != leader:
        assert term > group.term or group.role is not Role.LEADER, f"two leaders in term {term}"
        group.become_follower(term, leader)
    now = group.turn.port.now()
    group.heard_at = now
    group.deadline = now + group.timeout_s
    return True


def on_append_entries(group: Group, sender: NodeId, message: AppendEntries) -> None:
    if not hear(group, sender, message.term):
        return
    log, previous, entries = group.log, message.previous_index, message.entries
    if previous < log.base:
        # Up to `base` all is committed here, and so the leader's too.
        entries = entries[log.base - previous :]
        previous = log.base
    else:
        term = log.term_at(previous)
        if term != message.previous_term:
            _reject(group, sender, message, term)
            return
    matched = previous + len(entries)
    if entries and previous != log.last_index:
        # An old copy must not cut off what follows it: only a conflict truncates.
        entries = entries[log.known(entries) :]
    if entries:
        group.follow(entries)
    commit = min(message.commit, matched)
    if commit > group.commit:
        group.commit = commit
    group.turn.answer(
        sender, Appended(group.group, group.term, matched, message.round, group.incarnation)
    )


def _reject(group: Group, leader: NodeId, message: AppendEntries, term: int | None) -> None:
    if term is None:
        index, conflict_term = group.log.last_index + 1, 0
    else:
        index, conflict_term = group.log.first_of_term(term), term
    rejected = Rejected(
        group.group, group.term, message.previous_index, index, conflict_term, message.round,
        group.incarnation,
    )  # fmt: skip
    group.respond(leader, rejected)


def on_heartbeat(group: Group, sender: NodeId, message: Heartbeat) -> None:
    if not hear(group, sender, message.term):
        return
    log = group.log
    # Only with an entry of its term is our log known to be the leader's, as far as it goes: what
    # the leader knows of us may be an earlier copy's, or come with what it will cut off.
    if log.last_term == group.term:
        commit = min(message.commit, log.last_index)
        if commit > group.commit:
            group.commit = commit
    group.hear_time(message.term, message.time_us)
    group.respond(sender, Heard(group.group, group.term, message.round, group.incarnation))


# --- leader -------------------------------------------------------------------------------------


def _answering(
    group: Group, sender: NodeId, message: Appended | Rejected | Heard | SnapshotReceived
) -> Progress | None:
    """The peer that answers us in our term; None for whatever does not count."""
    if message.term > group.term:
        group.become_follower(message.term, None)
        return None
    if group.role is not Role.LEADER or message.term != group.term:
        return None
    peer = group.peers.get(sender)
    if peer is None or peer.incarnation != message.incarnation:
        return None
    if message.round <= peer.since_round:
        return None
    peer.heard_beat = group.turn.beat
    group.stirred = True
    if message.round > peer.round:
        peer.round = message.round
    return peer


def on_appended(group: Group, sender: NodeId, message: Appended) -> None:
    peer = _answering(group, sender, message)
    if peer is not None and peer.appended(message.index):
        group.acknowledged = True
        if sender == group.transferee:
            election.urge(group)


def on_rejected(group: Group, sender: NodeId, message: Rejected) -> None:
    peer = _answering(group, sender, message)
    if peer is None:
        return
    if message.previous_index <= peer.match:
        if peer.voter:
            return
        # A learner may have given up an earlier copy meanwhile: nothing counts on it yet.
        peer.match = 0
    if peer.probing and message.previous_index != peer.next - 1:
        return  # the answer to a probe before this one
    next_index = message.conflict_index
    if message.conflict_term:
        ours = group.log.last_of_term(message.conflict_term)
        if group.log.term_at(ours) == message.conflict_term:
            next_index = ours + 1
    peer.probe(min(next_index, message.previous_index))


def on_snapshot_received(group: Group, sender: NodeId, message: SnapshotReceived) -> None:
    peer = _answering(group, sender, message)
    if peer is not None and peer.sending is not None:
        snapshot = peer.sending.snapshot
        if (snapshot.index, snapshot.digest) == (message.index, message.digest):
            peer.sending.is_there(message.offset)


def on_heard(group: Group, sender: NodeId, message: Heard) -> None:
    peer = _answering(group, sender, message)
    if peer is None:
        return
    if message.round > peer.append_round:
        # What was sent before that heartbeat has arrived, or never will: ask, or ask again.
        if peer.sending is not None:
            peer.sending.ask()
        elif peer.probing:
            peer.paused = False
        elif peer.inflight:
            peer.question = True
    if not peer.voter:
        membership.consider_promotion(group, peer, message.round)


def advance_commit(group: Group) -> None:
    """Commit what a majority has, if it is of our term (paper §5.4.2)."""
    group.acknowledged = False
    log, index = group.log, group.agreed(group.durable_index, _match)
    if index > group.commit and log.term_at(index) == group.term:
        for position in range(group.commit + 1, index + 1):
            group.uncommitted_bytes -= size(log.get(position))
        group.commit = index
        membership.on_committed(group)


def confirmed_round(group: Group) -> int:
    """The last round that a majority echoed."""
    return group.agreed(group.reads.round, _round)


def quorate(group: Group) -> bool:
    """CheckQuorum (thesis §6.2): did a majority answer within the last heartbeats? Counted in our
    own beats, so that a node that was stopped gives everyone the time it slept."""
    recent = group.turn.beat - group.settings.silence_beats
    return group.agreed(group.turn.beat, _heard_beat) >= recent


def send(group: Group) -> None:
    """What a leader has to say at the end of a turn: entries, a heartbeat, a round for reads."""
    reads, beat = group.reads, group.heartbeat_due
    group.stirred = False
    asked = bool(reads.arrived)
    if beat or asked:
        reads.start_round(max(group.commit, group.first_of_term))
        group.heartbeat_due = False
    time_us = group.clock() if beat or asked else 0
    for peer in group.peers.values():
        if beat or (asked and peer.voter and not _sendable(group, peer)):
            commit = min(group.commit, peer.match)
            heartbeat = Heartbeat(group.group, group.term, commit, time_us, reads.round)
            group.turn.port.send(peer.node, heartbeat)
        if peer.next <= group.log.base:
            catching_up.send(group, peer)
        elif peer.probing:
            if not peer.paused:
                _send_append(group, peer, entries=True)
        else:
            while _sendable(group, peer):
                _send_append(group, peer, entries=True)
            if peer.question:
                peer.question = False
                _send_append(group, peer, entries=False)


def _sendable(group: Group, peer: Progress) -> bool:
    """May an append leave for this peer now? One may always be under way, windows or not."""
    if peer.next > group.log.last_index:
        return peer.probing and not peer.paused
    return peer.next > group.log.base and catching_up.has_room(group, peer)


def _send_append(group: Group, peer: Progress, entries: bool) -> None:
    log, previous = group.log, peer.next - 1
    term = log.term_at(previous)
    assert term is not None, (group.group, peer.node, previous)
    settings = group.settings
    batch = log.batch(peer.next, settings.append_bytes, settings.append_entries) if entries else ()
    message = AppendEntries(
        group.group, group.term, previous, term, group.commit, group.reads.round, batch
    )
    peer.sent(previous + len(batch), sum(map(size, batch)), group.reads.round)
    group.turn.port.send(peer.node, message)


def beat(group: Group) -> None:
    """The common beat: is there still a majority, and what is overdue?"""
    if not quorate(group):
        group.become_follower(group.term, None)
        return
    group.heartbeat_due = group.stirred = True
    now, settings = group.turn.port.now(), group.settings
    if group.transferee is not None:
        if now >= group.transfer_deadline:
            group.transferee = None
        else:
            election.urge(group)
    silent = group.turn.beat - settings.silence_beats
    for peer in group.peers.values():
        if peer.heard_beat < silent and not peer.probing:
            peer.probe(peer.match + 1)
    if now - group.appended_at >= settings.tick_s and group.replica.deadlines_pending():
        membership.tick(group)
