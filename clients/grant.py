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

    def __repr__(self) -> str:
        return f"Grant(name={self.name!r}, mode={self.mode!r}, token={self.token})"

    @property
    def lost(self) -> bool:
        """True once the session of this grant was not kept alive in time; final."""
        return self._session.is_lost(now())

    def ensure_held(self) -> None:
        """Raise `LockLost` if the lock is lost."""
        if self._session.is_lost(now()):
            raise lost_error(self.name)

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Call `callback()` when the lock is lost; at once if it is already. Not on release."""
        watched = self._session.watched
        watched.setdefault(self._number, []).append(callback)
        if self._session.lost:  # nobody may look there any more
            self._call_back(watched.pop(self._number, []))


def lost_error(name: str) -> LockLost:
    return LockLost(
        f"the lock {name!r} is lost: its session was not kept alive in time; "
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


def released_error(name: str, result: object) -> CoterieError:
    """Why a release was not confirmed."""
    try:
        result_of(result)
    except CoterieError as error:
        if isinstance(error, (SessionExpired, LockLost)):
            return lost_error(name)
        return error
    return CoterieError(f"the cluster answered {result!r} to a release")
