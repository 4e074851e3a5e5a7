"""The numbers of Raft: times in seconds, sizes in bytes.

The law: every window, tail and batch has a bound, and it stands here.
"""

from __future__ import annotations

import math

import msgspec

MIB = 1 << 20


class Settings(msgspec.Struct, frozen=True):
    """How one node runs its groups; the same on all nodes, except while it is being changed.

    `partitions`: how many groups are founded beside group 0. An election timeout is drawn from
    [min, max) (paper §5.2); within the minimum after hearing a leader no vote is given.
    `return_s`: after so long without a fault the preferred node leads a partition again.
    An append has at most `append_bytes` and `append_entries`.
    `copy_entries`: of a group with more entries behind its snapshot another snapshot is taken
    rather than that they are written once more.
    `promotion_entries`: a learner this close to the end of the log for a round becomes a voter.
    Of each log about `tail_bytes` stay in memory. A group is snapshotted when it has written more
    than `snapshot_bytes` and more than its last snapshot since that; or, so that a restart is
    quick, after `snapshot_operations` if they wrote more than the last snapshot. After a
    full disk the next save waits `save_pause_s`. A snapshot
    travels in pieces of `piece_bytes`, `piece_window` of them under way to a peer.
    `incoming_snapshots` are received at once.
    `digest_operations`: replicas compare their states so often (a law of the group: it is part of
    the state, so nodes that differ in it seem to diverge).
    """

    partitions: int = 12
    return_s: float = 30.0
    election_timeout_min_s: float = 0.150
    election_timeout_max_s: float = 0.300
    heartbeat_s: float = 0.050
    introduce_s: float = 0.200
    founding_s: float = 1.0
    tick_s: float = 5.0
    time_step_us: int = 100_000
    entry_bytes: int = MIB
    append_bytes: int = MIB
    append_entries: int = 4_096
    copy_entries: int = 4_096
    window_messages: int = 64
    window_bytes: int = 4 * MIB
    uncommitted_bytes: int = 16 * MIB
    waiting_reads: int = 65_536
    apply_operations: int = 4_096
    promotion_entries: int = 64
    tail_bytes: int = 16 * MIB
    snapshot_bytes: int = 64 * MIB
    snapshot_operations: int = 250_000
    save_pause_s: float = 5.0
    piece_bytes: int = MIB // 4
    piece_window: int = 2
    incoming_snapshots: int = 2
    incoming_idle_s: float = 5.0
    fetches: int = 8
    digest_operations: int = 100_000

    @property
    def silence_beats(self) -> int:
        """A leader that a majority did not answer for so many heartbeats steps down."""
        return math.ceil(self.election_timeout_max_s / self.heartbeat_s)
