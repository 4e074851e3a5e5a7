"""Metrics: made of a status, in JSON and in a text that Prometheus's own parser reads."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coterie.nodes.counters import BOUNDS_S, Counters, Histogram, quantile_s
from coterie.nodes.metrics import document, prometheus
from coterie.protocols.errors import Code
from coterie.protocols.lock.messages import Granted, GrantedLater, Queued, Released
from coterie.protocols.plugin import Failure, Request, Result


def request(plugin: str, received_s: float, operations: int = 1) -> Request:
    return Request(plugin, 7, 8, 0, 0, 0, [1] * operations, [], received_s=received_s)


def counted() -> Counters:
    counters = Counters()
    counters.turn(0.0004, 3)
    counters.turn(0.0100, 0)
    results: list[Result] = [Granted(1, 1), Queued(2), Failure(Code.BUSY, "later")]
    counters.answered([(request("lock", 1.0, 3), results)], 1.004)
    counters.answered([(request("lock", 1.0), [Released()])], 1.001)
    counters.answered([(request("session", 1.0), [Failure(Code.NOT_LEADER, "")])], 1.001)
    counters.hinted("lock", [GrantedLater(8, 2, 2)])
    counters.dropped["multipart"] += 2
    return counters


def group(role: str, **more: Any) -> dict[str, Any]:
    return {
        "role": role, "term": 5, "leader": "node1", "first_index": 11, "last_index": 40,
        "commit": 38, "applied": 35, "log_bytes": 4096, "time_us": 1, "members": [], "match": {},
        **more,
    }  # fmt: skip


@pytest.fixture
def status() -> dict[str, Any]:
    """As `NodeProcess.status()` gives it: a leader of group 0 that follows in group 1."""
    counters = counted()
    traffic = {"bytes_in": 1, "bytes_out": 2, "frames_in": 3, "frames_out": 4}
    return {
        "node": 'no"de\n1',
        "cluster": 0xABC,
        "proposals": 9,
        "reads": 4,
        "raft": {
            "cluster": 0xABC,
            "groups": {0: group("leader", match={"node2": 38, "node3": 0}), 1: group("follower")},
        },
        "session": {"sessions": 2, "ending": 0, "ended": 1, "expired": 3},
        "lock": {"held": 1, "contended": 1, "waits": 6, "deferred": 0},
        "process": {
            "pid": 1, "up_s": 12.5, "memory_bytes": 1 << 20, "cpu_s": 0.5, "durability": "fsync",
            "insecure": False, "client_endpoint": "tcp://127.0.0.1:7001", **counters.status(),
            "log_write_ms_p50": 0.3, "log_write_ms_p99": 1.5, "log_backlog": 0,
            "bus": {"clients": traffic, "peers": traffic, "publish": traffic},
            "dropped": dict(counters.dropped),
        },
    }  # fmt: skip


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """By name and labels without the node's."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "node"))
            assert (sample.name, labels) not in found
            assert sample.labels["node"] == 'no"de\n1'
            found[sample.name, labels] = sample.value
    return found


def test_prometheus_reads_it(status: dict[str, Any]) -> None:
    found = samples(prometheus(status))
    zero = (("group", "0"),)
    assert found["coterie_raft_term", zero] == 5
    assert found["coterie_raft_lag_entries", zero] == 3
    assert found["coterie_raft_role", (*zero, ("role", "leader"))] == 1
    assert found["coterie_raft_role", (("group", "1"), ("role", "leader"))] == 0
    assert found["coterie_raft_peer_lag_entries", (*zero, ("peer", "node3"))] == 40
    assert found["coterie_operations_total", ()] == 3
    assert found["coterie_turn_seconds_count", ()] == 2
    assert found["coterie_turn_seconds_bucket", (("le", "0.0005"),)] == 1
    assert found["coterie_turn_seconds_bucket", (("le", "+Inf"),)] == 2
    assert found["coterie_turn_seconds_sum", ()] == pytest.approx(0.0104)
    assert found["coterie_dropped_total", (("cause", "multipart"),)] == 2
    assert found["coterie_log_write_seconds", (("quantile", "0.99"),)] == 0.0015
    lock = ("protocol", "lock")
    assert found["coterie_results_total", (lock, ("result", "Granted"))] == 1
    assert found["coterie_results_total", (lock, ("result", "Failure"))] == 1
    assert found["coterie_failures_total", (("code", "busy"), lock)] == 1
    assert found["coterie_failures_total", (("code", "not_leader"), ("protocol", "session"))] == 1
    assert found["coterie_answer_seconds_count", (lock,)] == 2
    assert found["coterie_hints_total", (lock,)] == 1
    assert found["coterie_lock_waits", ()] == 6
    assert found["coterie_session_expired_total", ()] == 3
    way = (("direction", "in"), ("role", "peers"))
    assert found["coterie_bus_frames_total", way] == 3
    assert found["coterie_bus_bytes_total", way] == 1


