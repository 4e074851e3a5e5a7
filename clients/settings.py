"""What a client is told when it is made.

The law: everything is checked here, before any socket or thread exists.
"""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

DEFAULT_ENDPOINT = "tcp://127.0.0.1:7001"
ENDPOINT = re.compile(r"(tcp://(\[[^\]]+\]|[^:\[\]\s]+):\d{1,5}|ipc://\S+)")
TTL_MIN_S, TTL_MAX_S = 1.0, 3_600.0
NAME_BYTES_MAX = 255


class Settings(msgspec.Struct, frozen=True):
    """The checked arguments of `Client` and `AsyncClient`."""

    endpoints: tuple[str, ...]
    name: str
    session_ttl: float
    timeout: float


def settings(
    endpoints: str | Sequence[str] | None,
    name: str | None,
    session_ttl: float,
    timeout: float,
    keys: Any,
) -> Settings:
    """Check the arguments of a client. Raises ValueError, TypeError or NotImplementedError."""
    if keys is not None:
        raise NotImplementedError(
            "keys are not supported yet; leave keys out and use nodes on loopback addresses"
        )
    if not TTL_MIN_S <= session_ttl <= TTL_MAX_S:
        raise ValueError(f"session_ttl must be from 1 second to 1 hour, not {session_ttl!r}")
    if not (timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    if name is None:
        name = f"{socket.gethostname()}-{os.getpid()}"
    elif not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    if not name.isprintable() or len(name.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"a client's name is printable and at most {NAME_BYTES_MAX} bytes long")
    return Settings(_endpoints(endpoints), name, float(session_ttl), float(timeout))


def _endpoints(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        given = os.environ.get("COTERIE_ENDPOINTS") or DEFAULT_ENDPOINT
    listed = given.split(",") if isinstance(given, str) else list(given)
    endpoints = tuple(endpoint.strip() for endpoint in listed if endpoint.strip())
    if not endpoints:
        raise ValueError("name at least one endpoint, such as tcp://127.0.0.1:7001")
    for endpoint in endpoints:
        if not ENDPOINT.fullmatch(endpoint):
            raise ValueError(f"{endpoint!r} is no endpoint; write tcp://host:port")
    return endpoints
