"""Elections: pre-votes, votes, transfers (paper §5.2, §5.4.1; thesis §3.10, §4.2.3, §9.6).

The law: at most one leader per term. A vote leaves when it is durable, our own counts when it is
durable, and a vote counts only from a voter recorded with the incarnation that gave it. Who heard
a leader within the minimum election timeout helps nobody to depose it, unless the leader asked.
"""

from __future__ import annotations

from ..plugin import NodeId
from .group import FOREVER, Group, Role
from .messages import PreVoted, RequestPreVote, RequestVote, TimeoutNow, Voted


def on_election_timeout(group: Group) -> None:
    """Nothing was heard of a leader for a while."""
    if not group.voting:
        group.deadline = FOREVER
        group.forget_leader()
        return
    group.become_pre_candidate()
    term, log = group.term + 1, group.log
    _count_pre_vote(group, group.node)
    if group.role is Role.PRE_CANDIDATE:
        for node in electorate(group):
            request = RequestPreVote(group.group, term, log.last_index, log.last_term)
            group.turn.port.send(node, request)


def electorate(group: Group) -> list[NodeId]:
    """The other voters that can be asked."""
    return [
        member.node
        for member in group.members.values()
        if member.voter and member.incarnation and member.node != group.node
    ]


def stand(group: Group, transfer: bool) -> None:
    """Stand for election. The requests wait until term, vote and log are durable: a candidate that
    forgot what its voters saw could win with a log that lacks it."""
    group.become_candidate()
    term, log, turn = group.term, group.log, group.turn
    for node in electorate(group):
        turn.answer(node, RequestVote(group.group, term, log.last_index, log.last_term, transfer))
    turn.answer(group.node, Voted(group.group, term, True, group.incarnation))


def on_request_pre_vote(group: Group, sender: NodeId, message: RequestPreVote) -> None:
    if group.sticky() or not group.may_vote:
        return
    granted = message.term > group.term and group.log.up_to_date(
        message.last_index, message.last_term
    )
    term = message.term if granted else group.term
    group.respond(sender, PreVoted(group.group, term, granted, group.incarnation))


def on_pre_voted(group: Group, sender: NodeId, message: PreVoted) -> None:
    if message.granted:
        asking = group.role is Role.PRE_CANDIDATE and message.term == group.term + 1
        if asking and group.counts(sender, message.incarnation):
            _count_pre_vote(group, sender)
    elif message.term > group.term:
        group.become_follower(message.term, None)


def _count_pre_vote(group: Group, node: NodeId) -> None:
    group.votes[node] = True
    if len(group.votes) > group.voters // 2:
        stand(group, transfer=False)


def on_request_vote(group: Group, sender: NodeId, message: RequestVote) -> None:
    if (not message.transfer and group.sticky()) or not group.may_vote:
        return
    if message.term > group.term:
        group.become_follower(message.term, None)
    granted = (
        message.term == group.term
        and group.vote in ("", sender)
        and group.log.up_to_date(message.last_index, message.last_term)
    )
    if granted:
        if group.vote != sender:
            group.vote, group.dirty = sender, True
        group.rearm()
    group.turn.answer(sender, Voted(group.group, group.term, granted, group.incarnation))


def on_voted(group: Group, sender: NodeId, message: Voted) -> None:
    if message.term > group.term:
        group.become_follower(message.term, None)
        return
    asking = group.role is Role.CANDIDATE and message.term == group.term
    if asking and message.granted and group.counts(sender, message.incarnation):
        group.votes[sender] = True
        if len(group.votes) > group.voters // 2:
            group.become_leader()


def on_timeout_now(group: Group, sender: NodeId, message: TimeoutNow) -> None:
    told = message.term == group.term and sender == group.leader
    if told and group.role is Role.FOLLOWER and group.voting:
        stand(group, transfer=True)


def start_transfer(group: Group, target: NodeId) -> bool:
    """Hand the leadership to `target`, a recorded voter; proposals are refused meanwhile. It ends
    with a higher term, or after an election timeout without success."""
    peer = group.peers.get(target)
    if group.role is not Role.LEADER or peer is None or not peer.voter:
        return False
    group.transferee = target
    settings = group.settings
    group.transfer_deadline = group.turn.port.now() + settings.election_timeout_max_s
    urge(group)
    return True


def fit(group: Group, node: NodeId) -> bool:
    """Could this node lead now: does it vote, has it answered lately, and is it close?"""
    peer = group.peers.get(node)
    if peer is None or not peer.voter:
        return False
    recent = group.turn.beat - group.settings.silence_beats
    return (
        peer.heard_beat >= recent
        and peer.match >= group.log.last_index - group.settings.promotion_entries
    )


def successor(group: Group) -> NodeId | None:
    """The voter that is furthest, of those heard of lately."""
    recent = group.turn.beat - group.settings.silence_beats
    best = None
    for peer in group.voting_peers:
        if peer.heard_beat >= recent and (best is None or peer.match > best.match):
            best = peer
    return best.node if best else None


def urge(group: Group) -> None:
    """Tell the transfer's target to stand, if its log is complete."""
    target = group.transferee
    if target is None:
        return
    peer = group.peers.get(target)
    if peer is None:
        group.transferee = None
    elif peer.match == group.log.last_index:
        group.turn.port.send(target, TimeoutNow(group.group, group.term))
