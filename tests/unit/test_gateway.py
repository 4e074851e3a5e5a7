"""The pure parts of the gateway: paths, names, Host, Origin, tokens, ids, bodies, the document."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.clients.errors import (
    BadName,
    Busy,
    CoterieError,
    Deadlock,
    Indeterminate,
    LockLost,
    PermissionDenied,
    SessionExpired,
    SettingsDiffer,
    Timeout,
    TooLarge,
    Unavailable,
)
from coterie.nodes.gateway import guard, page, paths, principals
from coterie.nodes.gateway.describe import document
from coterie.nodes.gateway.failures import Refusal, refusal_of
from coterie.nodes.gateway.locks import LockBody, Locks
from coterie.nodes.gateway.rooms import Asked
from coterie.nodes.gateway.sessions import SessionBody, Sessions


def refused(function: Any, *arguments: Any) -> int:
    """The status of the refusal."""
    with pytest.raises(Refusal) as caught:
        function(*arguments)
    assert caught.value.body["error"] and caught.value.body["message"]
    return caught.value.status


@pytest.mark.parametrize(
    ("target", "room", "rest", "query"),
    [
        ("/", "", None, ""),
        ("/lock", "lock", None, ""),
        ("/lock?prefix=a", "lock", None, "prefix=a"),
        ("/lock/", "lock", "", ""),
        ("/lock/orders/42", "lock", "orders/42", ""),
        ("/lock/a%3Fb?session=1", "lock", "a%3Fb", "session=1"),
        ("/lock//a", "lock", "/a", ""),
        ("/lock/a?b?c", "lock", "a", "b?c"),
    ],
)
def test_a_target_is_taken_apart(target: str, room: str, rest: str | None, query: str) -> None:
    assert paths.split(target) == (room, rest, query)


@pytest.mark.parametrize("target", ["", "*", "lock/a", "http://node1/lock/a", "node1:443"])
def test_what_is_no_path_is_refused(target: str) -> None:
    assert refused(paths.split, target) == 400


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("orders/42", "orders/42"),
        ("orders%2F42", "orders/42"),
        ("orders%2f42", "orders/42"),
        ("a%252Fb", "a%2Fb"),
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("%C3%A9t%C3%A9", "été"),
        ("été", "été"),
        ("a//b", "a//b"),
        ("/a", "/a"),
        ("...", "..."),
        ("a.b/..c", "a.b/..c"),
        ("x" * 255, "x" * 255),
        ("%25", "%"),
    ],
)
def test_a_name_is_decoded_once(raw: str, name: str) -> None:
    assert paths.name(raw) == name


@pytest.mark.parametrize(
    "raw",
    [
        "", ".", "..", "%2e", "%2E%2e", "a/../b", "a/%2e%2e/b", "../a", "a/.", "./a", "a%2f..",
        "a%00", "%00", "a%0d%0ab", "a%0A", "a%1f", "a%7f", "%", "a%", "a%2", "a%zz", "%u0041",
        "%ff", "%C3", "%c0%af", "%ed%a0%80", "\udcff", "x" * 256, "%C3%A9" * 128,
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(raw: str) -> None:
    assert refused(paths.name, raw) == 400


def test_parameters() -> None:
    assert paths.parameters("") == {}
    assert paths.parameters("session=a&token=7") == {"session": "a", "token": "7"}
    assert paths.parameters("prefix=") == {"prefix": ""}
    assert paths.parameters("prefix=a%2Fb") == {"prefix": "a/b"}
    for query in ("a", "a=1&a=2", "a=1&&b=2", "a=%ff", "&".join(f"k{n}=" for n in range(17))):
        assert refused(paths.parameters, query) == 400
    asked = Asked("GET", paths.split("/lock?prefix=a&x=1"), {}, b"")
    assert refused(asked.parameters, "prefix") == 400


HOSTS = {
    "localhost": True,
    "localhost:8001": True,
    "LOCALHOST": True,
    "localhost.": True,
    "127.0.0.1:8001": True,
    "192.168.1.7": True,
    "[::1]:8001": True,
    "[fe80::1%eth0]": True,
    "node1:8001": True,
    "NODE1": True,
    "evil.example": False,
    "localhost.evil.example": False,
    "127.0.0.1.evil.example": False,
    "localhost:8001@evil.example": False,
    "": False,
    ":8001": False,
    "[::1": False,
    "[::1]x": False,
    "node1:80:80": False,
    "127.1": False,
    "2130706433": False,
}


@pytest.mark.parametrize(("host", "good"), HOSTS.items())
def test_hosts(host: str, good: bool) -> None:
    assert guard.host_is_good(host, {"node1"}) is good


@pytest.mark.parametrize(
    ("hosts", "origins"),
    [
        (["evil.example"], []),
        ([], []),
        (["localhost", "localhost"], []),
        (["localhost:8001"], ["http://evil.example"]),
        (["localhost:8001"], ["null"]),
        (["localhost:8001"], [""]),
        (["localhost:8001"], ["http://localhost:8002"]),
        (["localhost:8001"], ["http://localhost"]),
        (["localhost:8001"], ["http://localhost:8001", "http://evil.example"]),
        (["localhost:8001"], ["file://localhost:8001"]),
        (["evil.example"], ["http://evil.example"]),
    ],
)
def test_foreign_pages_are_refused(hosts: list[str], origins: list[str]) -> None:
    assert refused(guard.check_origin, hosts, origins, ()) == 403


def test_our_own_page_is_not() -> None:
    guard.check_origin(["localhost:8001"], [], ())
    guard.check_origin(["localhost:8001"], ["http://localhost:8001"], ())
    guard.check_origin(["Node1:8001"], ["https://node1:8001"], {"node1"})


@pytest.mark.parametrize(
    "sent",
    [[], ["Bearer wrong"], ["secret"], ["Basic secret"], ["Bearer"], ["Bearer secrets"],
     ["Bearer secre"], ["Bearer secret", "Bearer secret"], ["Bearer secr\u00e9t"]],
)  # fmt: skip
def test_who_does_not_bear_the_token_is_refused(sent: list[str]) -> None:
    assert refused(guard.check_token, sent, "secret") == 401


def test_who_bears_the_token_passes() -> None:
    guard.check_token(["Bearer secret"], "secret")
    guard.check_token(["bearer  secret "], "secret")


def test_a_session_id_leads_to_its_client_and_not_back() -> None:
    one, other = "0" * 32, "0" * 31 + "1"
    assert principals.client_of(one) not in (0, principals.client_of(other))
    assert 0 < principals.client_of(one) < 2**64
    assert f"{principals.client_of(one):016x}" not in one
    for wrong in ("", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 31 + "\n", "é" * 32):
        assert principals.client_of(wrong) == 0


def test_a_key_leads_to_one_id_per_path_and_secret() -> None:
    made = [
        principals.from_key(key, path, secret)
        for key in ("k1", "k2")
        for path in ("session/None", "lock/a")
        for secret in ("", "token")
    ]
    assert len(set(made)) == 8 and all(principals.client_of(one) for one in made)
    assert made[0] == principals.from_key("k1", "session/None", "")


def test_keys() -> None:
    def asked(key: str) -> Asked:
        return Asked("POST", paths.split("/session"), {"Idempotency-Key": key}, b"")

    assert asked("0b54-1").idempotency_key() == "0b54-1"
    assert Asked("POST", paths.split("/session"), {}, b"").idempotency_key() == ""
    for wrong in ("", " ", "a b", "é", "x" * 256, "a\n"):
        assert refused(asked(wrong).idempotency_key) == 400


@pytest.mark.parametrize(
    "body",
    [b"[]", b"null", b"1", b"{", b'{"ttl":"30"}', b'{"ttl":0}', b'{"ttl":3601}', b'{"ttl":NaN}',
     b'{"ttl":1e999}', b'{"more":1}', b"\xff", b'{"name":"a b"}', b'{"name":"\\n"}', b"[" * 9_000],
)  # fmt: skip
def test_wrong_bodies_are_refused(body: bytes) -> None:
    assert refused(Asked("POST", paths.split("/session"), {}, body).json, SessionBody) == 400


@pytest.mark.parametrize(
    "body",
    [b'{"timeout":-1}', b'{"timeout":3601}', b'{"shared":1}', b'{"session":1}', b'{"token":1}'],
)
def test_wrong_bodies_of_locks_are_refused(body: bytes) -> None:
    assert refused(Asked("POST", paths.split("/lock/a"), {}, body).json, LockBody) == 400


def test_no_body_is_an_empty_one() -> None:
    assert Asked("POST", paths.split("/lock/a"), {}, b"").json(LockBody) == LockBody()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Timeout("x"), 408), (Deadlock("x", cycle=[("1", "2", "a")]), 409), (LockLost("x"), 409),
        (SettingsDiffer("x"), 409), (BadName("x"), 400), (TooLarge("x"), 413), (Busy("x"), 429),
        (Unavailable("x"), 503), (Indeterminate("x"), 503), (PermissionDenied("x"), 404),
        (CoterieError("x"), 503), (SessionExpired("x"), 503),
    ],
)  # fmt: skip
def test_errors_have_a_fitting_status(error: CoterieError, status: int) -> None:
    refusal = refusal_of(error)
    assert refusal.status == status
    assert ("Retry-After" in refusal.headers) is (status in (429, 503))
    assert refusal.body.get("cycle", []) == getattr(error, "cycle", [])


def test_the_document_tells_every_route() -> None:
    sessions: Any = Sessions(None, "node1", "")  # type: ignore[arg-type]
    routes = [*sessions.routes(), *Locks(None, sessions).routes()]  # type: ignore[arg-type]
    told = document(routes, "1", token=True)
    assert set(told["paths"]) == {"/session", "/session/{id}", "/lock", "/lock/{name}"}
    assert set(told["paths"]["/lock/{name}"]) == {"get", "post", "delete"}
    for methods in told["paths"].values():
        for operation in methods.values():
            assert operation["security"] == [{"token": []}]
            assert {"200", "401", "403", "429", "503"} <= set(operation["responses"])
    assert {"LockBody", "LockTaken", "SessionOpened", "Error"} <= set(told["components"]["schemas"])


def test_the_page_loads_nothing() -> None:
    text = page.PAGE.decode()
    assert "http://" not in text and "https://" not in text and "src=" not in text
    assert "innerHTML" not in text and "'unsafe-inline'" not in page.POLICY
    assert page.POLICY.startswith("default-src 'none'")
