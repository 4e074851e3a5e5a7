"""The real disk: one holder, full-size files of zeros, errors that say what to do."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.nodes.disk import DirectoryInUse, DiskFailed, DiskFull, FileDisk, disk_error
from coterie.nodes.log import Log
from coterie.protocols.errors import Code
from coterie.protocols.records import Entry, EntryRecord


def test_files_are_made_written_read_and_removed(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path / "a" / "log", reserve_bytes=0)
    try:
        disk.create("one", 3 * 1024 * 1024 + 512)
        assert disk.read("one") == bytes(3 * 1024 * 1024 + 512)
        disk.write("one", 1000, b"hello")
        disk.sync("one")
        assert disk.read("one")[998:1007] == b"\0\0hello\0\0"
        assert disk.names() == ["one"]
        with pytest.raises(FileExistsError):
            disk.create("one", 512)
        disk.remove("one")
        assert disk.names() == []
    finally:
        disk.close()


def test_files_grow_are_read_in_part_and_renamed(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path, reserve_bytes=0)
    disk.create("new", 0)
    disk.append("new", b"hello ")
    disk.append("new", b"world")
    disk.sync("new")
    assert disk.read_at("new", 4, 4) == b"o wo"
    assert disk.read_at("new", 9, 100) == b"ld"
    assert disk.read_at("new", 11, 100) == b""
    disk.create("old", 3)
    disk.sync("old")
    disk.rename("new", "old")
    assert disk.names() == ["old"]
    disk.append("old", b"!")
    assert disk.read("old") == b"hello world!"
    with pytest.raises(FileNotFoundError):
        disk.read_at("new", 0, 1)
    disk.close()


def test_a_directory_that_another_stands_for_is_not_held(tmp_path: Path) -> None:
    disks = [FileDisk(tmp_path, reserve_bytes=0, hold=False) for _ in range(2)]
    disks[0].create("one", 1)
    assert disks[1].names() == ["one"]
    for disk in disks:
        disk.close()


def test_the_directory_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir(mode=0o755)
    disk = FileDisk(directory, reserve_bytes=0)
    disk.create("one", 512)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "one").stat().st_mode) == 0o600
    disk.close()
    disk.close()


def test_one_process_holds_it(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from coterie.nodes.disk import FileDisk\n"
        "disk = FileDisk(sys.argv[1], reserve_bytes=0)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,  # the child ends when this process does
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(DirectoryInUse, match=f"process {child.pid}") as caught:
            FileDisk(tmp_path)
        assert caught.value.pid == child.pid
        child.stdin.close()
        child.wait()
    FileDisk(tmp_path, reserve_bytes=0).close()


def test_the_reserve_is_set_aside_and_given_back(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path, reserve_bytes=1 << 20)
    assert disk.names() == []
    assert sum(file.stat().st_blocks for file in tmp_path.iterdir()) * 512 >= 1 << 20
    assert disk.release_reserve()
    assert not disk.release_reserve()
    disk.close()


def test_a_failed_create_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FileDisk(tmp_path, reserve_bytes=0)
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="space"):
            disk.create("one", 2 << 20)
    assert disk.names() == []
    disk.create("one", 512)
    disk.close()


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FileDisk(tmp_path, reserve_bytes=0)
    disk.create("one", 512)
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:7], at))
        disk.write("one", 100, b"abcdefghijklmnopqrstuvwxyz")
    assert disk.read("one")[100:126] == b"abcdefghijklmnopqrstuvwxyz"
    disk.close()


def test_errors_are_typed() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        full = disk_error("writing the log", OSError(code, os.strerror(code)))
        assert isinstance(full, DiskFull)
        assert full.code is Code.DISK_FULL
        assert "Free some space" in str(full)
    failed = disk_error("writing the log", OSError(errno.EIO, os.strerror(errno.EIO)))
    assert isinstance(failed, DiskFailed)
    assert failed.code is Code.DISK_FAILED
    assert str(failed).startswith("writing the log: Input/output error. The node stops")


@pytest.mark.parametrize("mode", ["fsync", "relaxed"])
def test_a_log_on_a_real_disk(tmp_path: Path, mode: str) -> None:
    for start in (1, 51):
        disk = FileDisk(tmp_path, reserve_bytes=0)
        log = Log(disk, node="n", incarnation=1, segment_bytes=4096, mode=mode)  # type: ignore[arg-type]
        found = log.open()
        assert len(found[0].entries if found else []) == start - 1
        for index in range(start, start + 50):
            log.write(log.encode([EntryRecord(0, Entry(index, 1, 0, 1, bytes(100)))]))
        log.close()
        disk.close()
