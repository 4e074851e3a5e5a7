"""What goes wrong in a world, and when.

The law: every fault ends by itself or by `heal`; the disk of a node is replaced only while all
others are whole, because the data of a majority lost is lost in any world.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..simulator import World
    from .node import SimulatedNode

KINDS = (
    "crash", "crash_in_turn", "pause", "isolate", "cut", "cut_one_way", "slow_disk", "power_cut",
    "replace_disk", "crash_client", "add_node", "remove_node", "transfer",
    "kill",
)  # fmt: skip
PAUSE_MIN_S, PAUSE_MAX_S = 0.001, 10.0


class Faults:
    """Draws one fault after another until `heal`. `counts`: how many of each kind there were."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = random.Random(f"{world.seed}/faults")
        self.counts: dict[str, int] = {}
        self.mean_s = self.random.choice((0.25, 0.5, 1.0, 2.0))
        self._healed = False
        self._kinds: dict[str, tuple[Callable[[SimulatedNode], None], float]] = {
            "crash": (self.crash, 3.0),
            "crash_in_turn": (self.crash_in_turn, 1.5),
            "pause": (self.pause, 2.0),
            "isolate": (self.isolate, 1.5),
            "cut": (self.cut, 1.5),
            "cut_one_way": (self.cut_one_way, 1.5),
            "slow_disk": (self.slow_disk, 1.0),
            "power_cut": (self.power_cut, 0.3),
            "replace_disk": (self.replace_disk, 0.4),
            "crash_client": (self.crash_client, 0.7),
            "add_node": (self.add_node, 0.4),
            "remove_node": (self.remove_node, 0.4),
            "transfer": (self.transfer, 0.7),
            "kill": (self.kill, 0.7),
        }
        # Not every world has every fault: what is rare beside crashes is not rare alone.
        self._weights = {
            kind: weight if self.random.random() < 0.7 else 0.0
            for kind, (_, weight) in self._kinds.items()
        }
        asked = world.options.faults
        if asked:
            self.mean_s = 0.25
            self._weights = {kind: 1.0 * (kind in asked.split(",")) for kind in self._kinds}
        if not any(self._weights.values()):
            self._weights["crash"] = 1.0

    def start(self) -> None:
        self._next()

    def heal(self) -> None:
        """Faults stop, and all that is broken is whole again."""
        self._healed = True
        self.world.network.heal()
        for node in list(self.world.nodes.values()):
            node.slow_until_s = 0.0
            node.fail_in = ""
            node.resume()
            if not node.up:
                node.start()

    def _next(self) -> None:
        self.world.at(self.world.now + self.random.expovariate(1 / self.mean_s), self._strike)

    def _strike(self) -> None:
        if self._healed:
            return
        self._next()
        kind = self.random.choices(list(self._weights), list(self._weights.values()))[0]
        self._kinds[kind][0](self._victim())

    def _victim(self) -> SimulatedNode:
        """A leader, every other time, if there is one."""
        nodes = list(self.world.nodes.values())
        leaders = [node for node in nodes if node.leads()]
        return self.random.choice(leaders if leaders and self.random.random() < 0.5 else nodes)

    def _count(self, kind: str, text: str = "") -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.world.note("fault", kind, text)

    def _restart(self, node: SimulatedNode, after_s: float) -> None:
        life = node.life

        def start() -> None:
            if node.life == life and not node.up:
                node.start()

        self.world.at(self.world.now + after_s, start)

    def _down_s(self) -> float:
        return self.random.choice((0.02, 0.2, 1.0)) * (0.5 + self.random.random())

    # The faults

    def crash(self, node: SimulatedNode) -> None:
        if node.up:
            self._count("crash", node.name)
            node.crash()
            self._restart(node, self._down_s())

    def kill(self, node: SimulatedNode) -> None:
        """The process ends, the machine goes on. Every other time it follows soon after the node
        is back, when that may count on what was never synced."""
        if node.up:
            self._count("kill", node.name)
            node.crash(power=False)
            down_s = self._down_s()
            self._restart(node, down_s)
            if self.random.random() < 0.5:
                soon_s = down_s + self.random.random() * 0.02
                self.world.at(self.world.now + soon_s, self._lose_power, node)

    def _lose_power(self, node: SimulatedNode) -> None:
        if node.up and not self._healed:
            node.crash()
            self._restart(node, self._down_s())

    def crash_in_turn(self, node: SimulatedNode) -> None:
        """The node loses power between two effects of its next turn, or of the next in which it
        changes its term or vote, or writes at all."""
        if node.up:
            when = self.random.choice(("turn", "write", "vote"))
            self._count("crash_in_turn", f"{node.name}, next {when}")
            node.fail_in = when

    def crashed_in_turn(self, node: SimulatedNode) -> None:
        self._restart(node, self._down_s())

    def power_cut(self, node: SimulatedNode) -> None:
        """All nodes at once."""
        self._count("power_cut")
        for each in self.world.nodes.values():
            if each.up:
                each.crash()
                self._restart(each, self._down_s())

    def pause(self, node: SimulatedNode) -> None:
        if node.up and not node.paused:
            self._count("pause", node.name)
            seconds = PAUSE_MIN_S * (PAUSE_MAX_S / PAUSE_MIN_S) ** self.random.random()
            node.pause(self.world.now + seconds)

    def isolate(self, node: SimulatedNode) -> None:
        self._count("isolate", node.name)
        until = self.world.now + self._cut_s()
        for other in self.world.nodes:
            if other != node.name:
                self.world.network.cut(node.name, other, until)
                self.world.network.cut(other, node.name, until)

    def cut(self, node: SimulatedNode) -> None:
        other = self._other(node)
        self._count("cut", f"{node.name} - {other}")
        until = self.world.now + self._cut_s()
        self.world.network.cut(node.name, other, until)
        self.world.network.cut(other, node.name, until)

    def cut_one_way(self, node: SimulatedNode) -> None:
        sender, to = node.name, self._other(node)
        if self.random.random() < 0.5:
            sender, to = to, sender
        self._count("cut_one_way", f"{sender} -> {to}")
        self.world.network.cut(sender, to, self.world.now + self._cut_s())

    def slow_disk(self, node: SimulatedNode) -> None:
        """Syncs take up to half a second: of one node, or of all (they share a storage)."""
        shared = self.random.random() < 0.3
        self._count("slow_disk", "all" if shared else node.name)
        until = self.world.now + self.random.random() * 2.0
        for each in self.world.nodes.values() if shared else (node,):
            each.slow_until_s = until

    def replace_disk(self, node: SimulatedNode) -> None:
        """The node loses its disk and comes back with an empty one. Of fewer than three the
        others are no majority."""
        if not node.up or not self.world.membership.whole():
            return
        self._count("replace_disk", node.name)
        self.world.membership.unhealed = True
        node.crash()
        node.wipe()
        self._restart(node, self._down_s())

    def crash_client(self, node: SimulatedNode) -> None:
        self._count("crash_client")
        self.world.crash_client(self.random)

    def add_node(self, node: SimulatedNode) -> None:
        name = self.world.membership.add()
        if name:
            self._count("add_node", name)

    def remove_node(self, node: SimulatedNode) -> None:
        name = self.world.membership.remove()
        if name:
            self._count("remove_node", name)

    def transfer(self, node: SimulatedNode) -> None:
        """The operator hands a leadership over."""
        what = self.world.membership.transfer()
        if what:
            self._count("transfer", what)

    def _other(self, node: SimulatedNode) -> str:
        others = [name for name in self.world.nodes if name != node.name]
        others += self.world.client_names()
        return self.random.choice(others)

    def _cut_s(self) -> float:
        return self.random.choice((0.1, 0.5, 2.0, 4.0)) * self.random.random()
