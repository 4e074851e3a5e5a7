"""A lock in a program's hands: what the locks for tasks and for threads share.

The law: a grant is never handed out after it was lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from ..protocols.lock.messages import Acquire, Granted, Release
from .arguments import check_name, check_timeout
from .clock import now
from .core import Call
from .errors import CoterieError, Timeout, result_of
from .grant import Grant
from .shell import Shell

LOCK_DELAY_MAX_S = 3_600.0


class Holding:
    """What both kinds of lock share: the questions they ask, and the grants in hand."""

    def __init__(
        self, shell: Shell, name: str, shared: bool, timeout: float | None, lock_delay: float
    ) -> None:
        check_name(name)
        if timeout is not None:
            check_timeout(True, timeout)
        if not 0 <= lock_delay <= LOCK_DELAY_MAX_S:
            raise ValueError(f"lock_delay must be from 0 seconds to 1 hour, not {lock_delay!r}")
        self.name = name
        self.mode: Literal["exclusive", "shared"] = "shared" if shared else "exclusive"
        self._shell = shell
        self._timeout = -1 if timeout is None else timeout
        self._delay_us = round(lock_delay * 1e6)
        self._waiting = Acquire(name, shared, True, 0, self._delay_us)
        self._trying = Acquire(name, shared, False, 0, self._delay_us)
        self._held: dict[object, list[Grant]] = {}

    @property
    def token(self) -> int:
        """The fencing token of the present grant. Raises RuntimeError if there is none."""
        return self._present().token

    @property
    def lost(self) -> bool:
        """Whether the present grant is lost. Raises RuntimeError if there is none."""
        return self._present().lost

    def ensure_held(self) -> None:
        """Raise `LockLost` if the present grant is lost, RuntimeError if there is none."""
        self._present().ensure_held()

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Call `callback()` when the present grant is lost; see `Grant.on_lost`."""
        self._present().on_lost(callback)

    def _call(self, future: Any, blocking: bool, timeout: float, owner: int) -> Call:
        if not blocking or timeout == 0:
            return Call("lock", self._asking(self._trying, owner), future)
        asked = self._asking(self._waiting, owner)
        return Call("lock", asked, future, True, None if timeout == -1 else now() + timeout)

    def _asking(self, kept: Acquire, owner: int) -> Acquire:
        """The question as made once for all who are nobody in the wait-for graph, or anew."""
        if not owner:
            return kept
        return Acquire(self.name, kept.shared, kept.wait, owner, self._delay_us)

    def _keep(self, owner: object, call: Call, granted: Granted) -> Grant | None:
        """The grant in the caller's hands; None if its session was lost on the way."""
        session = call.session
        assert session is not None
        if session.is_lost(now()):
            return None
        grant = Grant(
            self.name, self.mode, granted.token, granted.grant, session, self._shell.call_back
        )
        self._held.setdefault(owner, []).append(grant)
        return grant

    def _owner(self) -> object:
        raise NotImplementedError

    def _present(self) -> Grant:
        """The latest grant of this thread or task, else the latest of any."""
        grants = self._held.get(self._owner())
        if grants:
            return grants[-1]
        for grants in reversed(list(self._held.values())):
            if grants:
                return grants[-1]
        raise RuntimeError("release unlocked lock")

    def _drop(self, grant: Grant) -> None:
        """Let go of a grant. Raises RuntimeError if another thread or task was quicker."""
        owner = self._owner()
        if grant not in self._held.get(owner, ()):
            owner = next((o for o, held in list(self._held.items()) if grant in held), None)
        try:
            grants = self._held[owner]
            grants.remove(grant)
        except (KeyError, ValueError):
            raise RuntimeError("release unlocked lock") from None
        if not grants:
            self._held.pop(owner, None)

    def _releasing(self, grant: Grant, future: Any) -> Call:
        call = Call("lock", Release(grant.name, grant._number), future)
        call.session = grant._session
        grant._session.watched.pop(grant._number, None)
        return call

    @staticmethod
    def _refused(result: object) -> None:
        """Nothing for a lock that was not had in time; raises for anything else."""
        try:
            result_of(result)
        except Timeout:
            return None
        raise CoterieError(f"the cluster answered {result!r} to an acquire")
