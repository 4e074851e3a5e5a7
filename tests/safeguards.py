"""Safeguards taken out one at a time, to see that the simulator would have missed none of them.

Each function patches the code that ships, in the running test only, so that one rule no longer
holds. The name of the function is the name of the safeguard; its docstring says what is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coterie.clients import core_records
from coterie.nodes import log as node_log
from coterie.nodes import snapshot_tasks
from coterie.nodes import snapshots as node_snapshots
from coterie.nodes.simulation import node as simulated_node
from coterie.protocols import replica, restoring
from coterie.protocols.placement import plugin as placement
from coterie.protocols.plugin import Cancelled, Failure
from coterie.protocols.raft import (
    compaction,
    election,
    group,
    membership,
    plugin,
    replication,
    snapshots,
    turn,
)
from coterie.protocols.raft.log import Log
from coterie.protocols.raft.messages import Appended, RequestVote, Voted
from coterie.protocols.records import Entry, Snapshot

Patch = pytest.MonkeyPatch
Remove = Callable[[Patch], None]
SAFEGUARDS: dict[str, tuple[Remove, str]] = {}
"""What takes a safeguard out, and the faults under which it is missed soonest ("": any)."""


def safeguard(faults: str = "") -> Callable[[Remove], Remove]:
    def register(remove: Remove) -> Remove:
        SAFEGUARDS[remove.__name__] = (remove, faults)
        return remove

    return register


def _hold_back_nothing(patch: Patch, *kinds: type) -> None:
    write = turn.Turn.write

    def hasty(self: turn.Turn) -> list[Any]:
        early = [answer for answer in self.answers if isinstance(answer[1], kinds)]
        self.answers = [answer for answer in self.answers if not isinstance(answer[1], kinds)]
        return early + write(self)

    patch.setattr(turn.Turn, "write", hasty)


@safeguard("crash_in_turn,power_cut")
def vote_is_durable_before_it_is_told(patch: Patch) -> None:
    """Votes, and requests for them, leave before they are on disk."""
    _hold_back_nothing(patch, Voted, RequestVote)


@safeguard()
def entries_are_durable_before_they_are_acknowledged(patch: Patch) -> None:
    """A follower acknowledges what is not on its disk."""
    _hold_back_nothing(patch, Appended)


@safeguard()
def log_is_synced(patch: Patch) -> None:
    """The log is written and reported durable, but not synced."""
    append = node_log.Log._append

    def unsynced(self: Any, batch: Any, sync: bool, *rest: Any) -> None:
        append(self, batch, False, *rest)

    patch.setattr(node_log.Log, "_append", unsynced)


@safeguard("kill")
def what_is_read_back_is_synced(patch: Patch) -> None:
    """A log that is opened counts on what the page cache alone may have."""
    original = node_log.Log.open

    def opened(self: Any) -> Any:
        disk, sync = self._disk, self._disk.sync
        disk.sync = lambda name: None
        try:
            return original(self)
        finally:
            disk.sync = sync

    patch.setattr(node_log.Log, "open", opened)


@safeguard()
def one_vote_per_term(patch: Patch) -> None:
    """Who asks gets the vote, whoever had it in this term."""
    request = election.on_request_vote

    def generous(found: Any, sender: str, message: Any) -> None:
        if message.term == found.term and found.role is group.Role.FOLLOWER:
            found.vote = ""
        request(found, sender, message)

    patch.setitem(_handlers(), RequestVote, generous)


@safeguard()
def votes_only_for_complete_logs(patch: Patch) -> None:
    """A vote is given without looking at the candidate's log (paper §5.4.1)."""
    patch.setattr(Log, "up_to_date", lambda self, index, term: True)


@safeguard("crash,isolate")
def commit_only_in_the_leaders_term(patch: Patch) -> None:
    """Entries of earlier terms are committed by counting (paper §5.4.2, figure 8)."""

    def advance(found: Any) -> None:
        found.acknowledged = False
        index = found.agreed(found.durable_index, replication._match)
        if index > found.commit:
            found.commit = index
            found.uncommitted_bytes = 0
            membership.on_committed(found)

    patch.setattr(replication, "advance_commit", advance)


