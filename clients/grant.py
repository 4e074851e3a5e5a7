"""A lock while it is held, and what is said of it.

The law: `lost` and `ensure_held` read the clock themselves: they know of a loss before any message
could tell. Once lost, a grant is lost for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from ..protocols.lock.messages import LockStates
from .clock import now
from .core_records import Session
from .errors import CoterieError, LockLost, SessionExpired, Timeout, result_of


class Grant(msgspec.Struct, frozen=True, eq=False):
    """A lock while it is held. Immutable, and true; it knows itself whether it was lost."""

    name: str
    mode: Literal["exclusive", "shared"]
    token: int
    """Fences the resource: rises strictly from each exclusive holder to the next."""
    _number: int
    _session: Session
    _call_back: Callable[[list[Callable[[], object]]], None]
    _owner: int = 0
    """Who it is in the wait-for graph; 0: nobody but the grant itself."""
    _nest: list[Grant] | None = None
    """The locks of one thread or task in the order it took them, this one among them."""
    _plugin: str = "lock"

    def __repr__(self) -> str:
        return f"Grant(name={self.name!r}, mode={self.mode!r}, token={self.token})"

    @property
    def number(self) -> int:
        """The number by which `locks` lists it."""
        return self._number

    @property
    def plugin(self) -> str:
        return self._plugin

    @property
    def lost(self) -> bool:
        """True once the session of this grant was not kept alive in time, or the grant was taken
        away: by `force_release`, or to break a deadlock. Final."""
        session = self._session
        if session.is_lost(now()):
            return True
        return self._number in session.taken or self._owner in session.aborted

    def ensure_held(self) -> None:
        """Raise `LockLost` if the lock is lost."""
        if self.lost:
            raise lost_error(self)

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Call `callback()` when the lock is lost; at once if it is already. Not on release."""
        watched = self._session.watched
        watched.setdefault(self, []).append(callback)
        if self.lost:  # nobody may look there any more
            self._call_back(watched.pop(self, []))


def lost_error(grant: Grant) -> LockLost:
    session = grant._session
    if session.lost:
        reason = "its session was not kept alive in time"
    elif grant._owner in session.aborted:
        reason = "its owner was chosen to break a deadlock"
    else:
        reason = "it was taken away, by force or to break a deadlock"
    return LockLost(
        f"the lock {grant.name!r} is lost: {reason}; "
        "what it guards may have another holder, so stop using it"
    )


def is_held(result: object) -> bool:
    states = result_of(result)
    assert isinstance(states, LockStates)
    return bool(states.locks and states.locks[0].holders)


def timeout_error(name: str, timeout: float) -> Timeout:
    return Timeout(
        f"the lock {name!r} was not had in {timeout:g} s; 'coterie locks ls' tells who holds it"
    )


def converted_error(grant: Grant, result: object, timeout: float) -> CoterieError:
    """Why a grant was not upgraded or downgraded."""
    try:
        result_of(result)
    except CoterieError as error:
        if isinstance(error, (SessionExpired, LockLost)):
            grant._session.take(grant._number)
            return lost_error(grant)
        if isinstance(error, Timeout):
            return Timeout(
                f"the lock {grant.name!r} was not upgraded in {timeout:g} s; it is still shared"
            )
        return error
    return CoterieError(f"the cluster answered {result!r} to a conversion")


def released_error(grant: Grant, result: object) -> CoterieError:
    """Why a release was not confirmed."""
    try:
        result_of(result)
    except CoterieError as error:
        if isinstance(error, (SessionExpired, LockLost)):
            return lost_error(grant)
        return error
    return CoterieError(f"the cluster answered {result!r} to a release")
