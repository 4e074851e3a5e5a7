"""Frames out: numbering and batching.

The law: a sequence is drawn once, when a call first leaves, and stands for that call for ever;
one counter serves all sessions of a client, so no answer can be taken for another's. What was
submitted in one turn leaves in one frame for each plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..bus.codec import Codec
from ..protocols.plugin import CONTROL, Query
from ..protocols.session.messages import Locate, Pulse
from .core_nodes import Nodes
from .core_records import DONE, SENT, Beat, Call, Session

BATCH_OPERATIONS = 4_096
PULSE_PART = 500
"""Waits, and grants, in one pulse: it may ask for 1,000 things."""


class Outbox:
    """Draws sequences and gathers the frames of a turn as (endpoint, frame)."""

    def __init__(self, codec: Codec, client: int, nodes: Nodes) -> None:
        self.codec = codec
        self.client = client
        self.nodes = nodes
        self.next_sequence = 1
        self.frames: list[tuple[str, bytes]] = []

    def take(self) -> list[tuple[str, bytes]]:
        """The frames to send now."""
        frames = self.frames
        if frames:
            self.frames = []
        return frames

    def draw(self) -> int:
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        return sequence

    def first(self, plugin: str, calls: Iterable[Call], session: Session, now: float) -> None:
        """Number calls of a session and send them to the leader; skips those done already."""
        sequence, table = self.next_sequence, session.open
        leaving: list[Call] = []
        for call in calls:
            if call.state == DONE:
                continue
            call.state = SENT
            call.sequence = sequence
            call.session = session
            call.sent_at = now
            call.copies = 1
            table[sequence] = call
            leaving.append(call)
            sequence += 1
        self.next_sequence = sequence
        if leaving:
            self._ask(plugin, leaving, session)

    def again(self, calls: Iterable[Call], now: float) -> None:
        """Send calls once more, with the sequences they have, in the order of these."""
        by_plugin: dict[str, list[Call]] = {}
        free: list[Call] = []
        for call in calls:
            if call.state == SENT:
                call.sent_at = now
                call.copies += 1
                if call.session is None:
                    free.append(call)
                else:
                    by_plugin.setdefault(call.plugin, []).append(call)
        for plugin, numbered in by_plugin.items():
            numbered.sort(key=lambda call: call.sequence)
            session = numbered[0].session
            assert session is not None
            self._ask(plugin, numbered, session)
        self._ask_free(free)

    def first_free(self, calls: Iterable[Call], table: dict[int, Call], now: float) -> None:
        """Number calls that need no session and send them to the leader."""
        leaving: list[Call] = []
        for call in calls:
            if call.state != DONE:
                call.state = SENT
                call.sequence = self.draw()
                call.sent_at = now
                call.copies = 1
                table[call.sequence] = call
                leaving.append(call)
        self._ask_free(leaving)

    def locate(self) -> int:
        """Ask every node who leads; the sequence of the question."""
        sequence = self.draw()
        for frame in self._encode("session", 0, 0, 0, [sequence], [Locate()]):
            for endpoint in self.nodes.endpoints:
                self.frames.append((endpoint, frame))
        return sequence

    def pulse(self, session: Session, renews: bool, now: float) -> dict[int, Beat]:
        """Ask the leader for news of all waits and watched grants; the beats under way by
        sequence."""
        waits = list(session.waits.items())
        grants = list(session.watched)
        beats: dict[int, Beat] = {}
        for start in range(0, max(1, len(waits), len(grants)), PULSE_PART):
            part = waits[start : start + PULSE_PART]
            watched = grants[start : start + PULSE_PART]
            asked = [(call.plugin, wait) for wait, call in part]
            asked += [(grant.plugin, grant.number) for grant in watched]
            renews_too = renews and start == 0
            sequence = self.draw()
            beats[sequence] = Beat(session, now, renews_too, [call for _, call in part], watched)
            principals = _principals([call for _, call in part])
            if principals:
                principals += (0,) * len(watched)
            question = Pulse(renews_too, tuple(asked), principals)
            self._send("session", session.number, self._done_below(session), [sequence], [question])
        return beats

    def _done_below(self, session: Session) -> int:
        return next(iter(session.open), self.next_sequence)

    def _ask(self, plugin: str, calls: Sequence[Call], session: Session) -> None:
        done_below = self._done_below(session)
        for start in range(0, len(calls), BATCH_OPERATIONS):
            batch = calls[start : start + BATCH_OPERATIONS]
            self._send(
                plugin,
                session.number,
                done_below,
                [call.sequence for call in batch],
                [call.operation for call in batch],
                principals=_principals(batch),
            )

    def _ask_free(self, calls: Sequence[Call]) -> None:
        """Queries of one plugin together; writes, each with a time of its own, alone."""
        queries: dict[str, list[Call]] = {}
        for call in calls:
            if isinstance(call.operation, Query):
                queries.setdefault(call.plugin, []).append(call)
            else:
                self._send(call.plugin, 0, 0, [call.sequence], [call.operation], call.not_after_us)
        for plugin, asked in queries.items():
            for start in range(0, len(asked), BATCH_OPERATIONS):
                batch = asked[start : start + BATCH_OPERATIONS]
                sequences = [call.sequence for call in batch]
                self._send(plugin, 0, 0, sequences, [call.operation for call in batch])

    def _send(
        self,
        plugin: str,
        session: int,
        done_below: int,
        sequences: Sequence[int],
        operations: Sequence[object],
        not_after_us: int = 0,
        principals: Sequence[int] = (),
    ) -> None:
        leader = self.nodes.leader
        if leader is not None:
            for frame in self._encode(
                plugin, session, done_below, not_after_us, sequences, operations, principals
            ):
                self.frames.append((leader, frame))

    def _encode(
        self,
        plugin: str,
        session: int,
        done_below: int,
        not_after_us: int,
        sequences: Sequence[int],
        operations: Sequence[object],
        principals: Sequence[int] = (),
    ) -> list[bytes]:
        return self.codec.encode_ask(
            plugin,
            self.nodes.cluster,
            self.client,
            session,
            CONTROL,
            done_below,
            not_after_us,
            sequences,
            operations,
            principals,
        )


def _principals(calls: Sequence[Call]) -> tuple[int, ...]:
    """For whom each call is done; empty if each is the client's own."""
    principals = tuple([call.principal for call in calls])
    return principals if any(principals) else ()
