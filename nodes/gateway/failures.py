"""What goes wrong over HTTP: a status, the name of an error, and what to do next.

The law: every answer that is no success has the body {"error", "message"}, the error named as its
class is in Python; so whoever knows the one face knows the other.
"""

from __future__ import annotations

from typing import Any

from ...clients.errors import (
    BadName,
    Busy,
    CoterieError,
    Deadlock,
    Indeterminate,
    LockLost,
    PermissionDenied,
    SessionExpired,
    SettingsDiffer,
    Timeout,
    TooLarge,
    Unavailable,
)

RETRY_AFTER_S = "1"
"""Sent with 429 and 503."""

STATUSES: dict[type[CoterieError], int] = {
    Timeout: 408,
    Deadlock: 409,
    LockLost: 409,
    SettingsDiffer: 409,
    BadName: 400,
    TooLarge: 413,
    Busy: 429,
    Unavailable: 503,
    Indeterminate: 503,
}


class Refusal(Exception):
    """An answer that is no success. `headers` go with it; `more` beside error and message."""

    def __init__(
        self,
        status: int,
        error: str,
        message: str,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = {"error": error, "message": message, **more}


def refusal_of(error: CoterieError) -> Refusal:
    """The answer for what the cluster, or the client in this node, raised."""
    if isinstance(error, PermissionDenied):
        # what the cluster says of a session it does not know (`NO_PRINCIPAL`)
        return Refusal(404, "SessionExpired", str(error))
    if isinstance(error, SessionExpired):
        # not the caller's session: that by which this node numbers what it asks
        error = Indeterminate("this node lost touch with the cluster while it asked; ask again")
    status = STATUSES.get(type(error), 500 if type(error) is not CoterieError else 503)
    headers = {"Retry-After": RETRY_AFTER_S} if status in (429, 503) else {}
    more = {"cycle": error.cycle} if isinstance(error, Deadlock) else {}
    return Refusal(status, type(error).__name__, str(error), headers, **more)
