"""Acting for another's session: numbered and remembered for who asks, owned by whom it is for; and
the one claim of a lock that a session has, however often it asks (`once`)."""

from __future__ import annotations

from typing import Any

import pytest
from control_group import TTL_US, ControlGroup, DirectPort, restore

from coterie.protocols.errors import Code
from coterie.protocols.lock.messages import (
    Acquire,
    Granted,
    GrantedLater,
    Queued,
    Release,
    Released,
    Withdraw,
)
from coterie.protocols.plugin import Cancel, Cancelled, Command, Failure, Operation, Request
from coterie.protocols.session.messages import (
    EndSession,
    ExpireSession,
    KeepAlive,
    KeptAlive,
    OpenSession,
    Pulse,
    Pulsed,
    SessionEnded,
    SessionOpened,
)
from coterie.protocols.session.plugin import SessionPlugin

FIRST, SECOND = 21, 22
"""Two clients that act for others (gateways)."""

ALICE, BOB = 501, 502
"""Two clients that others act for."""


class Acting(ControlGroup):
    """A control group with two gateways, and sessions of those they act for."""

    def __init__(self) -> None:
        super().__init__()
        self.gateways = {client: self.open(client) for client in (FIRST, SECOND)}
        self.owned = {principal: self.open_for(FIRST, principal) for principal in (ALICE, BOB)}

    def act(
        self, gateway: int, principal: int, operation: Operation, plugin: str = "lock",
        sequence: int = 0,
    ) -> Any:  # fmt: skip
        """An operation for a principal, under the gateway's next sequence or a given one."""
        session = self.gateways[gateway]
        if not sequence:
            sequence = self.sequences[session] = self.sequences.get(session, 0) + 1
        command = Command(plugin, gateway, session, 0, 0, [sequence], [operation], [principal])
        ((result,),) = self.apply(command)
        return result

    def open_for(self, gateway: int, principal: int) -> int:
        opened = self.act(gateway, principal, OpenSession(1, TTL_US, "web"), "session")
        assert isinstance(opened, SessionOpened)
        return opened.session


@pytest.fixture
def group() -> Acting:
    return Acting()


def code(result: Any) -> Code:
    assert isinstance(result, Failure), result
    return result.code


def holders(group: Acting, name: str) -> list[int]:
    return [claim.session for claim in group.locks.holders.get(name, {}).values()]


def test_what_is_asked_for_another_is_the_others(group: Acting) -> None:
    granted = group.act(FIRST, ALICE, Acquire("a"))
    assert isinstance(granted, Granted)
    assert holders(group, "a") == [group.owned[ALICE]]
    group.one("session", EndSession(group.gateways[FIRST]), client=FIRST)
    assert holders(group, "a") == [group.owned[ALICE]], "the gateway's end takes nothing away"
    assert group.act(SECOND, ALICE, Release("a", granted.grant)) == Released()
    assert holders(group, "a") == []


def test_a_repetition_is_answered_from_the_askers_memory(group: Acting) -> None:
    granted = group.act(FIRST, ALICE, Acquire("a"), sequence=1_000)
    assert group.act(FIRST, ALICE, Acquire("a"), sequence=1_000) == granted
    assert len(group.locks.holders["a"]) == 1


def test_one_command_acts_for_several(group: Acting) -> None:
    session = group.gateways[FIRST]
    operations = [Acquire("a"), Acquire("b"), Acquire("c")]
    command = Command("lock", FIRST, session, 0, 0, [101, 102, 103], operations, [ALICE, 0, BOB])
    group.apply(command)
    assert [holders(group, name) for name in "abc"] == [
        [group.owned[ALICE]], [session], [group.owned[BOB]],
    ]  # fmt: skip
    own = group.one("lock", Acquire("d"), client=FIRST, session=session, sequence=104)
    assert isinstance(own, Granted) and holders(group, "d") == [session]


def test_an_unknown_principal_can_do_nothing(group: Acting) -> None:
    refused = group.act(FIRST, 999, Acquire("a"))
    assert code(refused) is Code.PERMISSION_DENIED and not group.locks.holders
    assert code(group.act(FIRST, 999, KeepAlive(), "session")) is Code.PERMISSION_DENIED
    assert group.act(FIRST, 999, EndSession(0), "session") == SessionEnded()
    assert len(group.sessions.sessions) == 4


