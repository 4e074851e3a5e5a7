"""The public exceptions, and the one table that makes them of the codes on the wire.

The law: every error says by its class what may be true. `Unavailable` and every refusal: it
surely was not done. `Indeterminate`: it may have been. A text says what to do next. Each class
also is the standard library's error that a program would catch in its place.
"""

from __future__ import annotations

import asyncio
import queue
import threading

from ..protocols.errors import KINDS, Code
from ..protocols.plugin import Failure


class CoterieError(Exception):
    """Everything coterie raises on its own account."""


class Timeout(CoterieError, TimeoutError):
    """What was waited for did not come in time; nothing is held and nobody waits."""


class Unavailable(CoterieError, ConnectionError):
    """The cluster was silent for too long; the operation surely was not done."""


class Indeterminate(CoterieError):
    """The cluster was silent for too long; the operation may have been done, or not."""


class SessionExpired(CoterieError):
    """The session ended while an operation of it was under way."""


class LockLost(CoterieError, RuntimeError):
    """The lock is no longer held: its session was not kept alive in time, or it was taken away."""


class Deadlock(CoterieError):
    """This owner was chosen to break a deadlock: it waited in a circle, and has lost all its
    locks. `cycle`: who waited for whom, and for which lock, as (waiter, holder, name) with the
    numbers of `wait_graph`; the victim was the highest."""

    cycle: list[tuple[int, int, str]]

    def __init__(self, *args: object, cycle: list[tuple[int, int, str]] | None = None) -> None:
        super().__init__(*args)
        self.cycle = cycle or []


class StaleToken(CoterieError):
    """A higher fencing token was seen: another holder came after."""


class StaleLease(CoterieError):
    """The message was delivered again since."""


class Full(CoterieError, queue.Full, asyncio.QueueFull):
    """The queue takes no more."""


class Empty(CoterieError, queue.Empty, asyncio.QueueEmpty):
    """The queue has nothing to give."""


class BrokenBarrier(CoterieError, threading.BrokenBarrierError):
    """The barrier is broken."""


class TooLarge(CoterieError):
    """A message is larger than a frame may be; nothing was sent."""


class BadName(CoterieError, ValueError):
    """A name must be 1 to 255 bytes of UTF-8 without control characters, not `.` or `..`."""


class SettingsDiffer(CoterieError, ValueError):
    """The name exists with other settings than those given."""


class PermissionDenied(CoterieError, PermissionError):
    """The cluster does not allow this client to do that."""


class Busy(CoterieError):
    """A limit was reached; retry later."""


class CorruptLog(CoterieError):
    """A node found its log damaged."""


CLASSES: dict[Code, type[CoterieError]] = {
    Code.NOT_LEADER: Unavailable,
    Code.LEADER_LOST: Indeterminate,
    Code.BUSY: Busy,
    Code.MALFORMED: CoterieError,
    Code.BAD_NAME: BadName,
    Code.TOO_LARGE: TooLarge,
    Code.SESSION_EXPIRED: SessionExpired,
    Code.STALE_REQUEST: Indeterminate,
    Code.CANCELLED: CoterieError,
    Code.NOT_HELD: LockLost,
    Code.WOULD_BLOCK: Timeout,
    Code.DEADLOCK: Deadlock,
    Code.STALE_TOKEN: StaleToken,
    Code.UNKNOWN_PLUGIN: CoterieError,
    Code.UNKNOWN_GROUP: Unavailable,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.SETTINGS_DIFFER: SettingsDiffer,
    Code.CORRUPT_LOG: CorruptLog,
    Code.DISK_FAILED: Unavailable,
    Code.PLUGINS_DIFFER: Unavailable,
    Code.DISK_FULL: Busy,
    Code.STATE_DIVERGED: Unavailable,
    Code.REMOVED: Unavailable,
    Code.BROKEN_BARRIER: BrokenBarrier,
    Code.FULL: Full,
    Code.STALE_LEASE: StaleLease,
    Code.NO_QUEUE: CoterieError,
    Code.NO_STORE: Unavailable,
    Code.STORE_UNSURE: Indeterminate,
}

CLOSED = "the client is closed; make a new one"
FORKED = "this client was made before fork(); make a new one in the child process"


def error_of(failure: Failure) -> CoterieError:
    """The public exception for a failing answer."""
    text = failure.text or f"the cluster answered {failure.code.name}"
    if failure.code is Code.DEADLOCK:
        edges = zip(*[iter(failure.detail)] * 3, strict=True)
        cycle = [(int(waiter), int(holder), name) for waiter, holder, name in edges]
        return Deadlock(text, cycle=cycle)
    return CLASSES[failure.code](text)


def result_of(result: object) -> object:
    """A completed call's result, or raise what it stands for."""
    if isinstance(result, Failure):
        raise error_of(result)
    if isinstance(result, BaseException):
        raise result
    return result


def is_definite(error: BaseException) -> bool:
    """True if what raised `error` surely was not done (the history checker reads this)."""
    codes = [code for code, cls in CLASSES.items() if type(error) is cls]
    return bool(codes) and all(KINDS[code] != "indeterminate" for code in codes)
