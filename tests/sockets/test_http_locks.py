"""Sessions and locks over HTTP on real nodes: any node answers for any session."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from http_asking import Reply, ask, connect, look, open_session, release, take
from processes import until

import coterie

NUMBERS = count()


@pytest.fixture
def name() -> str:
    return f"http/{time.monotonic_ns()}/{next(NUMBERS)}"


@pytest.fixture(scope="module")
def nodes(cluster: coterie.LocalCluster) -> list[str]:
    return cluster.http


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def waiting(url: str, name: str, number: int = 1) -> None:
    until(lambda: len(look(url, name)["waiters"]) == number, f"{number} wait for {name}")


def free(url: str, name: str) -> None:
    until(lambda: not look(url, name)["holders"], f"{name} is free")


def test_taken_on_one_node_seen_on_another_released_on_a_third(nodes: list[str], name: str) -> None:
    session = open_session(nodes[0])
    taken = take(nodes[0], name, session=session)
    assert taken.status == 200 and taken.json["session"] == session
    token = taken.json["token"]
    seen = look(nodes[1], name)
    assert seen["token"] == token and seen["mode"] == "exclusive" and not seen["waiters"]
    assert session not in json.dumps(seen), "the id of a session is a secret"
    assert name in [
        lock["name"] for lock in ask(nodes[1], "GET", "/lock?prefix=http/").json["locks"]
    ]
    assert release(nodes[2], name, session, token).json == {"released": True}
    assert look(nodes[0], name)["holders"] == []
    assert release(nodes[1], name, session, token).error == "LockLost"


def test_a_session_is_kept_and_ended_at_any_node(nodes: list[str], name: str) -> None:
    session = open_session(nodes[0], ttl=20)
    for url in nodes:
        assert ask(url, "PUT", f"/session/{session}").json == {"session": session, "ttl": 20}
    assert take(nodes[1], name, session=session).status == 200
    assert ask(nodes[2], "DELETE", f"/session/{session}").status == 200
    assert look(nodes[0], name)["holders"] == []
    for url in nodes:
        assert ask(url, "PUT", f"/session/{session}").error == "SessionExpired"
        assert take(url, name, session=session).status == 404
    assert ask(nodes[0], "DELETE", f"/session/{session}").status == 200, "it is ended already"


def test_a_session_expires_and_not_while_any_node_hears_of_it(nodes: list[str], name: str) -> None:
    kept, left = open_session(nodes[0], ttl=1), open_session(nodes[0], ttl=1)
    assert take(nodes[0], name, session=kept).status == 200
    assert take(nodes[1], f"{name}/left", session=left).status == 200
    turns = iter(range(10_000))

    def expired() -> bool:
        assert ask(nodes[next(turns) % 3], "PUT", f"/session/{kept}").status == 200
        return not look(nodes[2], f"{name}/left")["holders"]

    until(expired, "the session nobody kept alive has expired")
    assert len(look(nodes[1], name)["holders"]) == 1
    assert ask(nodes[1], "PUT", f"/session/{left}").status == 404


def test_asking_again_is_the_same(nodes: list[str], name: str) -> None:
    session = open_session(nodes[0])
    first = take(nodes[0], name, session=session).json
    for url in nodes:
        assert take(url, name, session=session).json == first
    assert take(nodes[1], name, session=session, shared=True).error == "SettingsDiffer"
    assert len(look(nodes[2], name)["holders"]) == 1
    release(nodes[1], name, session, first["token"])
    assert look(nodes[2], name)["holders"] == []


def test_a_wait_is_joined_from_other_nodes(
    nodes: list[str], name: str, threads: ThreadPoolExecutor
) -> None:
    holder, session = open_session(nodes[0]), open_session(nodes[0])
    held = take(nodes[0], name, session=holder).json
    asked = [threads.submit(take, url, name, session=session) for url in (*nodes, *nodes)]
    waiting(nodes[0], name)
    release(nodes[2], name, holder, held["token"])
    replies = [future.result() for future in asked]
    assert {reply.status for reply in replies} == {200}
    assert len({reply.json["token"] for reply in replies}) == 1
    assert release(nodes[0], name, session, replies[0].json["token"]).status == 200
    assert look(nodes[1], name)["holders"] == []


def test_without_a_session_one_is_opened(nodes: list[str], name: str) -> None:
    taken = take(nodes[0], name, ttl=5).json
    assert ask(nodes[1], "PUT", f"/session/{taken['session']}").json["ttl"] == 5
    assert release(nodes[2], name, taken["session"], taken["token"]).status == 200


def test_shared_locks_are_shared(nodes: list[str], name: str) -> None:
    taken = [take(url, name, shared=True).json for url in nodes]
    assert len({one["token"] for one in taken}) == 1
    seen = look(nodes[0], name)
    assert seen["mode"] == "shared" and len(seen["holders"]) == 3
    assert take(nodes[1], name, timeout=0).error == "Timeout"


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_what_is_not_had_in_time_leaves_nobody_waiting(
    nodes: list[str], name: str, timeout: float
) -> None:
    held = take(nodes[0], name).json
    refused = take(nodes[1], name, timeout=timeout)
    assert refused.status == 408 and refused.error == "Timeout"
    assert look(nodes[2], name)["waiters"] == []
    assert release(nodes[0], name, held["session"], held["token"]).status == 200


def test_who_hangs_up_leaves_no_wait_and_no_session(nodes: list[str], name: str) -> None:
    held = take(nodes[0], name).json
    body = b'{"timeout": 60}'
    head = f"POST /lock/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(nodes[1]) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        waiting(nodes[0], name)
    waiting(nodes[2], name, 0)
    release(nodes[0], name, held["session"], held["token"])
    free(nodes[2], name)


def test_what_could_not_be_told_is_given_back(nodes: list[str], name: str) -> None:
    """Callers that are gone before the answer: while their session is opened, or their lock taken.
    (One that hangs up with the answer on its way was told, as far as a node can know.)"""
    reset = struct.pack("ii", 1, 0)
    for number in range(30):
        head = f"POST /lock/{name}/{number} HTTP/1.1\r\nHost: localhost\r\n"
        with connect(nodes[number % 3]) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            connection.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
    # sooner than by the end of their sessions' 30 s
    until(lambda: not held(nodes[1], name), "all are given back", 20)


def held(url: str, prefix: str) -> list[str]:
    reply = ask(url, "GET", f"/lock?prefix={prefix}")
    return [lock["name"] for lock in reply.json["locks"]]


def test_who_hangs_up_takes_nothing_from_one_who_asks_too(nodes: list[str], name: str) -> None:
    held, session = take(nodes[0], name).json, open_session(nodes[0])
    body = json.dumps({"session": session, "timeout": 60}).encode()
    head = f"POST /lock/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def hung_up(connection: socket.socket, url: str) -> None:
        """Hang up, and wait until what the node does about it has reached the cluster."""
        connection.close()
        until(lambda: under_way(url) == 1, "the node has noticed")
        assert take(url, f"{name}/after/{next(NUMBERS)}").status == 200

    connections = [connect(url) for url in nodes]
    for connection, url in zip(connections, nodes, strict=True):
        connection.sendall(request)
        until(lambda url=url: under_way(url) == 2, "it is asked")
        waiting(nodes[0], name)
    number = look(nodes[0], name)["waiters"][0]["number"]
    hung_up(connections[1], nodes[1])
    hung_up(connections[0], nodes[0])
    assert [one["number"] for one in look(nodes[0], name)["waiters"]] == [number], "in its place"
    hung_up(connections[2], nodes[2])
    assert look(nodes[0], name)["waiters"] == [], "nobody is there who asks"
    assert ask(nodes[0], "PUT", f"/session/{session}").status == 200
    release(nodes[0], name, held["session"], held["token"])
    free(nodes[1], name)


def under_way(url: str) -> int:
    """Requests at a node, this one included."""
    return int(ask(url, "GET", "/metrics").json["http"]["under_way"])


def test_who_waits_is_alive(nodes: list[str], name: str, threads: ThreadPoolExecutor) -> None:
    held, session = take(nodes[0], name).json, open_session(nodes[0], ttl=1)
    other = open_session(nodes[0], ttl=1)
    asked = threads.submit(take, nodes[1], name, session=session, timeout=60)
    waiting(nodes[0], name)

    def expired() -> bool:
        return take(nodes[2], f"{name}/other", session=other).status == 404

    until(expired, "the session nobody keeps alive has expired")
    assert len(look(nodes[0], name)["waiters"]) == 1
    release(nodes[0], name, held["session"], held["token"])
    assert asked.result().status == 200


def test_an_idempotency_key_gives_one_session_at_all_nodes(nodes: list[str], name: str) -> None:
    def keyed(url: str, path: str, body: object = None) -> Reply:
        return ask(url, "POST", path, body, headers={"Idempotency-Key": f"key-of-{name}"})

    opened = [keyed(url, "/session", {"ttl": 9}).json for url in nodes]
    assert len({one["session"] for one in opened}) == 1
    taken = [keyed(url, f"/lock/{name}", {"ttl": 9}).json for url in (*nodes, *nodes)]
    assert len({(one["session"], one["token"]) for one in taken}) == 1
    assert taken[0]["session"] != opened[0]["session"]
    assert len(look(nodes[1], name)["holders"]) == 1
    other = ask(nodes[0], "POST", "/session", headers={"Idempotency-Key": "another"})
    assert other.json["session"] != opened[0]["session"]


def test_only_the_owner_with_the_token_releases(nodes: list[str], name: str) -> None:
    taken, stranger = take(nodes[0], name).json, open_session(nodes[1])
    session, token = taken["session"], taken["token"]
    assert release(nodes[1], name, stranger, token).error == "LockLost"
    assert release(nodes[1], name, session, token + 1).error == "LockLost"
    assert release(nodes[1], name, "0" * 32, token).error == "SessionExpired"
    for query in ("", f"?session={session}", f"?token={token}", f"?session={session}&token=x",
                  f"?session={session}&token=0", f"?session={session}&token=-1",
                  f"?session={session}&token={10**30}"):  # fmt: skip
        assert ask(nodes[1], "DELETE", f"/lock/{name}{query}").status == 400
    assert look(nodes[2], name)["token"] == token


def test_names_are_decoded_once(nodes: list[str], name: str) -> None:
    taken = ask(nodes[0], "POST", f"/lock/{name}%2Fa%252Fb%20c").json
    assert look(nodes[1], f"{name}/a%2Fb c")["token"] == taken["token"]
    assert look(nodes[1], f"{name}/a/b c")["token"] == 0


def test_python_and_http_meet_in_one_table(
    cluster: coterie.LocalCluster, nodes: list[str], name: str, threads: ThreadPoolExecutor
) -> None:
    with cluster.client() as client:
        lock = client.lock(name)
        assert lock.acquire()
        first = lock.token
        asked = threads.submit(take, nodes[2], name)
        waiting(nodes[0], name)
        lock.release()
        taken = asked.result().json
        assert taken["token"] > first
        assert not lock.acquire(timeout=0.1)
        release(nodes[1], name, taken["session"], taken["token"])
        assert lock.acquire(timeout=30) and lock.token > taken["token"]


def test_waiters_are_served_in_order(
    nodes: list[str], name: str, threads: ThreadPoolExecutor
) -> None:
    held = take(nodes[0], name).json
    asked = []
    for number, url in enumerate((*nodes, *nodes), 1):
        asked.append(threads.submit(take, url, name))
        waiting(nodes[0], name, number)
    tokens = []
    for future in asked:
        assert release(nodes[1], name, held["session"], held["token"]).status == 200
        held = future.result().json
        tokens.append(held["token"])
    assert tokens == sorted(set(tokens))


def test_lists_come_in_pages_and_by_prefix(nodes: list[str], name: str) -> None:
    session = open_session(nodes[0])
    for one in "abc":
        take(nodes[0], f"{name}/{one}", session=session)
    listed = ask(nodes[1], "GET", f"/lock?prefix={name}/&after={name}/a").json
    assert [lock["name"][-1] for lock in listed["locks"]] == ["b", "c"] and not listed["more"]
    assert ask(nodes[1], "GET", "/lock?x=1").status == 400
