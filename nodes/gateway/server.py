"""The gateway: requests in, through the guard and a room, answers out.

The law: whatever comes, an answer goes back that is no surprise: a success, or a typed error with
a fitting status. Nothing that comes by HTTP can hold the node's loop: bodies are small, nothing is
awaited without a limit, and a caller that hangs up is forgotten with all it asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import web

from ...clients.errors import CoterieError
from ..configuration import NodeConfiguration
from ..ports import BACKLOG
from . import paths
from .about import About
from .cluster import Cluster
from .connections import CONNECTIONS_MAX, Listener
from .describe import document
from .failures import RETRY_AFTER_S, Refusal, refusal_of
from .guard import check_origin, check_token
from .locks import Locks
from .rooms import Answered, Asked, Room, Route
from .sessions import Sessions
from .transactions import Transactions

BODY_BYTES_MAX = 64 * 1024
BODY_S = 10.0
"""How long a body may take to come."""

REQUESTS_MAX = 768
"""Requests under way, waiting ones included; more are refused. Below `CONNECTIONS_MAX`, so that
health checks always find room."""

ACCEPTED = 64
"""Connections accepted in one turn of the loop, so that a flood of them does not hold it."""

UNGUARDED = ("health", "live")
DESCRIPTORS = 8_192

HEADERS = {
    "Content-Type": "application/json",
    "Server": "coterie",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}

logger = logging.getLogger("coterie.http")


async def serve(
    configuration: NodeConfiguration,
    client_endpoint: str,
    listening: socket.socket,
    status: Callable[[], dict[str, Any]],
    stopped: asyncio.Future[int],
) -> int:
    """Serve HTTP for a node until it has stopped; the code it stopped with."""
    own = client_endpoint.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    others = (member.client_endpoint for member in configuration.members)
    options = GatewayOptions(
        configuration.name,
        tuple(dict.fromkeys((own, *others))),
        configuration.http_token,
        configuration.http_hosts,
    )
    gateway = Gateway(options, status)
    try:
        await gateway.start(listening)
        return await stopped
    finally:
        await gateway.close()


class GatewayOptions(msgspec.Struct, frozen=True):
    """What the gateway is told. `names`: hosts it is known by, beside addresses and localhost."""

    node: str
    endpoints: Sequence[str]
    token: str = ""
    names: frozenset[str] = frozenset()


class Gateway:
    """The HTTP server of one node."""

    def __init__(self, options: GatewayOptions, status: Callable[[], dict[str, Any]]) -> None:
        self._options = options
        self._cluster = cluster = Cluster(options.endpoints, f"http@{options.node}")
        sessions = Sessions(cluster, options.node, options.token)
        about = About(status, cluster.answering)
        rooms: list[Room] = [
            about,
            sessions,
            Locks(cluster, sessions),
            Transactions(cluster, sessions),
        ]
        routes = [route for room in rooms for route in room.routes()]
        self._routes = _table(routes)
        about.figures = self.figures
        about.document = lambda: document(routes, version("coterie"), bool(options.token))
        self._encode = msgspec.json.Encoder().encode
        self._under_way = 0
        self._answers: Counter[int] = Counter()
        self._server: asyncio.Server | None = None
        self._listener: Listener | None = None

    async def start(self, listening: socket.socket) -> None:
        """Serve those who connect to a listening socket."""
        _allow_descriptors()
        loop = asyncio.get_running_loop()
        self._listener = Listener(self._handle, self._failed, loop, CONNECTIONS_MAX)
        self._server = await loop.create_server(self._listener, sock=listening, backlog=ACCEPTED)
        listening.listen(BACKLOG)  # more may wait than are accepted at once

    async def close(self) -> None:
        """Stop listening, drop the connections, end the gateway's session."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            await self._listener.shutdown(0.1)
        await self._cluster.close()

    def figures(self) -> dict[str, Any]:
        """Connections, requests under way, and answers by status."""
        listener = self._listener
        return {
            "connections": listener.count if listener else 0,
            "connections_evicted": listener.evicted if listener else 0,
            "connections_refused": listener.refused if listener else 0,
            "under_way": self._under_way,
            "answers": {str(status): count for status, count in sorted(self._answers.items())},
        }

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._under_way += 1
        answered = None
        try:
            answered = await self._answer(request)
            response = self._response(answered.content, answered.status, answered.headers)
        except Refusal as refusal:
            response = self._response(refusal.body, refusal.status, refusal.headers)
        except CoterieError as error:
            told = refusal_of(error)
            response = self._response(told.body, told.status, told.headers)
        except Exception:
            logger.exception("a defect: %s", request.method)
            response = self._failed(500, "the node failed to answer; see its log")
        finally:
            self._under_way -= 1
        if answered is not None and answered.confirm is not None:
            await _deliver(request, response, answered.confirm)
        return response

    async def _answer(self, request: web.BaseRequest) -> Answered:
        headers, options = request.headers, self._options
        target = paths.split(request.raw_path)
        methods = self._routes.get((target.room, target.rest is not None), {})
        route = methods.get(request.method)
        if route is None or target.room not in UNGUARDED:
            check_origin(headers.getall("Host", ()), headers.getall("Origin", ()), options.names)
            if options.token and not (route is not None and route.open):
                check_token(headers.getall("Authorization", ()), options.token)
            if self._under_way > REQUESTS_MAX:
                text = f"{REQUESTS_MAX} requests are under way at this node; retry later"
                raise Refusal(429, "Busy", text, {"Retry-After": RETRY_AFTER_S})
        if route is None:
            raise _no_route(target, request.method, methods)
        body = await _body(request) if route.method == "POST" else b""
        return await route.handler(Asked(route.method, target, headers, body))

    def _response(
        self, content: object, status: int, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        self._answers[status] += 1
        body = content if isinstance(content, bytes) else self._encode(content) + b"\n"
        response = web.Response(body=body, status=status, headers={**HEADERS, **headers})
        if status in (408, 413):
            response.force_close()  # the rest of the body may still be on its way
        return response

    def _failed(self, status: int, message: str) -> web.StreamResponse:
        error = "BadRequest" if status < 500 else "CoterieError"
        return self._response({"error": error, "message": message}, status, {})


def _table(routes: Sequence[Route]) -> dict[tuple[str, bool], dict[str, Route]]:
    """Routes by first segment and whether more follows, then by method."""
    table: dict[tuple[str, bool], dict[str, Route]] = {}
    for route in routes:
        room, slash, _ = route.path[1:].partition("/")
        table.setdefault((room, bool(slash)), {})[route.method] = route
    return table


def _no_route(target: paths.Target, method: str, methods: Mapping[str, Route]) -> Refusal:
    if not methods:
        return Refusal(404, "NotFound", "there is nothing here; GET /openapi.json tells what is")
    allowed = ", ".join(methods)
    text = f"{method[:32]} is no method of this path; it has {allowed}"
    return Refusal(405, "MethodNotAllowed", text, {"Allow": allowed})


async def _body(request: web.BaseRequest) -> bytes:
    """The body of a request, if it is small, JSON, and comes in time. Raises `Refusal`."""
    if not request.can_read_body:
        return b""
    headers = request.headers
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json" or "Content-Encoding" in headers:
        text = "send the body as application/json (curl: -H 'Content-Type: application/json')"
        raise Refusal(415, "UnsupportedMediaType", text)
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise _too_large()
    expectation = headers.get("Expect", "").lower()
    if expectation == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    elif expectation:
        raise Refusal(417, "BadRequest", "only 100-continue can be expected")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise _too_large()
    except TimeoutError:
        raise Refusal(408, "Timeout", f"the body did not come within {BODY_S:g} s") from None
    except web.RequestPayloadError:
        raise Refusal(400, "BadRequest", "the body cannot be read") from None
    return bytes(body)


def _too_large() -> Refusal:
    return Refusal(413, "TooLarge", f"a body has at most {BODY_BYTES_MAX} bytes here")


async def _deliver(
    request: web.BaseRequest, response: web.StreamResponse, confirm: Callable[[bool], None]
) -> None:
    """Write an answer, and tell whether its caller was there to get it."""
    written = False
    try:
        await response.prepare(request)
        await response.write_eof()
        transport = request.transport
        written = transport is not None and not transport.is_closing()
    except ConnectionError:
        logger.debug("a caller hung up before its answer")
    finally:
        confirm(written)


def _allow_descriptors() -> None:
    """Many connections need many descriptors; take what the system grants unasked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