def test_a_principals_session_is_opened_once_at_any_gateway(group: Acting) -> None:
    number = group.open_for(FIRST, 777)
    assert group.open_for(SECOND, 777) == number
    assert group.sessions.sessions[number].client == 777


def test_a_principals_session_is_kept_alive_and_ended_at_any_gateway(group: Acting) -> None:
    number = group.owned[ALICE]
    group.time_us += 4_000_000
    assert group.act(SECOND, ALICE, KeepAlive(), "session") == KeptAlive(TTL_US)
    assert group.sessions.sessions[number].deadline_us == group.time_us + TTL_US
    group.act(FIRST, ALICE, Acquire("a"))
    assert group.act(SECOND, ALICE, EndSession(0), "session") == SessionEnded()
    assert number not in group.sessions.sessions and not group.locks.holders


def test_nobody_ends_the_session_of_another_by_its_number(group: Acting) -> None:
    refused = group.act(FIRST, ALICE, EndSession(group.owned[BOB]), "session")
    assert code(refused) is Code.PERMISSION_DENIED
    assert group.one("session", EndSession(0), client=FIRST) == SessionEnded()
    assert group.gateways[FIRST] in group.sessions.sessions, "0 names nobody's own session"


def test_an_expired_principal_is_gone_for_all_gateways(group: Acting) -> None:
    number = group.owned[ALICE]
    group.act(FIRST, ALICE, Acquire("a"))
    group.time_us += TTL_US
    deadline_us = group.sessions.sessions[number].deadline_us
    group.one("session", ExpireSession(number, deadline_us))
    for gateway in (FIRST, SECOND):
        assert code(group.act(gateway, ALICE, Acquire("b"))) is Code.PERMISSION_DENIED
    assert not group.locks.holders


def test_a_wait_is_told_to_who_asked(group: Acting) -> None:
    held = group.act(FIRST, ALICE, Acquire("a"))
    wait = group.act(SECOND, BOB, Acquire("a"))
    assert isinstance(wait, Queued)
    group.act(FIRST, ALICE, Release("a", held.grant))
    ((client, hint),) = group.replica.take_hints()
    assert isinstance(hint, GrantedLater)
    assert (client, hint.session, hint.wait) == (SECOND, group.owned[BOB], wait.wait)


def test_a_pulse_asks_about_the_waits_of_others(group: Acting) -> None:
    group.act(FIRST, ALICE, Acquire("a"))
    wait = group.act(SECOND, BOB, Acquire("a"))
    port = DirectPort(group, SessionPlugin())
    session = group.gateways[SECOND]
    pulse = Pulse(False, (("lock", wait.wait), ("lock", wait.wait)), (BOB, 0))
    port.plugin.on_request(Request("session", SECOND, session, 0, 0, 0, [1], [pulse]))
    port.confirm_reads()
    (pulsed,) = port.answered()
    assert isinstance(pulsed, Pulsed)
    assert [kind for kind, _ in pulsed.news] == [0, 2], "waiting in Bob's session, not in our own"
    port.plugin.on_request(
        Request("session", SECOND, session, 0, 0, 0, [2], [Pulse(False, (("lock", 1),), (1, 2))])
    )
    assert code(port.answered()[0]) is Code.MALFORMED


def test_a_cancel_undoes_what_was_asked_for_another(group: Acting) -> None:
    held = group.act(FIRST, ALICE, Acquire("a"), sequence=50)
    wait = group.act(SECOND, BOB, Acquire("a"), sequence=60)
    assert isinstance(wait, Queued) and isinstance(held, Granted)
    assert group.act(SECOND, BOB, Cancel(60), sequence=61) == Cancelled()
    assert not group.locks.waits
    assert group.act(FIRST, ALICE, Cancel(50), sequence=51) == Cancelled()
    assert not group.locks.holders


# once


def test_a_session_has_one_such_claim(group: Acting) -> None:
    granted = group.act(FIRST, ALICE, Acquire("a", once=True))
    assert group.act(SECOND, ALICE, Acquire("a", once=True)) == granted
    assert len(group.locks.holders["a"]) == 1 and not group.locks.waits
    assert isinstance(group.act(SECOND, BOB, Acquire("a", once=True)), Queued)


