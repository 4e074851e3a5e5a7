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
from coterie.nodes.simulation import node as simulated_node
from coterie.protocols import replica
from coterie.protocols.plugin import Cancelled, Failure
from coterie.protocols.raft import election, group, membership, plugin, replication, turn
from coterie.protocols.raft.log import Log
from coterie.protocols.raft.messages import Appended, RequestVote, Voted

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


def _handlers() -> dict[Any, Any]:
    return plugin._HANDLERS
