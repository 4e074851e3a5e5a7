"""A directory of files, and what can go wrong with it.

The law: `sync` returning is the only promise that what was written survives a crash; what was
created, renamed or removed survives once the call returned. A write or sync that failed is never
repeated: the system may have dropped the data and report success the next time (Rebello et al.,
"Can Applications Recover from fsync Failures?", USENIX ATC 2020).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Protocol

from ..protocols.errors import Code

MIB = 1 << 20
_BLOCK = bytes(MIB)
_LOCK, _RESERVE = "lock", "reserve"


class DiskError(Exception):
    """The disk did not do what was asked. `operation` is what was being done."""

    code = Code.DISK_FAILED

    def __init__(self, operation: str, cause: OSError) -> None:
        super().__init__(f"{operation}: {cause.strerror or cause}. {self.advice}")
        self.operation = operation

    advice = ""


class DiskFailed(DiskError):
    """A read, write or sync failed. The node must end; it must not try again."""

    advice = (
        "The node stops, since nobody knows what the disk kept: check the disk, then start the "
        "node again; if its log does not open, replace its data directory by an empty one"
    )


class DiskFull(DiskError):
    """There is no space. Writes must be refused until there is some.

    `room` is how many bytes the log can still take; 0: nothing any more.
    """

    code = Code.DISK_FULL
    advice = "Free some space on the disk of the data directory, then restart the node"

    def __init__(self, operation: str, cause: OSError, room: int = 0) -> None:
        super().__init__(operation, cause)
        self.room = room


class DirectoryInUse(Exception):
    """Another process holds the directory. `pid` is its id, 0 if it is not known."""

    def __init__(self, directory: Path, pid: int) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{directory} is in use by {holder}: stop that node first, or give this one a "
            "directory of its own"
        )
        self.directory = directory
        self.pid = pid


def disk_error(operation: str, cause: OSError) -> DiskError:
    """The typed error for what the system said."""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(operation, cause)
    return DiskFailed(operation, cause)


class Disk(Protocol):
    """What the log and the snapshots need of a disk. Every call blocks; errors are OSError.

    One thread writes and syncs a file; `create`, `remove` and `read_at` may run in another one at
    the same time, on other files.
    """

    def create(self, name: str, size: int) -> None:
        """Make a file of `size` zeros, on disk when this returns. It must not exist."""
        ...

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Overwrite a part of a file; durable after the next `sync` of it."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Write behind the end of a file; durable after the next `sync` of it."""
        ...

    def sync(self, name: str) -> None: ...

    def rename(self, name: str, to: str) -> None:
        """Give a file another name, for good when this returns. A file `to` is replaced."""
        ...

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """A part of a file, of at most 1 GiB; shorter if the file ends before."""
        ...

    def read(self, name: str) -> bytes: ...

    def names(self) -> list[str]: ...

    def remove(self, name: str) -> None:
        """Remove a file, for good when this returns."""
        ...


class FileDisk:
    """The real disk: one directory (mode 0700), held by one process at a time, unless `hold` is
    False: then another directory, held as long as this one, stands for it.

    `reserve_bytes` are set aside at the start, to be given back by `release_reserve` when the
    disk is full; 0 sets nothing aside. Raises `DirectoryInUse`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        reserve_bytes: int = 16 * MIB,
        hold: bool = True,
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        self._files: dict[str, int] = {}
        self._lock = self._hold() if hold else -1
        try:
            _sync_directory(self.directory.parent)
            self._set_aside(reserve_bytes)
        except BaseException:
            self.close()
            raise

    def create(self, name: str, size: int) -> None:
        # Zeros are written, not only allocated: otherwise the first write to each block would
        # have to note its new state, and fdatasync would cost a second write.
        path = self.directory / name
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for start in range(0, size, MIB):
                _write(file, start, _BLOCK[: size - start])
            _full_sync(file)
            _sync_directory(self.directory)
        except BaseException:
            os.close(file)
            path.unlink()
            raise
        self._files[name] = file

    def write(self, name: str, offset: int, data: bytes) -> None:
        _write(self._file(name), offset, data)

    def append(self, name: str, data: bytes) -> None:
        file = self._file(name)
        _write(file, os.fstat(file).st_size, data)

    def sync(self, name: str) -> None:
        _data_sync(self._file(name))

    def rename(self, name: str, to: str) -> None:
        for old in (name, to):
            file = self._files.pop(old, None)
            if file is not None:
                os.close(file)
        os.replace(self.directory / name, self.directory / to)
        _sync_directory(self.directory)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        # A descriptor of its own: another thread may remove the file meanwhile.
        file = os.open(self.directory / name, os.O_RDONLY)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def names(self) -> list[str]:
        return sorted(set(os.listdir(self.directory)) - {_LOCK, _RESERVE})

    def remove(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None:
            os.close(file)
        (self.directory / name).unlink()
        _sync_directory(self.directory)

    def release_reserve(self) -> bool:
        """Give back the space set aside; False if there is none."""
        try:
            self.remove(_RESERVE)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Close the files and let go of the directory. Idempotent."""
        while self._files:
            os.close(self._files.popitem()[1])
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _hold(self) -> int:
        lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).strip()
            os.close(lock)
            raise DirectoryInUse(self.directory, int(pid) if pid.isdigit() else 0) from None
        except BaseException:
            os.close(lock)
            raise
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        return lock

    def _set_aside(self, size: int) -> None:
        path = self.directory / _RESERVE
        if not size or path.exists():
            return
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform == "darwin":
                for start in range(0, size, MIB):
                    _write(file, start, _BLOCK[: size - start])
            else:
                os.posix_fallocate(file, 0, size)
        except OSError as error:
            path.unlink()  # nothing to set aside: the log finds out by itself if it needs space
            if not isinstance(disk_error("reserve", error), DiskFull):
                raise
        finally:
            os.close(file)

    def _file(self, name: str) -> int:
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = os.open(self.directory / name, os.O_RDWR)
        return file


def _write(file: int, offset: int, data: bytes) -> None:
    written = os.pwrite(file, data, offset)
    while written < len(data):
        written += os.pwrite(file, data[written:], offset + written)


def _data_sync(file: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(file)


def _full_sync(file: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
