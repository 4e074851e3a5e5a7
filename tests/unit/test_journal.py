"""A node's lines: one event, one line, whatever is in it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import shlex
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coterie.nodes import journal
from coterie.protocols.records import Configuration

NASTY = 'two\r\nlines time=now level=error\tand "quotes" \\ \x00\x7f\x1b[31m é\u2028\u202e'


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The node's logger, at its lowest level, told to nobody but the test."""
    logger = logging.getLogger("coterie.node")
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.setLevel(level)
    logger.propagate = propagates
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


def listen(logger: logging.Logger, form: str) -> io.StringIO:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(journal.LineFormatter("node1", cast(Any, form)))
    logger.addHandler(handler)
    return stream


def parsed(line: str) -> dict[str, str]:
    """A logfmt line taken apart: quoted values are JSON strings."""
    found: dict[str, str] = {}
    decoder = json.JSONDecoder()
    rest = line
    while rest:
        key, _, rest = rest.partition("=")
        if rest.startswith('"'):
            found[key], end = decoder.raw_decode(rest)
        else:
            end = len(rest.partition(" ")[0])
            found[key] = rest[:end]
        rest = rest[end:].removeprefix(" ")
    return found


def test_an_event_is_a_line_of_logfmt(logger: logging.Logger) -> None:
    stream = listen(logger, "logfmt")
    journal.say(journal.info, "leader", group=0, term=5, leader="node2", settled=True)
    line = stream.getvalue()
    assert line.endswith(
        " level=info node=node1 msg=leader group=0 term=5 leader=node2 settled=true\n"
    )
    assert parsed(line.strip())["time"].endswith("Z")
    assert len(shlex.split(line)) == 8


def test_an_event_is_a_line_of_json(logger: logging.Logger) -> None:
    stream = listen(logger, "json")
    journal.say(journal.warning, "dropped", cause="multipart", count=3)
    found = json.loads(stream.getvalue())
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning", "node": "node1", "msg": "dropped", "cause": "multipart", "count": 3,
    }  # fmt: skip


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_nobody_can_write_a_line_of_ours(logger: logging.Logger, form: str) -> None:
    stream = listen(logger, form)
    journal.say(journal.error, NASTY, reason=NASTY, code=1)
    logger.warning("from a library: %s", NASTY)  # has no fields
    text = stream.getvalue()
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    first, second = text.splitlines()
    told = json.loads(first) if form == "json" else parsed(first)
    assert told["msg"] == NASTY
    assert told["reason"] == NASTY
    assert told["level"] == "error"
    told = json.loads(second) if form == "json" else parsed(second)
    assert told["msg"] == f"from a library: {NASTY}"


def test_a_traceback_is_part_of_its_line(logger: logging.Logger) -> None:
    stream = listen(logger, "logfmt")
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        journal.say(journal.critical, "a defect", exception=True)
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: broken\nin two" in parsed(line)["traceback"]


class Node:
    """What a watch looks at."""

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}
        self.p99_s = 0.0
        self.configuration: Any = None
        self.watch = journal.Watch(
            asyncio.new_event_loop(),
            dropped=lambda: self.dropped,
            writes=lambda: (0.0, self.p99_s),
            configuration=lambda: cast("Configuration | None", self.configuration),
        )
        self.now = 0.0

    def look(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.watch.look(self.now)


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.watch._loop.close()


def told(stream: io.StringIO) -> list[str]:
    """The lines since the last call, without time, level and node."""
    lines = [line.partition(" msg=")[2] for line in stream.getvalue().splitlines()]
    stream.seek(0)
    stream.truncate()
    return lines


def test_drops_are_told_at_once_and_then_once_a_minute(logger: logging.Logger, node: Node) -> None:
    stream = listen(logger, "logfmt")
    node.look()
    assert told(stream) == []
    node.dropped = {"subscriptions": 1, "multipart": 2}
    node.look()
    assert told(stream) == ["dropped cause=multipart count=2"]
    for count in range(3, 50):
        node.dropped["multipart"] = count
        node.look()
    assert told(stream) == []
    node.dropped["send_full"] = 7
    node.look()
    assert told(stream) == ["dropped cause=send_full count=7"]
    node.look(journal.DROPS_APART_S)
    assert told(stream) == ["dropped cause=multipart count=47"]


def test_a_slow_disk_is_told_once_and_its_recovery(logger: logging.Logger, node: Node) -> None:
    stream = listen(logger, "logfmt")
    node.p99_s = 0.25
    node.look()
    node.look()
    assert told(stream) == ['"slow disk" fsync_ms_p99=250.0']
    node.p99_s = 0.001
    node.look()
    assert told(stream) == ['"disk is quick again" fsync_ms_p99=1.0']


def test_a_configuration_is_told_when_it_changes(logger: logging.Logger, node: Node) -> None:
    stream = listen(logger, "logfmt")
    one, two = SimpleNamespace(node="a", voter=True), SimpleNamespace(node="b", voter=False)
    node.configuration = SimpleNamespace(members=(one, two))
    node.look()
    node.look()
    assert told(stream) == ["configuration group=0 members=a,b*"]
