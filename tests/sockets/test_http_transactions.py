"""Transactions over HTTP: two-phase, at any node, and in one lock table with those of Python."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from http_asking import Reply, ask, connect, look, open_session, release, take
from processes import until

import coterie


@pytest.fixture
def name() -> str:
    return f"transaction/{time.monotonic_ns()}"


@pytest.fixture(scope="module")
def nodes(cluster: coterie.LocalCluster) -> list[str]:
    return cluster.http


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def begin(url: str, **body: object) -> Any:
    reply = ask(url, "POST", "/transaction", body)
    assert reply.status == 200, reply
    return reply.json


def end(url: str, begun: Any, more: str = "") -> Reply:
    path = f"/transaction/{begun['transaction']}?session={begun['session']}{more}"
    return ask(url, "DELETE", path)


def waits(url: str, name: str, number: int = 1) -> None:
    until(lambda: len(look(url, name)["waiters"]) == number, f"{number} wait for {name}")


def test_its_locks_go_together_at_any_node(nodes: list[str], name: str) -> None:
    begun = begin(nodes[0])
    for url, lock in zip(nodes, "abc", strict=True):
        taken = take(url, f"{name}/{lock}", **begun)
        assert taken.status == 200
        assert take(nodes[0], f"{name}/{lock}", **begun).json == taken.json, "once is enough"
        early = release(url, f"{name}/{lock}", begun["session"], taken.json["token"])
        assert early.error == "LockLost", "a transaction's lock is held until it ends"
    listed = ask(nodes[1], "GET", f"/lock?prefix={name}").json["locks"]
    assert [len(lock["holders"]) for lock in listed] == [1, 1, 1]
    assert end(nodes[2], begun).json == {"ended": True}
    assert ask(nodes[1], "GET", f"/lock?prefix={name}").json["locks"] == []
    assert end(nodes[2], begun).error == "LockLost"
    assert end(nodes[2], begun, "&abort=true").status == 200
    assert take(nodes[0], name, **begun).error == "LockLost"


def test_it_ends_with_its_session(nodes: list[str], name: str) -> None:
    session = open_session(nodes[0])
    begun = begin(nodes[1], session=session)
    assert begun["session"] == session
    assert take(nodes[2], name, **begun).status == 200
    ask(nodes[1], "DELETE", f"/session/{session}")
    assert look(nodes[0], name)["holders"] == []
    assert end(nodes[0], begun).error == "SessionExpired"


def test_a_shared_lock_is_upgraded(nodes: list[str], name: str) -> None:
    begun = begin(nodes[0])
    shared = take(nodes[0], name, shared=True, **begun).json
    exclusive = take(nodes[1], name, **begun).json
    assert exclusive["token"] > shared["token"] and look(nodes[2], name)["mode"] == "exclusive"


def test_a_deadlock_is_told_to_its_victim(
    nodes: list[str], name: str, threads: ThreadPoolExecutor
) -> None:
    first, second = begin(nodes[0]), begin(nodes[1])
    assert first["transaction"] < second["transaction"]
    take(nodes[0], f"{name}/a", **first)
    take(nodes[1], f"{name}/b", **second)
    asked = threads.submit(take, nodes[2], f"{name}/b", timeout=60, **first)
    waits(nodes[0], f"{name}/b")
    victim = take(nodes[2], f"{name}/a", timeout=60, **second)
    assert (victim.status, victim.error) == (409, "Deadlock")
    edges = {(waiter, holder) for waiter, holder, _ in victim.json["cycle"]}
    ids = first["transaction"], second["transaction"]
    assert edges == {ids, ids[::-1]}
    assert asked.result().status == 200, "the other goes on"
    assert end(nodes[0], second).error == "Deadlock"
    assert end(nodes[1], first).status == 200


def test_a_victim_that_waits_is_told(
    nodes: list[str], name: str, threads: ThreadPoolExecutor
) -> None:
    first, second = begin(nodes[0]), begin(nodes[1])
    take(nodes[0], f"{name}/a", **first)
    take(nodes[1], f"{name}/b", **second)
    asked = threads.submit(take, nodes[2], f"{name}/a", timeout=60, **second)
    waits(nodes[0], f"{name}/a")
    assert take(nodes[0], f"{name}/b", timeout=60, **first).status == 200
    victim = asked.result()
    assert (victim.status, victim.error) == (409, "Deadlock") and victim.json["cycle"]


def test_two_over_http_and_two_in_python_meet_in_one_table(
    cluster: coterie.LocalCluster, nodes: list[str], name: str, threads: ThreadPoolExecutor
) -> None:
    """Four transactions in a ring: each holds its own lock and asks for the next one's."""
    locks = [f"{name}/{lock}" for lock in "abcd"]
    with cluster.client() as one, cluster.client() as other:
        python = [one.transaction(), other.transaction()]
        web = [begin(url) for url in nodes[:2]]
        python[0].lock(locks[0])
        take(nodes[0], locks[1], **web[0])
        python[1].lock(locks[2])
        take(nodes[1], locks[3], **web[1])
        ids = [python[0].id, web[0]["transaction"], python[1].id, web[1]["transaction"]]

        def ask_next(place: int) -> object:
            lock = locks[(place + 1) % 4]
            if place % 2:
                reply = take(nodes[2], lock, timeout=60, **web[place // 2])
                return "Deadlock" if reply.status == 409 else reply.status
            try:
                python[place // 2].lock(lock)
            except coterie.Deadlock:
                return "Deadlock"
            return 200

        order = sorted(range(4), key=lambda place: ids[place])
        asked = {}
        for place in order[:-1]:
            asked[place] = threads.submit(ask_next, place)
            waits(nodes[0], locks[(place + 1) % 4])
        assert ask_next(order[-1]) == "Deadlock", "the youngest closes the ring and dies"
        finished = [(order[-1] - 1) % 4, (order[-1] - 2) % 4, (order[-1] - 3) % 4]
        for place in finished:
            assert asked[place].result(60) == 200
            if place % 2:
                assert end(nodes[0], web[place // 2]).status == 200
            else:
                python[place // 2].commit()
    listed = ask(nodes[1], "GET", f"/lock?prefix={name}").json["locks"]
    assert listed == []


def test_who_hangs_up_leaves_the_transaction_as_it_was(nodes: list[str], name: str) -> None:
    held, begun = take(nodes[0], name).json, begin(nodes[1])
    take(nodes[1], f"{name}/own", **begun)
    body = f'{{"session": "{begun["session"]}", "transaction": {begun["transaction"]}}}'.encode()
    head = f"POST /lock/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(nodes[2]) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        waits(nodes[0], name)
    waits(nodes[0], name, 0)
    assert len(look(nodes[0], f"{name}/own")["holders"]) == 1
    assert release(nodes[0], name, held["session"], held["token"]).status == 200
    assert take(nodes[0], name, **begun).status == 200


def test_what_has_no_meaning_is_refused(nodes: list[str], name: str) -> None:
    begun, stranger = begin(nodes[0]), open_session(nodes[0])
    number = begun["transaction"]
    assert take(nodes[0], name, transaction=number).status == 400
    assert take(nodes[0], name, transaction=number, session=stranger).error == "LockLost"
    assert take(nodes[0], name, transaction=0, session=stranger).status == 400
    assert ask(nodes[0], "DELETE", f"/transaction/{number}").status == 400
    assert ask(nodes[0], "DELETE", f"/transaction/x?session={stranger}").status == 400
    assert end(nodes[0], begun, "&abort=maybe").status == 400
    assert end(nodes[0], {**begun, "session": stranger}).error == "LockLost"
    assert ask(nodes[0], "POST", "/transaction", {"session": "0" * 32}).status == 404
    assert ask(nodes[0], "POST", "/transaction", {"first": 1}).status == 400
    assert end(nodes[0], begun).status == 200
