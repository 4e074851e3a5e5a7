"""Nodes killed and paused under callers that have only HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from http_asking import Reply, ask, look, open_session, release, take
from processes import until

import coterie


@pytest.fixture(scope="module")
def cluster() -> Iterator[coterie.LocalCluster]:
    """A cluster of our own: the nodes are killed here."""
    with coterie.LocalCluster(3) as cluster:
        yield cluster


def health(url: str) -> Reply:
    return ask(url, "GET", "/health")


def healthy(cluster: coterie.LocalCluster) -> None:
    def all_are() -> bool:
        told = [health(url) for url in cluster.http]
        leaders = {reply.json["leader"] for reply in told}
        return {reply.status for reply in told} == {200} and len(leaders) == 1

    until(all_are, "all nodes are healthy")


def test_a_lock_survives_the_node_it_was_taken_at(cluster: coterie.LocalCluster) -> None:
    healthy(cluster)
    leader = cluster.leader()
    second, third = (url for index, url in enumerate(cluster.http) if index != leader)
    session = open_session(cluster.http[leader])
    taken = take(cluster.http[leader], "kept", session=session).json
    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(take, second, "kept", timeout=60)
        until(lambda: look(third, "kept")["waiters"], "somebody waits")
        cluster.kill(leader)
        until(lambda: health(second).status == 200, "there is a leader again")
        assert ask(second, "PUT", f"/session/{session}").status == 200
        assert look(third, "kept")["token"] == taken["token"]
        assert take(third, "kept", session=session).json == taken, "still its own"
        assert release(third, "kept", session, taken["token"]).status == 200
        assert asked.result().json["token"] > taken["token"]
    cluster.restart(leader)
    healthy(cluster)
    until(lambda: look(cluster.http[leader], "kept")["token"] > taken["token"], "it has caught up")


def test_health_tells_of_the_quorum_and_life_goes_on(cluster: coterie.LocalCluster) -> None:
    healthy(cluster)
    first = cluster.http[0]
    told = health(first).json
    assert told["status"] == "healthy" and told["quorum"] and told["leader"]
    assert told["members"] == told["answering"] == 3 and told["node_id"] == "node1"
    assert told["role"] in ("leader", "follower") and told["term"] > 0
    assert told["durability"] == "fsync" and told["insecure"] is False and told["version"]
    for index in (1, 2):
        cluster.pause(index)
    until(lambda: health(first).status == 503, "the lost quorum is told")
    told = health(first).json
    assert told["status"] == "no quorum" and not told["quorum"] and told["answering"] == 1
    assert ask(first, "GET", "/live").status == 200
    assert ask(first, "GET", "/metrics").status == 200
    refused = ask(first, "GET", "/lock")
    assert refused.status == 503 and refused.headers["retry-after"] and refused.error
    for index in (1, 2):
        cluster.resume(index)
    healthy(cluster)
    assert take(first, "after").status == 200


def test_a_session_opened_without_a_quorum_is_not_there(cluster: coterie.LocalCluster) -> None:
    healthy(cluster)
    first = cluster.http[0]
    for index in (1, 2):
        cluster.pause(index)
    until(lambda: health(first).status == 503, "the lost quorum is told")
    refused = take(first, "nobody")
    assert refused.status == 503 and refused.error in ("Unavailable", "Indeterminate")
    for index in (1, 2):
        cluster.resume(index)
    healthy(cluster)
    assert look(first, "nobody")["holders"] == look(first, "nobody")["waiters"] == []


def test_a_node_that_was_paused_answers_for_what_others_did(cluster: coterie.LocalCluster) -> None:
    healthy(cluster)
    follower = next(index for index in range(3) if index != cluster.leader())
    other = cluster.http[cluster.leader()]
    session = open_session(cluster.http[follower], ttl=60)
    cluster.pause(follower)
    taken = take(other, "meanwhile", session=session).json
    cluster.resume(follower)
    until(lambda: health(cluster.http[follower]).status == 200, "the node is back")
    assert take(cluster.http[follower], "meanwhile", session=session).json == taken
    assert release(cluster.http[follower], "meanwhile", session, taken["token"]).status == 200
