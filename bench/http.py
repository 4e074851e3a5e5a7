"""Locks over HTTP: the load of `coterie bench http`, and what it does to clients over ZeroMQ.

The law: it is a load, not a client: requests are made once and sent as bytes, and of an answer
only status and length are read, so that what is measured is the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from threading import Thread
from typing import NamedTuple
from urllib.parse import urlsplit

from ..nodes.status import collect
from .figures import Figures, Recorder, table
from .load import Load, LoadProcess, listen, main, measure

PROBES = 8
PROBE_RATE = 400.0
"""ZeroMQ operations per second whose latency is watched, from this many clients."""


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the node hung up"))

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        end = received.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        at = received.find(b"Content-Length: ") + 16
        length = int(received[at : received.index(b"\r", at)])
        body = received[end + 4 :]
        if len(body) < length:
            return
        self._received = b""
        answer, self._answer = self._answer, None
        if received.startswith(b"HTTP/1.1 200 "):
            answer.set_result(body)
        else:
            answer.set_exception(RuntimeError(f"the node answered {received!r}"))

    async def ask(self, request: bytes) -> bytes:
        """Send a request; the body of its answer. Raises RuntimeError if that is no success."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer


def request(method: str, path: str, body: object = None) -> bytes:
    """A request as bytes."""
    content = b"" if body is None else json.dumps(body).encode()
    kind = "Content-Type: application/json\r\n" if content else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}Content-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


async def lock_operation(url: str, number: int) -> Callable[[], Awaitable[object]]:
    """Acquire and release, in turn, of a lock of one's own: one operation each."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    host, port = parts.hostname or "", parts.port or 80
    _, connection = await loop.create_connection(Connection, host, port)
    session = json.loads(await connection.ask(request("POST", "/session", {"ttl": 600})))["session"]
    path = f"/lock/bench/{session[:8]}/{number}"  # a run that was ended leaves locks behind
    acquire = request("POST", path, {"session": session})
    token = 0

    async def operation() -> None:
        nonlocal token
        if token:
            query = f"?session={session}&token={token}"
            token = 0
            await connection.ask(request("DELETE", path + query))
        else:
            token = json.loads(await connection.ask(acquire))["token"]

    return operation


async def run(load: Load) -> Recorder:
    """The load of one process; see `load.run`. `load.endpoints` is one URL."""
    recorder, go = Recorder(), asyncio.Event()
    Thread(target=listen, args=(asyncio.get_running_loop(), go), daemon=True).start()
    numbers = range(load.first, load.first + load.tasks)
    operations = [await lock_operation(load.endpoints[0], number) for number in numbers]
    await measure(operations, load, recorder, go)
    return recorder


class Effect(NamedTuple):
    """ZeroMQ's p99 in milliseconds without HTTP and with it."""

    idle_ms: float
    loaded_ms: float


def throughput(url: str, connections: int, seconds: float, endpoints: Sequence[str]) -> Figures:
    """As many lock operations over HTTP as go."""
    with contextlib.ExitStack() as stack:
        process = LoadProcess(Load([url], connections, seconds), __name__)
        stack.callback(process.end)
        process.expect("ready")
        before = _cpu_s(endpoints)
        process.go()
        used = float(process.expect("done"))
        after = _cpu_s(endpoints)
        recorder = Recorder()
        recorder.merge(process.latencies())
    cpu_s = {name: after[name] - before.get(name, 0.0) for name in after}
    return recorder.figures("http", connections, seconds, "fsync", {**cpu_s, "driver": used})


def effect(
    url: str, connections: int, seconds: float, rate: float, endpoints: Sequence[str]
) -> Effect:
    """The latency of a few ZeroMQ operations, alone and beside `rate` operations over HTTP."""
    probe = Load(list(endpoints), PROBES, seconds, PROBE_RATE)
    idle = _p99(probe)
    with contextlib.ExitStack() as stack:
        process = LoadProcess(Load([url], connections, seconds + 4, rate), __name__)
        stack.callback(process.end)
        process.expect("ready")
        process.go()
        return Effect(idle, _p99(probe))


def _p99(load: Load) -> float:
    with contextlib.ExitStack() as stack:
        process = LoadProcess(load)
        stack.callback(process.end)
        process.expect("ready")
        process.go()
        process.expect("done")
        recorder = Recorder()
        recorder.merge(process.latencies())
    return recorder.figures("probe", load.tasks, load.seconds, "", {}).p99_ms


def _cpu_s(endpoints: Sequence[str]) -> dict[str, float]:
    said = collect(endpoints).nodes
    return {name: status["process"]["cpu_s"] for name, _, status in said if status is not None}


def told(figures: Figures, pairs: Sequence[Effect], elections: int, *, as_json: bool) -> str:
    """The figures as a table, or as JSON."""
    ratio = round(median(pair.loaded_ms / pair.idle_ms for pair in pairs if pair.idle_ms), 3)
    if as_json:
        found = {"http": figures.as_dict(), "elections": elections, "p99_ratio": ratio}
        return json.dumps({**found, "pairs": [pair._asdict() for pair in pairs]})
    lines = [table([figures])]
    for pair in pairs:
        lines.append(f"ZeroMQ p99: {pair.idle_ms:.2f} ms alone, {pair.loaded_ms:.2f} ms beside")
    lines.append(f"beside half of that load, ZeroMQ's p99 is {ratio:.2f} of what it is alone")
    lines.append(f"elections during the run: {elections}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run)
