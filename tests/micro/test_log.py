"""What one batch costs in the log: an entry of 128 lock operations, and its sync on this disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from coterie.nodes.disk import FileDisk
from coterie.nodes.log import Log
from coterie.protocols.commands import CommandCodec
from coterie.protocols.lock.messages import MESSAGES, Acquire
from coterie.protocols.plugin import Command
from coterie.protocols.records import COMMANDS, Entry, EntryRecord

pytestmark = pytest.mark.benchmark(group="log", max_time=0.3, min_rounds=5, disable_gc=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileDisk]:
    disk = FileDisk(tmp_path / "log", reserve_bytes=0)
    yield disk
    disk.close()


def new_log(disk: FileDisk) -> Log:
    return Log(disk, node="node1", incarnation=1)


def records() -> list[EntryRecord]:
    operations = [Acquire(f"bench/{number}") for number in range(128)]
    command = Command("lock", 1, 2, 1, 9_000_000, list(range(1, 129)), operations)
    payload = CommandCodec({"lock": MESSAGES}).encode([command])
    return [EntryRecord(0, Entry(1, 1, 1_000, COMMANDS, payload))]


def test_encode_batch(benchmark: BenchmarkFixture, disk: FileDisk) -> None:
    batch = benchmark(new_log(disk).encode, records())
    assert batch.payload


def test_append_and_sync(benchmark: BenchmarkFixture, disk: FileDisk) -> None:
    log = new_log(disk)
    log.open()
    (record,) = records()
    benchmark(log.write, log.encode([record]))
    log.close()
    assert new_log(disk).open()[0].entries == [record.entry]
