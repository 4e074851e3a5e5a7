"""A lock in a program's hands: what the locks for tasks and for threads share.

The law: a grant is never handed out after it was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from ..protocols.errors import Code
from ..protocols.lock.messages import Acquire, Converted, Downgrade, Granted, Release, Upgrade
from ..protocols.plugin import Failure
from .arguments import check_name, check_timeout
from .clock import now
from .core import Call
from .errors import CoterieError, Timeout, result_of
from .grant import Grant, converted_error
from .nests import owner_of
from .shell import Shell

LOCK_DELAY_MAX_S = 3_600.0
NEST_GONE = (Code.NOT_HELD, Code.SESSION_EXPIRED)


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
        delay_us = round(lock_delay * 1e6)
        self._waiting = Acquire(name, shared, True, 0, delay_us)
        self._trying = Acquire(name, shared, False, 0, delay_us)
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

    def _call(self, future: Any, blocking: bool, timeout: float, nest: list[Grant] | None) -> Call:
        asked = self._waiting if blocking and timeout != 0 else self._trying
        deadline = None if timeout == -1 or not asked.wait else now() + timeout
        if not nest:
            return Call("lock", asked, future, asked.wait, deadline)
        owner, session = owner_of(nest)
        if owner:
            asked = Acquire(asked.name, asked.shared, asked.wait, owner, asked.lock_delay_us)
        return Call("lock", asked, future, asked.wait, deadline, session=session)

    def _keep(
        self, holder: object, call: Call, granted: Granted, nest: list[Grant] | None
    ) -> Grant | None:
        """The grant in the caller's hands; None if its session was lost on the way."""
        session = call.session
        assert session is not None
        if session.is_lost(now()):
            return None
        number = granted.grant
        owner = call.operation.owner or number  # type: ignore[attr-defined]
        call_back = self._shell.call_back
        grant = Grant(self.name, self.mode, granted.token, number, session, call_back, owner, nest)
        self._held.setdefault(holder, []).append(grant)
        if nest is not None:
            nest.append(grant)
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
        if grant._nest is not None and grant not in grants:
            with contextlib.suppress(ValueError):
                grant._nest.remove(grant)

    def _releasing(self, grant: Grant, future: Any) -> Call:
        call = Call("lock", Release(grant.name, grant._number), future)
        call.session = grant._session
        grant._session.watched.pop(grant, None)
        return call

    @staticmethod
    def _asked_anew(call: Call, result: object) -> bool:
        """What to do about an answer that is no grant: true if the nest in whose name the lock was
        asked for is no more; false if it just was not had in time; raises for anything else."""
        owner: int = call.operation.owner  # type: ignore[attr-defined]
        if owner and isinstance(result, Failure) and result.code in NEST_GONE:
            assert call.session is not None
            call.session.abort(owner)
            return True
        try:
            result_of(result)
        except Timeout:
            return False
        raise CoterieError(f"the cluster answered {result!r} to an acquire")

    def _converting(self, grant: Grant, operation: Upgrade | Downgrade, timeout: float) -> Call:
        grant.ensure_held()
        deadline = None if timeout == -1 else now() + timeout
        return Call("lock", operation, None, True, deadline, session=grant._session)

    async def _upgrade(self, grant: Grant, timeout: float) -> tuple[Grant, Call] | None:
        """The exclusive grant in the place of a shared one, and the call that made it."""
        if grant.mode == "exclusive":
            return None
        operation = Upgrade(grant.name, grant._number, timeout != 0)
        call = self._converting(grant, operation, timeout)
        result = await self._shell.ask(call)
        if type(result) is Converted:
            return self._convert(grant, result), call
        raise converted_error(grant, result, timeout)

    async def _downgrade(self, grant: Grant) -> Grant:
        if grant.mode == "shared":
            return grant
        operation = Downgrade(grant.name, grant._number)
        result = await self._shell.ask(self._converting(grant, operation, -1))
        if type(result) is Converted:
            return self._convert(grant, result)
        raise converted_error(grant, result, -1)

    def _convert(self, grant: Grant, converted: Converted) -> Grant:
        """Put a grant as it is now in the place of what it was; who watched it still does."""
        made = msgspec.structs.replace(
            grant, mode="shared" if converted.shared else "exclusive", token=converted.token
        )
        for grants in (*self._held.values(), grant._nest or []):
            for place, held in enumerate(grants):
                if held is grant:
                    grants[place] = made
        watching = grant._session.watched.pop(grant, None)
        if watching:
            grant._session.watched[made] = watching
        return made

    def _unconvert(self, upgraded: tuple[Grant, Call] | None) -> None:
        """Nobody waited for the upgrade any more."""
        if upgraded is not None:
            made, call = upgraded
            self._shell.take_back(call)
            self._convert(made, Converted(made._number, made.token, True))
