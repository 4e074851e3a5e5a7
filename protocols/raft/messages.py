"""What the Raft plugins of two nodes say to each other.

The law: a tag is a position in `MESSAGES`, and fields are only added at the end. Every message of
a group names it and the sender's term. Answers that are counted carry the incarnation of who gives
them, because a vote or an acknowledgement counts only from a member recorded with it.
"""

from __future__ import annotations

from ..plugin import Message
from ..records import Entry, Member, Snapshot


class RequestPreVote(Message, frozen=True, tag=0):
    """Would you vote for me in `term`? Changes nothing at who is asked (thesis §9.6)."""

    group: int
    term: int
    last_index: int
    last_term: int


class PreVoted(Message, frozen=True, tag=1):
    """`term` is the one asked for if granted, else the term of who answers."""

    group: int
    term: int
    granted: bool
    incarnation: int


class RequestVote(Message, frozen=True, tag=2):
    """Vote for me in `term` (paper §5.2). `transfer`: the leader told me to (thesis §3.10)."""

    group: int
    term: int
    last_index: int
    last_term: int
    transfer: bool = False


class Voted(Message, frozen=True, tag=3):
    group: int
    term: int
    granted: bool
    incarnation: int


class AppendEntries(Message, frozen=True, tag=4):
    """Entries that follow (`previous_index`, `previous_term`) (paper §5.3); none: a question
    whether that one is there. `round` is echoed, see `reads.py`."""

    group: int
    term: int
    previous_index: int
    previous_term: int
    commit: int
    round: int
    entries: tuple[Entry, ...]


class Appended(Message, frozen=True, tag=5):
    """The log is the sender's up to `index`, on disk."""

    group: int
    term: int
    index: int
    round: int
    incarnation: int


class Rejected(Message, frozen=True, tag=6):
    """The entry at `previous_index` is another one. `conflict_term` is its term here and
    `conflict_index` the first index of that term; without an entry there, the term is 0 and the
    index the one after the last (paper §5.3, the optimization at its end)."""

    group: int
    term: int
    previous_index: int
    conflict_index: int
    conflict_term: int
    round: int
    incarnation: int


class Heartbeat(Message, frozen=True, tag=7):
    """`commit` is not above what this follower has acknowledged; `time_us` is the log time."""

    group: int
    term: int
    commit: int
    time_us: int
    round: int


class Heard(Message, frozen=True, tag=8):
    """A heartbeat was heard. Also the answer to a leader of an old term: `term` tells it."""

    group: int
    term: int
    round: int
    incarnation: int


class TimeoutNow(Message, frozen=True, tag=9):
    """Stand for election at once (thesis §3.10)."""

    group: int
    term: int


class Introduce(Message, frozen=True, tag=10):
    """Who I am; `cluster` is 0 as long as I know of none. Answered by `Introduced`."""

    cluster: int
    member: Member
    plugins: tuple[tuple[str, int], ...]


class Introduced(Message, frozen=True, tag=11):
    """Who answers, and what it knows. `asker` repeats the incarnation of who asked; `recorded` is
    the one its configuration has for that node (0: none). `founding` is the payload of the first
    entry of group 0, empty if this node does not have it. `removed`: who asked, in the incarnation
    it has, has been removed from the cluster for good."""

    cluster: int
    member: Member
    plugins: tuple[tuple[str, int], ...]
    asker: int
    recorded: int = 0
    founding: bytes = b""
    removed: bool = False


class InstallSnapshot(Message, frozen=True, tag=12):
    """A piece of the leader's snapshot, from byte `offset` on (paper §7). The snapshot's digest
    names it: pieces of two are never mixed, and any leader may go on where another stopped."""

    group: int
    term: int
    round: int
    snapshot: Snapshot
    offset: int
    data: bytes


class SnapshotReceived(Message, frozen=True, tag=13):
    """`offset` bytes of the snapshot with that index and digest are here, without a gap. When it
    is installed, or not needed, `Appended` says so."""

    group: int
    term: int
    index: int
    digest: bytes
    offset: int
    round: int
    incarnation: int


class Digested(Message, frozen=True, tag=14):
    """What the sender's state at `index` hashes to; told to every member of the group."""

    group: int
    index: int
    digest: bytes
    incarnation: int


MESSAGES: tuple[type[Message], ...] = (
    RequestPreVote, PreVoted, RequestVote, Voted, AppendEntries, Appended, Rejected, Heartbeat,
    Heard, TimeoutNow, Introduce, Introduced, InstallSnapshot, SnapshotReceived, Digested,
)  # fmt: skip
