"""The connections of the gateway: how many there are, and which one goes when there are too many.

The law: a connection that waits for its caller's next request costs next to nothing, and is the
first to go: so any number of idle ones does no harm to those that work.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

CONNECTIONS_MAX = 1_024
IDLE_S = 75.0
"""How long a connection waits for a request to come in full."""

LINGER_S = 2.0
"""How long the rest of a body nobody wants is read, before the connection is closed."""

LINE_BYTES_MAX = 4_096
FIELD_BYTES_MAX = 8_190
FIELDS_MAX = 64

_FULL = b'{"error":"Busy","message":"the node has too many connections; retry later"}\n'
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nServer: coterie\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
) % len(_FULL) + _FULL

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Failed = Callable[[int, str], web.StreamResponse]


class Connection(web.RequestHandler):
    """One connection. What cannot be read as HTTP is answered like everything else."""

    __slots__ = ("_failed",)

    def __init__(self, listener: Listener, failed: Failed, **settings: Any) -> None:
        super().__init__(listener, **settings)
        self._failed = failed

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        response = self._failed(status, (message or "").partition("\n")[0])
        response.force_close()
        return response


class Listener(web.Server):
    """Makes a `Connection` of each that comes, and keeps their number down."""

    def __init__(
        self, handler: Handler, failed: Failed, loop: asyncio.AbstractEventLoop, most: int
    ) -> None:
        super().__init__(self._handle, handler_cancellation=True, loop=loop)
        self._handler = handler
        self._failed = failed
        self._running_loop = loop
        self._most = most
        self._all: set[web.RequestHandler] = set()
        self._idle: OrderedDict[web.RequestHandler, None] = OrderedDict()
        self.evicted = self.refused = 0

    def __call__(self) -> web.RequestHandler:
        return Connection(
            self,
            self._failed,
            loop=self._running_loop,
            access_log=None,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=FIELD_BYTES_MAX,
            max_headers=FIELDS_MAX,
            auto_decompress=False,
        )

    @property
    def count(self) -> int:
        """Connections now."""
        return len(self._all)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._all) >= self._most and not self._evict():
            self.refused += 1
            transport.write(FULL)
            transport.close()
            return
        self._all.add(handler)
        self._idle[handler] = None

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self._forget(handler)

    def _evict(self) -> bool:
        """Close the connection that has been idle longest."""
        longest = next(iter(self._idle), None)
        if longest is None:
            return False
        self._forget(longest)
        self.evicted += 1
        longest.force_close()
        return True

    def _forget(self, handler: web.RequestHandler) -> None:
        self._all.discard(handler)
        self._idle.pop(handler, None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        self._idle.pop(connection, None)
        try:
            return await self._handler(request)
        finally:
            if connection in self._all:
                self._idle[connection] = None