def test_a_wait_is_joined_and_told_to_the_latest(group: Acting) -> None:
    held = group.act(FIRST, ALICE, Acquire("a"))
    wait = group.act(FIRST, BOB, Acquire("a", once=True))
    assert group.act(SECOND, BOB, Acquire("a", once=True)) == wait
    refused = group.act(SECOND, BOB, Acquire("a", wait=False, once=True))
    assert code(refused) is Code.WOULD_BLOCK
    group.act(FIRST, ALICE, Release("a", held.grant))
    ((client, _),) = group.replica.take_hints()
    assert client == SECOND and holders(group, "a") == [group.owned[BOB]]


@pytest.mark.parametrize("granted", [True, False])
def test_it_goes_with_the_last_who_asked(group: Acting, granted: bool) -> None:
    held = group.act(FIRST, ALICE, Acquire("a"))
    group.act(FIRST, BOB, Acquire("a", once=True), sequence=70)
    group.act(SECOND, BOB, Acquire("a", once=True), sequence=80)
    if granted:
        group.act(FIRST, ALICE, Release("a", held.grant))
    index = group.locks.holders if granted else group.locks.waits
    group.act(SECOND, BOB, Cancel(80), sequence=81)
    assert [claim.session for claim in index["a"].values()] == [group.owned[BOB]]
    group.act(FIRST, BOB, Cancel(70), sequence=71)
    assert group.owned[BOB] not in [claim.session for claim in index.get("a", {}).values()]


def test_giving_up_a_grant_leaves_it_to_the_others(group: Acting) -> None:
    granted = group.act(FIRST, ALICE, Acquire("a", once=True))
    group.act(SECOND, ALICE, Acquire("a", once=True))
    assert group.act(SECOND, ALICE, Withdraw(granted.grant)) == Released()
    assert holders(group, "a") == [group.owned[ALICE]]
    assert group.act(FIRST, ALICE, Withdraw(granted.grant)) == Released()
    assert holders(group, "a") == []


def test_it_is_released_by_name_and_token(group: Acting) -> None:
    granted = group.act(FIRST, ALICE, Acquire("a", once=True))
    group.act(SECOND, ALICE, Acquire("a", once=True))
    assert code(group.act(SECOND, ALICE, Release("a", 0, granted.token + 1))) is Code.NOT_HELD
    assert code(group.act(SECOND, BOB, Release("a", 0, granted.token))) is Code.NOT_HELD
    assert group.act(SECOND, ALICE, Release("a", 0, granted.token)) == Released()
    assert code(group.act(SECOND, ALICE, Release("a", 0, granted.token))) is Code.NOT_HELD
    again = group.act(FIRST, ALICE, Acquire("a", once=True))
    assert again.token > granted.token


def test_a_wait_is_not_released_by_name(group: Acting) -> None:
    group.act(FIRST, ALICE, Acquire("a"))
    group.act(FIRST, BOB, Acquire("a", once=True))
    assert code(group.act(FIRST, BOB, Release("a", 0))) is Code.NOT_HELD
    assert len(group.locks.waits["a"]) == 1


def test_the_other_mode_is_refused(group: Acting) -> None:
    group.act(FIRST, ALICE, Acquire("a", shared=True, once=True))
    assert code(group.act(FIRST, ALICE, Acquire("a", once=True))) is Code.SETTINGS_DIFFER


def test_it_survives_a_snapshot(group: Acting) -> None:
    group.act(FIRST, ALICE, Acquire("a", once=True))
    group.act(FIRST, BOB, Acquire("a", once=True))
    chunks = list(group.locks.snapshot())
    group.locks.clear()
    restore(group.locks, chunks)
    group.locks.check()
    assert isinstance(group.act(SECOND, ALICE, Acquire("a", once=True)), Granted)
    assert isinstance(group.act(SECOND, BOB, Acquire("a", once=True)), Queued)
    group.act(SECOND, ALICE, EndSession(0), "session")
    assert holders(group, "a") == [group.owned[BOB]]


def test_other_claims_stand_beside_it(group: Acting) -> None:
    group.act(FIRST, ALICE, Acquire("a", shared=True))
    first = group.act(FIRST, ALICE, Acquire("a", shared=True, once=True))
    assert isinstance(first, Granted) and len(group.locks.holders["a"]) == 2
    group.act(FIRST, ALICE, Release("a", 0, first.token))
    assert len(group.locks.holders["a"]) == 1
