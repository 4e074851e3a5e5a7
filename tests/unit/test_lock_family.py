"""Transactions, groups, nests, conversions and deadlocks against a naive model, in any order.

The model knows the law and nothing of how it is kept: one list of claims in order of arrival, all
found by looking through it. Which of several cycles is broken first is the table's to choose, so
the model follows it, and asks for every victim that it is the youngest of a cycle that stands, and
that no cycle is left.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from control_group import ControlGroup, DirectPort, restore
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coterie.protocols.errors import Code
from coterie.protocols.lock import owners
from coterie.protocols.lock.messages import (
    Abort,
    AbortedLater,
    Acquire,
    AcquireAll,
    BeginTransaction,
    Begun,
    Commit,
    Converted,
    Downgrade,
    Ended,
    ForceRelease,
    ForceReleased,
    Granted,
    GrantedAll,
    GrantedAllLater,
    GrantedLater,
    LostLater,
    Queued,
    Release,
    Released,
    Upgrade,
    Withdraw,
)
from coterie.protocols.lock.plugin import LockPlugin
from coterie.protocols.lock.table import LockTable
from coterie.protocols.plugin import Cancel, Cancelled, Failure, Operation
from coterie.protocols.session.messages import EndSession


@dataclasses.dataclass
class Held:
    """A claim of the model: held if it has a token."""

    number: int
    session: int
    owner: int
    name: str
    shared: bool
    token: int = 0
    group: int = 0
    upgrade: int = 0
    before: int = 0

    @property
    def upgrading(self) -> bool:
        return self.shared and self.upgrade > 0

    @property
    def waits(self) -> bool:
        return not self.token or self.upgrading


class Model:
    def __init__(self) -> None:
        self.claims: list[Held] = []
        self.transactions: dict[int, int] = {}
        """Live transactions, with their sessions."""
        self.victims: dict[int, int] = {}
        """Owners that were victims and whose clients have not said that they know."""

    def of(self, name: str) -> list[Held]:
        return [claim for claim in self.claims if claim.name == name]

    def find(self, session: int, number: int) -> Held | None:
        found = [c for c in self.claims if c.session == session and c.number == number]
        return found[0] if found else None

    def blockers(self, wait: Held) -> list[Held]:
        """What a claim that waits, or is to be made, waits for."""
        found = []
        for other in self.of(wait.name):
            if other is wait:
                continue
            shared = wait.shared and other.shared
            if wait.token:
                blocks = other.token > 0
            elif other.token:
                blocks = not shared or other.upgrading
            else:
                blocks = other.number < wait.number and not shared
            if blocks:
                found.append(other)
        return found

    def grant(self, number: int) -> dict[int, int]:
        """Grant all that can be; by the number it was asked with, the token."""
        told: dict[int, int] = {}
        while True:
            ready = [claim for claim in self.claims if claim.waits and self.is_ready(claim)]
            if not ready:
                return told
            claim = ready[0]
            members = self.members(claim) if claim.group and not claim.token else [claim]
            for member in members:
                holders = [c for c in self.of(member.name) if c.token and c is not member]
                if member.token:
                    member.before, member.shared, member.token = member.token, False, number
                else:
                    member.token = holders[0].token if holders else number
            told[claim.upgrade or claim.group or claim.number] = members[0].token

    def is_ready(self, claim: Held) -> bool:
        members = self.members(claim) if claim.group and not claim.token else [claim]
        return not any(self.blockers(member) for member in members)

    def members(self, claim: Held) -> list[Held]:
        return [c for c in self.claims if c.group == claim.group and c.session == claim.session]

    def asks_again(self, wait: Held) -> bool:
        """Its owner had asked for the same lock already, and waited for it: it is not said what
        that means."""
        return not wait.token and any(
            (c.owner, c.name) == (wait.owner, wait.name) and c.number < wait.number
            for c in self.claims
        )

    def edges(self, highest: int, *, again: bool = True) -> dict[int, set[int]]:
        """Who waits for whom, among the owners up to `highest`. `again`: also those who ask for
        what they asked for before."""
        found: dict[int, set[int]] = {}
        for wait in self.claims:
            if not again and self.asks_again(wait):
                continue
            for other in self.blockers(wait) if wait.waits else ():
                itself = wait.owner == other.owner and not other.token
                if not itself and max(wait.owner, other.owner) <= highest:
                    found.setdefault(wait.owner, set()).add(other.owner)
        return found

    def cycle_through(self, owner: int, highest: int, *, again: bool = True) -> bool:
        edges = self.edges(highest, again=again)
        seen: set[int] = set()
        ahead = list(edges.get(owner, ()))
        while ahead:
            one = ahead.pop()
            if one == owner:
                return True
            if one not in seen:
                seen.add(one)
                ahead += edges.get(one, ())
        return False

    def deadlocked(self) -> list[int]:
        everyone = sorted({claim.owner for claim in self.claims})
        highest = max(everyone, default=0)
        return [one for one in everyone if self.cycle_through(one, highest, again=False)]

    def drop_owner(self, owner: int) -> None:
        self.claims = [claim for claim in self.claims if claim.owner != owner]


NAMES = st.sampled_from(["a", "b", "c"])


class LockFamilyMatchesTheModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.group = ControlGroup()
        self.model = Model()
        self.sessions: dict[int, int] = {}
        self.attempts = 0
        self.begun: list[int] = []
        self.answers: dict[tuple[int, int], Any] = {}
        self.granted: dict[int, int] = {}
        self.aborted: list[tuple[int, tuple[int, ...]]] = []
        self.seen: dict[str, tuple[int, int]] = {}

    @initialize(mode=st.sampled_from(["both", "enqueue", "sweep"]))
    def configure(self, mode: str) -> None:
        self.plugin = LockPlugin(mode)
        self.port = DirectPort(self.group, self.plugin)
        self.plugin.on_deadline()
        self.port.commit()
        self.mode = mode
        for client in (1, 2, 3):
            self.attempts += 1
            self.sessions[client] = self.group.open(client, attempt=self.attempts)

    # What clients ask

    @rule(data=st.data())
    def begin(self, data: Any) -> None:
        session = self.any_session(data)
        first = data.draw(st.sampled_from([0, *self.begun]))
        result = self.ask(session, BeginTransaction(first))
        assert isinstance(result, Begun)
        taken = [c.owner for c in self.model.claims] + [*self.model.transactions]
        taken += self.model.victims
        new = self.group.replica.number
        assert result.transaction == (first if first and first not in taken else new)
        self.model.transactions[result.transaction] = session
        self.begun.append(result.transaction)

    @rule(data=st.data(), name=NAMES, shared=st.booleans(), wait=st.booleans())
    def acquire(self, data: Any, name: str, shared: bool, wait: bool) -> None:
        session = self.any_session(data)
        owner = self.any_owner(data, session)
        result = self.ask(session, Acquire(name, shared, wait, owner))
        number = self.group.replica.number
        refused = self.refused(session, owner)
        if refused is not None:
            assert code(result) is refused
            return
        held = [c for c in self.model.of(name) if c.owner == owner]
        if held and owner in self.model.transactions:
            self.again(result, held[0], shared, wait, number)
            return
        claim = Held(number, session, owner or number, name, shared)
        if self.enter([claim], wait, result):
            assert result == (Granted(number, claim.token) if claim.token else Queued(number))

    @rule(data=st.data(), shared=st.booleans(), wait=st.booleans())
    def acquire_all(self, data: Any, shared: bool, wait: bool) -> None:
        session = self.any_session(data)
        owner = self.any_owner(data, session)
        names = data.draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
        first = self.group.replica.number + 1
        result = self.ask(session, AcquireAll(tuple(names), shared, wait, owner))
        refused = self.refused(session, owner)
        if refused is None and any(c.owner == owner and c.name in names for c in self.model.claims):
            refused = Code.MALFORMED
        if refused is not None:
            assert code(result) is refused
            return
        claims = [
            Held(number, session, owner or first, name, shared, group=first)
            for number, name in enumerate(names, first)
        ]
        if self.enter(claims, wait, result):
            tokens = tuple(claim.token for claim in claims)
            assert result == (GrantedAll(first, tokens) if all(tokens) else Queued(first))

    @precondition(lambda self: self.model.claims)
    @rule(data=st.data(), wait=st.booleans())
    def upgrade(self, data: Any, wait: bool) -> None:
        claim = data.draw(st.sampled_from(self.model.claims))
        result = self.ask(claim.session, Upgrade(claim.name, claim.number, wait))
        if not claim.token:
            assert code(result) is Code.NOT_HELD
        else:
            self.again(result, claim, False, wait, self.group.replica.number)

    @precondition(lambda self: self.model.claims)
    @rule(data=st.data())
    def downgrade(self, data: Any) -> None:
        claim = data.draw(st.sampled_from(self.model.claims))
        result = self.ask(claim.session, Downgrade(claim.name, claim.number))
        if not claim.token:
            assert code(result) is Code.NOT_HELD
            return
        if not claim.shared:
            claim.shared, claim.upgrade, claim.before = True, 0, 0
        assert result == Converted(claim.number, claim.token, True)
        self.settle()

    @precondition(lambda self: self.model.claims)
    @rule(data=st.data(), withdrawn=st.booleans())
    def release(self, data: Any, withdrawn: bool) -> None:
        session = self.any_session(data)
        claim = data.draw(st.sampled_from(self.model.claims))
        number = claim.number
        if claim.upgrade and data.draw(st.booleans()):
            number = claim.upgrade
        operation = Withdraw(number) if withdrawn else Release(claim.name, number)
        result = self.ask(session, operation)
        if session != claim.session:
            assert result == Released() if withdrawn else code(result) is Code.NOT_HELD
            return
        assert result == Released()
        self.undo(claim, number, together=withdrawn or not claim.token)
        self.settle()

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        session, sequence = data.draw(st.sampled_from(sorted(self.answers)))
        answered = self.answers.pop((session, sequence))
        if session not in self.sessions.values():
            return
        assert self.ask(session, Cancel(sequence)) == Cancelled()
        number = getattr(answered, "upgrade", 0)
        if isinstance(answered, Granted | GrantedAll):
            number = answered.grant
        elif isinstance(answered, Queued):
            number = answered.wait
        begun = answered.transaction if isinstance(answered, Begun) else 0
        if begun and self.model.transactions.get(begun) == session:
            self.end_owner(begun)
        upgraded = [c for c in self.model.claims if c.upgrade == number > 0]
        claim = self.model.find(session, number) or (upgraded[0] if upgraded else None)
        if claim is not None and number and claim.session == session:
            self.undo(claim, number, together=True)
        self.settle()

    @rule(data=st.data(), commit=st.booleans())
    def end_one(self, data: Any, commit: bool) -> None:
        session = self.any_session(data)
        owners_ = [*self.model.transactions, *self.model.victims]
        owners_ += [claim.owner for claim in self.model.claims]
        owner = data.draw(st.sampled_from(sorted(owners_) or [1]))
        result = self.ask(session, Commit(owner) if commit else Abort(owner))
        mine = self.model.transactions.get(owner) == session
        victim = self.model.victims.get(owner) == session
        if commit and not mine:
            assert code(result) is Code.NOT_HELD
            return
        assert code(result) is Code.DEADLOCK if commit and victim else result == Ended()
        if (
            mine
            or victim
            or any((c.owner, c.session) == (owner, session) for c in self.model.claims)
        ):
            self.end_owner(owner)
        self.settle()

    @rule(data=st.data(), name=NAMES)
    def force(self, data: Any, name: str) -> None:
        session = self.any_session(data)
        holders = [claim for claim in self.model.of(name) if claim.token]
        result = self.ask(session, ForceRelease(name))
        assert isinstance(result, ForceReleased)
        assert [row[1:] for row in result.holders] == [(c.session, c.number) for c in holders]
        self.model.claims = [c for c in self.model.claims if c not in holders]
        self.settle()

    @rule(data=st.data())
    def end_session(self, data: Any) -> None:
        client = data.draw(st.sampled_from(sorted(self.sessions)))
        session = self.sessions[client]
        self.group.one("session", EndSession(session), client=client)
        model = self.model
        model.claims = [claim for claim in model.claims if claim.session != session]
        for known in (model.transactions, model.victims):
            for owner in [owner for owner, of in known.items() if of == session]:
                del known[owner]
        self.listen()
        self.settle()
        self.attempts += 1
        self.sessions[client] = self.group.open(client, attempt=self.attempts)

    @rule()
    def restore(self) -> None:
        """Go on from a snapshot."""
        table: LockTable = self.group.locks
        chunks = list(table.snapshot())
        events = table.events
        table.clear()
        restore(table, chunks)
        table.events = events
        assert list(table.snapshot()) == chunks

    @rule()
    def sweep(self) -> None:
        """The leader's sweep finds whatever there is."""
        self.port.clock += 5.0
        for _ in range(20):
            self.plugin.on_deadline()
            self.port.commit()
            self.listen()
            self.settle()
        if self.mode != "enqueue":
            assert not self.model.deadlocked()

    # What holds

    @invariant()
    def the_same_claims(self) -> None:
        table: LockTable = self.group.locks
        found = [
            (c.number, c.session, c.owner or c.number, c.name, c.shared, c.token, c.upgrade)
            for claims in table.claims.values()
            for c in claims.values()
        ]
        assert sorted(found) == sorted(
            (c.number, c.session, c.owner, c.name, c.shared, c.token, c.upgrade)
            for c in self.model.claims
        )
        assert not self.granted and not self.aborted, "nobody is told what is not so"

    @invariant()
    def no_deadlock_stays(self) -> None:
        if hasattr(self, "mode") and self.mode != "sweep":
            assert not self.model.deadlocked()

    @invariant()
    def tokens_belong_to_one_era(self) -> None:
        """Whoever excludes another has a token of his own, and a later one is higher."""
        for claim in self.model.claims:
            if claim.token:
                exclusive = 0 if claim.shared else claim.number
                token, before = self.seen.get(claim.name, (0, 0))
                assert claim.token >= token or claim.before == 0
                if claim.token == token and exclusive:
                    assert before in (0, exclusive)
                if claim.token > token:
                    self.seen[claim.name] = claim.token, exclusive

    # How the model follows

    def enter(self, claims: list[Held], wait: bool, result: Any) -> bool:
        """New claims; whether they were answered as such (not refused)."""
        model = self.model
        model.claims += claims
        free = not any(model.blockers(claim) for claim in claims)
        if not free and not wait:
            del model.claims[-len(claims) :]
            assert code(result) is Code.WOULD_BLOCK
            return False
        if free:
            model.grant(self.group.replica.number)
            return True
        tokens = [claim.token for claim in claims]
        self.settle(answered=result, owner=claims[0].owner)
        if isinstance(result, Failure):
            assert result.code is Code.DEADLOCK and claims[0].owner in model.victims
            return False
        for claim, token in zip(claims, tokens, strict=True):
            if claim in model.claims and claim.token:
                claim.token, token = token, claim.token
        answer = result == Queued(claims[0].number)
        assert answer
        self.put_back(claims)
        return False

    def put_back(self, claims: list[Held]) -> None:
        """They were granted within the command after all (a victim made room)."""
        table: LockTable = self.group.locks
        for claim in claims:
            found = table.claims[claim.session].get(claim.number)
            claim.token = found.token if found is not None else claim.token

    def again(self, result: Any, claim: Held, shared: bool, wait: bool, number: int) -> None:
        """An upgrade, or an acquire by a transaction of what it has or waits for."""
        if not claim.token:
            assert code(result) is Code.BUSY
        elif shared or not claim.shared:
            assert result == Converted(claim.number, claim.token, claim.shared)
        elif claim.upgrade:
            assert code(result) is Code.BUSY
        else:
            claim.upgrade = number
            if not self.model.blockers(claim):
                claim.before, claim.token, claim.shared = claim.token, number, False
                assert result == Converted(claim.number, number, False, number)
            elif not wait:
                claim.upgrade = 0
                assert code(result) is Code.WOULD_BLOCK
            else:
                self.settle(answered=result, owner=claim.owner)
                if isinstance(result, Failure):
                    assert result.code is Code.DEADLOCK and claim.owner in self.model.victims
                else:
                    assert result == Queued(number)

    def undo(self, claim: Held, number: int, *, together: bool) -> None:
        model = self.model
        if number == claim.upgrade:
            if not claim.shared:
                claim.token = claim.before
            claim.shared, claim.upgrade, claim.before = True, 0, 0
        elif claim.group and (not claim.token or (together and claim.group == number)):
            stays = [c for c in model.members(claim) if (c.token > 0) != (claim.token > 0)]
            gone = [c for c in model.members(claim) if c not in stays]
            if claim.token:  # those that follow without a gap
                numbers = {c.number for c in gone}
                gone = [c for c in gone if set(range(number, c.number)) <= numbers]
            model.claims = [c for c in model.claims if c not in gone]
        else:
            model.claims.remove(claim)

    def end_owner(self, owner: int) -> None:
        self.model.drop_owner(owner)
        self.model.transactions.pop(owner, None)
        self.model.victims.pop(owner, None)

    def settle(self, answered: Any = None, owner: int = 0) -> None:
        """Follow the victims of the last command, then grant."""
        model = self.model
        victims = list(self.aborted)
        for victim, _ in victims:
            assert model.cycle_through(victim, victim), "the youngest of a cycle that stands"
            (session,) = {c.session for c in model.claims if c.owner == victim}
            model.drop_owner(victim)
            model.victims[victim] = session
        if isinstance(answered, Failure) and answered.code is Code.DEADLOCK:
            assert victims[-1][0] == owner, "who asks is told at once"
        self.aborted = []
        told = model.grant(self.group.replica.number)
        assert told == self.granted, "granted as the law says"
        self.granted = {}

    def refused(self, session: int, owner: int) -> Code | None:
        model = self.model
        if not owner:
            return None
        if model.victims.get(owner) == session:
            return Code.DEADLOCK
        if model.transactions.get(owner) == session:
            return None
        known = any((c.owner, c.session) == (owner, session) for c in model.claims)
        return None if known else Code.NOT_HELD

    def any_session(self, data: Any) -> int:
        return int(data.draw(st.sampled_from(sorted(self.sessions.values()))))

    def any_owner(self, data: Any, session: int) -> int:
        model = self.model
        mine = [owner for owner, of in model.transactions.items() if of == session]
        mine += [owner for owner, of in model.victims.items() if of == session]
        mine += [claim.owner for claim in model.claims if claim.session == session]
        return int(data.draw(st.sampled_from([0, *sorted(set(mine))])))

    def ask(self, session: int, operation: Operation) -> Any:
        result = self.group.ask(session, operation)
        if not isinstance(operation, Cancel) and not isinstance(result, Failure):
            self.answers[session, self.group.sequences[session]] = result
        self.listen()
        return result

    def listen(self) -> None:
        for _, hint in self.group.replica.take_hints():
            if isinstance(hint, GrantedLater):
                self.granted[hint.wait] = hint.token
            elif isinstance(hint, GrantedAllLater):
                self.granted[hint.wait] = hint.tokens[0]
            elif isinstance(hint, AbortedLater):
                self.aborted.append((hint.owner, hint.waits))
            else:
                assert isinstance(hint, LostLater)


def code(result: Any) -> Code:
    assert isinstance(result, Failure), result
    return result.code


assert owners.BOTH == 0
TestAgainstTheModel = LockFamilyMatchesTheModel.TestCase
TestAgainstTheModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
