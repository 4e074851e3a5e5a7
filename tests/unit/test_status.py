"""`coterie status` and `coterie top`, from what nodes said to what is shown."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from coterie.nodes.status import COLUMNS, Node, Status, rows, summary, to_table, to_text
from coterie.nodes.top import Look, node_rates, picture, protocol_rates


def node(name: str, *, role: str = "follower", applied: int = 10, **process: Any) -> Node:
    group = {"role": role, "term": 3, "last_index": 12, "commit": 12, "applied": applied}
    other = {"role": "follower", "term": 1, "last_index": 5, "commit": 5, "applied": 5}
    empty = {"frames_in": 0, "frames_out": 0, "bytes_in": 0, "bytes_out": 0}
    said = {
        "node": name,
        "raft": {"groups": {"0": group, "1": other}},
        "lock": {"held": 4, "waits": 1},
        "process": {
            "pid": 7, "log_write_ms_p99": 1.25, "memory_bytes": 3 << 20, "durability": "fsync",
            "insecure": False, "turns": 10, "operations": 100, "cpu_s": 1.0, "dropped": {},
            "bus": {"clients": empty, "peers": empty}, "answers": {}, **process,
        },
    }  # fmt: skip
    return name, f"tcp://{name}:7001", said


def answers(fast: int, slow: int = 0, failures: int = 0) -> dict[str, Any]:
    """`fast` answers within 100 µs, `slow` ones within 5 s."""
    buckets = [fast, *[0] * 20, slow, 0]
    return {
        "lock": {
            "operations": fast + slow,
            "failures": {"busy": failures},
            "answer": {"buckets": buckets},
        }
    }


def test_a_row_says_how_a_node_is() -> None:
    status = Status([node("a", role="leader", applied=12), node("b", applied=9)], "a", True)
    first, second = (dict(zip(COLUMNS, row, strict=True)) for row in rows(status))
    assert (first["ROLE"], first["TERM"], first["LED"]) == ("leader", "3", "1/2")
    assert (first["LOG"], first["APPLIED"], first["LAG"]) == ("17", "17", "0")
    assert (second["LED"], second["APPLIED"], second["LAG"]) == ("0/2", "14", "3")
    assert (first["FSYNC P99"], first["MEMORY"]) == ("1.2 ms", "3.0 MiB")
    assert (first["DURABILITY"], first["INSECURE"]) == ("fsync", "no")


def test_a_silent_node_is_shown_as_silent() -> None:
    status = Status([("a", "tcp://a:7001", None), node("b", role="leader")], "b", True)
    assert rows(status)[0][:4] == ["a", "tcp://a:7001", "silent", "-"]
    assert summary(status) == "b leads; 1 of 2 nodes answer"
    lost = status._replace(leader="", quorum=False)
    assert summary(lost).startswith("no quorum: 1 of 2 nodes answer")


def test_the_table_of_a_pipe_is_plain_and_aligned() -> None:
    status = Status([node("a", role="leader"), ("b", "tcp://b:7001", None)], "a", True)
    header, first, second, empty, last = to_text(status).splitlines()
    assert header.index("ROLE") == first.index("leader") == second.index("silent")
    assert (empty, last) == ("", "a leads; 1 of 2 nodes answer")
    assert "\x1b" not in to_text(status)


def shown(thing: Any) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(thing)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_on_a_terminal_a_node_cannot_speak_markup() -> None:
    name, endpoint, said = node("[red]a[/red]", insecure=True)
    text = shown(to_table(Status([(name, endpoint, said)], "", False)))
    assert "[red]a[/red]" in text
    assert "yes" in text


def test_rates_are_differences_over_time() -> None:
    more = {"frames_in": 40, "frames_out": 20, "bytes_in": 4096, "bytes_out": 2048}
    before = Look(10.0, Status([node("a", role="leader", answers=answers(5))], "a", True))
    later = node(
        "a", role="leader", turns=30, operations=300, cpu_s=2.0, dropped={"multipart": 6},
        bus={"clients": more}, answers=answers(204, 1, 4),
    )  # fmt: skip
    after = Look(12.0, Status([later], "a", True))
    assert node_rates(before, after) == [
        ["a", "100", "10", "10.0", "20", "10", "2", "1", "3", "50 %"]
    ]
    ((plugin, rate, p50, p99, failures, now),) = protocol_rates(before, after)
    assert (plugin, rate, failures, now) == ("lock", "100", "2", "held 4 waits 1")
    assert (p50, p99) == ("0.1 ms", "0.1 ms")
    assert "a leads" in shown(picture(before, after))


@pytest.mark.parametrize("then", [("a", "tcp://a:7001", None), node("a", pid=6)])
def test_there_is_no_rate_over_a_restart(then: Node) -> None:
    before = Look(1.0, Status([then], "", False))
    after = Look(2.0, Status([node("a", answers=answers(5))], "a", True))
    assert node_rates(before, after)[0][1:] == ["-"] * 9
    assert protocol_rates(before, after) == []


def test_a_node_without_turns_or_answers_shows_none() -> None:
    look = Look(1.0, Status([node("a", answers=answers(5))], "a", True))
    (row,) = node_rates(look, look._replace(at=2.0))
    assert row[1:4] == ["0", "0", "-"]
    ((_, rate, p50, *_),) = protocol_rates(look, look._replace(at=2.0))
    assert (rate, p50) == ("0", "-")
