"""The plugin that owns the log (raft), and what it may do beyond the others.

The law: apart from this the engine does not know raft from another plugin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from .plugin import Command, Failure, Plugin, Port, Result
from .records import (
    Configuration,
    Entry,
    GroupId,
    NodeId,
    Record,
    Snapshot,
    WriteNumber,
)


class LogPort(Port, Protocol):
    """Raft's port: apart from this the engine does not know raft from another plugin."""

    def persist(self, records: Sequence[Record]) -> WriteNumber:
        """Write records; `on_durable(n)` comes once every write up to n is on disk."""
        ...

    def applied(self, plugin: str, group: GroupId, token: Any, results: Sequence[Result]) -> None:
        """A proposal of a plugin was applied."""
        ...

    def readable(self, plugin: str, group: GroupId, token: Any) -> None:
        """A read of a plugin may be answered from the applied state."""
        ...

    def failed(self, plugin: str, group: GroupId, token: Any, failure: Failure) -> None: ...

    def led(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        """The leader this node knows of has changed; told to all plugins as `on_leader`."""
        ...

    def joined(self, cluster: int) -> None:
        """This node belongs to `cluster` from now on: keep it in node.json before any other
        effect of this turn."""
        ...

    def save(self, group: GroupId, index: int, term: int, stream: Iterator[bytes]) -> None:
        """Keep a snapshot: take the stream in slices of 2 ms, write it, sync it, give it its name.
        Comes back as `on_saved`. A later save of the group replaces one that is not finished."""
        ...

    def digest(self, group: GroupId, index: int, stream: Iterator[bytes]) -> None:
        """Take the stream in slices of 2 ms and hash it: `on_digested`."""
        ...

    def fetch(self, group: GroupId, first: int, bytes_max: int) -> None:
        """Read entries from `first` on that memory no longer has: `on_fetched`."""
        ...

    def fetch_snapshot(self, group: GroupId, snapshot: Snapshot, offset: int, size: int) -> None:
        """Read a piece of a kept snapshot: `on_snapshot_fetched`."""
        ...

    def drop(self, group: GroupId) -> None: ...  # its snapshots go
    def stop(self, failure: Failure) -> None:
        """A fatal fault: the node must stop and tell why."""
        ...


class LogPlugin(Plugin, Protocol):
    """The plugin that owns the log (raft): what the engine asks of it for the others' ports."""

    def propose(self, plugin: str, group: GroupId, command: Command, token: Any) -> None: ...
    def read(self, plugin: str, group: GroupId, token: Any) -> None: ...
    def on_durable(self, write_number: WriteNumber) -> None: ...
    def leader(self, group: GroupId) -> tuple[NodeId | None, int]: ...
    def log_time_us(self, group: GroupId) -> int: ...
    def configuration(self) -> Configuration | None:
        """Group 0's latest configuration as this node knows it."""
        ...

    def recorded_incarnation(self, node: NodeId) -> int | None:
        """The incarnation of a node that counts: None if the node is in no configuration known
        here, 0 if it is configured but was not heard of yet."""
        ...

    def transfer(self) -> bool:
        """Hand all leaderships over (SIGTERM). True once this node leads no group."""
        ...

    def compact(self, groups: Sequence[GroupId]) -> None:
        """The log is long, and these groups need its oldest segment: snapshot each, or write what
        it still needs once more."""
        ...

    def on_saved(self, group: GroupId, snapshot: Snapshot) -> None: ...
    def on_save_failed(self, group: GroupId) -> None:
        """The disk is full: `save` it later."""
        ...

    def on_digested(self, group: GroupId, index: int, digest: bytes) -> None: ...
    def on_fetched(self, group: GroupId, first: int, entries: Sequence[Entry]) -> None:
        """Committed entries from `first` on, as many as were asked for; none: they are gone."""
        ...

    def on_snapshot_fetched(
        self, group: GroupId, snapshot: Snapshot, offset: int, data: bytes
    ) -> None:
        """A piece of a snapshot; empty: it is gone."""
        ...
