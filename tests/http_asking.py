"""Asking a node over HTTP in tests: well behaved by `ask`, byte by byte by `raw`."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

DEADLINE_S = 30.0


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error's name, after checking that the answer is one."""
        assert self.status >= 400, self
        assert self.json["message"], self
        return str(self.json["error"])


def ask(
    url: str,
    method: str,
    path: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = DEADLINE_S,
) -> Reply:
    """One request on a connection of its own; a body that is not bytes is sent as JSON."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    try:
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, told, answer.read())
    finally:
        connection.close()


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S)


def answer(connection: socket.socket) -> Reply:
    """The next answer on a connection."""
    parsed = http.client.HTTPResponse(connection)
    parsed.begin()
    told = {name.lower(): value for name, value in parsed.getheaders()}
    return Reply(parsed.status, told, parsed.read())


def raw(url: str, sent: bytes) -> Reply:
    """The answer to these bytes."""
    with connect(url) as connection:
        connection.sendall(sent)
        return answer(connection)


def open_session(url: str, ttl: float = 30.0) -> str:
    reply = ask(url, "POST", "/session", {"ttl": ttl})
    assert reply.status == 200, reply
    return str(reply.json["session"])


def take(url: str, name: str, **body: object) -> Reply:
    return ask(url, "POST", f"/lock/{quote(name)}", body)


def release(url: str, name: str, session: str, token: int) -> Reply:
    return ask(url, "DELETE", f"/lock/{quote(name)}?session={session}&token={token}")


def look(url: str, name: str) -> Any:
    reply = ask(url, "GET", f"/lock/{quote(name)}")
    assert reply.status == 200, reply
    return reply.json
