"""A data directory that is whole is gone on with; one that is not is set aside or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.nodes import identity as identities
from coterie.nodes.configuration import NodeConfiguration
from coterie.nodes.snapshots import CorruptSnapshot, file_name, new_digest
from coterie.nodes.storage import Storage, open_storage
from coterie.protocols.records import Snapshot, SnapshotRecord

CONTENT = b"some state"


def configuration(directory: Path) -> NodeConfiguration:
    return NodeConfiguration(
        name="node1",
        data_dir=directory,
        client_bind="tcp://127.0.0.1:1",
        peer_bind="tcp://127.0.0.1:2",
        publish_bind="tcp://127.0.0.1:3",
        advertised_endpoint="tcp://127.0.0.1:1",
        peers=(),
        segment_bytes=64 * 1024,
    )


def close(storage: Storage) -> None:
    storage.log.close()
    storage.disk.close()


def keep_a_snapshot(storage: Storage) -> Snapshot:
    digest = new_digest()
    digest.update(CONTENT)
    snapshot = Snapshot(9, 2, len(CONTENT), digest.digest())
    name = storage.snapshots.new_name(0)
    storage.snapshots.begin(name)
    storage.snapshots.append(name, CONTENT, sync=True)
    storage.snapshots.finish(name, 0, snapshot, None)
    storage.log.write(storage.log.encode([SnapshotRecord(0, snapshot)]))
    return snapshot


def test_a_snapshot_is_found_again(tmp_path: Path) -> None:
    storage = open_storage(configuration(tmp_path))
    snapshot = keep_a_snapshot(storage)
    close(storage)
    storage = open_storage(configuration(tmp_path))
    assert storage.recovered[0].snapshot == snapshot
    assert storage.recovered[0].commit == 9
    assert b"".join(storage.snapshots.open(0, snapshot)) == CONTENT
    close(storage)


def test_without_the_snapshot_the_log_names_nothing_starts(tmp_path: Path) -> None:
    storage = open_storage(configuration(tmp_path))
    snapshot = keep_a_snapshot(storage)
    close(storage)
    (tmp_path / "snapshots" / file_name(0, snapshot)).unlink()
    for _ in range(2):
        with pytest.raises(CorruptSnapshot, match="learner"):
            open_storage(configuration(tmp_path))


def test_snapshots_are_set_aside_with_a_log_that_is_gone(tmp_path: Path) -> None:
    storage = open_storage(configuration(tmp_path))
    snapshot = keep_a_snapshot(storage)
    before = storage.identity
    identities.keep(tmp_path, type(before)(5, before.node, before.incarnation))
    close(storage)
    for segment in (tmp_path / "log").glob("*.wal"):
        segment.unlink()
    storage = open_storage(configuration(tmp_path))
    assert storage.identity.incarnation != before.incarnation
    assert storage.recovered == {}
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert (tmp_path / "snapshots.aside" / file_name(0, snapshot)).read_bytes() == CONTENT
    close(storage)
