"""OpenAPI from the types that requests and answers are decoded and encoded by.

The law: the document is made of the code that serves; nothing is said twice. (OpenAPI 3.1.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

REF = "#/components/schemas/{name}"
JSON = "application/json"
FAILURES: dict[int, str] = {
    400: "It has no meaning; the message says what would",
    401: "The token is missing or wrong",
    403: "The Host or the Origin is foreign",
    404: "There is no such thing, or the session has ended",
    405: "The path has other methods",
    408: "Not had in time",
    409: "It cannot be as things stand (LockLost, Deadlock, SettingsDiffer)",
    413: "Too large",
    415: "The body is no application/json",
    417: "That expectation is not met here",
    429: "A limit was reached; retry later",
    431: "The header fields are too large",
    503: "No quorum, or its answer did not come; retry later",
}
EVERYWHERE = (401, 403, 429, 503)


class Error(msgspec.Struct, omit_defaults=True):
    """What went wrong, by the name of its class in Python, and what to do next. `cycle`: of a
    deadlock, (waiter, holder, name) each."""

    error: str
    message: str
    cycle: list[Annotated[list[str], msgspec.Meta(min_length=3, max_length=3)]] = []


def parameter(name: str, text: str, *, place: str = "path", **schema: Any) -> dict[str, Any]:
    """A parameter of an operation; one in the path is required."""
    required = schema.pop("required", place == "path")
    return {
        "name": name,
        "in": place,
        "required": required,
        "description": text,
        "schema": {"type": "string", **schema},
    }


def reads(kind: type[Any]) -> dict[str, Any]:
    """The body an operation reads; it may be left out."""
    key = parameter("Idempotency-Key", "makes a repetition one with the first", place="header",
                    pattern=r"^[!-~]{1,255}$")  # fmt: skip
    return {
        "requestBody": {"required": False, "content": {JSON: {"schema": _reference(kind)}}},
        "x-idempotency": key,
    }


def answers(good: Mapping[int, type[Any] | str], *failures: int) -> dict[str, Any]:
    """The answers of an operation: the good ones by status, and which others may come. A good one
    is a type (JSON) or content types, separated by spaces."""
    responses: dict[str, Any] = {}
    for status, kind in good.items():
        if isinstance(kind, str):
            content: dict[str, Any] = {text: {} for text in kind.split()}
        else:
            content = {JSON: {"schema": _reference(kind)}}
        responses[str(status)] = {"description": "Done", "content": content}
    error = {JSON: {"schema": _reference(Error)}}
    for status in sorted({*failures, *EVERYWHERE} - set(good)):
        responses[str(status)] = {"description": FAILURES[status], "content": error}
    return {"responses": responses}


def document(routes: Iterable[Any], version: str, token: bool) -> dict[str, Any]:
    """The OpenAPI document of these routes (`rooms.Route`)."""
    found = list(routes)
    described: dict[str, dict[str, Any]] = {}
    for route in found:
        operation = dict(route.operation)
        key = operation.pop("x-idempotency", None)
        if key is not None:
            operation["parameters"] = [*operation.get("parameters", []), key]
        if token and not route.open:
            operation["security"] = [{"token": []}]
        described.setdefault(route.path, {})[route.method.lower()] = operation
    _, schemas = msgspec.json.schema_components(_KINDS, ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "coterie", "version": version},
        "paths": described,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


_KINDS: list[type[Any]] = []


def _reference(kind: type[Any]) -> dict[str, str]:
    if kind not in _KINDS:
        _KINDS.append(kind)
    return {"$ref": REF.format(name=kind.__name__)}
