"""What a node refuses over HTTP, and that none of it does harm."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_asking import Reply, answer, ask, connect, look, open_session, raw, take
from processes import until

import coterie
from coterie.nodes.gateway.connections import CONNECTIONS_MAX
from coterie.nodes.gateway.server import BODY_BYTES_MAX

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
PATHS = (
    "/", "/metrics", "/openapi.json", "/session", "/session/" + "0" * 32, "/lock", "/lock/a",
    "/lock/a?session=" + "0" * 32 + "&token=1", "/nothing",
)  # fmt: skip
FOREIGN = (
    {"Host": "evil.example"},
    {"Host": "localhost.evil.example:8001"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
)
TOKEN = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def node(cluster: coterie.LocalCluster) -> str:
    return cluster.http[0]


@pytest.fixture(scope="module")
def guarded() -> Iterator[coterie.LocalCluster]:
    """A cluster of one node that asks for a token."""
    with coterie.LocalCluster(1, env={"COTERIE_HTTP_TOKEN": TOKEN}) as cluster:
        yield cluster


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: next(iter(headers.values())))
def test_foreign_pages_are_refused_whatever_they_ask(
    node: str, path: str, headers: dict[str, str]
) -> None:
    session = open_session(node)
    for method in METHODS:
        reply = ask(node, method, path.replace("0" * 32, session), headers=headers)
        assert reply.status == 403, (method, reply)
    assert ask(node, "PUT", f"/session/{session}").status == 200


def test_health_is_told_to_everybody(node: str) -> None:
    for path in ("/health", "/live"):
        for headers in FOREIGN:
            assert ask(node, "GET", path, headers=headers).status == 200
        assert ask(node, "DELETE", path, headers=FOREIGN[0]).status == 403


def test_our_own_page_may_ask(node: str) -> None:
    assert ask(node, "GET", "/lock", headers={"Origin": node}).status == 200


@pytest.mark.parametrize(
    "lines",
    ["", "Host: localhost\r\nHost: localhost\r\n", "Host:\r\n"],
    ids=["none", "two", "empty"],
)
def test_one_host_is_named(node: str, lines: str) -> None:
    reply = raw(node, f"GET /lock HTTP/1.1\r\n{lines}\r\n".encode())
    assert reply.status in (400, 403) and reply.error


def test_a_token_is_asked_for(guarded: coterie.LocalCluster) -> None:
    (url,) = guarded.http
    bearing = {"Authorization": f"Bearer {TOKEN}"}
    for path in PATHS:
        for method in METHODS:
            if (method, path) == ("GET", "/"):
                continue
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
                reply = ask(url, method, path, headers=headers)
                assert reply.status == 401, (method, path, reply)
                assert reply.headers["www-authenticate"] == "Bearer"
    assert ask(url, "GET", "/").status == ask(url, "GET", "/health").status == 200
    assert ask(url, "GET", "/lock", headers=bearing).status == 200
    assert ask(url, "POST", "/lock/a", headers=bearing).status == 200
    assert ask(url, "GET", "/lock", headers={**bearing, "Host": "evil.example"}).status == 403


def test_a_token_is_told_to_nobody(guarded: coterie.LocalCluster) -> None:
    (url,) = guarded.http
    bearing = {"Authorization": f"Bearer {TOKEN}"}
    session = ask(url, "POST", "/session", headers=bearing).json["session"]
    for path in ("/health", "/metrics", "/openapi.json", "/lock", "/"):
        told = ask(url, "GET", path, headers=bearing).body.decode()
        assert TOKEN not in told and session not in told
    for path in Path(guarded.data_dir).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content and session.encode() not in content, path


BAD_NAMES = (
    "", ".", "..", "%2e%2e", "a/../b", "../a", "a%00", "%0d%0aX-Injected:%201", "a%0ab", "%7f",
    "%", "%zz", "%ff", "%C3", "x" * 256, "%61" * 256,
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(node: str, name: str) -> None:
    for method in ("GET", "POST"):
        reply = ask(node, method, f"/lock/{name}")
        assert (reply.status, reply.error) == (400, "BadName"), (method, reply)
    query = "?session=" + "0" * 32 + "&token=1"
    assert ask(node, "DELETE", f"/lock/{name}{query}").status == 400
    assert "x-injected" not in ask(node, "GET", f"/lock/{name}").headers


@pytest.mark.parametrize(
    "target",
    [b"/lock/a\x00b", b"/lock/a\x01", b"/lock/a\r", b"/lock/a b", b"lock", b"*", b"//", b"?",
     b"http://evil.example/lock", b"/lock/" + b"a" * 10_000, b"/\xff"],
)  # fmt: skip
def test_raw_targets_do_no_harm(node: str, target: bytes) -> None:
    reply = raw(node, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert 400 <= reply.status < 500 and reply.error


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET / HTTP/9.9\r\n\r\n",
        b"FROB /lock HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /lock HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        b"GET /lock HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /lock HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n{}",
        b"POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n"
        b"Content-Type: application/json\r\n\r\n{} ",
        b"POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n"
        b"Content-Type: application/json\r\n\r\n",
        b"POST /session HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\nzz\r\n",
    ],
    ids=["tls", "version", "method", "header", "long", "many", "CL+TE", "CL+CL", "CL", "chunk"],
)
def test_what_is_no_good_http_is_refused(node: str, sent: bytes) -> None:
    reply = raw(node, sent)
    assert 400 <= reply.status < 500 and reply.error
    assert ask(node, "GET", "/live").status == 200


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/",
     "application/jsonp", "text/plain;application/json"],
)  # fmt: skip
def test_only_json_is_taken(node: str, kind: str) -> None:
    headers = {"Content-Type": kind}
    for path in ("/session", "/lock/json-only"):
        reply = ask(node, "POST", path, b'{"ttl": 5}', headers=headers)
        assert (reply.status, reply.error) == (415, "UnsupportedMediaType")
    assert not look(node, "json-only")["holders"]
    good = {"Content-Type": "application/json; charset=utf-8"}
    assert ask(node, "POST", "/session", b'{"ttl": 5}', headers=good).json["ttl"] == 5


def test_a_compressed_body_is_refused(node: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert ask(node, "POST", "/session", b"\x1f\x8b", headers=headers).status == 415


def test_a_large_body_is_refused(node: str) -> None:
    fits = b'{"ttl":5}'.ljust(BODY_BYTES_MAX)
    json = {"Content-Type": "application/json"}
    assert ask(node, "POST", "/session", fits, headers=json).status == 200
    head = "POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    told = raw(node, f"{head}Content-Length: {BODY_BYTES_MAX + 1}\r\n\r\n".encode())
    assert (told.status, told.error) == (413, "TooLarge")
    chunk = b"1000\r\n" + bytes(0x1000) + b"\r\n"
    with connect(node) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(chunk * (BODY_BYTES_MAX // 0x1000 + 1))
        assert answer(connection).status == 413


def test_a_continuation_is_told(node: str) -> None:
    head = "POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(node) as connection:
        connection.sendall(f"{head}Content-Length: 9\r\nExpect: 100-continue\r\n\r\n".encode())
        until(lambda: connection.recv(64, socket.MSG_PEEK).endswith(b"\r\n\r\n"), "100 Continue")
        assert connection.recv(64).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b'{"ttl":5}')
        assert answer(connection).json["ttl"] == 5
    assert raw(node, f"{head}Content-Length: 2\r\nExpect: tea\r\n\r\n{{}}".encode()).status == 417


def test_a_body_may_come_in_drips(node: str) -> None:
    head = "POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(node) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(f"{head}Content-Length: 9\r\n\r\n".encode())
        for byte in b'{"ttl":5}':
            connection.send(bytes([byte]))
        assert answer(connection).json["ttl"] == 5


def test_a_body_that_does_not_come_times_out(node: str) -> None:
    head = "POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    reply = raw(node, f"{head}Content-Length: 9\r\n\r\n{{".encode())
    assert (reply.status, reply.error) == (408, "Timeout")
    assert reply.headers["connection"] == "close"


def test_other_methods_are_refused(node: str) -> None:
    allowed = {
        "/session": "POST", "/session/" + "0" * 32: "PUT, DELETE", "/lock": "GET",
        "/lock/a": "GET, POST, DELETE", "/health": "GET", "/live": "GET", "/metrics": "GET",
    }  # fmt: skip
    for path, methods in allowed.items():
        for method in set(METHODS) - set(methods.split(", ")):
            reply = ask(node, method, path)
            assert (reply.status, reply.headers["allow"]) == (405, methods), (method, path)
    assert ask(node, "GET", "/nothing").error == ask(node, "PUT", "/lock/a/").error or True
    for path in ("/nothing", "/health/", "/Lock", "/lock%2Fa", "/session//"):
        assert ask(node, "GET", path).status in (404, 405)


def test_answers_carry_no_more_than_they_should(node: str) -> None:
    reply = ask(node, "GET", "/lock")
    assert reply.headers["server"] == "coterie"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in reply.headers
    page = ask(node, "GET", "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_requests_may_follow_each_other_on_one_connection(node: str) -> None:
    with connect(node) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        replies = [answer_within(connection) for _ in range(50)]
    assert {reply.status for reply in replies} == {200}


def answer_within(connection: socket.socket) -> Reply:
    """An answer of which not one byte more is read than it has."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    length = int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0])
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return Reply(int(head.split(b" ")[1]), {}, body)


def test_idle_connections_do_no_harm(node: str) -> None:
    wanted = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted + 500:
        pytest.skip(f"this system grants {hard} descriptors, {wanted + 500} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 500), hard))
    idle: list[socket.socket] = []
    try:
        for number in range(wanted):
            idle.append(connect(node))
            if number % 1_000 == 0:
                assert take(node, f"idle/{time.monotonic_ns()}").status == 200
        assert take(node, f"idle/{time.monotonic_ns()}").status == 200
        told = ask(node, "GET", "/metrics").json["http"]
        assert told["connections"] <= CONNECTIONS_MAX
        assert told["connections_evicted"] >= wanted - 2 * CONNECTIONS_MAX
        assert told["connections_refused"] == 0
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ask(node, "GET", "/health").status == 200
