"""Simulated clients without a core: the operator who adds and removes nodes, and who counts in the
partitions.

The law: one request at a time, under one sequence, sent to one node after another until its answer
says what became of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...bus.frame import Kind
from ...protocols.errors import Code
from ...protocols.placement.messages import AddMember, HandOver, RemoveMember
from ...protocols.plugin import CONTROL, Failure, Message, Result
from .counter import AddHere, GetHere, ValueHere
from .judge import Judge
from .shadow import Violation

if TYPE_CHECKING:
    from ..simulator import World

RETRY_S = 0.3
NOT_AFTER_US = 300_000_000
"""A world's log time never gets there, and it is near enough to be let through."""

ADD_US = 2_000_000
"""Within this log time a node is added, or it is asked anew."""

AGAIN = (Code.NOT_LEADER, Code.LEADER_LOST, Code.BUSY, Code.UNKNOWN_GROUP)


class Asker:
    """Sends requests to the world's nodes, by name, and takes in the answers."""

    def __init__(self, world: World, name: str, source: random.Random) -> None:
        self.world = world
        self.name = name
        self.random = source
        self.client = source.getrandbits(62) + 1
        self._sequence = 0
        self._asked: tuple[str, int, Message, Callable[[Result], None]] | None = None
        self._hint = ""
        self._not_after_us = 0

    @property
    def busy(self) -> bool:
        return self._asked is not None

    def ask(
        self,
        plugin: str,
        group: int,
        operation: Message,
        done: Callable[[Result], None],
        not_after_us: int = 0,
    ) -> None:
        """`done` is called once, with an answer after which asking again changes nothing."""
        assert self._asked is None
        self._sequence += 1
        self._not_after_us = not_after_us
        self._asked = (plugin, group, operation, done)
        self._send(self._sequence)

    def _send(self, sequence: int) -> None:
        if self._asked is None or sequence != self._sequence:
            return
        plugin, group, operation, _ = self._asked
        names = list(self.world.nodes)
        to, self._hint = self._hint if self._hint in names else self.random.choice(names), ""
        for frame in self.world.codec.encode_ask(
            plugin, 0, self.client, 0, group, sequence, self._not_after_us, [sequence],
            [operation],
        ):  # fmt: skip
            self.world.network.send(self.world.now, self.name, to, frame)
        self.world.at(self.world.now + RETRY_S, self._send, sequence)

    def receive(self, frame: bytes) -> None:
        _, _, answer = self.world.codec.decode(frame, 0, (Kind.ANSWER,), first_contact=True)
        asked: Any = answer
        if self._asked is None or asked.sequences != [self._sequence]:
            return
        result = asked.results[0]
        if isinstance(result, Failure) and result.code in AGAIN:
            self._hint = result.detail[0] if result.detail else ""
            return  # it is sent again in a moment
        done, self._asked = self._asked[3], None
        done(result)


class Operator(Asker):
    """Adds and removes nodes, hands leaderships over; one after the other."""

    def add(self, node: str) -> None:
        def done(result: Result) -> None:
            if isinstance(result, Failure):
                if result.code is not Code.STALE_REQUEST:
                    raise Violation(f"{node} may not join: {result.text}")
                self.add(node)

        times = [n.engine.log.log_time_us(CONTROL) for n in self.world.nodes.values() if n.engine]
        not_after_us = max(times, default=0) + ADD_US
        self.ask("placement", CONTROL, AddMember(node, node, node, node), done, not_after_us)

    def remove(self, node: str, added: int, refused: Callable[[], None]) -> None:
        """The last node that groups are placed on cannot be removed: then it is `refused`."""

        def done(result: Result) -> None:
            if isinstance(result, Failure):
                refused()

        self.ask("placement", CONTROL, RemoveMember(node, added), done)

    def hand_over(self, group: int, node: str) -> None:
        """It may be refused: nothing depends on it."""
        self.ask("placement", group, HandOver(node), lambda result: None)


class Tallier(Asker):
    """Counts in the partitions, and holds what it is told against the histories of all."""

    def __init__(
        self, world: World, name: str, source: random.Random, judges: dict[int, Judge]
    ) -> None:
        super().__init__(world, name, source)
        self.judges = judges
        self.finishing = False
        self.completed = 0
        self._pace_s = source.choice((0.02, 0.1, 0.3))

    def work(self) -> None:
        """The next operation, if there is to be one."""
        if self.finishing:
            return
        group = self.random.choice(list(self.judges))
        judge = self.judges[group]
        floor = judge.high
        if self.random.random() < 0.4:
            self.ask(
                "tally", group, GetHere(), lambda result: self._got(judge, result, floor),
                NOT_AFTER_US,
            )  # fmt: skip
        else:
            amount = self.random.randint(1, 3)
            judge.indeterminate += amount
            self.ask(
                "tally", group, AddHere(amount),
                lambda result: self._added(judge, amount, result, floor), NOT_AFTER_US,
            )  # fmt: skip

    def _got(self, judge: Judge, result: Result, floor: int) -> None:
        if type(result) is not ValueHere:
            raise Violation(f"{self.name} was answered {result}")
        judge.read(self.name, result.total, floor)
        self._rest()

    def _added(self, judge: Judge, amount: int, result: Result, floor: int) -> None:
        if type(result) is not ValueHere:
            raise Violation(f"{self.name} was answered {result}")
        judge.added(self.name, amount, result.total, floor)
        judge.indeterminate -= amount
        self._rest()

    def _rest(self) -> None:
        self.completed += 1
        rest = self.random.expovariate(1 / self._pace_s)
        self.world.at(self.world.now + rest, self.work)
