"""The log of one group in memory.

The law: indexes are contiguous and terms never fall (paper §5.3, Log Matching); what is cut off is
a conflicting tail, and at the front what is applied and on disk. `base` is the index before the
first entry kept.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter

from ..records import Entry

ENTRY_BYTES = 32
"""About what an entry costs beside its payload, in a frame and on disk."""

_term = attrgetter("term")


def size(entry: Entry) -> int:
    """Bytes an entry counts for in windows and bounds."""
    return ENTRY_BYTES + len(entry.payload)


class Log:
    """`last_index` and `last_term` are those of the last entry; `bytes` is the size of all kept."""

    def __init__(self, entries: Sequence[Entry] = (), base: int = 0, base_term: int = 0) -> None:
        self.reset(base, base_term)
        self.extend(entries)

    def reset(self, base: int, base_term: int) -> None:
        """Forget everything: the next entry follows `base`."""
        self.entries: list[Entry] = []
        self.bytes = 0
        self.base = self.last_index = base
        self.base_term = self.last_term = base_term

    def trim(self, index: int) -> None:
        """Forget the entries up to `index`, which is here."""
        count = index - self.base
        if count > 0:
            self.base_term = self.entries[count - 1].term
            self.base = index
            self.bytes -= sum(map(size, self.entries[:count]))
            del self.entries[:count]

    def surplus(self, tail_bytes: int, limit: int) -> int:
        """Up to which index to trim so that about seven eighths of `tail_bytes` are kept, but not
        beyond `limit`. A step, not an entry at a time: every trimming moves what is kept."""
        left, index = self.bytes - tail_bytes + tail_bytes // 8, self.base
        while left > 0 and index < limit:
            left -= size(self.entries[index - self.base])
            index += 1
        return index

    def extend(self, entries: Sequence[Entry]) -> None:
        """Put entries at the end; they must follow it."""
        if entries:
            assert entries[0].index == self.last_index + 1, (entries[0].index, self.last_index)
            self.entries.extend(entries)
            self.last_index, self.last_term = entries[-1].index, entries[-1].term
            self.bytes += sum(map(size, entries))

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.last_index, self.last_term = entry.index, entry.term
        self.bytes += size(entry)

    def truncate(self, index: int) -> None:
        """Drop the entry at `index` and all above it."""
        position = index - self.base - 1
        self.bytes -= sum(map(size, self.entries[position:]))
        del self.entries[position:]
        self.last_index = index - 1
        self.last_term = self.entries[-1].term if self.entries else self.base_term

    def get(self, index: int) -> Entry:
        """The entry at `index`, which must be there."""
        return self.entries[index - self.base - 1]

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None where there is none."""
        if index == self.last_index:
            return self.last_term
        if index == self.base:
            return self.base_term
        if self.base < index < self.last_index:
            return self.entries[index - self.base - 1].term
        return None

    def up_to_date(self, last_index: int, last_term: int) -> bool:
        """Is a log that ends so at least as up to date as this one? (paper §5.4.1)"""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def first_of_term(self, term: int) -> int:
        """The first index kept whose term is `term` or higher."""
        return self.base + 1 + bisect_left(self.entries, term, key=_term)

    def last_of_term(self, term: int) -> int:
        """The last index kept whose term is `term` or lower; `base` if there is none."""
        return self.base + bisect_right(self.entries, term, key=_term)

    def known(self, entries: Sequence[Entry]) -> int:
        """How many of `entries`, from the first, are here already, with the same terms."""
        for count, entry in enumerate(entries):
            if self.term_at(entry.index) != entry.term:
                return count
        return len(entries)

    def batch(self, index: int, bytes_max: int, entries_max: int) -> tuple[Entry, ...]:
        """Entries from `index` on: at least one, at most `entries_max`, and no more than about
        `bytes_max`."""
        if index == self.last_index:
            return (self.entries[-1],)
        position = stop = index - self.base - 1
        total, end = 0, min(len(self.entries), position + entries_max)
        while stop < end:
            total += size(self.entries[stop])
            if total > bytes_max and stop > position:
                break
            stop += 1
        return tuple(self.entries[position:stop])
