"""How far a leader knows one peer's log to reach, and what is on its way there.

The law: `match` only rises, and only by an answer of the leader's own term. In probe one append is
under way, in replicate as many as the window takes; what is lost leads back to probe.
"""

from __future__ import annotations

from collections import deque

from ..records import NodeId, Snapshot

NEVER = -1


class Window:
    """Bytes of entries under way to one node, over all groups."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Sending:
    """A snapshot on its way to a peer: `received` bytes are there as it says, `sent` left,
    `reading` is the offset being read from our disk. At first, and when a heartbeat overtakes the
    answer, the peer is `asked` how far it is; nothing leaves before it has `answered`."""

    __slots__ = ("answered", "asked", "reading", "received", "sent", "snapshot")

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.received = self.sent = 0
        self.reading = NEVER
        self.asked = self.answered = False

    def ask(self) -> None:
        """What left may be lost: ask again."""
        self.sent = self.received
        self.asked = self.answered = False

    def is_there(self, offset: int) -> None:
        """The peer says how far it is; less than before if it has lost what it had."""
        self.asked = self.answered = True
        if offset > self.received:
            self.received, self.sent = offset, max(self.sent, offset)
        elif offset < self.received:
            self.received = self.sent = offset


class Progress:
    """One member of one group as its leader sees it.

    `next` is the next index to send; `round` the last round it answered (`reads.py`),
    `heard_beat` the heartbeat of ours at which we last heard of it; `append_round` the round in
    force when an append was last sent; answers count from rounds after `since_round`. `question`
    asks to send an append without entries.
    """

    __slots__ = (
        "append_round",
        "close_round",
        "fetching",
        "heard_beat",
        "incarnation",
        "inflight",
        "known",
        "match",
        "next",
        "node",
        "paused",
        "probing",
        "question",
        "round",
        "sending",
        "since_round",
        "voter",
        "window",
    )

    def __init__(
        self,
        node: NodeId,
        incarnation: int,
        voter: bool,
        next_index: int,
        beat: int,
        window: Window,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self.voter = voter
        self.match = 0
        self.next = next_index
        self.probing = True
        self.paused = False
        self.question = False
        self.inflight: deque[tuple[int, int]] = deque()
        self.round = NEVER
        self.append_round = NEVER
        self.since_round = NEVER
        self.close_round = NEVER
        self.heard_beat = beat
        self.window = window
        # For what is older than memory: the index being fetched from our disk, index and term of
        # the last entry fetched, the snapshot being sent.
        self.fetching = NEVER
        self.known: tuple[int, int] = (0, 0)
        self.sending: Sending | None = None

    def sent(self, last_index: int, count: int, round_number: int) -> None:
        """An append with entries of `count` bytes up to `last_index` left."""
        self.append_round = round_number
        if self.probing:
            self.paused = True
        elif count:
            self.next = last_index + 1
            self.inflight.append((last_index, count))
            self.window.bytes += count

    def appended(self, index: int) -> bool:
        """The peer has everything up to `index`; True if that is news."""
        risen = index > self.match
        if risen:
            self.match = index
            self.sending = None
        if self.probing:
            self.probing = self.paused = False
            self.next = self.match + 1
        elif self.next <= self.match:
            self.next = self.match + 1
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.window.bytes -= inflight.popleft()[1]
        return risen

    def probe(self, next_index: int) -> None:
        """Go back to one append at a time, from `next_index` (never below what matched)."""
        self.next = max(self.match + 1, next_index)
        self.probing = True
        self.paused = self.question = False
        self.forget()

    def forget(self) -> None:
        """What is under way no longer counts against the window."""
        self.window.bytes -= sum(count for _, count in self.inflight)
        self.inflight.clear()