@safeguard()
def append_only_after_the_previous_entry(patch: Patch) -> None:
    """A follower takes entries without looking at the one before (paper §5.3)."""

    def careless(found: Any, sender: str, message: Any) -> None:
        term = found.log.term_at(message.previous_index)
        if term is not None and term != message.previous_term:
            message = type(message)(
                message.group, message.term, message.previous_index, term, message.commit,
                message.round, message.entries,
            )  # fmt: skip
        append(found, sender, message)

    append = replication.on_append_entries
    patch.setitem(_handlers(), replication.AppendEntries, careless)


@safeguard()
def truncate_only_on_conflict(patch: Patch) -> None:
    """Old copies of appends cut off what follows them."""
    patch.setattr(Log, "known", lambda self, entries: 0)


@safeguard("isolate")
def reads_are_confirmed_by_a_round(patch: Patch) -> None:
    """A leader answers reads without asking whether it still leads."""
    patch.setattr(replication, "confirmed_round", lambda found: found.reads.round)


@safeguard()
def reads_wait_for_the_first_commit_of_the_term(patch: Patch) -> None:
    """A fresh leader answers reads before it knows what is committed."""
    send = replication.send

    def early(found: Any) -> None:
        first, found.first_of_term = found.first_of_term, 0
        send(found)
        found.first_of_term = first

    patch.setattr(replication, "send", early)


@safeguard("replace_disk,isolate")
def a_new_disk_is_a_new_incarnation(patch: Patch) -> None:
    """A node that lost its disk comes back as who it was."""
    wipe = simulated_node.SimulatedNode.wipe

    def keep(self: Any) -> None:
        incarnation = self.disk.incarnation
        wipe(self)
        self.disk.incarnation = incarnation

    patch.setattr(simulated_node.SimulatedNode, "wipe", keep)


@safeguard()
def operations_are_remembered(patch: Patch) -> None:
    """A repeated operation is applied again."""

    def forgetful(self: Any, command: Any) -> Any:
        found = window(self, command)
        if isinstance(found, replica.Window):
            for sequence in command.sequences:
                found.answers.pop(sequence, None)
        return found

    window = replica.Replica._window
    patch.setattr(replica.Replica, "_window", forgetful)


@safeguard()
def done_operations_are_refused(patch: Patch) -> None:
    """A late copy of what a client has done with is applied again."""

    def forget(self: Any, done_below: int) -> None:
        forget_below(self, done_below)
        self.done_below = 0

    forget_below = replica.Window.forget_below
    patch.setattr(replica.Window, "forget_below", forget)


@safeguard()
def a_cancelled_operation_stays_cancelled(patch: Patch) -> None:
    """A cancelled operation that comes later is carried out."""

    def cancel(self: Any, machine: Any, window: Any, operation: Any) -> Any:
        sequence = operation.cancelled
        answered = window.answers.pop(sequence, None)
        if answered is not None and not isinstance(answered, Failure):
            self.moment.number += 1
            self.moment.sequence = sequence
            machine.cancel(self.moment, answered)
        return Cancelled()

    patch.setattr(replica.Replica, "_cancel", cancel)


@safeguard("crash_client")
def a_client_gives_up_in_time(patch: Patch) -> None:
    """A client believes in its session for twice its ttl."""
    renew = core_records.Session.renew

    def generous(self: Any, *arguments: Any) -> None:
        renew(self, *arguments)
        self.lost_at = self.confirmed_at + 2 * self.ttl_s

    patch.setattr(core_records.Session, "renew", generous)


@safeguard("pause,isolate")
def an_old_snapshot_does_not_touch_a_newer_log(patch: Patch) -> None:
    """A snapshot takes the place of the log even if the log has more that is committed."""

    def receive(self: Any, found: Any, sender: str, message: Any) -> None:
        snapshot = message.snapshot
        if snapshot.index < found.commit and message.term >= found.term:
            found.log.reset(snapshot.index, snapshot.term)
            found.commit = snapshot.index
        received(self, found, sender, message)

    received = snapshots.Snapshots.on_install
    patch.setattr(snapshots.Snapshots, "on_install", receive)


@safeguard("isolate,crash,cut")
def snapshots_are_never_mixed(patch: Patch) -> None:
    """Pieces of any snapshot of the group are put together."""

    def receiving(self: Any, found: Any, message: Any) -> Any:
        return self.incoming.get(found.group) or original(self, found, message)

    original = snapshots.Snapshots._receiving
    patch.setattr(snapshots.Snapshots, "_receiving", receiving)


