"""The snapshots of a node: one file each, whole or not there.

The law: a snapshot has its name only once all of it is on disk. Of each group the last two are
kept, and the one the log names in any case; what the log names and is not there, or is not what it
was, stops the node. (tmp, sync, rename, sync of the directory: Ongaro's thesis §5.1.)

A file is named by its content: `<group>-<index>-<term>-<size>-<digest>.snapshot`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..protocols.records import GroupId, Snapshot
from .disk import Disk
from .wal import CorruptLog

BLOCK_BYTES = 256 * 1024
SYNC_BYTES = 4 << 20
"""A snapshot is synced whenever so much of it was written: a sync of all of it would hold up those
of the log."""

KEPT = 2
DIGEST_BYTES = 16
_SUFFIX, _UNFINISHED = ".snapshot", ".unfinished"


class CorruptSnapshot(CorruptLog):
    """The snapshot that the log names is missing or is not what it was."""

    def __init__(self, group: GroupId, snapshot: Snapshot, reason: str) -> None:
        Exception.__init__(
            self,
            f"the snapshot {file_name(group, snapshot)!r} of group {group} {reason}. This node must"
            " not vote without it: move its data directory away and start it with an empty one; it"
            " then joins as a learner and copies what it needs from its peers",
        )
        self.segment = self.offset = 0
        self.reason = reason


class Kept(NamedTuple):
    """A snapshot and whose it is."""

    group: GroupId
    snapshot: Snapshot


def file_name(group: GroupId, snapshot: Snapshot) -> str:
    """The name of a snapshot's file."""
    parts = (group, snapshot.index, snapshot.term, snapshot.size, snapshot.digest.hex())
    return "-".join(map(str, parts)) + _SUFFIX


def parse_name(name: str) -> Kept | None:
    """Which snapshot a file is by its name; None if it is none."""
    try:
        group, index, term, size, digest = name.removesuffix(_SUFFIX).split("-")
        snapshot = Snapshot(int(index), int(term), int(size), bytes.fromhex(digest))
        kept = Kept(int(group), snapshot)
    except ValueError:
        return None
    return kept if file_name(*kept) == name else None


def new_digest() -> hashlib.blake2b:
    """The hash of a snapshot's stream: BLAKE2b-128."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


class SnapshotStore:
    """The files. Every call blocks; `OSError` passes through."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._unfinished = 0

    def clean(self, named: Mapping[GroupId, Snapshot]) -> None:
        """At the start: remove what a crash left, and of each group all but the snapshot the log
        names and the one before. Raises `CorruptSnapshot` if one that it names is missing."""
        kept = self._kept()
        for group, snapshot in named.items():
            if Kept(group, snapshot) not in kept:
                raise CorruptSnapshot(group, snapshot, "is missing")
        for name in self._disk.names():
            if name.endswith(_UNFINISHED):
                self._disk.remove(name)
        for group in sorted({each.group for each in kept}):
            last = named.get(group)
            own = [each.snapshot for each in kept if each.group == group]
            usable = [s for s in own if last is not None and s.index <= last.index]
            self._remove(group, [s for s in own if s != last and s not in usable[-KEPT:]])

    def new_name(self, group: GroupId) -> str:
        """A name for the file of a snapshot that is being written."""
        self._unfinished += 1
        return f"{group}-{self._unfinished}{_UNFINISHED}"

    def begin(self, name: str) -> None:
        """Make the file of a snapshot that is being written."""
        self._disk.create(name, 0)

    def append(self, name: str, block: bytes, sync: bool) -> None:
        """Write the next block of a file that was begun."""
        self._disk.append(name, block)
        if sync:
            self._disk.sync(name)

    def abandon(self, name: str) -> None:
        """Remove a file that was begun, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.remove(name)

    def finish(self, name: str, group: GroupId, snapshot: Snapshot, named: Snapshot | None) -> None:
        """Sync the file and give it its name; then remove what is older than the last two. `named`
        is the snapshot that the log on disk names: that one stays, and so does the new one."""
        self._disk.sync(name)
        self._disk.rename(name, file_name(group, snapshot))
        own = [each.snapshot for each in self._kept() if each.group == group]
        # One that was begun anew may be of an earlier entry than those of the copy before.
        self._remove(group, [old for old in own[:-KEPT] if old not in (named, snapshot)])

    def read(self, group: GroupId, snapshot: Snapshot, offset: int, bytes_max: int) -> bytes:
        """A piece of a snapshot, empty if it is gone or ends before."""
        try:
            return self._disk.read_at(file_name(group, snapshot), offset, bytes_max)
        except FileNotFoundError:
            return b""

    def open(self, group: GroupId, snapshot: Snapshot) -> Iterator[bytes]:
        """The stream of a snapshot in blocks. Raises `CorruptSnapshot`, at the latest after the
        last block: who takes them must forget them all then."""
        digest, size = new_digest(), 0
        while block := self.read(group, snapshot, size, BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            yield block
        if size != snapshot.size:
            raise CorruptSnapshot(group, snapshot, f"has {size} of {snapshot.size} bytes")
        if digest.digest() != snapshot.digest:
            raise CorruptSnapshot(group, snapshot, "has another digest than its name says")

    def drop(self, group: GroupId) -> None:
        """Remove all snapshots of a group."""
        self._remove(group, [each.snapshot for each in self._kept() if each.group == group])

    def _kept(self) -> list[Kept]:
        """The snapshots there are, by group and age."""
        found = [parse_name(name) for name in self._disk.names()]
        return sorted(
            (kept for kept in found if kept is not None),
            key=lambda kept: (kept.group, kept.snapshot.index, kept.snapshot.term),
        )

    def _remove(self, group: GroupId, snapshots: list[Snapshot]) -> None:
        for snapshot in snapshots:
            self._disk.remove(file_name(group, snapshot))
