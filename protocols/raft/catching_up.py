"""What a leader does for a peer that needs entries which left its memory.

The law: first the disk is asked, then a snapshot is sent, in pieces that no heartbeat waits for
(paper §7). What comes from the disk is sent only if it is what was committed; what a peer lost or
never got it is asked for, once per heartbeat that it answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import Entry, GroupId, Snapshot
from .group import Group, Role
from .log import size
from .messages import AppendEntries, InstallSnapshot
from .progress import NEVER, Progress, Sending
from .turn import Turn

_Key = tuple[GroupId, int, bytes]
"""Group, first index or offset, digest of the snapshot (none for entries)."""


def has_room(group: Group, peer: Progress) -> bool:
    """May entries leave for this peer now? One append may always be under way."""
    if peer.probing:
        return not peer.paused
    settings, inflight = group.settings, peer.inflight
    return not inflight or (
        len(inflight) < settings.window_messages and peer.window.bytes < settings.window_bytes
    )


def send(group: Group, peer: Progress) -> None:
    """Go on with a peer whose next entry is not in memory."""
    if peer.sending is not None:
        _send_snapshot(group, peer, peer.sending)
        return
    if peer.question:
        # Something that left is lost. The entry before it may be gone from memory by now, so the
        # question is asked with what follows the last one that surely arrived.
        peer.probe(peer.match + 1)
    if peer.fetching == NEVER and has_room(group, peer):
        known = _term_before(group, peer) is not None
        first = peer.next if known else peer.next - 1
        settings = group.settings
        if group.turn.fetches.ask(group, (group.group, first, b"")):
            group.turn.port.fetch(group.group, first, settings.append_bytes)
            peer.fetching = first


def _term_before(group: Group, peer: Progress) -> int | None:
    """The term of the entry before the one to send next, if it is known without the disk."""
    index = peer.next - 1
    if index == 0:
        return 0
    if index == peer.known[0]:
        return peer.known[1]
    if group.snapshot is not None and index == group.snapshot.index:
        return group.snapshot.term
    return group.log.term_at(index)


def _send_entries(group: Group, peer: Progress, first: int, entries: Sequence[Entry]) -> None:
    """Entries came from the disk, from `first` on; none: only a snapshot has them."""
    if peer.next > group.log.base or first not in (peer.next, peer.next - 1):
        return  # it needs others by now
    if not entries:
        _begin_snapshot(group, peer)
        return
    if first < peer.next:
        peer.known = (first, entries[0].term)
        entries = entries[1:]
    term = _term_before(group, peer)
    while entries and term is not None and has_room(group, peer):
        batch = tuple(entries[: group.settings.append_entries])
        entries = entries[len(batch) :]
        previous, last = batch[0].index - 1, batch[-1]
        message = AppendEntries(
            group.group, group.term, previous, term, group.commit, group.reads.round, batch
        )
        peer.sent(last.index, sum(map(size, batch)), group.reads.round)
        peer.known = (last.index, last.term)
        term = last.term
        group.turn.port.send(peer.node, message)


def _begin_snapshot(group: Group, peer: Progress) -> None:
    snapshot = group.snapshot
    if snapshot is not None and snapshot.index >= peer.next:
        peer.probe(peer.next)
        peer.sending = Sending(snapshot)
    else:
        _wait_for_snapshot(group, peer)


def _wait_for_snapshot(group: Group, peer: Progress) -> None:
    """There is none that would help: take one, unless that is under way, and look again at a
    later heartbeat."""
    if group.turn.snapshots.saving != group.group:
        group.turn.snapshots.want(group)
    peer.probe(peer.next)
    peer.paused = True
    peer.append_round = group.reads.round


def _send_snapshot(group: Group, peer: Progress, sending: Sending) -> None:
    snapshot, settings = sending.snapshot, group.settings
    if not sending.asked:
        sending.asked = True
        _send_piece(group, peer, sending, b"")
        return
    under_way = sending.sent - sending.received
    window = min(settings.piece_window * settings.piece_bytes, settings.window_bytes)
    if not sending.answered or sending.reading != NEVER or sending.sent >= snapshot.size:
        return
    key = (group.group, sending.sent, snapshot.digest)
    if (not under_way or under_way < window) and group.turn.fetches.ask(group, key):
        group.turn.port.fetch_snapshot(group.group, snapshot, sending.sent, settings.piece_bytes)
        sending.reading = sending.sent


def _send_piece(group: Group, peer: Progress, sending: Sending, data: bytes) -> None:
    peer.append_round = group.reads.round
    piece = InstallSnapshot(
        group.group, group.term, group.reads.round, sending.snapshot, sending.sent, data
    )
    sending.sent += len(data)
    group.turn.port.send(peer.node, piece)


def _on_piece(group: Group, peer: Progress, sending: Sending, offset: int, data: bytes) -> None:
    sending.reading = NEVER
    if data:
        if sending.sent == offset:
            _send_piece(group, peer, sending, data)
        return
    # It was removed, for a newer one took its place; or it was lost.
    peer.sending = None
    if group.snapshot is not None and group.snapshot != sending.snapshot:
        _begin_snapshot(group, peer)
    else:
        _wait_for_snapshot(group, peer)


class Fetches:
    """What this node's disk was asked for, and in which term: a bounded number at once. Several
    peers that need the same wait for one answer."""

    def __init__(self, turn: Turn, groups: Mapping[GroupId, Group]) -> None:
        self.turn = turn
        self.groups = groups
        self.asked: dict[_Key, int] = {}

    def ask(self, group: Group, key: _Key) -> bool:
        """True if the disk is to be asked now."""
        if key in self.asked or len(self.asked) >= group.settings.fetches:
            return False
        self.asked[key] = group.term
        return True

    def on_fetched(self, number: GroupId, first: int, entries: Sequence[Entry]) -> None:
        """Entries came from the disk."""
        group = self._answered((number, first, b""))
        if group is None:
            return
        usable = _committed(group, first, entries)
        for peer in group.peers.values():
            if peer.fetching == first:
                peer.fetching = NEVER
                _send_entries(group, peer, first, usable)

    def on_snapshot_fetched(
        self, number: GroupId, snapshot: Snapshot, offset: int, data: bytes
    ) -> None:
        """A piece of a snapshot came from the disk."""
        group = self._answered((number, offset, snapshot.digest))
        if group is None:
            return
        for peer in group.peers.values():
            sending = peer.sending
            if sending is not None and (sending.snapshot, sending.reading) == (snapshot, offset):
                _on_piece(group, peer, sending, offset, data)

    def _answered(self, key: _Key) -> Group | None:
        """The group, if we lead it still in the term in which we asked."""
        term, group = self.asked.pop(key), self.groups.get(key[0])
        if group is None or group.role is not Role.LEADER:
            return None
        group.stirred = True
        group.touch()
        return group if group.term == term else None


def _committed(group: Group, first: int, entries: Sequence[Entry]) -> Sequence[Entry]:
    """As many of the entries as follow each other from `first` and are committed."""
    count = 0
    for entry in entries:
        if entry.index != first + count or entry.index > group.commit:
            break
        count += 1
    return entries[:count]
