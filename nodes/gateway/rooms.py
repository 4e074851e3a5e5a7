"""What a room of the gateway is: some routes under one first segment of the path.

The law: a route says all there is to know of it (`operation`, as OpenAPI has it) beside the
function that does it; so the document cannot lag behind. A room is one module; the list of rooms
stands in `server.py`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from . import paths
from .failures import Refusal

B = TypeVar("B")
KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Answered(NamedTuple):
    """An answer: `content` is encoded as JSON unless it is bytes. `confirm(True)` is called when
    it was written, `confirm(False)` when that failed: nobody knows then what was done."""

    content: object
    status: int = 200
    headers: Mapping[str, str] = {}
    confirm: Callable[[bool], None] | None = None


class Asked(NamedTuple):
    """A request that passed the guard, with its body."""

    method: str
    target: paths.Target
    headers: Mapping[str, str]
    body: bytes

    @property
    def name(self) -> str:
        """The rest of the path, decoded and checked. Raises `Refusal`."""
        return paths.name(self.target.rest or "")

    def parameters(self, *known: str) -> dict[str, str]:
        """The query. Raises `Refusal`, for an unknown parameter too."""
        found = paths.parameters(self.target.query)
        for parameter in found:
            if parameter not in known:
                raise Refusal(400, "BadRequest", f"there is no parameter {parameter!r}")
        return found

    def json(self, kind: type[B]) -> B:
        """The body as a `kind`; an empty body is an empty object. Raises `Refusal`."""
        try:
            return msgspec.json.decode(self.body or b"{}", type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, "BadRequest", f"the body: {error}") from None

    def idempotency_key(self) -> str:
        """What makes a repeated POST one; "" if it has none. Raises `Refusal`."""
        key = self.headers.get("Idempotency-Key")
        if key is None:
            return ""
        if not KEY.fullmatch(key):
            text = "an Idempotency-Key has 1 to 255 printable ASCII characters"
            raise Refusal(400, "BadRequest", text)
        return key


Handler = Callable[[Asked], Awaitable[Answered]]


class Route(NamedTuple):
    """One method on one path. `path` is "/room" or "/room/{parameter}", where the parameter is
    all the rest. `operation` is its OpenAPI operation."""

    method: str
    path: str
    handler: Handler
    operation: dict[str, Any]
    open: bool = False
    """True: no token is asked for."""


class Room(Protocol):
    def routes(self) -> Sequence[Route]: ...