@safeguard("slow_disk,crash")
def a_snapshot_is_on_disk_before_the_log_names_it(patch: Patch) -> None:
    """The log names a snapshot whose file is still being written."""

    def complete(self: Any, stream: Any) -> None:
        told = self._receiver.on_saved
        if isinstance(stream, snapshot_tasks._Save):
            digest = stream.digest.digest()
            told(stream.group, Snapshot(stream.index, stream.term, stream.size, digest))
        original(self, stream)

    def finished(self: Any, save: Any, snapshot: Any) -> None:
        self._saves.pop(save.group, None)

    original = snapshot_tasks.SnapshotTasks._complete
    patch.setattr(snapshot_tasks.SnapshotTasks, "_complete", complete)
    patch.setattr(snapshot_tasks.SnapshotTasks, "_finished", finished)


@safeguard("crash,power_cut")
def a_snapshot_is_synced_before_it_has_its_name(patch: Patch) -> None:
    """A snapshot's file gets its name while its content may still be lost."""

    def finish(self: Any, name: str, found: int, snapshot: Any, named: Any) -> None:
        disk, sync = self._disk, self._disk.sync
        disk.sync = lambda name: None
        try:
            original(self, name, found, snapshot, named)
        finally:
            disk.sync = sync

    original = node_snapshots.SnapshotStore.finish
    patch.setattr(node_snapshots.SnapshotStore, "finish", finish)


@safeguard("isolate,crash")
def what_follows_a_snapshot_stays_only_if_it_fits(patch: Patch) -> None:
    """The entries behind a snapshot's index stay, though the one at its index is another."""

    def install(found: Any, snapshot: Any, made: Any) -> None:
        log, index = found.log, snapshot.index
        if log.base < index <= log.last_index:
            entry = log.entries[index - log.base - 1]
            fits = Entry(index, snapshot.term, entry.time_us, entry.kind, entry.payload)
            log.entries[index - log.base - 1] = fits
        original(found, snapshot, made)

    original = compaction.install
    patch.setattr(compaction, "install", install)


@safeguard()
def answers_are_in_the_snapshot(patch: Patch) -> None:
    """A snapshot forgets what was answered."""
    patch.setattr(replica.CommandCodec, "encode_windows", lambda self, windows: iter(()))


@safeguard()
def number_and_time_are_in_the_snapshot(patch: Patch) -> None:
    """A restored replica begins to count anew."""

    def finish(self: Any) -> Any:
        header = original(self)
        self.replica.moment.number = self.replica.moment.time_us = 0
        return header

    original = restoring.Restoring.finish
    patch.setattr(restoring.Restoring, "finish", finish)


@safeguard()
def only_what_is_applied_leaves_memory(patch: Patch) -> None:
    """The log is trimmed beyond what is applied."""

    def trim(found: Any) -> None:
        found.log.trim(found.log.surplus(found.settings.tail_bytes, found.log.last_index))

    patch.setattr(compaction, "trim", trim)


@safeguard("add_node,remove_node,isolate,crash")
def learners_do_not_count(patch: Patch) -> None:
    """What a learner acknowledges counts towards the majority (thesis §4.2.1)."""
    track = group.Group.track_peers

    def count_all(self: Any) -> None:
        track(self)
        self.voting_peers = list(self.peers.values())

    patch.setattr(group.Group, "track_peers", count_all)


@safeguard("add_node,remove_node,isolate,crash")
def a_leader_that_is_no_voter_does_not_count_itself(patch: Patch) -> None:
    """It counts its own log while it removes itself (thesis §4.2.2)."""

    def agreed(self: Any, own: int, of: Any) -> Any:
        voting, self.voting = self.voting, True
        reached = counted(self, own, of)
        self.voting = voting
        return reached

    counted = group.Group.agreed
    patch.setattr(group.Group, "agreed", agreed)
    patch.setattr(placement, "HEIRS_TRIED", 0)


@safeguard("add_node,remove_node,isolate,crash")
def a_copy_is_given_up_only_after_the_report(patch: Patch) -> None:
    """A node gives its copy up as soon as it is not to hold the group any more."""

    def keep(self: Any, groups: Any, table: Any, row: Any) -> bool:
        us = self.port.node
        if row.group in groups.held() and us not in row.nodes:
            groups.give_up(row.group, max(row.index, groups.configured_at(row.group)))
            return False
        return bool(kept(self, groups, table, row))

    kept = placement.PlacementPlugin._keep_copy
    patch.setattr(placement.PlacementPlugin, "_keep_copy", keep)


def _handlers() -> dict[Any, Any]:
    return plugin._HANDLERS
