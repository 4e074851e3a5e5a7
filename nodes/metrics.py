"""What a node's status is as metrics: a JSON document, and Prometheus's text.

The law: everything here is made of `NodeProcess.status()`; nothing is counted twice. Prometheus's
names carry their unit, and what only rises ends in `_total`. (Prometheus, "Metric and label
naming".)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .counters import BOUNDS_S

PLUGINLESS = ("node", "cluster", "raft", "process", "proposals", "reads")
"""The keys of a status that are no plugin's."""

ROLES = ("leader", "follower", "candidate", "pre-candidate")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `prometheus` returns."""


def document(status: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics as one JSON object. Times are in milliseconds, sizes in bytes, `cluster` is
    hexadecimal as in the logs; `lag` is in entries."""
    process, groups = status["process"], status["raft"]["groups"]
    control = groups.get("0") or groups.get(0) or {}
    return {
        "node_id": status["node"],
        "cluster": f"{status['cluster']:016x}",
        "role": control.get("role"),
        "term": control.get("term"),
        "leader": control.get("leader"),
        "groups": {str(number): _group(group) for number, group in groups.items()},
        "turns": {
            "count": process["turns"],
            "operations": process["operations"],
            "operations_a_turn_mean": process["operations_a_turn_mean"],
            "operations_a_turn_max": process["operations_a_turn_max"],
            **_times(process["turn"]),
        },
        "fsync": {
            "ms_p50": process["log_write_ms_p50"],
            "ms_p99": process["log_write_ms_p99"],
            "backlog": process["log_backlog"],
            "durability": process["durability"],
        },
        "bus": process["bus"],
        "dropped": process["dropped"],
        "proposals": status["proposals"],
        "reads": status["reads"],
        "protocols": _protocols(status),
        "process": {
            key: process[key] for key in ("pid", "up_s", "memory_bytes", "cpu_s", "insecure")
        },
    }


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    last = group["last_index"]
    return {
        "role": group["role"],
        "term": group["term"],
        "leader": group["leader"],
        "log": {
            "first_index": group["first_index"],
            "last_index": last,
            "bytes": group["log_bytes"],
        },
        "commit": group["commit"],
        "applied": group["applied"],
        "lag": group["commit"] - group["applied"],
        "peers": {
            node: {"match": match, "lag": last - match} for node, match in group["match"].items()
        },
    }


def _times(histogram: Mapping[str, Any]) -> dict[str, float]:
    return {key: histogram[key] for key in ("ms_p50", "ms_p99", "ms_max")}


def _protocols(status: Mapping[str, Any]) -> dict[str, Any]:
    answers, hints = status["process"]["answers"], status["process"]["hints"]
    protocols: dict[str, Any] = {}
    for plugin in (key for key in status if key not in PLUGINLESS):
        said = dict(status[plugin])
        answered = answers.get(plugin)
        if answered is not None:
            said["operations"] = answered["operations"]
            said["results"] = answered["results"]
            said["failures"] = answered["failures"]
            said["answers"] = {"count": answered["answer"]["count"], **_times(answered["answer"])}
        if plugin in hints:
            said["hints"] = hints[plugin]
        protocols[plugin] = said
    return protocols


