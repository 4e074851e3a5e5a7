"""Making a grant exclusive or shared, and undoing what was asked for.

The law: an upgrade goes before all who wait, keeps its shared grant until it is granted, and is
undone to the token it had then: nobody saw the one it was given.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..errors import Code
from ..plugin import Failure, Moment, Result, SessionId
from .claims import Claim
from .deadlock import owner_id
from .granting import converted
from .messages import Converted, Downgrade, Queued, Upgrade
from .owners import Owning

WOULD_BLOCK = Failure(Code.WOULD_BLOCK, "the lock is held or waited for")
NOT_HELD = Failure(Code.NOT_HELD, "this grant is not held (any more)")
WAITED_FOR = Failure(Code.BUSY, "it waits for this lock already; retry later")


class Converting(Owning):
    """What is done with a claim once it is there."""

    def _upgrade(self, moment: Moment, operation: Upgrade) -> Result:
        claim = self._held(moment.session, operation.name, operation.grant)
        return NOT_HELD if claim is None else self._convert(moment, claim, operation.wait)

    def _convert(self, moment: Moment, claim: Claim, wait: bool) -> Result:
        """Make a grant exclusive."""
        name, number = claim.name, moment.number
        if not claim.shared:
            return Converted(claim.number, claim.token, False)
        if claim.upgrade:
            return WAITED_FOR
        if name not in self.deferred and len(self.holders[name]) == 1:
            self._make_exclusive(moment, claim, number)
            return Converted(claim.number, number, False, number)
        if not wait:
            return WOULD_BLOCK
        self.nest(claim)
        self.put(converted(claim, True, claim.token, number, 0))
        self._record("waiting", claim)
        return self._resolve(moment, owner_id(claim), number) or Queued(number)

    def _downgrade(self, moment: Moment, operation: Downgrade) -> Result:
        claim = self._held(moment.session, operation.name, operation.grant)
        if claim is None:
            return NOT_HELD
        if not claim.shared:
            self._share(moment, claim, claim.token, "downgraded")
        return Converted(claim.number, claim.token, True)

    def _share(self, moment: Moment, claim: Claim, token: int, kind: str) -> None:
        """Make a grant shared, or let it stay so."""
        shared = converted(claim, True, token, 0, 0)
        self.put(shared)
        self._record(kind, shared)
        self._advance_all(moment, (claim.name,))

    def _held(self, session: SessionId, name: str, number: int) -> Claim | None:
        claim = self.claims.get(session, {}).get(number)
        return claim if claim is not None and claim.token and claim.name == name else None

    def _undo(self, moment: Moment, number: int) -> Failure | None:
        """Undo the acquire or upgrade of this number; how it failed, if it did."""
        claim = self.claims.get(moment.session, {}).get(number)
        if claim is None:
            upgraded = self.upgrades.get(number)
            if upgraded is not None and upgraded.session == moment.session:
                token = upgraded.token if upgraded.shared else upgraded.before
                self._share(moment, upgraded, token, "withdrawn")
            return self._failure(moment.session, number)
        if claim.asks > 1:
            self.put(replace(claim, asks=claim.asks - 1))  # others count on it
            return None
        dropped = [claim]
        if claim.group and (not claim.token or claim.group == number):
            dropped = self.members(self.claims[claim.session].get(claim.group, claim))
        for member in dropped:
            self._drop(member, "released")
        self._advance_all(moment, [member.name for member in dropped])
        return None
