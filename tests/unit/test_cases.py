"""Runs the conversations of tests/cases: scripts of real Raft plugins with their recorded outputs.

A line `> verb …` is done, and the lines under it are what happened: messages as they arrive
(`n1 -> n2 …`), and indented what a node did. `pytest tests/unit/test_cases.py --rewrite` records
the outputs anew; commit only changes whose cause you understand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raft_world import World

from coterie.protocols.raft import messages
from coterie.protocols.raft.settings import Settings
from coterie.protocols.records import Member

CASES = sorted((Path(__file__).resolve().parents[1] / "cases").glob("*.txt"))


class Conversation:
    """The verbs of a script."""

    def __init__(self) -> None:
        self.world = World(3)

    def run(self, line: str) -> list[str]:
        """Do one line; what happened."""
        verb, *words = line.split()
        names = [word for word in words if "=" not in word]
        options = dict(word.split("=") for word in words if "=" in word)
        act: Callable[..., Any] = getattr(self, f"do_{verb}")
        self.world.trace = []
        shown = act(*names, **options)
        return [*self.world.trace, *(shown or [])]

    def do_cluster(self, nodes: str, **options: str) -> None:
        """A cluster of so many nodes: `founded=no`, `groups=2`, `learners=n4`, `tail=0` bytes of
        log in memory, `piece=64` bytes of a snapshot at once."""
        settings = {"tail": "tail_bytes", "piece": "piece_bytes"}
        self.world = World(
            int(nodes),
            founded=options.get("founded") != "no",
            groups=int(options.get("groups", 1)),
            learners=options.get("learners", "").split(","),
            settings=Settings(
                **{field: int(options[name]) for name, field in settings.items() if name in options}
            ),
        )

    def do_log(self, name: str, terms: str, **options: str) -> None:
        """Give a node a log with these terms: `log n1 1,1,2 term=3`."""
        term = options.get("term")
        self.world.write_log(name, [int(t) for t in terms.split(",")], term and int(term))
        self.world.trace = []

    def do_timeout(self, name: str) -> None:
        """The election timer of a node runs out."""
        self.world.fire(name)

    def do_elect(self, name: str, **options: str) -> None:
        """An election without its conversation."""
        self.world.elect(name, int(options.get("group", 0)))
        self.world.beat(name)
        self.world.settle()
        self.world.trace = []

    def do_propose(self, name: str, *texts: str) -> None:
        self.world.propose(name, *texts)

    def do_read(self, name: str, token: str) -> None:
        self.world.read(name, token)

    def do_beat(self, name: str) -> None:
        self.world.beat(name)

    def do_transfer(self, name: str, target: str) -> None:
        assert self.world.nodes[name].hand_over(0, target)
        self.world.flush(name)

    def do_deliver(self, **options: str) -> None:
        """What is on the wire, or what fits `to=`, `sender=`, `kind=`; not what that causes."""
        self.world.deliver(**self._only(options))

    def do_drop(self, **options: str) -> None:
        self.world.drop(**self._only(options))

    def do_settle(self) -> None:
        """Deliver until the wire is silent."""
        self.world.settle()

    def do_cut(self, name: str) -> None:
        self.world.cut = lambda letter: name in (letter.sender, letter.to)

    def do_heal(self) -> None:
        self.world.cut = lambda letter: False

    def do_advance(self, seconds: str, **options: str) -> None:
        """Let time pass; `quiet=yes` without the conversation."""
        self.world.advance(float(seconds))
        if options.get("quiet"):
            self.world.trace = []

    def do_wait(self, seconds: str) -> None:
        """Time passes while nobody looks at the clock."""
        self.world.time += float(seconds)

    def do_compact(self, name: str) -> None:
        """A node takes a snapshot, and what it replaces is gone from its log."""
        self.world.compact(name)

    def do_crash(self, name: str) -> None:
        self.world.crash(name)

    def do_restart(self, name: str) -> None:
        self.world.restart(name)

    def do_wipe(self, name: str, incarnation: str) -> None:
        """Its disk is lost."""
        self.world.wipe(name, int(incarnation))

    def do_members(self, name: str, *voters: str, **options: str) -> None:
        """A leader proposes other members: `members n1 n1 n2 learner=n3 group=1`."""
        learners = filter(None, options.get("learner", "").split(","))
        wanted = [(node, True) for node in voters] + [(node, False) for node in learners]
        members = [Member(node, self.world.incarnations[node], voter) for node, voter in wanted]
        refused = self.world.nodes[name].reconfigure(int(options.get("group", 0)), members)
        assert refused is None, refused
        self.world.flush(name)

    def do_policy(self, *, promote: str) -> None:
        """`policy promote=no`: learners stay learners."""
        assert promote == "no"
        self.world.turn_off_promotion()

    def do_give_up(self, name: str, group: str, floor: str) -> None:
        """A node gives its copy of a group up: the configuration at `floor` does without it."""
        self.world.nodes[name].holding.give_up(int(group), int(floor))
        self.world.flush(name)

    def do_begin(self, name: str, group: str) -> None:
        """A node begins an empty copy of a group."""
        self.world.nodes[name].holding.begin(int(group))
        self.world.flush(name)

    def do_hold(self) -> None:
        """From now on a write is durable only when told: `sync n1`."""
        self.world.autosync = False

    def do_sync(self, name: str) -> None:
        self.world.sync(name)

    def do_show(self, number: str = "0") -> list[str]:
        """Where every node stands in a group."""
        lines = []
        for name, raft in self.world.nodes.items():
            group = raft.groups.get(int(number))
            if group is None:
                lines.append(f"{name}: holds no copy")
                continue
            members = ", ".join(
                f"{m.node}#{m.incarnation}{'' if m.voter else ' learner'}"
                for m in group.members.values()
            )
            terms = ",".join(map(str, self.world.terms(name, int(number))))
            lines.append(
                f"{name}: {group.role.value} term {group.term} log {terms or 'empty'} "
                f"commit {group.commit} members {members or 'unknown'}"
            )
        return lines

    @staticmethod
    def _only(options: dict[str, str]) -> dict[str, Any]:
        only: dict[str, Any] = dict(options)
        if "kind" in only:
            only["kind"] = getattr(messages, only["kind"])
        return only


def perform(script: str) -> str:
    """The script with the outputs of this run."""
    conversation = Conversation()
    written: list[str] = []
    for line in script.splitlines():
        if line.startswith("> "):
            written += [line, *conversation.run(line[2:])]
        elif not line or line.startswith("#"):
            written.append(line)
    return "\n".join(written) + "\n"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_conversation(path: Path, request: pytest.FixtureRequest) -> None:
    recorded = path.read_text()
    performed = perform(recorded)
    if request.config.getoption("--rewrite", default=False):
        path.write_text(performed)
        return
    assert performed == recorded


def test_a_changed_conversation_is_seen() -> None:
    script = "> cluster 1\n> timeout n1\n"
    assert perform(script) != script and perform(perform(script)) == perform(script)
