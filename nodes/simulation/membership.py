"""Who should belong to a world's cluster, and whether it comes to that.

The law: what the operator asked for holds in the end: every group has the members the record names
as voters, their leaders have reported that, nobody else holds a copy, and the preferred node leads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...protocols.placement.machine import PlacementTable
from ...protocols.placement.reconciler import VOTERS_MAX
from ...protocols.plugin import CONTROL
from ...protocols.records import Member
from .askers import Operator, Tallier
from .judge import Judge
from .node import SimulatedNode

if TYPE_CHECKING:
    from ..engine import Engine
    from ..simulator import World

NODES_MAX = 6
"""No more nodes are added than that."""


class Membership:
    """`wanted` are the nodes that should be members once all has come right."""

    def __init__(self, world: World, names: Sequence[str]) -> None:
        self.world = world
        self.random = random.Random(f"{world.seed}/membership")
        self.wanted = dict.fromkeys(names)
        self._first = tuple(names)
        self._added = len(names)
        self.unhealed = False
        self._gone: dict[str, SimulatedNode] = {}
        source = random.Random(f"{world.seed}/operator")
        self.operator = Operator(world, "operator", source)
        self.judges = {group: Judge() for group in range(1, world.drawn.groups)}
        self._talliers: dict[str, Tallier] = {}
        if self.judges:
            for number in range(source.randint(1, 2)):
                name = f"tallier{number + 1}"
                seeded = random.Random(source.getrandbits(62))
                self._talliers[name] = Tallier(world, name, seeded, self.judges)

    def start(self) -> None:
        for tallier in self._talliers.values():
            tallier.work()

    def finish(self) -> None:
        for tallier in self._talliers.values():
            tallier.finishing = True

    @property
    def completed(self) -> int:
        return sum(tallier.completed for tallier in self._talliers.values())

    def receive(self, to: str, frame: Any) -> bool:
        """A frame for the operator or who counts in partitions? True if it was."""
        asker = self.operator if to == self.operator.name else self._talliers.get(to)
        if asker is not None:
            asker.receive(frame)
        return asker is not None

    def configured_for(self, node: SimulatedNode) -> list[Member]:
        """The nodes that the settings of one that starts now name: the operator keeps them up to
        date, or a node that has no log yet might know nobody who is still there."""
        names = sorted({*self._first, *self.wanted, node.name})
        return [Member(name, 0, True, name, name, name) for name in names]

    # What the faults ask

    def add(self) -> str:
        """A node comes: a new one, or one of a name that was there before. Its name, or ""."""
        if self.operator.busy or len(self.wanted) >= NODES_MAX:
            return ""
        known = self._tables()[0].nodes if self._tables() else {}
        again = [name for name in self._gone if name not in known]
        if again and self.random.random() < 0.5:
            node = self._gone.pop(self.random.choice(again))
            node.wipe()
        else:
            self._added += 1
            node = SimulatedNode(self.world, f"node{self._added}")
        self.world.nodes[node.name] = node
        self.world.network.join(node.name)
        self.wanted[node.name] = None
        self.operator.add(node.name)
        self.world.at(self.world.now + self.random.random() * 2.0, self._start, node)
        return node.name

    def _start(self, node: SimulatedNode) -> None:
        if not node.up and self.world.nodes.get(node.name) is node:
            node.start()

    def remove(self) -> str:
        """A node goes, for good. One of the first stays: clients may know no other."""
        first = [name for name in self.wanted if name in self._first]
        names = [name for name in self.wanted if first != [name]]
        if self.operator.busy or not names or self._lost_a_disk():
            return ""
        name = self.random.choice(names)
        del self.wanted[name]
        row = self._tables()[0].nodes.get(name) if self._tables() else None
        added = row.added if row is not None else -1
        self.operator.remove(name, added, lambda: self.wanted.setdefault(name))
        return name

    def _lost_a_disk(self) -> bool:
        """A disk was lost, and not everything is whole again: who takes away another node now may
        take the last copy."""
        self.unhealed = self.unhealed and not self.whole()
        return self.unhealed

    def transfer(self) -> str:
        """A leadership is to go to a node, whoever that is."""
        if self.operator.busy:
            return ""
        group = self.random.randrange(self.world.drawn.groups)
        name = self.random.choice(list(self.wanted))
        self.operator.hand_over(group, name)
        return f"group {group} to {name}"

    def end(self, node: SimulatedNode) -> None:
        """The node stops for good."""
        if node.up:
            node.crash()
        self._gone[node.name] = self.world.nodes.pop(node.name)

    # Looking

    def _tables(self) -> list[PlacementTable]:
        """Of the nodes that are up, the one that has applied most first."""
        engines = [node.engine for node in self.world.nodes.values() if node.engine is not None]
        engines.sort(key=lambda engine: -engine.replicas[CONTROL].applied)
        return [_table(engine) for engine in engines]

    def whole(self) -> bool:
        """All nodes are up, nothing moves, and each knows as committed that at least three vote in
        each group, as they are now: then a disk may be lost."""
        nodes = self.world.nodes
        if self.operator.busy or sorted(nodes) != sorted(self.wanted):
            return False
        if any(node.engine is None or node.paused for node in nodes.values()):
            return False
        for node in nodes.values():
            assert node.engine is not None
            table, raft = _table(node.engine), _raft(node.engine)
            if table.found is None or sorted(table.nodes) != sorted(nodes) or table.remaining():
                return False
            if any(row.state != "member" for row in table.nodes.values()):
                return False
            for group in raft.groups.values():
                if not group.configurations or group.configurations[-1][0] > group.commit:
                    return False
                members = group.members.values()
                if any(m.incarnation != nodes[m.node].disk.incarnation for m in members):
                    return False
                if group.voters < 3 or (group.group and group.voters < len(members)):
                    return False
        return True

    def unsettled(self) -> str:
        """What has not come right yet; "" when all has, and nobody works any more."""
        waiting = [tallier.name for tallier in self._talliers.values() if tallier.busy]
        return f"{waiting} wait" if waiting else self.unplaced() or self._unequal()

    def _unequal(self) -> str:
        for group in self.judges:
            engines = [n.engine for n in self.world.nodes.values() if n.engine is not None]
            applied = [e.replicas[group].applied for e in engines if group in e.replicas]
            if min(applied) != max(applied):
                return f"group {group}: applied {applied}"
        return ""

    def unplaced(self) -> str:
        """What is not yet where the operator wants it; "" when all is."""
        world = self.world
        if self.operator.busy:
            return "the operator waits"
        engines = {name: world.nodes[name].engine for name in self.wanted}
        up = {name: engine for name, engine in engines.items() if engine is not None}
        if len(up) < len(engines):
            return "a node is down"
        first = next(iter(up.values()))
        table, control = _table(first), _raft(first).groups[CONTROL]
        for name in table.nodes:
            if name not in self.wanted and table.nodes[name].state == "joining":
                # A late copy added it once more, after it had gone.
                self.operator.remove(name, table.nodes[name].added, lambda: None)
                return f"{name} is to go again"
        if table.found is None or sorted(table.nodes) != sorted(self.wanted):
            return f"members are {sorted(table.nodes)}, not {sorted(self.wanted)}"
        if sorted(control.members) != sorted(self.wanted):
            return f"group 0 has {sorted(control.members)}, not {sorted(self.wanted)}"
        if any(row.state != "member" for row in table.nodes.values()) or table.remaining():
            return f"{table.remaining()} groups have to move; {table.nodes}"
        if control.voters != min(VOTERS_MAX, len(self.wanted)):
            return f"{control.voters} of {len(self.wanted)} vote in group 0"
        for row in table.groups.values():
            text = self._group_unsettled(row, up)
            if text:
                return f"group {row.group}: {text}"
        return self._left_over(control.configuration.removed)

    def _group_unsettled(self, row: Any, engines: dict[str, Engine]) -> str:
        holders = [name for name, engine in engines.items() if row.group in engine.replicas]
        if sorted(holders) != sorted(row.nodes):
            return f"{holders} hold it, not {row.nodes}"
        beliefs = {engines[name].log.leader(row.group) for name in holders}
        if len(beliefs) > 1 or next(iter(beliefs))[0] != row.nodes[0]:
            return f"not all follow {row.nodes[0]}: {sorted(map(str, beliefs))}"
        expected = tuple(
            (name, self.world.nodes[name].disk.incarnation, True) for name in sorted(row.nodes)
        )
        raft = _raft(engines[row.nodes[0]])
        members = raft.groups[row.group].members.values()
        found = tuple((m.node, m.incarnation, m.voter) for m in members)
        if found != expected or row.members != expected:
            return f"has {found}, reported {row.members}, not {expected}"
        return ""

    def _left_over(self, removed: Sequence[tuple[str, int]]) -> str:
        """Who was removed stops by itself, if it was ever recorded."""
        for name, node in list(self.world.nodes.items()):
            if name not in self.wanted:
                if node.up and (name, node.disk.incarnation) in removed:
                    return f"{name} was not told that it was removed"
                self.end(node)
        return ""

    def judge_totals(self) -> None:
        for group, judge in self.judges.items():
            for node in self.world.nodes.values():
                assert node.engine is not None
                replica = node.engine.replicas.get(group)
                if replica is not None:
                    machine: Any = replica.machines["tally"]
                    judge.total(machine.total)


def _raft(engine: Engine) -> Any:
    return engine.log


def _table(engine: Engine) -> PlacementTable:
    table = engine.replicas[CONTROL].machines["placement"]
    assert isinstance(table, PlacementTable)
    return table
