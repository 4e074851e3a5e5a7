"""A disk of byte arrays for the tests of the log: it loses sectors, and it fails when told to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from coterie.nodes.disk import Disk

SECTOR = 512


class MemoryDisk:
    """Keeps what was synced apart from what was only written."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.synced: dict[str, bytes] = {}

    def create(self, name: str, size: int) -> None:
        assert name not in self.files
        self.files[name] = bytearray(size)
        self.synced[name] = bytes(size)

    def write(self, name: str, offset: int, data: bytes) -> None:
        assert offset >= 0 and offset + len(data) <= len(self.files[name])
        self.files[name][offset : offset + len(data)] = data

    def append(self, name: str, data: bytes) -> None:
        self.files[name] += data

    def sync(self, name: str) -> None:
        self.synced[name] = bytes(self.files[name])

    def rename(self, name: str, to: str) -> None:
        self.files[to], self.synced[to] = self.files.pop(name), self.synced.pop(name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return bytes(self.files[name][offset : offset + size])

    def read(self, name: str) -> bytes:
        return bytes(self.files[name])

    def names(self) -> list[str]:
        return sorted(self.files)

    def remove(self, name: str) -> None:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        del self.files[name], self.synced[name]

    def unsynced(self) -> list[tuple[str, int]]:
        """The sectors (file, offset) that differ from what was synced."""
        return [
            (name, at)
            for name, data in self.files.items()
            for at in range(0, len(data), SECTOR)
            if data[at : at + SECTOR] != self.synced[name][at : at + SECTOR]
        ]

    def crash(self, lost: Callable[[str, int], bool]) -> MemoryDisk:
        """The disk after a crash that lost some of the unsynced sectors."""
        after = MemoryDisk()
        after.files = {name: bytearray(data) for name, data in self.files.items()}
        for name, at in self.unsynced():
            data = self.files[name][at : at + SECTOR]
            if lost(name, at):
                before = self.synced[name][at : at + SECTOR].ljust(len(data), b"\0")
                after.files[name][at : at + SECTOR] = before
        after.synced = {name: bytes(data) for name, data in after.files.items()}
        return after


class FailingDisk:
    """Passes everything on to another disk; its n-th operation fails, before or after its effect,
    and, if that is `lasting`, so does everything that comes later."""

    def __init__(
        self,
        disk: Disk,
        at: int,
        *,
        code: int = errno.EIO,
        late: bool = False,
        lasting: bool = True,
    ) -> None:
        self.disk = disk
        self.at = at
        self.code = code
        self.late = late
        self.lasting = lasting
        self.count = 0

    def _do(self, operation: Callable[[], object]) -> object:
        self.count += 1
        if self.count < self.at or (self.count > self.at and not self.lasting):
            return operation()
        if self.count == self.at and self.late:
            operation()
        raise OSError(self.code, os.strerror(self.code))

    def create(self, name: str, size: int) -> None:
        self._do(lambda: self.disk.create(name, size))

    def write(self, name: str, offset: int, data: bytes) -> None:
        self._do(lambda: self.disk.write(name, offset, data))

    def append(self, name: str, data: bytes) -> None:
        self._do(lambda: self.disk.append(name, data))

    def sync(self, name: str) -> None:
        self._do(lambda: self.disk.sync(name))

    def rename(self, name: str, to: str) -> None:
        self._do(lambda: self.disk.rename(name, to))

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        data = self._do(lambda: self.disk.read_at(name, offset, size))
        assert isinstance(data, bytes)
        return data

    def read(self, name: str) -> bytes:
        data = self._do(lambda: self.disk.read(name))
        assert isinstance(data, bytes)
        return data

    def names(self) -> list[str]:
        names = self._do(self.disk.names)
        assert isinstance(names, list)
        return names

    def remove(self, name: str) -> None:
        self._do(lambda: self.disk.remove(name))
