"""`wal verify` and `snapshot verify`: what is whole passes, what is not is told."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from coterie.nodes.disk import MIB, FileDisk
from coterie.nodes.disk_commands import snapshot, wal
from coterie.nodes.log import Log
from coterie.nodes.snapshots import SnapshotStore, file_name, new_digest
from coterie.protocols.records import (
    CONFIGURATION,
    NOOP,
    Configuration,
    Entry,
    EntryRecord,
    Member,
    Snapshot,
    SnapshotRecord,
    StateRecord,
)
from coterie.protocols.snapshot import Header, encode

CONFIGURED = msgspec.msgpack.encode(
    Configuration(7, (Member("node1", 1, True, "", "", ""), Member("node2", 2, False, "", "", "")))
)


def entry(group: int, index: int, kind: int = NOOP, payload: bytes = b"") -> EntryRecord:
    return EntryRecord(group, Entry(index, 2, index * 1000, kind, payload))


def open_log(directory: Path) -> tuple[FileDisk, Log]:
    disk = FileDisk(directory / "log", reserve_bytes=0)
    log = Log(disk, node="node1", incarnation=1, segment_bytes=MIB, first_segment_bytes=MIB)
    log.open()
    return disk, log


def fill(directory: Path) -> None:
    """A log of two segments, with a group that wrote one entry and one that wrote many."""
    disk, log = open_log(directory)
    log.write(log.encode([StateRecord(1, 2, "node1", 0), entry(1, 1, CONFIGURATION, CONFIGURED)]))
    for index in range(1, 40):
        log.write(log.encode([entry(0, index, payload=bytes(50_000))]))
    log.close()
    disk.close()


def keep_snapshot(directory: Path) -> Path:
    header = Header(1, 0, 39, 2, 39_000, 500, 0, 1, CONFIGURED)
    stream = list(encode(header, [("session", [b"one", b"two"]), ("lock", [b"three"])]))
    digest = new_digest()
    store = SnapshotStore(FileDisk(directory / "snapshots", reserve_bytes=0, hold=False))
    name = store.new_name(0)
    store.begin(name)
    for item in stream:
        digest.update(item)
        store.append(name, item, sync=False)
    found = Snapshot(39, 2, sum(map(len, stream)), digest.digest())
    store.finish(name, 0, found, None)
    return directory / "snapshots" / file_name(0, found)


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def verify_wal(directory: Path, *options: str) -> Result:
    return CliRunner().invoke(wal, ["verify", str(directory), *options])


def verify_snapshot(file: Path, *options: str) -> Result:
    return CliRunner().invoke(snapshot, ["verify", str(file), *options])


def test_a_log_that_is_whole_passes_and_is_not_touched(tmp_path: Path) -> None:
    fill(tmp_path)
    before = files(tmp_path)
    found = json.loads(verify_wal(tmp_path, "--json").stdout)
    assert len(found["segments"]) >= 2
    assert sum(segment["entries"] for segment in found["segments"]) == 40
    assert found["groups"]["0"]["entries"] == [1, 39]
    assert found["groups"]["1"] == {
        "term": 2, "vote": "node1", "commit": 0, "entries": [1, 1], "snapshot": None,
    }  # fmt: skip
    table = verify_wal(tmp_path / "log")
    assert table.exit_code == 0
    assert "0001.wal" in table.stdout and "the log is whole" in table.stdout
    assert files(tmp_path) == before


def test_a_byte_that_changed_is_found(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "log" / "0001.wal"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = verify_wal(tmp_path)
    assert found.exit_code == 65
    assert "segment 1" in found.output and "move its data directory away" in found.output


def test_a_write_that_was_torn_is_no_damage(tmp_path: Path) -> None:
    fill(tmp_path)
    disk, log = open_log(tmp_path)
    log.write(log.encode([entry(0, 40, payload=bytes(range(256)) * 16)]))
    disk.close()
    path = sorted((tmp_path / "log").glob("*.wal"))[-1]
    content = bytearray(path.read_bytes())
    start = content.rfind(bytes(range(200, 256))) // 512 * 512
    content[start : start + 512] = bytes(512)  # a sector that never got there
    path.write_bytes(content)
    found = verify_wal(tmp_path)
    assert found.exit_code == 0, found.output
    assert "never got to the disk" in found.stdout


def test_a_snapshot_that_is_missing_is_found(tmp_path: Path) -> None:
    fill(tmp_path)
    kept = keep_snapshot(tmp_path)
    disk, log = open_log(tmp_path)
    size, digest = kept.stat().st_size, bytes.fromhex(kept.stem.rpartition("-")[2])
    log.write(log.encode([SnapshotRecord(0, Snapshot(39, 2, size, digest))]))
    log.close()
    disk.close()
    assert verify_wal(tmp_path).exit_code == 0
    kept.unlink()
    found = verify_wal(tmp_path)
    assert found.exit_code == 65
    assert kept.name in found.output


def test_a_log_in_use_is_refused(tmp_path: Path) -> None:
    disk, log = open_log(tmp_path)
    try:
        found = verify_wal(tmp_path)
    finally:
        log.close()
        disk.close()
    assert found.exit_code == 1
    assert "in use by process" in found.output


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    assert verify_wal(tmp_path).exit_code == 1
    assert verify_wal(tmp_path / "nothing").exit_code == 1
    assert verify_snapshot(tmp_path / "nothing").exit_code == 1


def test_a_snapshot_that_is_whole_passes(tmp_path: Path) -> None:
    path = keep_snapshot(tmp_path)
    found = json.loads(verify_snapshot(path, "--json").stdout)
    assert (found["group"], found["index"], found["number"]) == (0, 39, 500)
    assert found["sections"] == {"session": 6, "lock": 5}
    assert found["members"] == ["node1", "(node2)"]
    assert found["named"]
    elsewhere = tmp_path / "copy"
    elsewhere.write_bytes(path.read_bytes())
    text = verify_snapshot(elsewhere)
    assert text.exit_code == 0
    assert "the snapshot is whole" in text.stdout and "no node would find it" in text.stdout


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "junk", "other name"])
def test_a_snapshot_that_is_damaged_is_found(tmp_path: Path, damage: str) -> None:
    path = keep_snapshot(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-20:]
    elif damage == "changed":
        content[-30] ^= 1
    elif damage == "empty":
        content.clear()
    elif damage == "junk":
        content[:] = b"\xc1junk"
    else:
        path = path.rename(path.with_name(path.name.replace("0-39-2", "0-40-2")))
    path.write_bytes(content)
    found = verify_snapshot(path)
    assert found.exit_code == 65, found.output
    assert "damaged" in found.output
