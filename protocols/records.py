"""What a node keeps on disk, as plain records.

The law: a record is immutable, and reading the records of a log in the order they were written
rebuilds exactly the persistent state of Raft (Ongaro & Ousterhout 2014, figure 2: currentTerm,
votedFor, log[]) of every group of the node.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

NodeId: TypeAlias = str
GroupId: TypeAlias = int
WriteNumber: TypeAlias = int
"""Counts the calls of `LogPort.persist` of a process; durable up to n: every write <= n is."""

NOOP, COMMANDS, CONFIGURATION = 0, 1, 2
"""Kinds of entries. A NOOP opens a term or is a tick that only moves the log time."""


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One entry of a group's log. `time_us` is the log time its leader gave it (microseconds)."""

    index: int
    term: int
    time_us: int
    kind: int
    payload: bytes = b""


class EntryRecord(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """An entry put into a group's log. It replaces the entry of that index and all above it."""

    group: GroupId
    entry: Entry


class StateRecord(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Term, vote ("" for none) and commit index of a group, as of this point of the log.

    `commit` is only a hint to apply sooner after a restart; it is never above what was durable.
    `floor`: an earlier copy of the group was given up here when the group was known to do without
    it by the configuration at that index. What it acknowledged is gone, so this node has no vote
    by any configuration up to there.
    """

    group: GroupId
    term: int
    vote: NodeId
    commit: int
    floor: int = 0


class Snapshot(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A snapshot, by the entries it replaces (all up to `index`, whose term is `term`) and by what
    it is: `size` bytes with the BLAKE2b-128 `digest`, the same on every replica of the group."""

    index: int
    term: int
    size: int
    digest: bytes


class SnapshotRecord(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """A snapshot, whole on disk, replaces the entries up to its index. What follows stays if the
    log had the snapshot's last entry; else all of it is another leader's and goes (paper §7)."""

    group: GroupId
    snapshot: Snapshot


class DropRecord(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    """The node's copy of a group was given up: its entries and snapshot go. Term and vote stay,
    so that a node that comes back to the group never votes twice in a term."""

    group: GroupId


Record: TypeAlias = EntryRecord | StateRecord | SnapshotRecord | DropRecord


class GroupState(msgspec.Struct, gc=False):
    """What a log holds of one group after a restart; `entries` are contiguous and follow the
    snapshot, or start at 1."""

    term: int = 0
    vote: NodeId = ""
    commit: int = 0
    entries: list[Entry] = []
    snapshot: Snapshot | None = None
    floor: int = 0

    @property
    def held(self) -> bool:
        """Is there a copy of the group, or only what outlives one?"""
        return bool(self.entries) or self.snapshot is not None


class Member(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A node in a configuration: a name and the incarnation of its data directory.

    Incarnation 0 stands for a configured node that has not been heard of yet: nothing it says
    counts until its incarnation is recorded. Endpoints are ZeroMQ addresses; `client_endpoint`
    is the advertised one.
    """

    node: NodeId
    incarnation: int
    voter: bool
    client_endpoint: str = ""
    peer_endpoint: str = ""
    publish_endpoint: str = ""


class Configuration(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Who votes and who listens in a group; the payload of a CONFIGURATION entry.

    `members` is sorted by node. `plugins` are the (name, version) pairs every node must have.
    `removed` (group 0 only) are the last (node, incarnation) pairs that left the cluster: they do
    not come back, and are told so.
    """

    cluster: int
    members: tuple[Member, ...]
    plugins: tuple[tuple[str, int], ...] = ()
    removed: tuple[tuple[NodeId, int], ...] = ()


class Identity(msgspec.Struct, frozen=True, gc=False):
    """Which node this is: the member it presents itself as, and its cluster (0: none yet)."""

    cluster: int
    node: NodeId
    incarnation: int
    client_endpoint: str = ""
    peer_endpoint: str = ""
    publish_endpoint: str = ""
