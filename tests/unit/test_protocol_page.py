"""docs/protocol.md says what the code does: every message, its code, role and fields."""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest

import coterie
from coterie.protocols.coordination.messages import MESSAGES as COORDINATION
from coterie.protocols.lock.messages import MESSAGES as LOCK
from coterie.protocols.placement.messages import MESSAGES as PLACEMENT
from coterie.protocols.plugin import (
    Cancel,
    Cancelled,
    Failure,
    Hint,
    Internal,
    Message,
    Operation,
    Query,
    Result,
)
from coterie.protocols.raft.messages import MESSAGES as RAFT
from coterie.protocols.session.messages import MESSAGES as SESSION

assert coterie.__file__ is not None
PAGE = Path(coterie.__file__).parent / "docs" / "protocol.md"
ROW = re.compile(r"^\| (-?\d+) \| (\w+) \| (\w+) \| (.*?) ?\|$", re.MULTILINE)
ROLES = (Operation, Query, Internal, Result, Hint)


def described(section: str) -> list[tuple[int, str, str, str]]:
    text = PAGE.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return [(int(code), name, role, fields) for code, name, role, fields in ROW.findall(text)]


def built(messages: tuple[type[Message], ...]) -> list[tuple[int, str, str, str]]:
    rows = []
    for message in messages:
        role = next((r.__name__ for r in ROLES if issubclass(message, r)), "Message")
        tag = message.__struct_config__.tag
        assert isinstance(tag, int)
        fields = ", ".join(field.name for field in msgspec.structs.fields(message))
        rows.append((tag, message.__name__, role, fields))
    return rows


@pytest.mark.parametrize(
    ("section", "messages"),
    [
        ("raft", RAFT),
        ("session", SESSION),
        ("lock", LOCK),
        ("placement", PLACEMENT),
        ("coordination", COORDINATION),
        ("Codes of every plugin", (Failure, Cancel, Cancelled)),
    ],
)
def test_the_page_lists_every_message(section: str, messages: tuple[type[Message], ...]) -> None:
    assert described(section) == built(messages)


@pytest.mark.parametrize("plugin", ["raft", "session", "lock", "placement", "coordination"])
def test_the_page_names_the_code_of_every_plugin(plugin: str) -> None:
    code = blake2b(plugin.encode()).digest()[:4].hex()
    assert f"## {plugin}\n\nPlugin code `{code}`" in PAGE.read_text(encoding="utf-8")
