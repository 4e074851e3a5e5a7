"""Looking at a log or a snapshot without the node: `wal verify`, `snapshot verify`.

The law: nothing is written, not even a lock. A log is read by the code a node starts with, so what
passes here a node accepts; a log that a node has open is refused, since it changes as it is read.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]
import msgspec

from ..protocols.records import Configuration, EntryRecord, GroupId, GroupState, Snapshot
from ..protocols.snapshot import HEADER, DamagedSnapshot, Header, Reader
from . import wal
from .replay import Replay
from .segments import segment_name, segment_number
from .snapshots import BLOCK_BYTES, file_name, new_digest, parse_name

LOG, SNAPSHOTS, LOCK = "log", "snapshots", "lock"


class InUse(Exception):
    """A node has the log open."""


class NoSuchLog(Exception):
    """The directory holds no log."""


class SegmentFound(NamedTuple):
    """A segment: the size of its file, how much of it is used, and what is in it."""

    name: str
    size: int
    used: int
    batches: int
    records: int
    entries: int


class LogFound(NamedTuple):
    """A log that is whole. `torn_bytes` of its last write never reached the disk: nobody counted
    on them, and the next start cuts them off."""

    segments: list[SegmentFound]
    groups: dict[GroupId, GroupState]
    torn_bytes: int
    released: int

    def as_json(self) -> dict[str, Any]:
        """Of JSON types."""
        groups = {str(number): _group_as_json(state) for number, state in self.groups.items()}
        return {
            "segments": [segment._asdict() for segment in self.segments],
            "groups": groups,
            "torn_bytes": self.torn_bytes,
            "released_before": self.released,
        }


class SnapshotFound(NamedTuple):
    """A snapshot that is whole. `sections` are the bytes of each plugin's state; `named` is false
    where the file's name does not say what it holds."""

    header: Header
    size: int
    digest: str
    sections: dict[str, int]
    members: list[str]
    named: bool

    def as_json(self) -> dict[str, Any]:
        """Of JSON types."""
        header = msgspec.to_builtins(msgspec.structs.asdict(self.header))
        del header["configuration"]
        rest = self._asdict()
        del rest["header"]
        return {**header, **rest}


def verify_log(directory: Path) -> LogFound:
    """Read the log in a node's data directory, or in the directory given. Raises `CorruptLog` or
    `ForeignLog` if it is damaged, `InUse`, `NoSuchLog`, OSError."""
    log = directory / LOG if (directory / LOG).is_dir() else directory
    names = sorted(path.name for path in log.iterdir() if path.suffix == ".wal")
    if not names:
        raise NoSuchLog(f"{log} holds no log: give the data directory of a node")
    _refuse_open(log)
    replay, batches, records = Replay(), Counter[int](), Counter[int]()
    entries = Counter[int]()

    def take(batch: wal.Batch) -> None:
        replay.take(batch)
        batches[batch.segment] += 1
        records[batch.segment] += len(batch.records)
        entries[batch.segment] += sum(isinstance(record, EntryRecord) for record in batch.records)

    numbers = sorted(map(segment_number, names))
    found = wal.recover(numbers, lambda number: (log / segment_name(number)).read_bytes(), take)
    groups = replay.groups()
    segments = [
        SegmentFound(
            segment_name(number),
            (log / segment_name(number)).stat().st_size,
            wal.position(found.extents[number][1]) if number in found.extents else 0,
            batches[number],
            records[number],
            entries[number],
        )
        for number in numbers
    ]
    kept = log.parent / SNAPSHOTS
    for group, state in groups.items():
        if state.snapshot is not None and not (kept / file_name(group, state.snapshot)).exists():
            reason = f"the snapshot it names, {file_name(group, state.snapshot)}, is missing"
            raise wal.CorruptLog(numbers[-1], 0, f"group {group}: {reason}")
    return LogFound(segments, dict(sorted(groups.items())), found.torn[1], found.released)


def verify_snapshot(path: Path) -> SnapshotFound:
    """Read the file of a snapshot. Raises `DamagedSnapshot`, OSError."""
    reader = Reader(_group_of(path))
    digest, size = new_digest(), 0
    sections = Counter[str]()
    for block in _blocks(path):
        digest.update(block)
        size += len(block)
        for section, chunk in reader.feed(block):
            sections[section] += len(chunk)
    header = reader.header
    if header is None or not reader.complete:
        raise DamagedSnapshot(f"it ends after {size} bytes, before its last item")
    kept = parse_name(path.name)
    if kept is not None:
        found = Snapshot(header.index, header.term, size, digest.digest())
        if kept.snapshot != found:
            raise DamagedSnapshot(f"its name does not fit: it is {file_name(header.group, found)}")
    configuration = msgspec.msgpack.decode(header.configuration, type=Configuration)
    members = [m.node if m.voter else f"({m.node})" for m in configuration.members]
    return SnapshotFound(
        header, size, digest.hexdigest(), dict(sections), members, kept is not None
    )


def _refuse_open(log: Path) -> None:
    """Raises `InUse` if a node holds the directory."""
    try:
        lock = os.open(log / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        text = f"{log} is in use by process {holder or '?'}: stop that node, or verify a copy"
        raise InUse(text) from None
    finally:
        os.close(lock)


def _group_of(path: Path) -> GroupId:
    """The group a snapshot is of, from its header: the file may have been given another name."""
    unpacker = msgpack.Unpacker()
    for block in _blocks(path):
        unpacker.feed(block)
        break
    try:
        section, chunk, _ = next(iter(unpacker))
        if section == HEADER:
            return msgspec.msgpack.decode(chunk, type=Header).group
    except Exception as error:  # whatever the unpacker makes of bytes that are not MessagePack
        raise DamagedSnapshot(f"not a snapshot: {error}") from error
    raise DamagedSnapshot("it does not begin with its one header")


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _group_as_json(state: GroupState) -> dict[str, Any]:
    snapshot = state.snapshot
    return {
        "term": state.term,
        "vote": state.vote,
        "commit": state.commit,
        "entries": [state.entries[0].index, state.entries[-1].index] if state.entries else None,
        "snapshot": snapshot
        and {"index": snapshot.index, "term": snapshot.term, "size": snapshot.size},
    }
