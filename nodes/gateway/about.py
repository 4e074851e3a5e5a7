"""The rooms about the node itself: /health, /live, /metrics, /openapi.json and the page at /.

The law: they answer from what the node knows at the moment, without asking the cluster; so they
answer when the cluster does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from .. import metrics
from .describe import answers, parameter
from .failures import Refusal
from .page import PAGE, POLICY
from .rooms import Answered, Asked, Route


class Health(msgspec.Struct):
    """`status`: "healthy" while the node knows a leader with a majority, else "no quorum".
    `answering`: members that answered just now, of `members`."""

    status: str
    role: str
    term: int
    node_id: str
    leader: str | None
    quorum: bool
    cluster: str
    members: int
    answering: int
    durability: str
    insecure: bool
    version: str


class Live(msgspec.Struct):
    """The node's loop turns."""

    status: str = "live"


class About:
    """`status` is `NodeProcess.status`; `answering` counts the members that answer."""

    def __init__(
        self, status: Callable[[], dict[str, Any]], answering: Callable[[], Awaitable[int]]
    ) -> None:
        self._status = status
        self._answering = answering
        self.document: Callable[[], dict[str, Any]] = dict
        self.figures: Callable[[], dict[str, Any]] = dict
        """The gateway's own (`Gateway.figures`)."""

    def routes(self) -> Sequence[Route]:
        kind = parameter("format", "prometheus or json", place="query", enum=["json", "prometheus"])
        return [
            Route("GET", "/health", self.health, {
                "summary": "How the node stands; 503 without a quorum",
                **answers({200: Health, 503: Health}, 400),
            }, open=True),
            Route("GET", "/live", self.live, {
                "summary": "Whether the node lives", **answers({200: Live}, 400),
            }, open=True),
            Route("GET", "/metrics", self.metrics, {
                "summary": "Metrics: JSON, or Prometheus's text where Accept or format asks for it",
                "parameters": [kind],
                **answers({200: "application/json text/plain"}, 400),
            }),
            Route("GET", "/openapi.json", self.openapi, {
                "summary": "This document", **answers({200: "application/json"}, 400),
            }),
            Route("GET", "/", self.page, {
                "summary": "A page that shows how the cluster stands",
                **answers({200: "text/html"}, 400),
            }, open=True),
        ]  # fmt: skip

    async def health(self, asked: Asked) -> Answered:
        asked.parameters()
        status = self._status()
        process, group = status["process"], _control(status)
        leader = group.get("leader") or None
        answering = await self._answering()
        health = Health(
            "healthy" if leader else "no quorum",
            group.get("role", "joining"),
            group.get("term", 0),
            status["node"],
            leader,
            leader is not None,
            f"{status['cluster']:016x}",
            len(group.get("members", ())),
            answering,
            process["durability"],
            process["insecure"],
            version("coterie"),
        )
        return Answered(health, 200 if leader else 503)

    async def live(self, asked: Asked) -> Answered:
        asked.parameters()
        return Answered(Live())

    async def metrics(self, asked: Asked) -> Answered:
        wanted = asked.parameters("format").get("format")
        if wanted not in (None, "json", "prometheus"):
            raise Refusal(400, "BadRequest", "the formats are json and prometheus")
        if wanted is None and _prefers_text(asked.headers.get("Accept", "")):
            wanted = "prometheus"
        status = self._status()
        if wanted == "prometheus":
            text = metrics.prometheus(status) + _prometheus(self.figures())
            return Answered(text, headers={"Content-Type": metrics.CONTENT_TYPE})
        return Answered({**metrics.document(status), "http": self.figures()})

    async def openapi(self, asked: Asked) -> Answered:
        asked.parameters()
        return Answered(self.document())

    async def page(self, asked: Asked) -> Answered:
        asked.parameters()
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
        }
        return Answered(PAGE, headers=headers)


def _control(status: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = status["raft"]["groups"]
    found: Mapping[str, Any] = groups.get(0) or groups.get("0") or {}
    return found


def _prometheus(figures: Mapping[str, Any]) -> bytes:
    lines = []
    for name, kind in (
        ("connections", "gauge"), ("under_way", "gauge"),
        ("connections_evicted", "counter"), ("connections_refused", "counter"),
    ):  # fmt: skip
        full = f"coterie_http_{name}" + ("_total" if kind == "counter" else "")
        lines += [f"# TYPE {full} {kind}", f"{full} {figures[name]}"]
    lines.append("# TYPE coterie_http_answers_total counter")
    for status, count in figures["answers"].items():
        lines.append(f'coterie_http_answers_total{{status="{status}"}} {count}')
    return "\n".join([*lines, ""]).encode()


def _prefers_text(accept: str) -> bool:
    """Prometheus names its text or OpenMetrics; everybody else, `*/*` too, gets JSON."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    text = [k for k in kinds if k in ("text/plain", "application/openmetrics-text")]
    return bool(text) and "application/json" not in kinds
