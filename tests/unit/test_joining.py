"""What a node that joins tells and keeps, and how the ring is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coterie.nodes.configuration import own_address
from coterie.nodes.identity import FILE
from coterie.nodes.joining import PEERS_FILE, kept_peers
from coterie.nodes.plans import NodePlan, keep, kept, peers_option
from coterie.nodes.ring_view import RingView
from coterie.protocols.placement.messages import Ring, RingRow


@pytest.mark.parametrize(
    ("bind", "advertise", "address"),
    [
        (None, None, "127.0.0.1:7001:7101:7201"),
        ("10.0.0.4", None, "10.0.0.4:7001:7101:7201"),
        ("10.0.0.4:7004", None, "10.0.0.4:7004:7104:7204"),
        ("tcp://10.0.0.4:7004:8004:9004", None, "10.0.0.4:7004:8004:9004"),
        ("[::1]:7004", None, "[::1]:7004:7104:7204"),
        ("0.0.0.0", "four.example:7004", "four.example:7004:7104:7204"),
        ("0.0.0.0:8004", "four.example:7004", "four.example:7004:8104:8204"),
    ],
)
def test_by_which_address_the_others_reach_a_node(
    bind: str | None, advertise: str | None, address: str
) -> None:
    assert own_address(bind, advertise) == address


@pytest.mark.parametrize(
    ("bind", "advertise", "said"),
    [("0.0.0.0", None, "--advertise"), ("*:7004", None, "--advertise"), ("a b", None, "HOST")],
)
def test_an_address_nobody_could_reach_is_refused(
    bind: str, advertise: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        own_address(bind, advertise)


def test_who_has_joined_asks_nobody_any_more(tmp_path: Path) -> None:
    assert kept_peers(tmp_path) is None
    (tmp_path / PEERS_FILE).write_text("node4=127.0.0.1:7004")
    assert kept_peers(tmp_path) is None  # it never got that far
    identity = {"cluster": f"{0:016x}", "node": "node4", "incarnation": 1}
    (tmp_path / FILE).write_text(json.dumps(identity))
    assert kept_peers(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps({**identity, "cluster": f"{7:016x}"}))
    assert kept_peers(tmp_path) == "node4=127.0.0.1:7004"


def test_a_plan_remembers_who_was_removed(tmp_path: Path) -> None:
    plans = [
        NodePlan("node1", 1, 2, 3, 10),
        NodePlan("node2", 4, 5, 6, 0, True),
        NodePlan("n3", 7, 8, 9, 11),
    ]
    keep(tmp_path, plans)
    assert kept(tmp_path) == plans
    assert peers_option(plans) == "node1=127.0.0.1:1:2:3,n3=127.0.0.1:7:8:9"


def ring(remaining: int, *rows: RingRow) -> Ring:
    return Ring(len(rows), 3, rows, remaining)


def test_the_ring_as_a_table() -> None:
    still = RingRow(1, ("a", "b"), (("a", True), ("b", True)), False)
    moving = RingRow(2, ("c", "a"), (("a", True), ("b", True), ("c", False)), True)
    view = RingView(ring(1, still, moving), {1: "a"})
    assert view.as_table().splitlines() == [
        "GROUP  SHOULD HOLD  HOLDS    LEADER  MOVING",
        "1      a b          a b      a",
        "2      c a          a b (c)  nobody  yes",
        "",
        "1 of 2 partitions still has to move",
    ]
    found = view.as_json()
    assert found["remaining"] == 1
    assert found["groups"][1]["holds"][2] == {"node": "c", "voter": False}
    assert found["groups"][1]["leader"] is None


def test_a_ring_before_its_founding() -> None:
    assert RingView(ring(0), {}).as_table() == "the partitions are not founded yet"