def test_every_metric_is_named_and_described_as_prometheus_wants(status: dict[str, Any]) -> None:
    text = prometheus(status).decode()
    for family in text_string_to_metric_families(text):
        assert re.fullmatch(r"coterie_[a-z][a-z0-9_]*", family.name), family.name
        assert family.documentation
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert "_ms" not in sample.name
        assert family.type in ("counter", "gauge", "histogram")
        assert f"# HELP {family.name}" in text
        assert f"# TYPE {family.name}" in text


def test_a_histogram_only_rises_and_ends_with_all(status: dict[str, Any]) -> None:
    text = prometheus(status).decode()
    for family in text_string_to_metric_families(text):
        if family.type == "histogram":
            counts = [s.value for s in family.samples if s.name.endswith("_bucket")]
            series = [counts[i : i + len(BOUNDS_S) + 1] for i in range(0, len(counts), 23)]
            assert all(one == sorted(one) and len(one) == 23 for one in series)


def test_the_document_is_json_and_says_where_every_group_stands(status: dict[str, Any]) -> None:
    found = json.loads(json.dumps(document(status)))
    assert (found["role"], found["term"], found["leader"]) == ("leader", 5, "node1")
    assert found["cluster"] == "0000000000000abc"
    control = found["groups"]["0"]
    assert control["log"] == {"first_index": 11, "last_index": 40, "bytes": 4096}
    assert (control["commit"], control["applied"], control["lag"]) == (38, 35, 3)
    assert control["peers"]["node2"] == {"match": 38, "lag": 2}
    assert found["groups"]["1"]["role"] == "follower"
    assert found["turns"]["operations_a_turn_max"] == 3
    assert found["turns"]["operations_a_turn_mean"] == 1.5
    lock = found["protocols"]["lock"]
    assert lock["results"] == {"Failure": 1, "Granted": 1, "Queued": 1, "Released": 1}
    assert lock["failures"] == {"busy": 1}
    assert lock["answers"]["count"] == 2
    assert lock["answers"]["ms_max"] == pytest.approx(4.0)
    assert lock["hints"] == 1
    assert found["protocols"]["session"]["expired"] == 3


def test_a_status_that_came_as_json_gives_the_same_document(status: dict[str, Any]) -> None:
    assert document(json.loads(json.dumps(status))) == document(status)


def test_a_quantile_lies_within_its_bucket() -> None:
    histogram = Histogram()
    assert quantile_s(histogram.buckets, 0.99) == 0.0
    for _ in range(99):
        histogram.observe(0.0004)
    histogram.observe(0.040)
    assert 0.0003 < quantile_s(histogram.buckets, 0.5) <= 0.0005
    assert 0.0003 < quantile_s(histogram.buckets, 0.99) <= 0.0005
    assert 0.030 < quantile_s(histogram.buckets, 0.995) <= 0.050
    histogram.observe(60.0)
    assert quantile_s(histogram.buckets, 1.0) == BOUNDS_S[-1]
    said = histogram.status()
    assert said["ms_max"] == 60_000
    assert said["count"] == 101


def test_a_quantile_is_never_above_the_longest() -> None:
    histogram = Histogram()
    histogram.observe(0.0011)
    assert histogram.status()["ms_p99"] == pytest.approx(1.1)
