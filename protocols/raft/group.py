"""One group's Raft state, its roles and the way between them (paper figure 2 and §5).

The law: terms only rise, a vote is given once per term, a leader only appends to its log, the
commit index never falls. What messages do to a group stands in `election.py` (votes),
`replication.py` (entries, heartbeats, commit) and `membership.py` (configurations).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from ..errors import Code
from ..plugin import Command, Failure, GroupId, Message
from ..records import (
    CONFIGURATION,
    NOOP,
    Configuration,
    Entry,
    EntryRecord,
    GroupState,
    Member,
    NodeId,
    StateRecord,
)
from ..replica import Replica
from ..snapshot import Header
from .log import Log, size
from .progress import NEVER, Progress
from .reads import Reads
from .turn import Turn

Token = tuple[str, Any]
"""(plugin, token) of a proposal."""

FOREVER = float("inf")

LEADER_LOST = Failure(
    Code.LEADER_LOST, "leadership was lost before commit; send it again, same sequence"
)
_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode


class Role(enum.Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Configured(NamedTuple):
    """A configuration; `at` is the index of its entry. The `payload` is kept as it is in the
    log: what another version makes of it need not be the same, and snapshots are compared."""

    at: int
    configuration: Configuration
    payload: bytes


class Group:
    """The state of one group. Public attributes are for the modules of this package."""

    def __init__(self, group: GroupId, replica: Replica, state: GroupState, turn: Turn) -> None:
        self.group = group
        self.replica = replica
        self.turn = turn
        self.settings = turn.settings
        self.node = turn.identity.node
        self.incarnation = turn.identity.incarnation
        # Persistent (paper, figure 2).
        self.snapshot = state.snapshot
        base, base_term = (self.snapshot.index, self.snapshot.term) if self.snapshot else (0, 0)
        self.log = Log(state.entries, base, base_term)
        self.term = max(state.term, self.log.last_term)
        self.vote: NodeId = state.vote if self.term == state.term else ""
        self.floor = state.floor
        self.touched = False
        self.dirty = False  # term or vote changed and not written yet
        self.state_write = 0
        self.durable_index = self.log.last_index
        self.writes: deque[list[int]] = deque()  # [write number, last index it made durable]
        self.unwritten = False
        # Volatile.
        self.role = Role.FOLLOWER
        self.leader: NodeId | None = None
        self.commit = max(base, min(state.commit, self.log.last_index))
        self.deadline = FOREVER  # of the election timer
        self.timeout_s = 0.0
        self.heard_at = -FOREVER
        self.votes: dict[NodeId, bool] = {}
        self.time_us = state.entries[-1].time_us if state.entries else replica.time_us
        self.time_term = 0  # whose time that is: the term of the leader that told it
        self.clock_us = 0
        # Membership: the last configuration of the log's forgotten part and all after it; the
        # last one counts (thesis §4.1).
        self.configurations: list[Configured] = []
        self.members: dict[NodeId, Member] = {}
        self.voting = False
        self.voters = 0
        # As a leader.
        self.peers: dict[NodeId, Progress] = {}
        self.voting_peers: list[Progress] = []
        self.first_of_term = 0  # index of the no-op that opened our term
        self.acknowledged = False  # someone's match rose: look at the commit index
        self.heartbeat_due = False
        self.stirred = False  # as a leader: there may be something to send
        self.appended_at = 0.0
        self.uncommitted_bytes = 0
        self.reads = Reads()
        self.commands: list[Command] = []
        self.tokens: list[Token] = []
        self.proposed: dict[int, tuple[list[Command], list[Token]]] = {}
        self.transferee: NodeId | None = None
        self.transfer_deadline = 0.0
        self.checked = 0
        # Snapshots: what was applied since the last one, and the write that recorded it.
        self.grown_bytes, self.saved_number = 0, replica.number
        self.recorded_write = 0
        if replica.header is not None:
            self.remember_configuration(replica.header)
        for entry in self.log.entries:
            if entry.kind == CONFIGURATION:
                self._remember(entry.index, entry.payload)
        self.adopt_configuration()

    def remember_configuration(self, header: Header) -> None:
        """The configuration that a snapshot brings."""
        if header.configuration:
            self._remember(header.configuration_index, header.configuration)

    def _remember(self, index: int, payload: bytes) -> None:
        self.configurations.append(Configured(index, _decode_configuration(payload), payload))

    def touch(self) -> None:
        """The end of the turn has to look at this group."""
        if not self.touched:
            self.touched = True
            self.turn.touched.append(self)

    # --- time -----------------------------------------------------------------------------------

    def clock(self) -> int:
        """The log time. On a leader it moves with the clock, by at most 100 ms per turn."""
        if self.role is Role.LEADER:
            now_us = int(self.turn.port.now() * 1e6)
            step_us = now_us - self.clock_us
            if step_us > 0:
                self.clock_us = now_us
                self.time_us += min(step_us, self.settings.time_step_us)
        return self.time_us

    def hear_time(self, term: int, time_us: int) -> None:
        """The leader of `term` was at `time_us`."""
        if term > self.time_term:
            self.time_term, self.time_us = term, time_us
        elif time_us > self.time_us:
            self.time_us = time_us

    def _take_over_time(self) -> None:
        """Go on from the last leader's time, if our log is the one it counted for.

        A leader that did not know of another's entries and heartbeats may have counted from
        further behind. Deadlines in its entries are by its own time: to go on from the other's
        would bring them nearer than they were promised.
        """
        log = self.log
        last_us = log.entries[-1].time_us if log.entries else self.replica.time_us
        if self.time_term != log.last_term or last_us > self.time_us:
            self.time_us = last_us
        self.time_term = self.term

    def rearm(self) -> None:
        """Draw a new election timeout (paper §5.2: randomized) and start it. Who has no vote
        only notices by it that its leader fell silent."""
        settings, port = self.settings, self.turn.port
        self.timeout_s = port.random.uniform(
            settings.election_timeout_min_s, settings.election_timeout_max_s
        )
        timed = self.voting or self.leader is not None
        self.deadline = port.now() + self.timeout_s if timed else FOREVER

    def sticky(self) -> bool:
        """There is a leader as far as we know: no votes for others (thesis §4.2.3)."""
        if self.role is Role.LEADER:
            return True
        return self.turn.port.now() < self.heard_at + self.settings.election_timeout_min_s

    # --- configuration --------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration | None:
        return self.configurations[-1].configuration if self.configurations else None

    @property
    def may_vote(self) -> bool:
        """Not before there is a configuration above the floor (`StateRecord.floor`): a copy that
        is being filled knows less than the one before it acknowledged."""
        if not self.floor:
            return True
        return bool(self.configurations) and self.configurations[-1][0] > self.floor

    def adopt_configuration(self) -> None:
        """Live by the latest configuration in the log, committed or not (thesis §4.1)."""
        configuration = self.configuration
        members = configuration.members if configuration else ()
        self.members = {member.node: member for member in members}
        self.voters = sum(member.voter for member in members)
        self.voting = self.counts(self.node, self.incarnation) and self.may_vote
        if self.role is Role.LEADER:
            self.track_peers()

    def reconfigured(self) -> None:
        """Another configuration is the latest: who became a voter needs an election timer, and
        votes are counted anew, for they were those of other voters."""
        self.votes = {}
        self.adopt_configuration()
        self.turn.unsettled = True
        if self.role is not Role.LEADER and (self.deadline == FOREVER) is self.voting:
            self.rearm()

    def counts(self, node: NodeId, incarnation: int) -> bool:
        """Does a vote of this node, in this incarnation, count?"""
        member = self.members.get(node)
        return (
            member is not None
            and member.voter
            and member.incarnation == incarnation
            and incarnation != 0
        )

    def track_peers(self) -> None:
        """One `Progress` for every other member that is recorded with its incarnation."""
        peers: dict[NodeId, Progress] = {}
        for node, member in self.members.items():
            if node == self.node or member.incarnation == 0:
                continue
            peer = self.peers.get(node)
            if peer is None or peer.incarnation != member.incarnation:
                window, beat = self.turn.window(node), self.turn.beat
                next_index = self.log.last_index + 1
                peer = Progress(node, member.incarnation, member.voter, next_index, beat, window)
                # What an earlier copy there acknowledged says nothing of this one.
                peer.since_round = self.reads.round
                self.heartbeat_due = self.stirred = True
            peer.voter = member.voter
            peers[node] = peer
        for node, peer in self.peers.items():
            if peers.get(node) is not peer:
                peer.forget()
        self.peers = peers
        self.voting_peers = [peer for peer in peers.values() if peer.voter]

    def agreed(self, own: int, of: Callable[[Progress], int]) -> int:
        """The highest number that a majority of the voters has reached; `own` counts only if we
        vote, and a voter without recorded incarnation has reached nothing."""
        reached = [of(peer) for peer in self.voting_peers]
        if self.voting:
            reached.append(own)
        reached.sort()
        majority = self.voters // 2 + 1
        return reached[-majority] if len(reached) >= majority else NEVER

    # --- roles ----------------------------------------------------------------------------------

    def become_follower(self, term: int, leader: NodeId | None) -> None:
        """Follow `leader` (None: nobody yet) in `term`. A lost leadership is told to proposers."""
        was_leader = self.role is Role.LEADER
        risen = term > self.term
        if risen:
            self.term, self.vote, self.dirty = term, "", True
        self.role = Role.FOLLOWER
        self.rearm()
        lost: list[tuple[Token, Failure]] = []
        if was_leader:
            self.turn.leading -= 1
            lost = self._abandon()
        changed = leader != self.leader or (risen and leader is not None)
        self.leader = leader
        if changed:
            self.turn.port.led(self.group, leader, self.term)
        for (plugin, token), failure in lost:
            self.turn.port.failed(plugin, self.group, token, failure)

    def forget_leader(self) -> None:
        """Nothing is heard of it any more."""
        self.turn.unsettled = True
        if self.leader is not None:
            self.leader = None
            self.turn.port.led(self.group, None, self.term)

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won before disturbing anybody (thesis §9.6)."""
        self.role = Role.PRE_CANDIDATE
        self.votes = {}
        self.rearm()
        self.forget_leader()

    def become_candidate(self) -> None:
        """A new term, with a vote for ourselves (paper §5.2)."""
        self.term += 1
        self.vote = self.node
        self.dirty = True
        self.role = Role.CANDIDATE
        self.votes = {}
        self.rearm()
        self.forget_leader()

    def become_leader(self) -> None:
        """Lead the term: open it with a no-op, which commits what came before (paper §8)."""
        log = self.log
        self._take_over_time()
        self.role, self.leader = Role.LEADER, self.node
        self.deadline = FOREVER
        self.clock_us = int(self.turn.port.now() * 1e6)
        self.peers = {}
        self.track_peers()
        self.transferee = None
        self.uncommitted_bytes = sum(
            size(log.get(index)) for index in range(self.commit + 1, log.last_index + 1)
        )
        self.turn.began_leading()
        self.first_of_term = self.lead(NOOP, b"")
        self.acknowledged = self.heartbeat_due = self.stirred = True
        self.turn.port.led(self.group, self.node, self.term)

    def _abandon(self) -> list[tuple[Token, Failure]]:
        """Stop leading: what nobody will answer any more. Committed entries keep their tokens."""
        for peer in self.peers.values():
            peer.forget()
        self.peers, self.voting_peers = {}, []
        self.transferee = None
        self.heartbeat_due = self.acknowledged = self.stirred = False
        lost: list[tuple[Token, Failure]] = []
        for index in [index for index in self.proposed if index > self.commit]:
            lost += [(token, LEADER_LOST) for token in self.proposed.pop(index)[1]]
        refused = self.not_leader()
        lost += [(token, refused) for token in self.tokens + self.reads.abandon()]
        self.commands, self.tokens = [], []
        return lost

    def not_leader(self) -> Failure:
        leader = self.leader if self.leader != self.node else None
        text = f"ask {leader}, the leader" if leader else "no leader is known here; ask again"
        return Failure(Code.NOT_LEADER, text, (leader,) if leader else ())

    # --- the log --------------------------------------------------------------------------------

    def lead(self, kind: int, payload: bytes) -> int:
        """Append an entry of our term as its leader; its index."""
        log = self.log
        entry = Entry(log.last_index + 1, self.term, self.clock(), kind, payload)
        log.append(entry)
        self.uncommitted_bytes += size(entry)
        self.appended_at = self.turn.port.now()
        self.stirred = True
        self._record((entry,))
        return entry.index

    def follow(self, entries: Sequence[Entry]) -> None:
        """Append a leader's entries, after cutting off a tail that conflicts (paper §5.3)."""
        log = self.log
        first = entries[0].index
        if first <= log.last_index:
            self.truncate(first)
        log.extend(entries)
        self.hear_time(self.term, entries[-1].time_us)
        self._record(entries)

    def truncate(self, index: int) -> None:
        """Drop the entries from `index` on, and configurations among them."""
        assert index > self.commit, f"group {self.group}: {index} is committed"
        self.log.truncate(index)
        self.checked = min(self.checked, index - 1)
        self.durable_index = min(self.durable_index, index - 1)
        for write in self.writes:
            # What that write made durable is being replaced: it counts for the rest only.
            write[1] = min(write[1], index - 1)
        if self.configurations and self.configurations[-1][0] >= index:
            while self.configurations and self.configurations[-1][0] >= index:
                self.configurations.pop()
            self.reconfigured()

    def _record(self, entries: Sequence[Entry]) -> None:
        records, group = self.turn.records, self.group
        self.unwritten = True
        for entry in entries:
            records.append(EntryRecord(group, entry))
            if entry.kind == CONFIGURATION:
                self._remember(entry.index, entry.payload)
                self.reconfigured()

    def state_record(self) -> StateRecord:
        commit = min(self.commit, self.durable_index)
        return StateRecord(self.group, self.term, self.vote, commit, self.floor)

    def written(self, write_number: int) -> None:
        """This turn's records of the group went out under `write_number`."""
        if self.dirty:
            self.dirty = False
            self.state_write = write_number
        if self.unwritten:
            self.unwritten = False
            self.writes.append([write_number, self.log.last_index])

    def durable(self, write_number: int) -> None:
        """Writes up to `write_number` are on disk; a leader's own count from here on."""
        writes = self.writes
        while writes and writes[0][0] <= write_number:
            self.durable_index = max(self.durable_index, writes.popleft()[1])
            self.acknowledged = True

    def respond(self, to: NodeId, message: Message) -> None:
        """Answer at once, unless our term itself still has to be written."""
        if self.dirty or self.state_write > self.turn.durable:
            self.turn.answer(to, message)
        else:
            self.turn.port.send(to, message)
