"""`Raft`: the plugin that owns the log, with all groups of the node.

The law: in a turn everything is gathered and leaves once, in `flush`: what is committed is applied,
what was proposed becomes one entry per group, one write takes all records, then messages leave.
Nothing here is done per operation; that is the replica's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ..errors import Code
from ..log_plugin import LogPort
from ..plugin import CONTROL, Command, Failure, Message, Request, Result, StateMachine
from ..records import (
    CONFIGURATION,
    Configuration,
    Entry,
    GroupId,
    GroupState,
    Identity,
    Member,
    NodeId,
    Snapshot,
    WriteNumber,
)
from ..replica import Replicas
from . import applying, digests, election, inspection, membership, replication, snapshots
from .catching_up import Fetches
from .founding import Founding, PluginSet, compare_plugins
from .group import FOREVER, Group, Role
from .holding import Holding
from .messages import (
    MESSAGES,
    Appended,
    AppendEntries,
    Digested,
    Heard,
    Heartbeat,
    InstallSnapshot,
    Introduce,
    Introduced,
    PreVoted,
    Rejected,
    RequestPreVote,
    RequestVote,
    SnapshotReceived,
    TimeoutNow,
    Voted,
)
from .settings import Settings
from .turn import Turn

_HANDLERS: dict[type[Message], Callable[[Group, NodeId, Any], None]] = {
    AppendEntries: replication.on_append_entries,
    Appended: replication.on_appended,
    Rejected: replication.on_rejected,
    Heartbeat: replication.on_heartbeat,
    Heard: replication.on_heard,
    RequestPreVote: election.on_request_pre_vote,
    PreVoted: election.on_pre_voted,
    RequestVote: election.on_request_vote,
    Voted: election.on_voted,
    TimeoutNow: election.on_timeout_now,
    InstallSnapshot: snapshots.on_install_snapshot,
    SnapshotReceived: replication.on_snapshot_received,
    Digested: digests.on_digested,
}


class Raft:
    """All groups of one node. `replicas` are the groups it holds at the start, `recovered` what
    its log holds of all, `configured` the nodes of its settings (without this one if it never
    founds a cluster, only joins one), `plugins` the (name, version) pairs it has."""

    name = "raft"
    version = 1
    messages: Sequence[type[Message]] = MESSAGES
    placement: Literal["control", "partitioned"] = "control"

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        replicas: Replicas,
        recovered: Mapping[GroupId, GroupState],
        configured: Sequence[Member],
        plugins: PluginSet,
    ) -> None:
        self.identity = identity
        self.settings = settings
        self.turn = Turn(identity, settings, [member.node for member in configured])
        self.replicas = replicas
        self.groups = {
            group: Group(group, replicas[group], recovered.get(group) or GroupState(), self.turn)
            for group in sorted(replicas)
        }
        self.holding = Holding(self)
        self.holding.dormant = {
            group: state for group, state in recovered.items() if group not in replicas
        }
        self.turn.replicas = replicas
        self.turn.snapshots = snapshots.Snapshots(self.turn, replicas, self.groups)
        self.turn.digests = digests.Digests(self.turn, self.groups)
        self.turn.fetches = Fetches(self.turn, self.groups)
        self.founding = Founding(self.turn, configured, tuple(plugins), self._join, self._members)
        self.more = False
        self.joining = 0
        self.joining_write: WriteNumber | None = None

    @property
    def cluster(self) -> int:
        """The cluster this node belongs to, 0 if none yet."""
        return self.founding.cluster

    def start(self, port: LogPort) -> None:
        self.port = self.turn.port = port
        self.founding.begin()
        control = self.groups[CONTROL]
        configuration = control.configuration
        for group in self.groups.values():
            group.touch()
        if configuration is not None:
            differ = compare_plugins(self.founding.plugins, configuration.plugins)
            if differ is not None:
                port.stop(differ)
                return
            self._keep_payload(control)
            if not self.identity.cluster:
                port.joined(configuration.cluster)
            self._joined(configuration.cluster)
        elif self.identity.cluster:
            self._joined(self.identity.cluster)

    # --- founding and joining -------------------------------------------------------------------

    def _keep_payload(self, control: Group) -> None:
        """Who joins later is told the founding entry while memory has it, and joins without."""
        if control.log.base == 0 and control.log.get(1).kind == CONFIGURATION:
            self.founding.payload = control.log.get(1).payload

    def _members(self) -> list[NodeId]:
        return list(self.groups[CONTROL].members)

    def _join(self, cluster: int, payload: bytes) -> None:
        """Belong to `cluster` once its founding entry, if it is for us, is durable."""
        if not payload:
            self.port.joined(cluster)
            self._joined(cluster)
            return
        self.joining = cluster
        control = self.groups[CONTROL]
        control.term, control.dirty = max(control.term, 1), True
        control.follow((Entry(1, 1, 0, CONFIGURATION, payload),))
        control.touch()

    def _joined(self, cluster: int) -> None:
        control = self.groups[CONTROL]
        if control.log.last_index and not self.founding.payload:
            self._keep_payload(control)
        self.founding.joined(cluster)
        self.founding.deadline = FOREVER
        for group in self.groups.values():
            group.rearm()
        self._introduce_until_recorded()

    def _introduce_until_recorded(self) -> None:
        """Present ourselves while we are not recorded; also when nothing was heard of a leader for
        long: it may have recorded another incarnation than ours, by a message that came late."""
        founding, now = self.founding, self.port.now()
        if not self._recorded():
            founding.deadline = now if founding.deadline == FOREVER else founding.deadline
        elif self.groups[CONTROL].leader is not None:
            founding.deadline = FOREVER
        elif founding.deadline == FOREVER:
            founding.deadline = now + self.settings.founding_s

    def _recorded(self) -> bool:
        """Is our incarnation in the configuration of group 0? The other groups follow it."""
        member = self.groups[CONTROL].members.get(self.identity.node)
        return member is not None and member.incarnation == self.identity.incarnation

    def recorded_incarnation(self, node: NodeId) -> int | None:
        """The incarnation group 0's configuration has for a node: 0 if it is a member not heard of
        yet, None if it is no member or no configuration is known. Frames of another incarnation
        than a recorded one are dropped, except `Introduce` and `Introduced`. None also while no
        leader is known, and for the leader: our configuration may be the old one, and then only a
        leader we have not recorded can tell us. (Votes and acknowledgements name theirs.)"""
        control = self.groups[CONTROL]
        member = control.members.get(node)
        if member is None or control.leader in (None, node):
            return None
        return member.incarnation

    # --- messages -------------------------------------------------------------------------------

    def on_message(self, sender: NodeId, message: Message) -> None:
        if isinstance(message, Introduce):
            self._on_introduce(message)
        elif isinstance(message, Introduced):
            self.founding.on_introduced(message)
        elif self.cluster:
            group = self.groups.get(message.group)  # type: ignore[attr-defined]
            if group is not None:
                group.touch()
                _HANDLERS[type(message)](group, sender, message)

    def _on_introduce(self, message: Introduce) -> None:
        ours, newcomer = self.cluster, message.member
        # While our founding entry is being written we are not empty, and nothing else yet.
        if self.joining or (message.cluster and message.cluster != ours):
            return
        control = self.groups[CONTROL]
        recorded = control.members.get(newcomer.node)
        removed = membership.removed(control, newcomer)
        self.founding.answer(message, recorded.incarnation if recorded else 0, removed)
        if not message.cluster or not newcomer.incarnation or removed:
            return
        if not compare_plugins(self.founding.plugins, message.plugins):
            membership.consider_newcomer(control, newcomer)

    def on_durable(self, write_number: WriteNumber) -> None:
        """Writes up to `write_number` are on disk: our own entries count, answers leave."""
        answers = self.turn.release(write_number)
        writing, self.turn.writing = self.turn.writing, []
        for group in writing:
            group.touch()
            group.durable(write_number)
            if group.writes:
                self.turn.writing.append(group)
        if self.joining_write is not None and write_number >= self.joining_write:
            cluster, self.joining, self.joining_write = self.joining, 0, None
            self.port.joined(cluster)
            self._joined(cluster)
        self._send_answers(answers)

    def _send_answers(self, answers: Sequence[tuple[NodeId, Message]]) -> None:
        for node, message in answers:
            if node == self.identity.node:
                self.on_message(node, message)
            else:
                self.port.send(node, message)

    # --- proposals and reads --------------------------------------------------------------------

    def propose(self, plugin: str, group: GroupId, command: Command, token: Any) -> None:
        found = self._leading(plugin, group, token)
        if found is None:
            return
        if found.transferee is not None:
            failure = Failure(Code.NOT_LEADER, "leadership is being handed over; ask again")
            self.port.failed(plugin, group, token, failure)
        elif found.uncommitted_bytes > self.settings.uncommitted_bytes:
            self.port.failed(plugin, group, token, applying.BUSY)
        else:
            found.touch()
            found.commands.append(command)
            found.tokens.append((plugin, token))

    def read(self, plugin: str, group: GroupId, token: Any) -> None:
        found = self._leading(plugin, group, token)
        if found is not None:
            if found.reads.count >= self.settings.waiting_reads:
                self.port.failed(plugin, group, token, applying.BUSY)
            else:
                found.touch()
                found.reads.add((plugin, token))

    def _leading(self, plugin: str, group: GroupId, token: Any) -> Group | None:
        found = self.groups.get(group)
        if found is None:
            failure = Failure(Code.UNKNOWN_GROUP, f"this node does not hold group {group}")
        elif found.role is not Role.LEADER:
            failure = found.not_leader()
        else:
            return found
        self.port.failed(plugin, group, token, failure)
        return None

    def leader(self, group: GroupId) -> tuple[NodeId | None, int]:
        found = self.groups.get(group)
        return (found.leader, found.term) if found is not None else (None, 0)

    def log_time_us(self, group: GroupId) -> int:
        found = self.groups.get(group)
        return found.clock() if found is not None else 0

    def configuration(self, group: GroupId = CONTROL) -> Configuration | None:
        """The latest configuration in a group's log here, committed or not."""
        return self.groups[group].configuration

    def reconfigure(self, group: GroupId, members: Sequence[Member]) -> Failure | None:
        """Propose new members of a group this node leads; they differ from the present ones in
        one node. None if the change is in the log; it counts from now on."""
        return membership.reconfigure(self.groups[group], members)

    def hand_over(self, group: GroupId, target: NodeId) -> bool:
        """Hand the leadership of a group to a voter (thesis §3.10). False if that cannot be."""
        self.groups[group].touch()
        return election.start_transfer(self.groups[group], target)

    def transfer(self) -> bool:
        done = True
        for group in self.groups.values():
            if group.role is Role.LEADER and group.voters - group.voting:
                done = False
                group.touch()
                target = election.successor(group)
                if group.transferee is None and target is not None:
                    election.start_transfer(group, target)
        return done

    # --- time -----------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        if self.more:
            return self.port.now()
        turn = self.turn
        found = min(self.founding.deadline, turn.next_beat if turn.leading else FOREVER)
        for group in self.groups.values():
            if group.deadline < found:
                found = group.deadline
        return found if found < FOREVER else None

    def on_deadline(self) -> None:
        now, turn = self.port.now(), self.turn
        if now >= self.founding.deadline:
            if self.cluster:
                self._introduce_until_recorded()
            if now >= self.founding.deadline:
                self.founding.introduce()
        for group in list(self.groups.values()):
            if now >= group.deadline:
                group.touch()
                election.on_election_timeout(group)
        if turn.leading and now >= turn.next_beat:
            turn.beat += 1
            turn.next_beat = now + self.settings.heartbeat_s
            for group in self.groups.values():
                if group.role is Role.LEADER:
                    group.touch()
                    replication.beat(group)

    # --- the end of a turn ----------------------------------------------------------------------

    def flush(self) -> None:
        """Apply, cut entries, write, send: once per turn."""
        turn, left = self.turn, self.settings.apply_operations
        for group in turn.touched:
            if group.acknowledged or group.replica.applied < group.commit or group.reads.waiting:
                left = applying.settle(group, left)
        for group in turn.touched:
            if group.commands:
                applying.cut(group)
        turn.snapshots.advance()
        self._write()
        touched, turn.touched = turn.touched, []
        for group in touched:
            group.touched = False
            if group.stirred or group.reads.arrived:
                replication.send(group)
                if group.voters == 1:
                    applying.release_reads(group)
            if group.commands or group.reads.arrived or group.replica.applied < group.commit:
                group.touch()
        self.more = bool(turn.touched)
        if self.turn.unsettled:
            self.turn.unsettled = False
            self._introduce_until_recorded()

    def _write(self) -> None:
        """Everything of the turn in one write; answers that count on it wait for it."""
        turn = self.turn
        states = [group.state_record() for group in turn.touched if group.dirty]
        if states:
            turn.records[:0] = states
        if turn.records:
            answers = turn.write()
            for group in turn.touched:
                if group.dirty or group.unwritten:
                    group.written(turn.written)
                    if group.writes and group not in turn.writing:
                        turn.writing.append(group)
            if self.joining and self.joining_write is None:
                self.joining_write = turn.written
        else:
            answers = turn.write()
        self._send_answers(answers)

    # --- snapshots, and what came from the disk -------------------------------------------------

    def compact(self, groups: Sequence[GroupId]) -> None:
        self.turn.snapshots.compact(groups)

    def on_saved(self, group: GroupId, snapshot: Snapshot) -> None:
        self.turn.snapshots.on_saved(group, snapshot)

    def on_save_failed(self, group: GroupId) -> None:
        self.turn.snapshots.on_save_failed(group)

    def on_digested(self, group: GroupId, index: int, digest: bytes) -> None:
        self.turn.digests.on_digested(group, index, digest)

    def on_fetched(self, group: GroupId, first: int, entries: Sequence[Entry]) -> None:
        self.turn.fetches.on_fetched(group, first, entries)

    def on_snapshot_fetched(
        self, group: GroupId, snapshot: Snapshot, offset: int, data: bytes
    ) -> None:
        self.turn.fetches.on_snapshot_fetched(group, snapshot, offset, data)

    # --- what a plugin has and raft does not need ----------------------------------------------

    def machine(self, group: GroupId) -> StateMachine | None:
        return None

    def on_request(self, request: Request) -> None:
        failure = Failure(Code.MALFORMED, "raft takes no requests of clients")
        self.port.reply(request, [failure] * len(request.operations))

    def on_applied(self, group: GroupId, token: Any, results: Sequence[Result]) -> None:
        """Raft proposes nothing through a port."""

    def on_read(self, group: GroupId, token: Any) -> None:
        """Raft reads nothing through a port."""

    def on_failed(self, group: GroupId, token: Any, failure: Failure) -> None:
        """Raft proposes nothing through a port."""

    def on_leader(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        """Raft is who tells it."""

    # --- inspection -----------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the local invariants of every group; looks at each entry once."""
        for group in self.groups.values():
            inspection.check(group)

    def status(self) -> dict[str, Any]:
        """Per group its `inspection.status`, under the group's number."""
        return {
            "cluster": self.cluster,
            "groups": {number: inspection.status(group) for number, group in self.groups.items()},
        }
