"""Looking at a group from outside: its status for people, its invariants for tests.

The law: nothing here changes the state. `check` is cheap enough to run after every event: of the
log it looks only at entries it has not seen.
"""

from __future__ import annotations

from typing import Any

from .group import Group, Role


def status(group: Group) -> dict[str, Any]:
    """Where a group stands on this node. `log_first` is the first entry in memory; `match` and
    `sending` (how much of which snapshot is there; leader only) are per peer, `receiving` the same
    of what comes here."""
    log, last = group.log, group.snapshot
    incoming = group.turn.snapshots.incoming.get(group.group)
    return {
        "role": group.role.value,
        "term": group.term,
        "leader": group.leader,
        "first_index": log.base + 1,
        "last_index": log.last_index,
        "commit": group.commit,
        "applied": group.replica.applied,
        "log_bytes": log.bytes,
        "log_first": log.base + 1,
        "snapshot": {"index": last.index, "bytes": last.size} if last is not None else None,
        "receiving": [incoming.offset, incoming.snapshot.size] if incoming is not None else None,
        "time_us": group.time_us,
        "members": [
            {"node": member.node, "incarnation": member.incarnation, "voter": member.voter}
            for member in group.members.values()
        ],
        "match": {node: peer.match for node, peer in group.peers.items()},
        "sending": {
            node: [peer.sending.received, peer.sending.snapshot.size]
            for node, peer in group.peers.items()
            if peer.sending is not None
        },
    }


def check(group: Group) -> None:
    """Assert what must hold on one node at any time (paper, figure 3, as far as one node sees)."""
    log, where = group.log, f"group {group.group} of {group.node}"
    assert group.replica.applied <= group.commit <= log.last_index, where
    assert log.base <= group.replica.applied, where
    assert group.durable_index <= log.last_index, where
    assert log.last_term <= group.term, where
    assert log.last_index == log.base + len(log.entries), where
    _check_entries(group, where)
    if group.role is Role.LEADER:
        assert group.leader == group.node, where
        assert group.first_of_term <= log.last_index, where
        assert group.uncommitted_bytes >= 0, where
        for peer in group.peers.values():
            assert peer.match < peer.next <= log.last_index + 1, (where, peer.node)
            assert peer.window.bytes >= 0, (where, peer.node)
            assert len(peer.inflight) <= group.settings.window_messages, (where, peer.node)
    else:
        assert not group.peers and not group.commands and not group.reads.count, where
        assert all(index <= group.commit for index in group.proposed), where
    if group.role is Role.CANDIDATE:
        assert group.vote == group.node, where


def _check_entries(group: Group, where: str) -> None:
    log = group.log
    start = max(group.checked, log.base)
    term, time_us = log.term_at(start), 0
    assert term is not None, where
    if start > log.base:
        time_us = log.get(start).time_us
    for index in range(start + 1, log.last_index + 1):
        entry = log.get(index)
        assert entry.index == index, (where, index)
        assert entry.term >= term, (where, index)
        assert entry.time_us >= time_us, (where, index)
        term, time_us = entry.term, entry.time_us
    group.checked = log.last_index
