"""The client's pure core against the real replica: each rule of its law, one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest
from client_world import CLUSTER, ENDPOINTS, Cluster, Driven

from coterie.bus.codec import Ask
from coterie.clients.core import Call, Core
from coterie.clients.core_calls import CALLS_MAX, SPAN_MAX
from coterie.clients.core_nodes import Nodes
from coterie.clients.errors import Busy, CoterieError, Indeterminate, Timeout, Unavailable
from coterie.clients.vocabulary import codec_for
from coterie.protocols.errors import Code
from coterie.protocols.lock import table as table_module
from coterie.protocols.lock.messages import Acquire, Granted, Inspect, LockStates, Release, Released
from coterie.protocols.plugin import Cancel, Failure
from coterie.protocols.records import Member
from coterie.protocols.session.messages import (
    EndSession,
    KeepAlive,
    Locate,
    Located,
    OpenSession,
    Pulse,
)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def asked(cluster: Cluster, kind: type[Any]) -> list[tuple[str, Ask[Any]]]:
    return [(e, ask) for e, _, ask in cluster.asks if isinstance(ask.operations[0], kind)]


def test_the_first_acquire_finds_the_leader_and_opens_a_session(cluster: Cluster) -> None:
    cluster.leader = ENDPOINTS[2]
    client = Driven(cluster)
    call = client.acquire("a")
    assert isinstance(call.result, Granted)
    assert [e for e, _ in asked(cluster, Locate)] == ENDPOINTS
    assert [e for e, _ in asked(cluster, Acquire)] == [ENDPOINTS[2]]
    assert client.core.session is not None
    assert client.core.nodes.cluster == CLUSTER
    opening = asked(cluster, OpenSession)[0][1]
    assert 0 < opening.not_after_us - cluster.time_us <= 300_000_000


def test_what_is_submitted_in_one_turn_leaves_in_one_frame(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("first")
    del cluster.asks[:]
    calls = [Call("lock", Acquire(f"n{i}")) for i in range(5_000)]
    for call in calls:
        client.core.submit(call, client.now)
    client.exchange()
    frames = [ask for _, ask in asked(cluster, Acquire)]
    assert [len(ask.operations) for ask in frames] == [4_096, 904]
    assert all(isinstance(call.result, Granted) for call in calls)
    assert client.done[-5_000:] == calls


def test_sequences_rise_from_one_and_done_below_is_the_lowest_unfinished(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    holder.acquire("held")
    free, waiting = client.acquire("free"), client.acquire("held")
    lowest = [ask.done_below for _, ask in asked(cluster, Acquire)][-1]
    assert lowest == waiting.sequence > free.sequence >= 1
    client.release(free)
    assert asked(cluster, Release)[-1][1].done_below == waiting.sequence


def test_a_wait_ends_with_the_hint(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    held, waiting = holder.acquire("a"), client.acquire("a")
    assert not waiting.completed
    holder.release(held)
    client.hear()
    assert isinstance(waiting.result, Granted)
    assert waiting.result.token > held.result.token


def test_a_lost_hint_costs_a_pulse_and_no_more(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    held, waiting = holder.acquire("a"), client.acquire("a")
    holder.release(held)
    cluster.hints.clear()
    client.pass_time(0.4)
    assert isinstance(waiting.result, Granted)


def test_a_hint_may_come_before_the_answer_that_names_its_wait(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    held = holder.acquire("a")
    client.acquire("b")
    late: list[tuple[str, bytes]] = []
    client.lose_answer = lambda endpoint, frame: late.append((endpoint, frame)) is None
    waiting = client.acquire("a")
    holder.release(held)
    client.hear()
    assert not waiting.completed
    for endpoint, frame in late:
        client.core.receive(endpoint, frame, client.now)
    assert isinstance(waiting.result, Granted)


def test_a_lost_request_is_sent_again_with_its_sequence(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("first")
    client.lose = lambda endpoint, frame: True
    call = client.acquire("a")
    sequence = call.sequence
    client.lose = lambda endpoint, frame: False
    client.pass_time(1.5)
    assert isinstance(call.result, Granted)
    assert call.sequence == sequence
    assert cluster.locks()["a"] == 1


def test_a_lost_answer_does_not_apply_the_request_twice(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("first")
    client.lose_answer = lambda endpoint, frame: True
    call = client.acquire("a")
    assert not call.completed
    number = cluster.replica.number
    client.lose_answer = lambda endpoint, frame: False
    client.pass_time(1.5)
    assert isinstance(call.result, Granted)
    assert call.result.grant == number
    assert cluster.locks()["a"] == 1


def test_answers_that_come_twice_or_to_nothing_are_ignored(cluster: Cluster) -> None:
    client, other = Driven(cluster), Driven(cluster, seed=2)
    answers: list[bytes] = []
    client.lose_answer = lambda endpoint, frame: bool(answers.append(frame))
    call = client.acquire("a")
    first = call.result
    done = len(client.done)
    for frame in answers:
        client.core.receive(ENDPOINTS[0], frame, client.now)
        other.core.receive(ENDPOINTS[0], frame, other.now)
    client.exchange()
    assert call.result is first
    assert len(client.done) == done
    assert other.done == []


def test_junk_is_counted_and_dropped(cluster: Cluster) -> None:
    client = Driven(cluster)
    for junk in (b"", b"junk", b"cT" + b"\0" * 30):
        client.core.receive(ENDPOINTS[0], junk, client.now)
    assert client.core.dropped == 3
    assert isinstance(client.acquire("a").result, Granted)


def test_a_node_that_does_not_lead_names_who_does(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("first")
    cluster.elect(ENDPOINTS[1])
    call = client.acquire("a")
    assert not call.completed
    sequence = call.sequence
    client.pass_time(0.1)
    assert isinstance(call.result, Granted)
    assert call.sequence == sequence
    assert client.core.nodes.leader == ENDPOINTS[1]


def test_a_dead_leader_is_found_out_by_the_pulse(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("first")
    cluster.dead = [ENDPOINTS[0]]
    cluster.elect(None)
    call = client.acquire("a")
    client.pass_time(1.0)
    assert not call.completed
    cluster.elect(ENDPOINTS[2])
    client.pass_time(0.7)
    assert isinstance(call.result, Granted)
    assert client.core.nodes.term == cluster.term
    assert cluster.locks() == {"first": 1, "a": 1}


def test_a_lower_term_does_not_win(cluster: Cluster) -> None:
    nodes = Nodes(ENDPOINTS)
    assert nodes.heard(ENDPOINTS[0], Located(1, "n1", "n1", 5, 10, ()), 0.0)
    assert not nodes.heard(ENDPOINTS[1], Located(1, "n2", "n2", 4, 10, ()), 0.0)
    assert (nodes.leader, nodes.term) == (ENDPOINTS[0], 5)


@pytest.mark.parametrize("code", [Code.BUSY, Code.LEADER_LOST, Code.NOT_LEADER])
def test_a_refusal_that_may_pass_is_retried_after_a_short_pause(
    cluster: Cluster, code: Code
) -> None:
    client = Driven(cluster)
    client.acquire("first")
    refused: list[Any] = []

    def refuse(plugin: str, operation: Any) -> Failure | None:
        if isinstance(operation, Acquire) and len(refused) < 3:
            refused.append(operation)
            return Failure(code)
        return None

    cluster.refuse = refuse
    call = client.acquire("a")
    assert not call.completed
    client.pass_time(0.5)
    assert isinstance(call.result, Granted)
    assert len(refused) == 3
    sequences = [ask.sequences for _, ask in asked(cluster, Acquire)][-4:]
    assert sequences == [[call.sequence]] * 4


def test_busy_for_too_long_is_told_to_who_does_not_wait(cluster: Cluster) -> None:
    client = Driven(cluster, timeout=2.0)
    client.acquire("first")
    cluster.refuse = lambda plugin, operation: (
        Failure(Code.BUSY, "full") if isinstance(operation, Acquire) else None
    )
    tried, waiting = client.acquire("a", wait=False), client.acquire("b")
    client.pass_time(2.5)
    assert isinstance(tried.result, Failure) and tried.result.code is Code.BUSY
    assert not waiting.completed


def test_a_wait_that_was_refused_for_good_is_asked_anew(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(seed 19 of the simulator) The machine's refusal is remembered under its sequence: room that
    comes later is of no use to it."""
    monkeypatch.setattr(table_module, "WAITS_PER_LOCK_MAX", 1)
    holder, other, client = (Driven(cluster, seed=seed) for seed in (1, 2, 3))
    held, before = holder.acquire("a"), other.acquire("a")
    waiting = client.acquire("a")
    client.pass_time(0.3)
    assert cluster.locks() == {"a": 2}, "there is no room for it"
    monkeypatch.setattr(table_module, "WAITS_PER_LOCK_MAX", 10)
    client.pass_time(1.0)
    assert cluster.locks() == {"a": 3}
    holder.release(held)
    other.pass_time(0.5)
    other.release(before)
    client.pass_time(1.0)
    assert isinstance(waiting.result, Granted)
    assert cluster.locks() == {"a": 1}


