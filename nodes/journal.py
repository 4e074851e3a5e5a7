"""What a node tells while it runs: one structured line for each event that matters.

The law: a line says one thing, with what it is about in fields (`group`, `term`, `cause`, …), as
logfmt or as JSON. No payload, no name of a lock, no secret is told. Whatever a line holds, it stays
one line: quotes, control characters and all that is not ASCII are escaped.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..protocols.plugin import CONTROL
from ..protocols.records import Configuration
from .configuration import LogFormat

LOOK_S = 1.0
"""How often a node looks at itself."""

DROPS_APART_S = 60.0
"""A cause of dropped frames is told at once, then at most this often."""

SLOW_WRITE_S = 0.100
"""A disk is called slow when one of a hundred writes takes longer."""

UNTOLD = ("subscriptions",)
"""Causes that are no loss: what a subscriber says when it comes."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,*-]+")

_logger = logging.getLogger("coterie.node")

debug, info, warning = logging.DEBUG, logging.INFO, logging.WARNING
error, critical = logging.ERROR, logging.CRITICAL


def say(level: int, message: str, *, exception: bool = False, **fields: Any) -> None:
    """Tell of an event. `exception`: with the traceback of the one being handled."""
    _logger.log(level, "%s", message, exc_info=exception, extra={"fields": fields})


def begin(node: str, level: str, form: LogFormat) -> None:
    """From here on everything logged in this process goes to standard error in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(node, form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class LineFormatter(logging.Formatter):
    """`time level node msg`, then the fields of the event, then `traceback` where there is one."""

    def __init__(self, node: str, form: LogFormat) -> None:
        super().__init__()
        self._node = node
        self._line = _logfmt if form == "logfmt" else json.dumps

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        content: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "node": self._node,
            "msg": record.getMessage(),
        }
        for key, value in getattr(record, "fields", {}).items():
            content[key] = value if isinstance(value, int | float | bool) else str(value)
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return self._line(content).replace("\x7f", "\\u007f")


def _logfmt(content: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in content.items())


def _value(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class Watch:
    """Looks at a node once a second and tells what has changed. `dropped` are counts by cause,
    `writes` the median and 99th percentile of the log's writes in seconds, `configuration` the
    present one of group 0. A learner is marked by a star."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        dropped: Callable[[], Mapping[str, int]],
        writes: Callable[[], tuple[float, float]],
        configuration: Callable[[], Configuration | None],
    ) -> None:
        self._loop = loop
        self._dropped = dropped
        self._writes = writes
        self._configuration = configuration
        self._known: Configuration | None = None
        self._slow = False
        self._told: dict[str, tuple[float, int]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look every second until `end`."""
        self._timer = self._loop.call_later(LOOK_S, self._on_timer)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _on_timer(self) -> None:
        self.look(self._loop.time())
        self.begin()

    def look(self, now: float) -> None:
        """`now`: seconds, monotonic."""
        found = self._configuration()
        if found is not None and found != self._known:
            self._known = found
            members = ",".join(m.node if m.voter else f"{m.node}*" for m in found.members)
            say(info, "configuration", group=CONTROL, members=members)
        p99_s = self._writes()[1]
        if (p99_s > SLOW_WRITE_S) != self._slow:
            self._slow = not self._slow
            level, message = (warning, "slow disk") if self._slow else (info, "disk is quick again")
            say(level, message, fsync_ms_p99=round(p99_s * 1000, 1))
        for cause, count in self._dropped().items():
            at, told = self._told.get(cause, (-DROPS_APART_S, 0))
            if count > told and now - at >= DROPS_APART_S and cause not in UNTOLD:
                self._told[cause] = (now, count)
                # What cannot be sent is an absent peer or client; what came and was dropped is odd.
                level = info if cause.startswith("send_") else warning
                say(level, "dropped", cause=cause, count=count - told)
