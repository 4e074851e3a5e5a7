"""From a snapshot's stream back to a replica, piece by piece.

The law: a replica stands at the snapshot's index only when all of it came; until then nobody sees
it. The work of one piece is bounded by the piece.
"""

from __future__ import annotations

from collections.abc import Iterable

from .replica import Replica
from .snapshot import WINDOWS, DamagedSnapshot, Header, Reader


class Restoring:
    """A fresh replica on its way to the state of a snapshot, piece by piece."""

    def __init__(self, replica: Replica) -> None:
        assert replica.applied == 0, "a replica that has applied something is not fresh"
        self.replica = replica
        self._reader = Reader(replica.group)

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream. Raises `DamagedSnapshot`."""
        replica = self.replica
        try:
            for section, chunk in self._reader.feed(data):
                if section == WINDOWS:
                    replica.codec.decode_windows(chunk, replica.windows)
                else:
                    replica.machines[section].restore(chunk)
        except DamagedSnapshot:
            raise
        except Exception as error:  # the machines may be foreign: whatever they make of it
            raise DamagedSnapshot(f"its contents make no sense here: {error!r}") from error

    def finish(self) -> Header:
        """All pieces came: the replica stands where the snapshot was taken. Raises
        `DamagedSnapshot`."""
        header, replica = self._reader.header, self.replica
        if header is None or not self._reader.complete:
            raise DamagedSnapshot("its end is missing")
        for machine in replica.machines.values():
            machine.restored()
        replica.header, replica.applied = header, header.index
        replica.moment.number, replica.moment.time_us = header.number, header.time_us
        replica.digest_at = header.digest_at
        return header


def restore(replica: Replica, pieces: Iterable[bytes]) -> Header:
    """Bring a fresh replica to the state of a snapshot at once. Raises `DamagedSnapshot`."""
    restoring = Restoring(replica)
    for piece in pieces:
        restoring.feed(piece)
    return restoring.finish()
