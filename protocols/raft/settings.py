"""The numbers of Raft: times in seconds, sizes in bytes.

The law: every window, tail and batch has a bound, and it stands here.
"""

from __future__ import annotations

import math

import msgspec

MIB = 1 << 20


class Settings(msgspec.Struct, frozen=True):
    """How one node runs its groups; the same on all nodes, except while it is being changed.

    `groups`: how many are founded with the cluster (0 … groups - 1). An election timeout is drawn
    from [min, max) (paper §5.2); within the minimum after hearing a leader no vote is given.
    `promotion_entries`: a learner this close to the end of the log for a round becomes a voter.
    `digest_operations`: replicas compare their states so often (a law of the group: it is part of
    the state, so nodes that differ in it seem to diverge).
    """

    groups: int = 13
    election_timeout_min_s: float = 0.150
    election_timeout_max_s: float = 0.300
    heartbeat_s: float = 0.050
    introduce_s: float = 0.200
    founding_s: float = 1.0
    tick_s: float = 5.0
    time_step_us: int = 100_000
    entry_bytes: int = MIB
    append_bytes: int = MIB
    window_messages: int = 64
    window_bytes: int = 4 * MIB
    uncommitted_bytes: int = 16 * MIB
    waiting_reads: int = 65_536
    apply_operations: int = 4_096
    promotion_entries: int = 64
    digest_operations: int = 100_000

    @property
    def silence_beats(self) -> int:
        """A leader that a majority did not answer for so many heartbeats steps down."""
        return math.ceil(self.election_timeout_max_s / self.heartbeat_s)
