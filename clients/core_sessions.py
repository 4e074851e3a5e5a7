"""The session of a client, its pulse, and the search for the leader.

The law: a session is lost 0.95 x ttl after the sending of the last keep-alive whose commit was
confirmed, and that is final: from then on only its end is asked for, until that is confirmed.
One pulse looks after everything open: it renews, asks for news of waits, and finds the leader.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from ..protocols.errors import Code
from ..protocols.plugin import Failure
from ..protocols.session.messages import (
    FAILED,
    GONE,
    GRANTED,
    EndSession,
    Located,
    OpenSession,
    Pulsed,
    SessionOpened,
)
from .core_calls import SESSION_ENDED, Calls
from .core_nodes import Nodes
from .core_outbox import Outbox
from .core_records import CANCELLING, WAITING, Beat, Call, Session, Watched
from .core_waits import ENDED_WITH_SESSION, begins_anew
from .errors import Indeterminate, Timeout

PULSE_S = 0.333
OLD_S = 0.2
"""A request older than this makes the client ask who leads."""

REPEAT_S = 1.0
"""A request the leader keeps silent about, though it answers others, is repeated after this."""

NOT_AFTER_US = 60_000_000
LOG_TIME_AGE_S = 30.0
BEATS_MAX = 512
LOST_AFTER = 0.95


class Sessions(Calls):
    """Opens, renews, loses and ends sessions; keeps asking who leads while that is unclear."""

    def __init__(
        self,
        outbox: Outbox,
        nodes: Nodes,
        plugins: Iterable[str],
        timeout_s: float,
        source: random.Random,
        name: str,
        ttl_s: float,
    ) -> None:
        super().__init__(outbox, nodes, plugins, timeout_s)
        self._random = source
        self._name = name
        self._ttl_s = ttl_s
        self._opening: Call | None = None
        self._attempt = 0
        self._beats: dict[int, Beat] = {}
        self._beaten_at = float("-inf")
        self._silent = False
        self._taken_up_at = float("-inf")
        self._locating = (0, 0)
        self._located_at = float("-inf")
        self._again: list[Call] = []
        self._pulse_at: float | None = None
        self._locate_at: float | None = None
        self._again_at: float | None = None

    # --- the leader -----------------------------------------------------------------------------

    def locate(self, now: float) -> None:
        """Ask every node who leads; goes on until one is known that answers."""
        self._located_at = now
        self._locate_at = now + self._random.uniform(0.05, 0.15)
        self._locating = (self._outbox.locate(), self._locating[0])

    def _seek(self, now: float) -> None:
        """Ask who leads: at once, or soon if that was just asked."""
        if now - self._located_at >= 0.05:
            self.locate(now)
        elif self._locate_at is None:
            self._locate_at = now + self._random.uniform(0.02, 0.06)

    def _located(self, endpoint: str, located: Located, now: float) -> None:
        known = (self.nodes.leader, self.nodes.term)
        if not self.nodes.heard(endpoint, located, now):
            return
        if (self.nodes.leader, self.nodes.term) != known:
            self._silent = False
            self._locate_at = None
            self._take_up(now)
        elif not self._silent:
            self._locate_at = None
        elif now - self._taken_up_at >= PULSE_S:
            self._take_up(now)

    def _led_elsewhere(self, endpoint: str, failure: Failure, now: float) -> None:
        if endpoint == self.nodes.leader:
            hint = failure.detail[0] if failure.detail else None
            if not self.nodes.refused(hint):
                self._seek(now)

    def _take_up(self, now: float) -> None:
        """Ask the (new) leader about everything open."""
        self._taken_up_at = now
        self._again.clear()
        self._again_at = None
        self._beat(now)
        self._outbox.again(self._sent(), now)

    # --- opening and ending ---------------------------------------------------------------------

    def _open_session(self, now: float) -> None:
        if self._opening is not None or self.closing:
            return
        known_at = self.nodes.log_time_at
        if known_at is None or now - known_at > LOG_TIME_AGE_S:
            self._seek(now)
            return
        self._attempt += 1
        operation = OpenSession(self._attempt, round(self._ttl_s * 1e6), self._name)
        self._opening = call = Call("session", operation, waits=True, submitted_at=now)
        call.not_after_us = self.nodes.log_time_us + NOT_AFTER_US
        self._outbox.first_free([call], self._free, now)

    def _opened(self, call: Call, opened: SessionOpened, now: float) -> None:
        self._opening = None
        ttl_s = opened.ttl_us / 1e6
        sent_at = call.submitted_at
        session = Session(opened.session, ttl_s, sent_at, sent_at + LOST_AFTER * ttl_s)
        if self.closing or session.is_lost(now):
            self._end(session, now)
        else:
            self.session = session

    def _not_opened(self, failure: Failure) -> None:
        call, self._opening = self._opening, None
        assert call is not None
        self._finish(call, None)
        if failure.code is Code.STALE_REQUEST:
            self.nodes.log_time_at = None  # our idea of the log time was too old
            return
        for plugin, calls in self._unsent.items():
            self._unsent[plugin] = []
            for waiting in calls:
                self._finish(waiting, failure)

    def _end(self, session: Session, now: float) -> None:
        call = Call("session", EndSession(session.number), waits=True, submitted_at=now)
        if self.nodes.leader is None:
            self._free_unsent.append(call)
        else:
            self._outbox.first_free([call], self._free, now)

    def _lose(self, session: Session, now: float) -> None:
        """The session is over for us, finally. Acquires not answered yet begin anew in the next."""
        session.lost = True
        if session is not self.session:
            return
        self.session = None
        self._beats.clear()
        self.losing.append(session)
        calls = session.everything()
        session.open.clear()
        session.waits.clear()
        session.early.clear()
        for call in calls:
            self._survive(call)
        for plugin, unsent in self._unsent.items():
            self._unsent[plugin] = [call for call in unsent if call.session is not session]
            for call in unsent:
                if call.session is session:
                    self._finish(call, SESSION_ENDED)
        self._end(session, now)

    def _survive(self, call: Call) -> None:
        """What becomes of a call whose session is lost."""
        if call.target is not None or call.completed:
            self._finish(call, None)
        elif call.state == CANCELLING:
            self._finish(call, Timeout("not granted in time"))
        elif begins_anew(call.operation):
            self._resubmit(call)
        elif type(call.operation) in ENDED_WITH_SESSION:
            self._finish(call, SESSION_ENDED)
        elif call.copies <= 0:
            self._resubmit(call)
        else:
            text = "the session ended before the answer came; look whether it was done"
            self._finish(call, Indeterminate(text))

    # --- the pulse ------------------------------------------------------------------------------

    def _beat(self, now: float) -> None:
        session = self.session
        if session is None or self.nodes.leader is None:
            return
        renews = now - session.confirmed_at > session.ttl_s / 6
        self._beats.update(self._outbox.pulse(session, renews, now))
        self._beaten_at = now
        while len(self._beats) > BEATS_MAX:
            del self._beats[next(iter(self._beats))]

    def _tick(self, now: float) -> None:
        """Is everything open still being looked after, and by whom?"""
        self._give_up(now)
        if self._abandoned:
            self._drop_abandoned()
        session, sent = self.session, self._sent()
        unsent = any(self._unsent.values()) or bool(self._free_unsent)
        if session is None and not sent and not unsent:
            self._pulse_at = self._locate_at = None
            return
        self._pulse_at = now + PULSE_S
        old = any(call.sent_at <= now - OLD_S for call in sent)
        unanswered = self._beaten_at > self._heard_at or (old and self._heard_at <= now - OLD_S)
        if self.nodes.leader is None or unanswered:
            self._silent = True
            self._seek(now)
        if session is not None:
            self._park(session)
        if self.nodes.leader is not None:
            self._beat(now)
            self._outbox.again([call for call in sent if call.sent_at <= now - REPEAT_S], now)

    def _pulsed(self, endpoint: str, beat: Beat, pulsed: Pulsed, now: float) -> None:
        nodes, session = self.nodes, beat.session
        nodes.learn(pulsed.members)
        nodes.passed(pulsed.log_time_us, now)
        if session is not self.session:
            return
        if not pulsed.alive:
            self._lose(session, now)
            return
        if pulsed.kept_alive and beat.renews:
            session.renew(beat.sent_at, LOST_AFTER)
        failures, tokens = dict(pulsed.failures), dict(pulsed.tokens)
        for position, (call, (kind, token)) in enumerate(
            zip(beat.calls, pulsed.news, strict=False)
        ):
            if call.state != WAITING or call.session is not session:
                continue
            if kind == GRANTED:
                self._ended(call, tokens.get(position, token), now)
            elif kind == GONE:
                self._gone(call)
            elif kind == FAILED and position in failures:
                self._ended(call, failures[position], now)
        self._look_at_grants(session, beat.grants, pulsed.news[len(beat.calls) :])
        if pulsed.term > nodes.term:
            nodes.leader, nodes.term = endpoint, pulsed.term
            self._locate_at = None
            self._take_up(now)

    def _look_at_grants(
        self, session: Session, grants: Sequence[Watched], news: Sequence[tuple[int, int]]
    ) -> None:
        """A watched grant that is not there was taken away; the hint of that was lost."""
        for grant, (kind, _) in zip(grants, news, strict=False):
            if kind != GRANTED and grant in session.watched:
                session.take(grant.number)
                self.losing.append(session)

    def _pulse_refused(self, endpoint: str, beat: Beat, failure: Failure, now: float) -> None:
        if failure.code is Code.SESSION_EXPIRED:
            self._lose(beat.session, now)
        elif failure.code in (Code.NOT_LEADER, Code.LEADER_LOST, Code.UNKNOWN_GROUP):
            self._led_elsewhere(endpoint, failure, now)
            if self._pulse_at is not None:  # the renewal shall not wait for the next beat
                self._pulse_at = min(self._pulse_at, now + self._random.uniform(0.02, 0.06))
