"""From commands to entries and from committed entries to results.

The law: an entry is applied once it is committed, in order, and its results go to whoever proposed
it here. The work of one turn is bounded: what remains is the next turn's.
"""

from __future__ import annotations

from ..errors import Code
from ..plugin import Command, Failure
from ..records import COMMANDS, Entry
from . import compaction, replication
from .group import Group, Role, Token
from .log import size

BUSY = Failure(Code.BUSY, "the log has too much that is not committed yet; retry later")

_NOTHING: tuple[list[Command] | None, list[Token]] = (None, [])


def settle(group: Group, left: int) -> int:
    """Commit and apply what can be, answer reads. `left` operations may still be applied in this
    turn; returns what is left after it."""
    if group.acknowledged and group.role is Role.LEADER:
        replication.advance_commit(group)
    replica = group.replica
    if replica.applied < group.commit:
        while left > 0 and replica.applied < group.commit:
            entry = group.log.get(replica.applied + 1)
            left -= _apply(group, entry)
            group.grown_bytes += size(entry)
            if compaction.is_due(group):
                group.turn.snapshots.take(group)
        if group.log.bytes > group.settings.tail_bytes:
            compaction.trim(group)
    if group.reads.waiting:
        release_reads(group)
    return left


def _apply(group: Group, entry: Entry) -> int:
    """Apply one entry; how many operations it held, and one for itself."""
    commands, tokens = group.proposed.pop(entry.index, _NOTHING)
    replies = group.replica.apply(entry, commands)
    if group.replica.number >= group.replica.digest_at:
        group.turn.digests.begin(group)
    hints, port, operations = group.replica.take_hints(), group.turn.port, 1
    for reply in replies:
        operations += len(reply)
    if tokens:
        for (plugin, token), reply in zip(tokens, replies, strict=True):
            port.applied(plugin, group.group, token, reply)
    if hints and group.role is Role.LEADER:
        for client, hint in hints:
            port.tell(client, hint)
    return operations


def release_reads(group: Group) -> None:
    """Hand out the reads whose round is confirmed and whose index is applied."""
    confirmed = replication.confirmed_round(group)
    for plugin, token in group.reads.release(confirmed, group.replica.applied):
        group.turn.port.readable(plugin, group.group, token)


def cut(group: Group) -> None:
    """One entry of all commands of the turn, or several if they are too many bytes. The decoded
    commands stay beside it until it is applied."""
    pieces = [(group.commands, group.tokens)]
    group.commands, group.tokens = [], []
    settings = group.settings
    while pieces:
        commands, tokens = pieces.pop()
        payload = group.replica.codec.encode(commands)
        if len(payload) > settings.entry_bytes and len(commands) > 1:
            half = len(commands) // 2
            pieces.append((commands[half:], tokens[half:]))
            pieces.append((commands[:half], tokens[:half]))
        elif group.uncommitted_bytes > settings.uncommitted_bytes:
            for plugin, token in tokens:
                group.turn.port.failed(plugin, group.group, token, BUSY)
        else:
            group.proposed[group.lead(COMMANDS, payload)] = (commands, tokens)
