"""Simulated transactions: they take what locks they like in any order, and run into each other.

The law: a transaction that waits counts on nothing: it may be a victim already. When it goes on it
holds all it was granted, and a victim holds nothing.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from ...protocols.errors import Code
from ...protocols.lock.messages import (
    Abort,
    Acquire,
    AcquireAll,
    BeginTransaction,
    Begun,
    Commit,
    Converted,
    Downgrade,
    Granted,
    GrantedAll,
    Upgrade,
)
from ...protocols.plugin import Failure
from .judge import Belief

if TYPE_CHECKING:
    from .clients import SimulatedClient

NAMES = ("x", "y", "z")


class Transactions:
    """One program of a client: one transaction after the other."""

    def __init__(self, client: SimulatedClient, source: random.Random) -> None:
        self.client = client
        self.random = source
        self.first = 0
        """The id of the victim that is repeated."""
        self.owner = 0
        self.session: Any = None
        self.grants: dict[str, int] = {}
        self.beliefs: dict[str, Belief] = {}
        self.steps = 0

    def begin(self) -> None:
        client = self.client
        if client.finishing:
            client.running -= 1
            return
        operation = BeginTransaction(self.first)
        client._submit("lock", operation, self._begun, waits=True)

    def _begun(self, call: Any) -> None:
        result = call.result
        if type(result) is not Begun:
            self._over()
            return
        self.client.judge.transactions += 1
        self.owner, self.session = result.transaction, call.session
        self.steps = self.random.randint(1, 5)
        self.client._later(self._step)

    def _step(self) -> None:
        """The next request; what is held does not count until it is answered."""
        if self._is_lost():
            self._over()
            return
        self.steps -= 1
        if self.steps < 0:
            self._end()
            return
        operation = self._draw()
        self._suspend(True)
        timed = self.random.random() < 0.2
        deadline = self.client.clock() + self.random.random() * 2.0 if timed else None
        self.client._submit(
            "lock",
            operation,
            self._answered,
            waits=True,
            deadline=deadline,
            session=self.session,
        )

    def _is_lost(self) -> bool:
        """With its session, or as a victim: its client was told so."""
        return not self.client.counts_on(self.session) or self.owner in self.session.aborted

    def _draw(self) -> Any:
        draw = self.random.random
        missing = [name for name in NAMES if name not in self.grants]
        shared = draw() < 0.4
        if missing and (not self.grants or draw() < 0.7):
            if len(missing) > 1 and draw() < 0.3:
                names = self.random.sample(missing, 2)
                return AcquireAll(tuple(names), shared, owner=self.owner)
            return Acquire(self.random.choice(missing), shared, owner=self.owner)
        name = self.random.choice(sorted(self.grants))
        if self.beliefs[name].shared:
            return Upgrade(name, self.grants[name])
        # From now on others may share it, whenever this comes to be known here.
        self.client.judge.shared(self.beliefs[name])
        return Downgrade(name, self.grants[name])

    def _answered(self, call: Any) -> None:
        result, operation = call.result, call.operation
        if type(result) is Failure and result.code is Code.DEADLOCK:
            self.client.judge.victim(self.owner, result.detail)
            self._over(self.owner)
            return
        if self._is_lost():
            self._over()
            return
        if type(result) is Granted:
            assert isinstance(operation, Acquire)
            self._hold(operation.name, operation.shared, result.grant, result.token)
        elif type(result) is GrantedAll:
            assert isinstance(operation, AcquireAll)
            for place, name in enumerate(operation.names):
                number, token = result.grant + place, result.tokens[place]
                self._hold(name, operation.shared, number, token)
        elif type(result) is Converted and not result.shared:
            assert isinstance(operation, Upgrade)
            self.beliefs[operation.name].ended = True
            self._hold(operation.name, False, result.grant, result.token)
        self._suspend(False)
        self.client._later(self._step)

    def _hold(self, name: str, shared: bool, number: int, token: int) -> None:
        belief = Belief(self.client, name, shared, token, self.session, suspended=True)
        self.grants[name], self.beliefs[name] = number, belief

    def _suspend(self, suspended: bool) -> None:
        """Those that are new begin to count with the others."""
        for belief in self.beliefs.values():
            was, belief.suspended = belief.suspended, suspended
            if was and not suspended:
                self.client.judge.granted(belief)

    def _end(self) -> None:
        self._disbelieve()
        ending = Commit(self.owner) if self.random.random() < 0.7 else Abort(self.owner)
        self.client._submit(
            "lock", ending, lambda call: self._over(), waits=True, session=self.session
        )

    def _over(self, first: int = 0) -> None:
        """Begin anew; `first`: as the victim that this one was."""
        self._disbelieve()
        self.first, self.owner = first, 0
        self.client._later(self.begin)

    def _disbelieve(self) -> None:
        for belief in self.beliefs.values():
            belief.ended = True
        self.grants, self.beliefs = {}, {}
