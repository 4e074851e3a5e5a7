"""What the core must know of the operations that wait or take something.

The law: whatever an operation may leave in the cluster has an operation that takes it back, and it
is looked up here, by type. A wait that came to its end is told in the same words as if it had
never waited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ..protocols.coordination import messages as coordination
from ..protocols.lock import messages as lock
from ..protocols.plugin import Failure, Message

Told: TypeAlias = "int | tuple[int, ...] | Failure"
"""How a wait ended: its token, the tokens of an `AcquireAll`, or why it failed."""

_OUTCOMES: dict[type[Message], Callable[[Any, int, Any], Message]] = {
    lock.Acquire: lambda asked, wait, token: lock.Granted(wait, token),
    lock.AcquireAll: lambda asked, wait, tokens: lock.GrantedAll(wait, tokens),
    lock.Upgrade: lambda asked, wait, token: lock.Converted(asked.grant, token, False, wait),
    coordination.TakePermit: lambda asked, wait, token: coordination.Permitted(wait),
    coordination.WaitEvent: lambda asked, wait, token: coordination.EventState(True),
    coordination.WaitBarrier: lambda asked, wait, token: coordination.Passed(token - 1),
    coordination.WaitCondition: lambda asked, wait, token: coordination.Notified(1),
    coordination.Campaign: lambda asked, wait, token: coordination.Elected(wait, token),
}

_TAKEN_BACK: dict[type[Any], Callable[[Any], Message]] = {
    lock.Granted: lambda result: lock.Withdraw(result.grant),
    lock.GrantedAll: lambda result: lock.Withdraw(result.grant),
    lock.Converted: lambda result: lock.Withdraw(result.upgrade),
    lock.Begun: lambda result: lock.Abort(result.transaction),
    coordination.Permitted: lambda result: coordination.Leave(result.permit),
    coordination.Elected: lambda result: coordination.Leave(result.leadership),
}

_FORGOTTEN = (coordination.WaitEvent, coordination.WaitBarrier, coordination.WaitCondition)

_ANEW = (
    lock.Acquire,
    lock.AcquireAll,
    lock.BeginTransaction,
    coordination.TakePermit,
    coordination.WaitEvent,
    coordination.Campaign,
)

ENDED_WITH_SESSION = frozenset(
    (
        lock.Acquire,
        lock.AcquireAll,
        lock.Release,
        lock.Upgrade,
        lock.Downgrade,
        lock.Commit,
        lock.Abort,
        coordination.WaitBarrier,
        coordination.WaitCondition,
        coordination.Resign,
    )
)
"""Operations on what went with the session: surely not done, or done by its end."""

TAKES = frozenset((*_OUTCOMES, lock.BeginTransaction))
"""Operations that may leave something held or waiting: never given up without a `Cancel`."""


def outcome(operation: Message, wait: int, told: Told) -> Message:
    """The result of an operation that waited under the number `wait`."""
    return told if isinstance(told, Failure) else _OUTCOMES[type(operation)](operation, wait, told)


def taken_back(result: object) -> Message | None:
    """What undoes a result that came into nobody's hands; None if there is nothing to undo."""
    undo = _TAKEN_BACK.get(type(result))
    if undo is None or (type(result) is lock.Converted and not result.upgrade):
        return None
    return undo(result)


def withdrawn(plugin: str, wait: int) -> Message:
    """What ends a wait by its number."""
    return lock.Withdraw(wait) if plugin == "lock" else coordination.Leave(wait)


def is_forgotten(operation: Message) -> bool:
    """True if the cluster keeps the end of this wait until it is told to forget it."""
    return type(operation) in _FORGOTTEN


def begins_anew(operation: Message) -> bool:
    """True if an operation that its session took with it is asked again in the next one: not what
    belongs to an owner, which is gone with its session."""
    return type(operation) in _ANEW and not getattr(operation, "owner", 0)
