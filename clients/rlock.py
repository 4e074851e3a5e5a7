"""Locks that their owner, a thread or a task, may take again.

The law: all objects of one name in one client are one lock, so that it is the thread or task that
counts and not the object. Only the first acquire and the last release talk to the cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..protocols.lock.messages import Granted
from .core import Call
from .grant import Grant
from .holding import Holding
from .lock import AsyncLock, Lock
from .shell import Shell

if TYPE_CHECKING:
    from .runner import Runner


class Reentrant(Holding):
    """How often each owner has the lock: as often as its grant stands in the owner's list."""

    def _taken_again(self) -> Grant | None:
        """The grant of the calling thread or task, once more; None if it has none."""
        held = self._held.get(self._owner())
        if not held:
            return None
        held[-1].ensure_held()
        held.append(held[-1])
        return held[-1]

    def _given_once(self) -> bool:
        """Undo one acquire; false if it is the last, which the cluster must hear of."""
        held = self._mine()
        if len(held) == 1:
            return False
        held.pop()
        return True

    def _mine(self) -> list[Grant]:
        held = self._held.get(self._owner())
        if not held:
            raise RuntimeError("cannot release un-acquired lock")
        return held

    def _keep(
        self, holder: object, call: Call, granted: Granted, nest: list[Grant] | None
    ) -> Grant | None:
        self._shell.rlocks_held[self.name] = self  # a forgotten object must not be made twice
        return super()._keep(holder, call, granted, nest)

    def _drop(self, grant: Grant) -> None:
        super()._drop(grant)
        if not self._held:
            self._shell.rlocks_held.pop(self.name, None)

    def _is_owned(self) -> bool:
        return bool(self._held.get(self._owner()))

    def _flatten(self) -> int:
        """Leave one acquire of all; how many there were."""
        held = self._mine()
        depth = len(held)
        del held[1:]
        return depth

    def _deepen(self, depth: int) -> None:
        held = self._mine()
        held += held * (depth - 1)


class AsyncRLock(Reentrant, AsyncLock):
    """A re-entrant lock of the whole cluster for asyncio, made by `AsyncClient.rlock`."""

    def __init__(self, shell: Shell, name: str) -> None:
        super().__init__(shell, name, False, None, 0.0)

    async def _acquire(
        self, blocking: bool, timeout: float, nest: list[Grant] | None = None
    ) -> Grant | None:
        again = self._taken_again()
        if again is not None:
            return again
        shell = self._shell
        return await super()._acquire(blocking, timeout, shell.nests.of_task(shell.task()))

    async def release(self) -> None:
        """Undo one acquire; the last gives the lock back. Raises RuntimeError if the lock is not
        this task's, `LockLost` if it is lost."""
        if not self._given_once():
            await super().release()

    async def _release_save(self) -> Any:
        depth = self._flatten()
        await self.release()
        return depth

    async def _acquire_restore(self, depth: Any) -> None:
        await self._acquire(True, -1)
        self._deepen(depth)


class RLock(Reentrant, Lock):
    """A re-entrant lock of the whole cluster, made by `Client.rlock`; honours
    `threading.RLock`."""

    def __init__(self, runner: Runner, shell: Shell, name: str) -> None:
        Lock.__init__(self, runner, shell, name, False, None, 0.0)

    def _acquire(
        self, blocking: bool, timeout: float, nest: list[Grant] | None = None
    ) -> Grant | None:
        again = self._taken_again()
        if again is not None:
            return again
        return super()._acquire(blocking, timeout, self._shell.nests.of_thread())

    def release(self) -> None:
        """Undo one acquire; the last gives the lock back. Raises RuntimeError if the lock is not
        this thread's, `LockLost` if it is lost."""
        if not self._given_once():
            super().release()

    def _release_save(self) -> Any:
        depth = self._flatten()
        self.release()
        return depth

    def _acquire_restore(self, depth: Any) -> None:
        self._acquire(True, -1)
        self._deepen(depth)
