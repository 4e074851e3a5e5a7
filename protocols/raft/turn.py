"""What the groups of one node share within a turn: the port, the records to write, the answers.

The law: an answer that counts on a write leaves only after every write of its turn, and all before
it, are durable. So it is enough to know one write number per turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..log_plugin import LogPort
from ..plugin import Message
from ..records import GroupId, Identity, NodeId, Record, WriteNumber
from .progress import Window
from .settings import Settings

if TYPE_CHECKING:
    from ..replica import Replica
    from .catching_up import Fetches
    from .digests import Digests
    from .group import Group
    from .snapshots import Snapshots

Answer = tuple[NodeId, Message]


class Turn:
    """`beat` counts our heartbeats, `leading` the groups we lead; `next_beat` is a time of the
    port's clock; `configured` the nodes named in our settings. `written` and `durable` are write
    numbers. `unsettled`: a group's configuration is another one, or its leader is gone.

    `touched` are the groups to which something happened in this turn, the only ones its end looks
    at; `writing` those whose entries are on their way to the disk. `electable`: may a learner of
    that group become a voter once it has caught up?"""

    port: LogPort
    replicas: dict[GroupId, Replica]
    snapshots: Snapshots
    digests: Digests
    fetches: Fetches

    def __init__(
        self, identity: Identity, settings: Settings, configured: Sequence[NodeId]
    ) -> None:
        self.identity = identity
        self.configured = tuple(configured)
        self.settings = settings
        self.records: list[Record] = []
        self.answers: list[Answer] = []
        self.touched: list[Group] = []
        self.writing: list[Group] = []
        self.electable: Callable[[GroupId, NodeId], bool] = lambda _, node: node in self.configured
        self.held: deque[tuple[WriteNumber, list[Answer]]] = deque()
        self.written: WriteNumber = 0
        self.durable: WriteNumber = 0
        self.windows: dict[NodeId, Window] = {}
        self.leading = 0
        self.unsettled = False
        self.beat = settings.silence_beats + 1
        self.next_beat = 0.0

    def answer(self, to: NodeId, message: Message) -> None:
        """Send `message` once everything written so far, this turn's records too, is durable."""
        self.answers.append((to, message))

    def window(self, node: NodeId) -> Window:
        found = self.windows.get(node)
        if found is None:
            found = self.windows[node] = Window()
        return found

    def began_leading(self) -> None:
        """All groups led share one beat; the first one starts it."""
        if self.leading == 0:
            self.next_beat = self.port.now() + self.settings.heartbeat_s
        self.leading += 1

    def write(self) -> list[Answer]:
        """End of the turn: write its records; the answers that may leave at once."""
        if self.records:
            records, self.records = self.records, []
            self.written = self.port.persist(records)
        answers, self.answers = self.answers, []
        if answers and self.written > self.durable:
            self.held.append((self.written, answers))
            return []
        return answers

    def release(self, write_number: WriteNumber) -> list[Answer]:
        """Writes up to `write_number` are durable: the answers that waited for them."""
        self.durable = max(self.durable, write_number)
        released: list[Answer] = []
        while self.held and self.held[0][0] <= self.durable:
            released += self.held.popleft()[1]
        return released
