"""From a request's target to a route and a name. Pure.

The law: percent signs are decoded exactly once, after the path was taken apart; what a proxy or a
browser would read differently (a segment `.` or `..`, control characters, broken UTF-8) is
refused, so that one name has one lock, whoever asks.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl

from ...protocols.lock.plugin import name_is_good
from .failures import Refusal

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_STRAY = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Target(NamedTuple):
    """`room` is the first segment; `rest` what follows it, not decoded, None if nothing does."""

    room: str
    rest: str | None
    query: str


def split(target: str) -> Target:
    """Take a request target apart. Raises `Refusal`."""
    if not target.startswith("/"):
        raise Refusal(400, "BadRequest", "ask for a path, as in GET /lock/orders/42")
    path, _, query = target.partition("?")
    room, slash, rest = path[1:].partition("/")
    return Target(room, rest if slash else None, query)


def name(raw: str) -> str:
    """The name that the rest of a path stands for. Raises `Refusal`."""
    decoded = decode(raw)
    if not name_is_good(decoded) or any(part in (".", "..") for part in decoded.split("/")):
        text = (
            f"{decoded!r} is no name: use 1 to 255 bytes of UTF-8 without control characters and "
            "without the segments . and .."
        )
        raise Refusal(400, "BadName", text)
    return decoded


def decode(raw: str) -> str:
    """Percent-decode once, strictly. Raises `Refusal`."""
    encoded = raw.encode("utf-8", "surrogateescape")
    if _STRAY.search(encoded):
        raise Refusal(400, "BadName", "a percent sign is followed by two hexadecimal digits")
    try:
        return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), encoded).decode()
    except UnicodeDecodeError:
        raise Refusal(400, "BadName", "the path is not UTF-8") from None


def parameters(query: str) -> dict[str, str]:
    """The parameters of a query. Raises `Refusal`: one given twice means nothing."""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), errors="strict",
            max_num_fields=16,
        )  # fmt: skip
    except (ValueError, UnicodeError):
        raise Refusal(400, "BadRequest", "the query cannot be read") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refusal(400, "BadRequest", "a parameter is given twice")
    return found