def test_a_try_is_answered_at_once(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    holder.acquire("a")
    tried = client.acquire("a", wait=False)
    assert isinstance(tried.result, Failure) and tried.result.code is Code.WOULD_BLOCK


def test_an_acquire_that_runs_out_of_time_leaves_the_queue(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    holder.acquire("a")
    call = client.acquire("a", timeout=0.1)
    client.pass_time(0.09)
    assert not call.completed
    client.pass_time(0.02)
    assert isinstance(call.result, Timeout)
    assert cluster.locks() == {"a": 1}
    assert client.core.session is not None and not client.core.session.open


def test_within_an_owner_a_time_out_waits_until_nothing_is_held(cluster: Cluster) -> None:
    """(seed 950 of the simulator) The next request of the owner would meet a grant that the cancel
    is still to take away."""
    client = Driven(cluster)
    client.acquire("first")
    call = Call("lock", Acquire("a", owner=7), waits=True, deadline=client.now + 1.0)
    cluster.dead = list(ENDPOINTS)
    client.core.submit(call, client.now)
    client.exchange()
    client.pass_time(2.0)
    assert not call.completed
    cluster.dead = []
    client.pass_time(1.5)
    assert isinstance(call.result, Timeout)
    assert cluster.locks() == {"first": 1}


def test_a_time_out_is_punctual_though_nobody_answers(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("first")
    cluster.dead = list(ENDPOINTS)
    sent, unsent = client.acquire("a", timeout=1.0), Driven(cluster, seed=2).acquire("b")
    client.pass_time(1.3)
    assert isinstance(sent.result, Timeout)
    assert not unsent.completed
    cluster.dead = []
    client.pass_time(1.5)
    assert cluster.locks() == {"first": 1}


def test_a_cancelled_acquire_leaves_nothing(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    held = holder.acquire("a")
    waiting = client.acquire("a")
    client.cancel(waiting)
    assert cluster.locks() == {"a": 1}
    holder.release(held)
    assert cluster.locks() == {}


def test_an_acquire_cancelled_before_it_left_never_leaves(cluster: Cluster) -> None:
    client = Driven(cluster)
    call = Call("lock", Acquire("a"), waits=True)
    client.core.submit(call, client.now)
    client.core.cancel(call, client.now)
    client.exchange()
    assert asked(cluster, Acquire) == asked(cluster, OpenSession) == []
    assert client.done == []


def test_a_grant_nobody_took_is_released(cluster: Cluster) -> None:
    client = Driven(cluster)
    call = client.acquire("a")
    assert isinstance(call.result, Granted)
    client.cancel(call)
    assert cluster.locks() == {}


@pytest.mark.parametrize("lost", ["request", "answer", "none"])
def test_cancel_across_a_leader_change_with_a_copy_an_hour_late(
    cluster: Cluster, lost: str
) -> None:
    client = Driven(cluster)
    client.acquire("first")
    if lost == "request":
        client.lose = lambda endpoint, frame: True
    elif lost == "answer":
        client.lose_answer = lambda endpoint, frame: True
    call = client.acquire("a")
    copy = client.sent[-1]
    client.cancel(call)
    cluster.dead = [ENDPOINTS[0]]
    cluster.elect(ENDPOINTS[1])
    client.lose = client.lose_answer = lambda endpoint, frame: False
    client.pass_time(2.0)
    assert cluster.locks() == {"first": 1}
    assert client.core.session is not None and not client.core.session.open
    client.acquire("later")
    client.pass_time(3_600.0)
    client.arrive(ENDPOINTS[1], copy[1])
    client.exchange()
    assert cluster.locks() == {"first": 1, "later": 1}


def test_a_cancel_is_repeated_until_confirmed(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("first")
    client.lose_answer = lambda endpoint, frame: True
    call = client.acquire("a")
    client.cancel(call)
    client.pass_time(3.0)
    cancels = [operation for _, ask in asked(cluster, Cancel) for operation in ask.operations]
    assert len(cancels) >= 2
    assert set(cancels) == {Cancel(call.sequence)}
    assert client.core.session is not None and call.sequence in client.core.session.open


def test_the_session_lives_as_long_as_the_pulse(cluster: Cluster) -> None:
    client = Driven(cluster, session_ttl=3.0)
    client.acquire("a")
    session = client.core.session
    assert session is not None
    client.pass_time(60.0)
    assert client.core.session is session
    assert not session.is_lost(client.now)
    renewing = [ask for _, ask in asked(cluster, Pulse) if ask.operations[0].keep_alive]
    assert len(renewing) <= 60 / (3.0 / 6) + 1
    assert len(renewing) < len(asked(cluster, Pulse))


def test_lost_counts_from_the_sending_of_the_confirmed_keep_alive(cluster: Cluster) -> None:
    client = Driven(cluster, session_ttl=2.0)
    client.acquire("a")
    session = client.core.session
    assert session is not None
    client.pass_time(1.0)
    late: list[tuple[str, bytes]] = []
    client.lose_answer = lambda endpoint, frame: late.append((endpoint, frame)) is None
    sent_at = [client.now]
    client.lose = lambda endpoint, frame: bool(sent_at.append(client.now))
    client.pass_time(0.5)
    renewed_at, before = sent_at[1], session.lost_at
    for endpoint, frame in late:
        client.core.receive(endpoint, frame, client.now)
    assert session.lost_at > before
    assert session.lost_at == pytest.approx(max(sent_at[1:]) + 0.95 * 2.0)
    assert renewed_at < client.now


def test_an_opening_answered_late_counts_from_its_sending(cluster: Cluster) -> None:
    client = Driven(cluster, session_ttl=5.0)
    late: list[tuple[str, bytes]] = []
    client.lose_answer = lambda endpoint, frame: (
        b"n1" not in frame and late.append((endpoint, frame)) is None
    )
    begun = client.now
    client.acquire("a")
    client.now += 3.0
    for endpoint, frame in late:
        client.core.receive(endpoint, frame, client.now)
    session = client.core.session
    assert session is not None and session.lost_at == begun + 0.95 * 5.0


def test_a_keep_alive_that_was_not_committed_renews_nothing(cluster: Cluster) -> None:
    client = Driven(cluster, session_ttl=2.0)
    client.acquire("a")
    session = client.core.session
    cluster.keeps_alive = False
    client.pass_time(1.95)
    assert session is not None and session.lost
    assert len(asked(cluster, Pulse)) >= 4


def test_a_confirmation_read_after_the_deadline_is_too_late(cluster: Cluster) -> None:
    """The program was stopped for a while: the first it sees is the answer, not the timer."""
    client = Driven(cluster, session_ttl=2.0)
    client.acquire("a")
    session = client.core.session
    late: list[tuple[str, bytes]] = []
    client.lose_answer = lambda endpoint, frame: late.append((endpoint, frame)) is None
    client.pass_time(1.0)
    assert late
    client.now += 5.0
    for endpoint, frame in late:
        client.core.receive(endpoint, frame, client.now)
    assert session is not None and session.lost
    assert client.core.losing == [session]


def test_a_grant_that_comes_after_the_cancel_is_not_taken(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("first")
    late: list[tuple[str, bytes]] = []
    client.lose_answer = lambda endpoint, frame: late.append((endpoint, frame)) is None
    call = client.acquire("a")
    client.cancel(call)
    client.core.receive(*late[0], client.now)
    assert not call.completed
    client.lose_answer = lambda endpoint, frame: False
    client.pass_time(2.0)
    assert cluster.locks() == {"first": 1}
    assert not isinstance(call.result, Granted)


def test_the_end_of_the_deadline_is_final(cluster: Cluster) -> None:
    client = Driven(cluster, session_ttl=2.0)
    held = client.acquire("a")
    session = client.core.session
    assert session is not None
    late: list[tuple[str, bytes]] = []
    client.lose_answer = lambda endpoint, frame: late.append((endpoint, frame)) is None
    client.pass_time(1.95)
    assert session.lost
    del cluster.asks[:]
    client.lose_answer = lambda endpoint, frame: False
    for endpoint, frame in late:  # every renewal is confirmed now, too late
        client.core.receive(endpoint, frame, client.now)
    client.exchange()
    client.pass_time(2.0)
    assert session.is_lost(client.now) and client.core.losing == [session]
    for _, _, ask in cluster.asks:
        assert ask.session != session.number
        assert isinstance(ask.operations[0], EndSession | Locate)
    assert cluster.locks() == {}
    again = client.acquire("a")
    assert again.result.token > held.result.token
    assert client.core.session is not None and client.core.session is not session


def test_a_reader_of_the_clock_on_another_thread_decides_too(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("a")
    session = client.core.session
    assert session is not None
    assert session.is_lost(session.lost_at)
    session.renew(client.now + 1.0, 0.95)  # a confirmation that was under way
    assert session.is_lost(client.now)
    client.exchange()
    assert client.core.session is None
    assert client.core.losing == [session]


def test_a_wait_goes_on_in_the_next_session(cluster: Cluster) -> None:
    holder = Driven(cluster)
    held = holder.acquire("a")
    client = Driven(cluster, seed=2, session_ttl=2.0)
    waiting = client.acquire("a")
    cluster.dead = list(ENDPOINTS)
    client.pass_time(30.0)
    assert not waiting.completed
    cluster.dead = []
    client.pass_time(0.5)
    assert cluster.locks() == {"a": 2}
    holder.release(held)
    client.hear()
    assert isinstance(waiting.result, Granted)
    assert waiting.session is client.core.session


def test_a_session_the_cluster_ended_is_lost(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("a")
    session = client.core.session
    cluster.expire_everything()
    client.pass_time(0.4)
    assert session is not None and session.lost
    assert client.core.losing == [session]


def test_a_release_in_a_lost_session_says_so(cluster: Cluster) -> None:
    client = Driven(cluster)
    call = client.acquire("a")
    cluster.expire_everything()
    released = client.release(call)
    assert isinstance(released.result, Failure)
    assert released.result.code is Code.SESSION_EXPIRED
    later = client.release(call)  # for the session that is gone: nothing is sent
    assert isinstance(later.result, Failure)
    assert len(asked(cluster, Release)) == 1


def test_an_opening_nobody_answers_is_begun_anew(cluster: Cluster) -> None:
    client = Driven(cluster, session_ttl=2.0)
    client.lose_answer = lambda endpoint, frame: b"n1" not in frame  # only Located comes back
    call = client.acquire("a")
    client.pass_time(5.0)
    client.lose_answer = lambda endpoint, frame: False
    client.pass_time(2.0)
    assert isinstance(call.result, Granted)
    session = client.core.session
    assert session is not None and not session.is_lost(client.now)
    sessions: Any = cluster.replica.machines["session"]
    assert list(sessions.sessions) == [session.number]


def test_silence_is_unavailable_if_it_never_left(cluster: Cluster) -> None:
    cluster.dead = list(ENDPOINTS)
    client = Driven(cluster, timeout=2.0)
    call = client.acquire("a", wait=False)
    client.pass_time(2.5)
    assert isinstance(call.result, Unavailable)
    assert "no leader for 2." in str(call.result)
    assert "0 of 3 nodes answer" in str(call.result)
    assert "coterie status" in str(call.result)
    cluster.dead = []
    client.pass_time(2.0)
    assert asked(cluster, Acquire) == []


def test_silence_after_sending_is_indeterminate_and_goes_on(cluster: Cluster) -> None:
    client = Driven(cluster, timeout=2.0, session_ttl=20.0)
    held = client.acquire("a")
    cluster.dead = [ENDPOINTS[0]]
    cluster.elect(None)
    released = client.release(held)
    client.pass_time(2.6)
    assert isinstance(released.result, Indeterminate)
    assert "2 of 3 nodes answer (tcp://n2, tcp://n3)" in str(released.result)
    cluster.elect(ENDPOINTS[1])
    client.pass_time(1.0)
    assert cluster.locks() == {}


def test_silence_after_definite_refusals_is_unavailable(cluster: Cluster) -> None:
    client = Driven(cluster, timeout=2.0, plugins=("lock", "session"))
    client.acquire("a")
    cluster.elect(None)
    call = Call("session", KeepAlive())
    client.core.submit(call, client.now)
    client.exchange()
    assert call.copies == 0
    client.pass_time(2.6)
    assert isinstance(call.result, Unavailable)
    del cluster.asks[:]
    cluster.elect(ENDPOINTS[0])
    client.pass_time(2.0)
    assert asked(cluster, KeepAlive) == []


def test_a_release_goes_on_though_its_caller_was_told(cluster: Cluster) -> None:
    client = Driven(cluster, timeout=2.0)
    held = client.acquire("a")
    cluster.elect(None)
    released = client.release(held)
    client.pass_time(2.6)
    assert isinstance(released.result, Indeterminate)
    assert cluster.locks() == {"a": 1}
    cluster.elect(ENDPOINTS[0])
    client.pass_time(1.0)
    assert cluster.locks() == {}


def test_silence_to_one_call_alone_ends_too(cluster: Cluster) -> None:
    client = Driven(cluster, timeout=2.0)
    client.acquire("a")
    client.lose = lambda endpoint, frame: b"odd" in frame
    call, waiting = Call("lock", Release("odd", 1)), client.acquire("odd")
    client.core.submit(call, client.now)
    client.exchange()
    client.pass_time(3.9)
    assert not call.completed
    client.pass_time(0.6)
    assert isinstance(call.result, Indeterminate) and "answers others" in str(call.result)
    assert not waiting.completed


def test_a_query_needs_no_session(cluster: Cluster) -> None:
    client = Driven(cluster)
    call = Call("lock", Inspect("a"))
    client.core.submit(call, client.now)
    client.exchange()
    assert call.result == LockStates(())
    assert asked(cluster, OpenSession) == []
    client.pass_time(1.0)
    assert client.core.deadline() is None


def test_a_query_nobody_answers_is_unavailable(cluster: Cluster) -> None:
    client = Driven(cluster, timeout=1.0)
    cluster.leader = None
    call = Call("lock", Inspect("a"))
    client.core.submit(call, client.now)
    client.exchange()
    client.pass_time(1.5)
    assert isinstance(call.result, Unavailable)


def test_close_ends_the_session_and_every_call(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    holder.acquire("a")
    client.acquire("b")
    waiting = client.acquire("a")
    client.core.close(client.now, 1.0)
    client.exchange()
    assert client.core.closed
    assert isinstance(waiting.result, CoterieError)
    assert cluster.locks() == {"a": 1}
    with pytest.raises(CoterieError, match="closed"):
        client.core.submit(Call("lock", Acquire("a")), client.now)
    client.core.close(client.now, 1.0)


def test_close_repeats_the_end_and_gives_up_in_time(cluster: Cluster) -> None:
    client = Driven(cluster)
    client.acquire("a")
    client.lose = lambda endpoint, frame: True
    client.core.close(client.now, 3.0)
    client.exchange()
    client.pass_time(1.0)
    assert not client.core.closed
    client.lose = lambda endpoint, frame: False
    client.pass_time(1.0)
    assert client.core.closed and cluster.locks() == {}
    other = Driven(cluster, seed=3)
    other.acquire("a")
    cluster.dead = list(ENDPOINTS)
    other.core.close(other.now, 1.0)
    other.exchange()
    other.pass_time(1.1)
    assert other.core.closed and other.core.deadline() is None


def test_close_ends_a_session_that_was_just_being_opened(cluster: Cluster) -> None:
    client = Driven(cluster)
    late: list[tuple[str, bytes]] = []
    client.lose_answer = lambda endpoint, frame: (
        b"n1" not in frame and late.append((endpoint, frame)) is None
    )
    client.acquire("a")
    client.core.close(client.now, 1.0)
    client.exchange()
    assert not client.core.closed
    client.lose_answer = lambda endpoint, frame: False
    for endpoint, frame in late:
        client.core.receive(endpoint, frame, client.now)
    client.exchange()
    assert client.core.closed
    sessions: Any = cluster.replica.machines["session"]
    assert sessions.sessions == {}


def test_what_is_under_way_is_bounded(cluster: Cluster) -> None:
    cluster.dead = list(ENDPOINTS)
    client = Driven(cluster)
    operation = Acquire("a")
    calls = [Call("lock", operation, waits=True) for _ in range(CALLS_MAX)]
    for call in calls:
        client.core.submit(call, client.now)
    with pytest.raises(Busy):
        client.core.submit(Call("lock", operation), client.now)
    client.core.flush(client.now)
    with pytest.raises(Busy):
        client.core.submit(Call("lock", operation), client.now)
    for call in calls:
        client.core.cancel(call, client.now)
    client.pass_time(1.0)
    client.core.submit(Call("lock", operation), client.now)


def test_a_long_wait_does_not_fill_the_memory_of_the_cluster(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    held = holder.acquire("a")
    waiting, second = client.acquire("a"), client.acquire("a")
    calls = [Call("lock", Acquire("b", wait=False)) for _ in range(SPAN_MAX + 1)]
    for call in calls:
        client.core.submit(call, client.now)
    client.exchange()
    client.pass_time(0.4)
    client.acquire("c")
    windows = cluster.replica.windows
    assert client.core.session is not None
    assert len(windows[client.core.session.number].answers) < 10
    client.cancel(waiting)
    holder.release(held)
    client.hear()
    assert isinstance(second.result, Granted) and isinstance(waiting.result, Timeout)
    client.release(second)
    assert cluster.locks() == {"b": 1, "c": 1}


def test_ids_of_clients_differ_and_are_never_zero() -> None:
    codec = codec_for([])
    ids = {Core(ENDPOINTS, codec, random.Random(seed)).client for seed in range(100)}
    assert len(ids) == 100 and 0 not in ids


def test_a_lost_wait_that_the_cluster_let_go_is_asked_for_anew(cluster: Cluster) -> None:
    holder, client = Driven(cluster), Driven(cluster, seed=2)
    holder.acquire("a")
    waiting = client.acquire("a")
    table: Any = cluster.replica.machines["lock"]
    session = client.core.session
    assert session is not None
    claim = table.claims[session.number].pop(waiting.wait)
    del table.waits["a"]
    client.pass_time(0.4)
    assert cluster.locks() == {"a": 2}
    assert waiting.wait > claim.number and not waiting.completed


def test_released_is_what_a_release_gets(cluster: Cluster) -> None:
    client = Driven(cluster)
    call = client.acquire("a")
    assert client.release(call).result == Released()
    gone = client.release(call)
    assert isinstance(gone.result, Failure) and gone.result.code is Code.NOT_HELD


def test_a_node_that_answers_at_two_endpoints_is_one_node() -> None:
    """As behind a forwarded port: the given address and the advertised one both lead there."""
    nodes = Nodes(["tcp://10.0.0.1:7001", "tcp://10.0.0.2:7001", "tcp://localhost:7001"])
    members = tuple(
        Member(name, 1, True, f"tcp://localhost:{port}", "", "")
        for name, port in (("a", 7001), ("b", 7002))
    )
    for endpoint, node in (
        ("tcp://10.0.0.1:7001", "a"),
        ("tcp://localhost:7001", "a"),
        ("tcp://10.0.0.2:7001", "b"),
    ):
        nodes.heard(endpoint, Located(1, node, "b", 3, 0, members), 1.0)
    assert len(nodes.endpoints) == 4
    assert nodes.distinct() == ["tcp://localhost:7001", "tcp://10.0.0.2:7001"]
    # An advertised address that leads nowhere never replaces one at which the node was met.
    assert nodes.leader == "tcp://10.0.0.2:7001"
