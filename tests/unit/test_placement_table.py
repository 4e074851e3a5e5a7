"""What group 0 records of nodes and groups, and the steps that lead there."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.protocols.errors import Code
from coterie.protocols.placement.machine import Node, Placed, PlacementTable
from coterie.protocols.placement.messages import (
    NODES_MAX,
    AddMember,
    Changed,
    Found,
    HandOver,
    Place,
    RemoveMember,
    Report,
)
from coterie.protocols.placement.reconciler import (
    VOTERS_MAX,
    Leave,
    Reconfigure,
    Settled,
    Wait,
    may_vote,
    next_control_step,
    next_step,
)
from coterie.protocols.placement.ring import place
from coterie.protocols.plugin import Failure, Moment
from coterie.protocols.records import Configuration, Member


def member(node: str, incarnation: int = 1, voter: bool = True) -> Member:
    return Member(node, incarnation, voter, f"{node}:1", f"{node}:2", f"{node}:3")


def add(node: str) -> AddMember:
    return AddMember(node, f"{node}:1", f"{node}:2", f"{node}:3")


FOUND = Found(3, (member("a"), member("b"), member("c", 0)), place(("a", "b", "c"), 12, 3))


class Table(PlacementTable):
    def do(self, operation: Any) -> Any:
        result = self.apply(Moment(), operation)
        self.check()
        return result


@pytest.fixture
def table() -> Table:
    table = Table()
    table.do(FOUND)
    return table


def states(table: PlacementTable) -> dict[str, str]:
    return {node.node: node.state for node in table.nodes.values()}


def test_founding_places_the_groups_where_their_members_are(table: Table) -> None:
    assert len(table.groups) == 12
    for group, row in table.groups.items():
        assert row.members == (("a", 1, True), ("b", 1, True), ("c", 0, True))
        assert not row.moving
        assert table.founding(group, 7) == Configuration(
            7, (Member("a", 1, True), Member("b", 1, True), Member("c", 0, True))
        )


def test_founding_a_second_time_changes_nothing(table: Table) -> None:
    before = list(table.snapshot())
    table.do(Found(1, (member("z"),), (("z",),)))
    assert list(table.snapshot()) == before


@pytest.mark.parametrize("operation", [add("d"), RemoveMember("a")])
def test_before_the_founding_members_stay(operation: Any) -> None:
    result = Table().do(operation)
    assert isinstance(result, Failure) and result.code is Code.BUSY


def test_a_node_joins_once_it_is_reported_and_leaves_once_it_is_not(table: Table) -> None:
    assert table.do(add("d")) == Changed() == table.do(add("d"))
    assert states(table)["d"] == "joining" and "d" not in table.staying()
    table.do(Report(0, 2, (("a", 1, True), ("d", 0, False))))
    assert states(table)["d"] == "joining"
    table.do(Report(0, 3, (("a", 1, True), ("d", 4, False))))
    assert states(table)["d"] == "member"
    assert table.do(RemoveMember("d")) == Changed() == table.do(RemoveMember("d"))
    table.do(Report(0, 2, (("a", 1, True),)))
    assert states(table)["d"] == "leaving", "an older report"
    table.do(Report(0, 5, (("a", 1, True),)))
    assert "d" not in table.nodes
    assert table.do(RemoveMember("d")) == Changed()


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (AddMember("a", "a:1", "a:2", "other"), Code.SETTINGS_DIFFER),
        (AddMember("d", "d:1", "a:2", "d:3"), Code.SETTINGS_DIFFER),
        (AddMember("d d", "d:1", "d:2", "d:3"), Code.MALFORMED),
        (AddMember("d", "", "d:2", "d:3"), Code.MALFORMED),
        (AddMember("d", "x" * 256, "d:2", "d:3"), Code.MALFORMED),
        (HandOver("a"), Code.MALFORMED),
    ],
)
def test_what_is_refused(table: Table, operation: Any, code: Code) -> None:
    result = table.do(operation)
    assert isinstance(result, Failure) and result.code is code and result.text


def test_a_leaving_node_cannot_be_added_and_the_last_not_removed(table: Table) -> None:
    table.do(RemoveMember("a"))
    again = table.do(add("a"))
    assert isinstance(again, Failure) and again.code is Code.SETTINGS_DIFFER
    table.do(RemoveMember("b"))
    last = table.do(RemoveMember("c"))
    assert isinstance(last, Failure) and last.code is Code.MALFORMED


def test_a_cluster_has_a_limit(table: Table) -> None:
    for number in range(NODES_MAX - 3):
        assert table.do(add(f"n{number}")) == Changed()
    one_too_many = table.do(add("more"))
    assert isinstance(one_too_many, Failure) and one_too_many.code is Code.MALFORMED


def test_a_report_never_gives_way_to_an_older_one(table: Table) -> None:
    table.do(Report(1, 5, (("a", 1, True),)))
    table.do(Report(1, 4, (("b", 1, True),)))
    table.do(Report(99, 4, (("b", 1, True),)))
    assert table.groups[1].members == (("a", 1, True),) and table.groups[1].index == 5


def test_only_nodes_that_stay_are_placed(table: Table) -> None:
    table.do(RemoveMember("a"))
    before = table.groups[1]
    for nodes in (("a", "b"), ("b", "x"), ()):
        table.do(Place(1, nodes))
        assert table.groups[1] == before
    table.do(Place(1, ("c", "b")))
    assert table.groups[1].nodes == ("c", "b") and table.groups[1].moving


def test_a_snapshot_is_the_state(table: Table) -> None:
    table.do(add("d"))
    table.do(Place(2, ("b", "c")))
    table.do(Report(2, 9, (("b", 1, True),)))
    other = PlacementTable()
    for chunk in table.snapshot():
        other.restore(chunk)
    other.restored()
    other.check()
    assert list(other.snapshot()) == list(table.snapshot())
    assert (other.found, other.nodes, other.groups) == (table.found, table.nodes, table.groups)


# --- steps --------------------------------------------------------------------------------------

KNOWN = {node: member(node) for node in "abcde"}


def lean(node: str, incarnation: int = 1, voter: bool = True) -> Member:
    return Member(node, incarnation, voter)


def walk(us: str, present: list[Member], wanted: tuple[str, ...]) -> list[str]:
    """The steps of a group whose learners all catch up; what each changed."""
    steps = []
    for _ in range(20):
        step = next_step(us, present, wanted, KNOWN)
        if isinstance(step, Reconfigure):
            before = {m.node for m in present}
            after = {m.node for m in step.members}
            steps += [f"+{n}" for n in sorted(after - before)]
            steps += [f"-{n}" for n in sorted(before - after)]
            present = list(step.members)
        elif isinstance(step, Wait):
            present = [lean(m.node, m.incarnation) for m in present]
            steps.append("promoted")
        elif isinstance(step, Leave):
            steps.append("leaves")
            us = step.heirs[0]
        else:
            return steps
    raise AssertionError(steps)


def test_copies_come_before_they_go() -> None:
    abc = [lean(n) for n in "abc"]
    assert walk("a", abc, ("a", "b", "c")) == []
    assert walk("a", abc, ("a", "b", "d")) == ["+d", "promoted", "-c"]
    assert walk("c", abc, ("a", "b", "d")) == ["+d", "promoted", "leaves", "-c"]
    assert walk("b", abc, ("d", "e")) == [
        "+d", "+e", "promoted", "-a", "-c", "leaves", "-b",
    ]  # fmt: skip


def test_a_lost_disk_comes_back_as_a_learner() -> None:
    present = [lean("a"), lean("b"), lean("c", 7)]
    assert next_step("a", present, ("a", "b", "c"), KNOWN) == Reconfigure(
        (lean("a"), lean("b"), lean("c", 1, False))
    )


def test_a_leader_does_not_replace_itself() -> None:
    """What it knows of group 0 may be older than its own disk."""
    present = [lean("a", 2), lean("b"), lean("c")]
    assert next_step("a", present, ("a", "b", "c"), KNOWN) == Settled()


def test_who_was_never_heard_of_becomes_the_voter_it_is() -> None:
    present = [lean("a"), lean("b"), lean("c", 0)]
    assert next_step("a", present, ("a", "b", "c"), KNOWN) == Reconfigure(
        (lean("a"), lean("b"), lean("c", 1, True))
    )


def test_who_was_not_heard_of_yet_is_waited_for() -> None:
    known = {**KNOWN, "d": member("d", 0)}
    present = [lean("a"), lean("b"), lean("c")]
    assert next_step("a", present, ("a", "b", "d"), known) == Wait()
    assert next_step("a", [lean("a"), lean("d", 0)], ("a", "d"), known) == Wait()


def test_control_takes_in_who_joins_and_lets_go_who_holds_nothing() -> None:
    nodes = {n: Node(n, "member", f"{n}:1", f"{n}:2", f"{n}:3") for n in "abc"}
    present = [member(n) for n in "abc"]
    group = Placed(1, ("a", "b"), 1, (("a", 1, True), ("b", 1, True)))
    assert next_control_step("a", present, nodes, [group]) == Settled()
    joining = {**nodes, "d": Node("d", "joining", "d:1", "d:2", "d:3")}
    assert next_control_step("a", present, joining, [group]) == Reconfigure(
        (*present, member("d", 0, False))
    )
    leaving = {
        **nodes,
        "a": Node("a", "leaving", "", "", ""),
        "c": Node("c", "leaving", "", "", ""),
    }
    assert next_control_step("a", present, leaving, [group]) == Reconfigure(tuple(present[:2]))
    assert next_control_step("b", present[:2], leaving, [group]) == Settled()
    moved = Placed(1, ("b",), 2, (("b", 1, True),))
    assert next_control_step("b", present[:2], leaving, [moved]) == Reconfigure((present[1],))
    assert next_control_step("a", present[:2], leaving, [moved]) == Leave(("b",))
    assert next_control_step("b", present[:2], {"b": nodes["b"]}, [moved]) == Reconfigure(
        (present[1],)
    )


def test_control_has_at_most_five_voters() -> None:
    nodes = {n: Node(n, "member", "", "", "") for n in "abcdef"}
    members = [member(n) for n in "abcde"]
    assert len(members) == VOTERS_MAX
    learner = member("f", 1, False)
    assert not may_vote(Configuration(7, (*members, learner)), "f", nodes)
    assert may_vote(Configuration(7, (*members[:4], learner)), "f", nodes)
    leaving = {**nodes, "a": Node("a", "leaving", "", "", "")}
    assert may_vote(Configuration(7, (*members, learner)), "f", leaving)
    assert not may_vote(Configuration(7, (learner,)), "a", leaving)
    assert not may_vote(Configuration(7, (learner,)), "x", leaving)
