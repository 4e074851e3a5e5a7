"""Grants and waits, who they belong to, and the indexes by which they are found.

The law: `claims` and `transactions` are the state; every index is derived from them and equal on
all replicas, in its order too: what is found first decides who is told, granted or aborted first.

Most grants are owners by themselves and never wait for a second lock. They are in no index but
those of their session and lock: `owners` knows transactions, nests of which a second claim was
asked for, and grants that wait to be upgraded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable
from typing import Any, TypeAlias

import msgspec

from ..plugin import ClientId, SessionId

Edge: TypeAlias = tuple[int, int, str]
"""(waiting owner, holding owner, lock name)."""


class Claim(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A grant, or a wait while `token` is 0. `number` (of the Acquire) names it.

    `group`: the first number of the AcquireAll it belongs to. `upgrade`: the number of the Upgrade
    it waits for (while it is shared) or was made exclusive by; `before`: its token before that.
    `asks`: how many count on a claim that was asked for with `once`; 0 for any other.
    """

    number: int
    session: SessionId
    client: ClientId
    name: str
    shared: bool
    owner: int
    lock_delay_us: int
    token: int
    group: int = 0
    upgrade: int = 0
    before: int = 0
    asks: int = 0

    @property
    def asked(self) -> int:
        """The number of the operation by which its client knows the wait."""
        return self.upgrade or self.group or self.number

    @property
    def upgrading(self) -> bool:
        return self.upgrade > 0 and self.shared


