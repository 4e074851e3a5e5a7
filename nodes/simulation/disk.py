"""A simulated disk: what was not synced may be lost, sector by sector.

The law: after a crash the disk holds everything whose `sync` (or `create`, `rename`, `remove`) had
returned by then, any subset of the sectors written since, and nothing of what would have come
later. After a kill, which is the end of the process only, it still holds what was written; a crash
that follows may yet take what was not synced.

The log's calls block, in a node. Here they return at once and are kept in a journal until the
world says that they are done (`settle`); a crash before that draws how far they had come.
"""

from __future__ import annotations

import random
from typing import Any, TypeAlias

SECTOR = 512

Step: TypeAlias = tuple[Any, ...]


class SimulatedDisk:
    """The files of one data directory (a `Disk`), and its node.json, which is replaced whole."""

    def __init__(self, source: random.Random, incarnation: int) -> None:
        self.incarnation = incarnation
        self.cluster = 0
        self._random = source
        self._files: dict[str, bytearray] = {}
        self._journal: list[Step] = []
        self._returned = 0  # so many of the journal's calls have returned

    def create(self, name: str, size: int) -> None:
        if name in self._files:
            raise FileExistsError(name)
        self._files[name] = bytearray(size)
        self._journal.append(("create", name, size))

    def write(self, name: str, offset: int, data: bytes) -> None:
        file = self._files[name]
        end = offset + len(data)
        assert end <= len(file), (name, offset, len(data), len(file))
        self._journal.append(("write", name, offset, bytes(file[offset:end]), data))
        file[offset:end] = data

    def append(self, name: str, data: bytes) -> None:
        file = self._files[name]
        self._journal.append(("append", name, len(file), data))
        file += data

    def sync(self, name: str) -> None:
        self._journal.append(("sync", name))

    def rename(self, name: str, to: str) -> None:
        self._journal.append(("rename", name, to, self._files.get(to)))
        self._files[to] = self._files.pop(name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        if name not in self._files:
            raise FileNotFoundError(name)
        return bytes(self._files[name][offset : offset + size])

    def read(self, name: str) -> bytes:
        return bytes(self._files[name])

    def names(self) -> list[str]:
        return sorted(self._files)

    def remove(self, name: str) -> None:
        self._journal.append(("remove", name, self._files.pop(name)))

    def settle(self) -> None:
        """All calls so far have returned."""
        journal = self._journal
        if len(journal) == 2 and journal[1] == ("sync", journal[0][1]):
            journal.clear()  # the common case: one write, one sync of it
            self._returned = 0
            return
        kept: list[Step] = []
        for place, step in enumerate(journal):
            if step[0] in ("write", "append") and not _synced(journal[place:], step[1]):
                kept.append(step)
            elif step[0] == "rename":
                old, new = step[1], step[2]
                kept = [(k[0], new if k[1] == old else k[1], *k[2:]) for k in kept if k[1] != new]
            elif step[0] == "remove":
                kept = [k for k in kept if k[1] != step[1]]
        self._journal, self._returned = kept, len(kept)

    def kill(self) -> None:
        """The process ends, somewhere within the calls that have not returned."""
        journal = self._journal
        for step in reversed(journal):
            self._undo(step)
        reached = self._random.randint(self._returned, len(journal))
        self._journal = journal[:reached]
        for step in self._journal:
            self._redo(step, whole=True)
        self.settle()

    def crash(self) -> bool:
        """Power is lost now, somewhere within the calls that have not returned. True if there
        were any."""
        journal, self._journal, self._returned = self._journal, [], 0
        if not journal:
            return False
        for step in reversed(journal):
            self._undo(step)
        reached = self._random.randrange(len(journal) + 1)
        for place, step in enumerate(journal[:reached]):
            self._redo(step, whole=_synced(journal[place:reached], step[1]))
        if reached < len(journal) and journal[reached][0] == "create":
            self._create_in_part(journal[reached])
        return True

    def _undo(self, step: Step) -> None:
        kind, name = step[0], step[1]
        if kind == "write":
            self._files[name][step[2] : step[2] + len(step[3])] = step[3]
        elif kind == "append":
            del self._files[name][step[2] :]
        elif kind == "create":
            del self._files[name]
        elif kind == "remove":
            self._files[name] = step[2]
        elif kind == "rename":
            self._files[name] = self._files.pop(step[2])
            if step[3] is not None:
                self._files[step[2]] = step[3]

    def _redo(self, step: Step, whole: bool) -> None:
        kind, name = step[0], step[1]
        if kind == "create":
            self._files[name] = bytearray(step[2])
        elif kind == "remove":
            del self._files[name]
        elif kind == "rename":
            self._files[step[2]] = self._files.pop(name)
        elif kind == "write":
            self._write_sectors(self._files[name], step[2], step[4], whole)
        elif kind == "append":
            # Of what is lost, the file's end may be, or only its content: then there are zeros.
            offset, data, file = step[2], step[3], self._files[name]
            length = len(data) if whole else self._random.randint(0, len(data))
            if length:
                file.extend(bytes(max(0, offset + length - len(file))))
                self._write_sectors(file, offset, data[:length], whole)

    def _write_sectors(self, file: bytearray, offset: int, data: bytes, whole: bool) -> None:
        at = 0
        while at < len(data):
            to = min(len(data), (offset + at) // SECTOR * SECTOR + SECTOR - offset)
            if whole or self._random.random() < 0.5:
                file[offset + at : offset + to] = data[at:to]
            at = to

    def _create_in_part(self, step: Step) -> None:
        if self._random.random() < 0.5:
            sectors = step[2] // SECTOR
            self._files[step[1]] = bytearray(self._random.randint(0, sectors) * SECTOR)


def _synced(later: list[Step], name: str) -> bool:
    return any(step[0] == "sync" and step[1] == name for step in later)