def prometheus(status: Mapping[str, Any]) -> bytes:
    """The metrics in Prometheus's text format (`CONTENT_TYPE`); every sample carries the node."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Status(status))
    return generate_latest(registry)


class _Status(Collector):
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status
        yield from _of_groups(status["node"], status["raft"]["groups"])
        yield from _of_process(status["node"], status["process"])
        yield from _of_plugins(status)


def _of_groups(node: str, groups: Mapping[Any, Any]) -> Iterator[Metric]:
    labels = ("node", "group")
    for name, text, key in (
        ("term", "Raft term.", "term"),
        ("log_first_index", "Index of the first entry kept in the log.", "first_index"),
        ("log_last_index", "Index of the last entry of the log.", "last_index"),
        ("log_size_bytes", "Size of the log's entries in memory.", "log_bytes"),
        ("commit_index", "Index of the last entry known to be committed.", "commit"),
        ("applied_index", "Index of the last entry applied.", "applied"),
    ):
        yield _gauge(f"coterie_raft_{name}", text, labels, {
            (node, str(number)): group[key] for number, group in groups.items()
        })  # fmt: skip
    yield _gauge("coterie_raft_lag_entries", "Committed entries not applied yet.", labels, {
        (node, str(number)): group["commit"] - group["applied"] for number, group in groups.items()
    })  # fmt: skip
    yield _gauge("coterie_raft_role", "1 for the role this node has.", (*labels, "role"), {
        (node, str(number), role): int(group["role"] == role)
        for number, group in groups.items()
        for role in ROLES
    })  # fmt: skip
    yield _gauge(
        "coterie_raft_peer_lag_entries",
        "Entries of the leader's log that a peer is not known to have; said by leaders only.",
        (*labels, "peer"),
        {
            (node, str(number), peer): group["last_index"] - match
            for number, group in groups.items()
            for peer, match in group["match"].items()
        },
    )


def _of_process(node: str, process: Mapping[str, Any]) -> Iterator[Metric]:
    info = ("node", "durability", "insecure")
    yield _gauge("coterie_node_info", "1; how the node was started.", info, {
        (node, process["durability"], str(process["insecure"]).lower()): 1
    })  # fmt: skip
    for name, text, key in (
        ("up_seconds", "Seconds since the node's process began.", "up_s"),
        ("memory_bytes", "Resident memory.", "memory_bytes"),
        ("log_backlog_records", "Records that wait for the disk.", "log_backlog"),
        ("operations_a_turn_max", "Most operations received in one turn.", "operations_a_turn_max"),
    ):
        yield _gauge(f"coterie_{name}", text, ("node",), {(node,): process[key]})
    yield _gauge(
        "coterie_log_write_seconds",
        "Quantiles of the last 1,024 writes to the log with their sync.",
        ("node", "quantile"),
        {
            (node, "0.5"): process["log_write_ms_p50"] / 1000,
            (node, "0.99"): process["log_write_ms_p99"] / 1000,
        },
    )
    yield _counter("coterie_cpu_seconds", "Processor time taken.", ("node",), {
        (node,): process["cpu_s"]
    })  # fmt: skip
    yield _counter("coterie_operations", "Operations received from clients.", ("node",), {
        (node,): process["operations"]
    })  # fmt: skip
    yield _histogram("coterie_turn_seconds", "Turns of the node's loop.", ("node",), {
        (node,): process["turn"]
    })  # fmt: skip
    yield from _of_bus(node, process)


def _of_bus(node: str, process: Mapping[str, Any]) -> Iterator[Metric]:
    yield _counter(
        "coterie_dropped", "Frames and messages dropped, by cause.", ("node", "cause"),
        {(node, cause): count for cause, count in process["dropped"].items()},
    )  # fmt: skip
    for unit in ("frames", "bytes"):
        yield _counter(
            f"coterie_bus_{unit}",
            f"{unit.capitalize()} through the node's sockets.",
            ("node", "role", "direction"),
            {
                (node, role, direction): traffic[f"{unit}_{direction}"]
                for role, traffic in process["bus"].items()
                for direction in ("in", "out")
            },
        )


def _of_plugins(status: Mapping[str, Any]) -> Iterator[Metric]:
    node, process = status["node"], status["process"]
    answers = process["answers"]
    yield _counter("coterie_proposals", "Commands proposed on this node.", ("node",), {
        (node,): status["proposals"]
    })  # fmt: skip
    yield _counter("coterie_reads", "Linearizable reads asked for on this node.", ("node",), {
        (node,): status["reads"]
    })  # fmt: skip
    by_kind = ("node", "protocol", "result")
    yield _counter("coterie_results", "Results answered to clients, by kind.", by_kind, {
        (node, plugin, kind): count
        for plugin, answered in answers.items()
        for kind, count in answered["results"].items()
    })  # fmt: skip
    by_code = ("node", "protocol", "code")
    yield _counter("coterie_failures", "Failures answered to clients, by code.", by_code, {
        (node, plugin, code): count
        for plugin, answered in answers.items()
        for code, count in answered["failures"].items()
    })  # fmt: skip
    labels = ("node", "protocol")
    yield _counter("coterie_hints", "Hints sent to clients.", labels, {
        (node, plugin): count for plugin, count in process["hints"].items()
    })  # fmt: skip
    yield _histogram("coterie_answer_seconds", "From a request's frame to its answer.", labels, {
        (node, plugin): answered["answer"] for plugin, answered in answers.items()
    })  # fmt: skip
    for plugin in (key for key in status if key not in PLUGINLESS):
        yield from _of_plugin(node, plugin, status[plugin])


RISING = {("session", "ended"), ("session", "expired")}
"""What plugins say that only rises."""


def _of_plugin(node: str, plugin: str, said: Mapping[str, Any]) -> Iterator[Metric]:
    for key, value in said.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            make = _counter if (plugin, key) in RISING else _gauge
            text = f"What the {plugin} protocol says of {key!r} on this node."
            yield make(f"coterie_{plugin}_{key}", text, ("node",), {(node,): value})


Samples = Mapping[tuple[str, ...], Any]
"""Values by the labels' values."""


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def _histogram(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, said in samples.items():
        count, buckets = 0, []
        for bound, counted in zip((*map(str, BOUNDS_S), "+Inf"), said["buckets"], strict=True):
            count += counted
            buckets.append((bound, count))
        family.add_metric(values, buckets, said["ms_sum"] / 1000)
    return family