class Transaction(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A transaction, or (not `begun`) a nest that was a victim and whose client was not yet heard
    to know. Of a victim `cycle` tells the deadlock, and `waits` the operations it failed."""

    number: int
    session: SessionId
    client: ClientId
    begun: bool
    waits: tuple[int, ...] = ()
    cycle: tuple[Edge, ...] = ()


class Owner(msgspec.Struct):
    """What an owner has: derived. `waits` are those of its claims that wait, upgrades included;
    `names` tells the claims of each lock, in order."""

    session: SessionId
    transaction: Transaction | None = None
    claims: dict[int, Claim] = {}
    waits: dict[int, Claim] = {}
    names: dict[str, tuple[int, ...]] = {}


class ClaimIndex:
    """The state and its indexes; they change together, and only here."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.shared: dict[SessionId, None] = {}
        """Sessions whose claims a snapshot under way refers to: to be copied before they change."""
        self._sharers = 0
        self._unsorted: dict[tuple[bool, str], None] = {}
        self._particular: list[Claim] = []
        self.claims: dict[SessionId, dict[int, Claim]] = {}
        """By session, in order of number. A session stays until it ends, even without claims."""
        self.transactions: dict[SessionId, dict[int, Transaction]] = {}
        self.holders: dict[str, dict[int, Claim]] = {}
        self.waits: dict[str, dict[int, Claim]] = {}
        """By lock, in order of number, which is the order they came in."""
        self.upgrading: dict[str, dict[int, Claim]] = {}
        """Grants that wait to be upgraded, by lock, in order of their Upgrades."""
        self.upgrades: dict[int, Claim] = {}
        """By the number of the Upgrade, waited for or granted."""
        self.owners: dict[int, Owner] = {}
        self.branching: dict[str, list[int]] = {}
        """By lock, in order: the waits whose owner waits for something else too."""
        self.once: dict[tuple[SessionId, str], int] = {}
        """By session and lock: the claims that were asked for with `once`."""
        self.failed: dict[int, Transaction] = {}
        """By number: the waits that ended in a deadlock, with the victim they were of."""

    def release(self) -> list[Any]:
        return [
            self.claims, self.holders, self.waits, self.owners, self.once, self.transactions,
        ]  # fmt: skip

    def owner_of(self, claim: Claim) -> Owner | None:
        """None if the claim is an owner by itself."""
        owner = self.owners.get(claim.owner or claim.number)
        return owner if owner is not None and claim.number in owner.claims else None

    def nest(self, claim: Claim) -> Owner:
        """The owner of a claim, made from it if it was one by itself."""
        owner = self.owner_of(claim)
        if owner is None:
            owner = self.owners[claim.number] = Owner(claim.session)
            self._own(owner, claim)
        return owner

    def put(self, claim: Claim) -> None:
        """Add a claim, or put it in place of that of the same number."""
        if self.shared:
            self.unshare(claim.session)
        name, number = claim.name, claim.number
        claims = self.claims[claim.session]
        old = claims.get(number)
        if old is not None and not old.token and claim.token:
            waiting = self.waits[name]
            del waiting[number]
            if not waiting:
                del self.waits[name]
        claims[number] = claim
        index = self.holders if claim.token else self.waits
        beside = index.get(name)
        if beside is None:
            index[name] = {number: claim}
        else:
            # Out of order only who waited for several locks at once, while others shared this one.
            late = number not in beside and next(reversed(beside)) > number
            beside[number] = claim
            if late:
                index[name] = dict(sorted(beside.items()))
        if old is not None and old.upgrade:
            self._end_upgrade(old)
        if claim.upgrade:
            self.upgrades[claim.upgrade] = claim
            if claim.shared:
                self.upgrading.setdefault(name, {})[number] = claim
        if claim.owner or number in self.owners:
            owner = self.owners.get(claim.owner) if claim.owner else self.owner_of(claim)
            if owner is not None:
                self._own(owner, claim)

    def strike(self, claim: Claim) -> None:
        """Remove a claim."""
        if self.shared:
            self.unshare(claim.session)
        name, number = claim.name, claim.number
        index = self.holders if claim.token else self.waits
        beside = index[name]
        del self.claims[claim.session][number], beside[number]
        if not beside:
            del index[name]
        if claim.asks:
            del self.once[claim.session, name]
        if claim.upgrade:
            self._end_upgrade(claim)
        key = claim.owner or number
        owner = self.owners.get(key)
        if owner is not None and number in owner.claims:
            self._await_no_more(owner, number)
            del owner.claims[number]
            others = tuple(other for other in owner.names[name] if other != number)
            if others:
                owner.names[name] = others
            else:
                del owner.names[name]
            if not owner.claims and owner.transaction is None:
                del self.owners[key]

    def enroll(self, transaction: Transaction) -> None:
        """Add a transaction, or put it in place of its former state."""
        session, number = transaction.session, transaction.number
        self.transactions.setdefault(session, {})[number] = transaction
        owner = self.owners.get(number)
        if owner is None:
            owner = self.owners[number] = Owner(session)
        owner.transaction = transaction
        for wait in transaction.waits:
            self.failed[wait] = transaction

    def expel(self, transaction: Transaction) -> None:
        """Forget a transaction; its claims have gone before."""
        of_session = self.transactions[transaction.session]
        del of_session[transaction.number]
        if not of_session:
            del self.transactions[transaction.session]
        for wait in transaction.waits:
            del self.failed[wait]
        owner = self.owners[transaction.number]
        owner.transaction = None
        if not owner.claims:
            del self.owners[transaction.number]

    def members(self, claim: Claim) -> list[Claim]:
        """The claims of an AcquireAll that stand together with its first one: waiting or held."""
        claims, members = self.claims[claim.session], [claim]
        held = claim.token > 0
        while True:
            other = claims.get(claim.number + len(members))
            if other is None or other.group != claim.group or (other.token > 0) != held:
                return members
            members.append(other)

    # Snapshots

    def share(self) -> tuple[list[tuple[SessionId, dict[int, Claim]]], list[Transaction]]:
        """The state, for a snapshot. To copy a million claims takes longer than a turn may: those
        of a session are shared with it, and copied when they change before it is done."""
        self.shared = dict.fromkeys(self.claims)
        self._sharers += 1
        transactions = [t for of_session in self.transactions.values() for t in of_session.values()]
        return list(self.claims.items()), transactions

    def unshare(self, session: SessionId) -> None:
        """The session's claims are about to change: a snapshot keeps them as they were."""
        if session in self.shared:
            del self.shared[session]
            self.claims[session] = self.claims[session].copy()

    def share_no_more(self) -> None:
        """A snapshot is done."""
        self._sharers -= 1
        if not self._sharers:
            self.shared = {}

    def take_claims(self, session: SessionId, rows: Iterable[Claim]) -> None:
        """Rows of a snapshot. What came out of order is put in order by `settle`."""
        claims = self.claims.setdefault(session, {})
        for claim in rows:
            number = claim.number
            claims[number] = claim
            index = self.holders if claim.token else self.waits
            beside = index.setdefault(claim.name, {})
            if beside and next(reversed(beside)) > number:
                self._unsorted[claim.token > 0, claim.name] = None
            beside[number] = claim
            if claim.owner or claim.upgrade or claim.asks:
                self._particular.append(claim)

    def settle(self) -> None:
        """Make the other indexes once all rows were taken. Those of most claims are there."""
        for granted, name in self._unsorted:
            index = self.holders if granted else self.waits
            index[name] = dict(sorted(index[name].items()))
        particular = {claim.number: claim for claim in self._particular}
        for claim in self._particular:
            first = self.claims[claim.session].get(claim.owner)
            if first is not None:
                particular[first.number] = first
        named = {claim.owner: None for claim in self._particular if claim.owner}
        self._unsorted, self._particular = {}, []
        upgrades: list[Claim] = []
        for _, claim in sorted(particular.items()):
            if claim.asks:
                self.once[claim.session, claim.name] = claim.number
            if claim.upgrade:
                upgrades.append(claim)
            if claim.owner or claim.upgrading or claim.number in named:
                owner = self.owners.setdefault(claim.owner or claim.number, Owner(claim.session))
                if claim.owner or owner.session == claim.session:
                    self._own(owner, claim)
        for claim in sorted(upgrades, key=lambda claim: claim.upgrade):
            self.upgrades[claim.upgrade] = claim
            if claim.shared:
                self.upgrading.setdefault(claim.name, {})[claim.number] = claim

    def check_indexes(self, sessions: Container[SessionId], ending: Container[SessionId]) -> None:
        """Everything derived is what it would be if it were made anew."""
        fresh = ClaimIndex()
        for of_session in self.transactions.values():
            for transaction in of_session.values():
                fresh.enroll(transaction)
        for session, rows in self.claims.items():
            assert session in sessions or session in ending
            assert list(rows) == sorted(rows)
            fresh.take_claims(session, rows.values())
        assert all(session in self.claims for session in self.transactions)
        fresh.settle()
        for name in ("holders", "waits", "upgrading"):
            ours, theirs = getattr(self, name), getattr(fresh, name)
            assert ours == theirs, name
            assert all(list(ours[lock]) == list(theirs[lock]) for lock in ours), name
        assert self.upgrades == fresh.upgrades
        assert self.branching == fresh.branching
        assert self.failed == fresh.failed
        assert self.once == fresh.once
        asked = sum(c.asks > 0 for rows in self.claims.values() for c in rows.values())
        assert len(self.once) == asked
        for number, owner in self.owners.items():
            assert owner.claims or owner.transaction is not None
            anew = fresh.owners.get(number)
            if anew is None:  # nobody names it as owner any more
                assert list(owner.claims) == [number]
            else:
                assert owner == anew and list(owner.waits) == list(anew.waits)
        assert all(number in self.owners for number in fresh.owners)

    # Owners

    def _own(self, owner: Owner, claim: Claim) -> None:
        number = claim.number
        if number not in owner.claims:
            owner.names[claim.name] = (*owner.names.get(claim.name, ()), number)
        owner.claims[number] = claim
        if claim.token and not claim.upgrading:
            self._await_no_more(owner, number)
            return
        waits = owner.waits
        late = number not in waits and bool(waits) and next(reversed(waits)) > number
        waits[number] = claim
        if late:
            owner.waits = dict(sorted(waits.items()))
        if len(owner.waits) == 2:
            for wait in owner.waits.values():
                self._branch(wait)
        elif len(owner.waits) > 2:
            self._branch(claim)

    def _await_no_more(self, owner: Owner, number: int) -> None:
        wait = owner.waits.pop(number, None)
        if wait is not None and owner.waits:
            self._branch_no_more(wait)
            if len(owner.waits) == 1:
                self._branch_no_more(next(iter(owner.waits.values())))

    def _branch(self, wait: Claim) -> None:
        if not wait.token:  # an upgrade stands in no queue
            branching = self.branching.setdefault(wait.name, [])
            place = bisect_left(branching, wait.number)
            if place == len(branching) or branching[place] != wait.number:
                branching.insert(place, wait.number)

    def _branch_no_more(self, wait: Claim) -> None:
        if not wait.token:
            branching = self.branching[wait.name]
            del branching[bisect_left(branching, wait.number)]
            if not branching:
                del self.branching[wait.name]

    def _end_upgrade(self, claim: Claim) -> None:
        self.upgrades.pop(claim.upgrade, None)
        if claim.shared:
            pending = self.upgrading[claim.name]
            del pending[claim.number]
            if not pending:
                del self.upgrading[claim.name]
