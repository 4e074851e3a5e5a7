"""The client's decisions, without I/O: numbering, batching, retries, sessions, waits, the pulse.

The law: the core is told what happened (`submit`, `cancel`, `receive`, `on_deadline`, `close`) and
when, and gives back frames (`flush`) and completed calls (`take_completed`); it opens no socket,
starts no thread, reads no clock. A request keeps its sequence however often it is sent, so the
cluster applies it once. What is given up leaves nothing held: a `Cancel` follows it until the
cluster has confirmed. After any of these, call `flush` and read `deadline` anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from ..bus.codec import Answer, Codec, Tell
from ..bus.frame import Kind, Malformed
from ..protocols.coordination.messages import FailedLater, Waiting, WokenLater
from ..protocols.errors import Code, definite
from ..protocols.lock.messages import (
    AbortedLater,
    GrantedAllLater,
    GrantedLater,
    LostLater,
    Queued,
)
from ..protocols.plugin import Cancelled, Failure, Message
from ..protocols.session.messages import EndSession, Located, Pulsed, SessionOpened
from .core_nodes import Nodes
from .core_outbox import Outbox
from .core_records import CANCELLING, DONE, SENT, WAITING, Call, Session
from .core_sessions import PULSE_S, Sessions
from .core_waits import TAKES, Told, begins_anew
from .errors import CLOSED, CoterieError

RETRIED = (Code.NOT_LEADER, Code.LEADER_LOST, Code.BUSY, Code.UNKNOWN_GROUP)
"""Answers after which the same sequence is sent again."""

RENUMBER_S = 0.5
"""A call that waits for its turn and is refused for want of room for so long is asked anew."""

KINDS = (Kind.ANSWER, Kind.TELL)
OURS = ("lock", "coordination")
ABANDONED_MAX = 1_024


class Core(Sessions):
    """One client: its calls, its session, and what it knows of the cluster."""

    def __init__(
        self,
        endpoints: Sequence[str],
        codec: Codec,
        source: random.Random,
        *,
        plugins: Iterable[str] = OURS,
        name: str = "",
        session_ttl: float = 10.0,
        timeout: float = 5.0,
    ) -> None:
        self.client = source.getrandbits(64) or 1
        nodes = Nodes(endpoints)
        outbox = Outbox(codec, self.client, nodes)
        super().__init__(outbox, nodes, plugins, timeout, source, name, session_ttl)
        self.dropped = 0
        """Frames that made no sense."""
        self.queued: list[Call] = []
        """Calls with somebody to be told that they were queued, since this was last emptied."""
        self._codec = codec
        self._close_by: float | None = None

    def close(self, now: float, grace_s: float) -> None:
        """End the session and every call. `closed` is true once that is confirmed, or too late."""
        if self.closing:
            return
        self.closing = True
        self._close_by = now + grace_s
        error = CoterieError(CLOSED)
        for call in self._everything():
            if call is not self._opening and type(call.operation) is not EndSession:
                self._finish(call, error)
        for calls in self._unsent.values():
            calls.clear()
        self._free_unsent = [call for call in self._free_unsent if call.state != DONE]
        session, self.session = self.session, None
        if session is not None:
            session.lost = True
            self._end(session, now)

    def speak(self, codec: Codec, plugins: Iterable[str]) -> None:
        """Use another codec from now on, one that knows more plugins."""
        self._codec = self._outbox.codec = codec
        for plugin in plugins:
            self._unsent.setdefault(plugin, [])

    @property
    def closed(self) -> bool:
        """True once a closing client has nothing left to say."""
        return self.closing and not self._free and not self._free_unsent

    def flush(self, now: float) -> list[tuple[str, bytes]]:
        """End of the turn: the (endpoint, frame) to send now."""
        session = self.session
        if session is not None and session.is_lost(now):
            self._lose(session, now)
        if self._free_unsent or any(self._unsent.values()):
            self._send_unsent(now)
        if self._pulse_at is None and (self._free or self._free_unsent or self._waiting_to_leave()):
            self._pulse_at = now + PULSE_S
        self._count_room()
        return self._outbox.take()

    def receive(self, endpoint: str, frame: bytes, now: float) -> None:
        """A frame came. Junk, late copies and answers to nothing are dropped."""
        cluster = self.nodes.cluster
        try:
            _, _, envelope = self._codec.decode(frame, cluster, KINDS, first_contact=not cluster)
        except Malformed:
            self.dropped += 1
            return
        self.nodes.answered_at[endpoint] = now
        session = self.session
        if session is not None and session.is_lost(now):
            self._lose(session, now)
        if type(envelope) is Answer:
            self._answered(endpoint, envelope.sequences, envelope.results, now)
        elif type(envelope) is Tell:
            for hint in envelope.hints:
                self._told(hint, now)

    def deadline(self) -> float | None:
        """When `on_deadline` is wanted next."""
        times = [self._pulse_at, self._locate_at, self._again_at, self._close_by]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if self.session is not None:
            times.append(self.session.lost_at)
        return min((time for time in times if time is not None), default=None)

    def on_deadline(self, now: float) -> None:
        """Time has passed; harmless when called too early."""
        session = self.session
        if session is not None and session.is_lost(now):
            self._lose(session, now)
        self._run_out(now)
        if self._close_by is not None and now >= self._close_by:
            self._close_by = self._pulse_at = self._locate_at = self._again_at = None
            self._free.clear()
            self._free_unsent.clear()
            return
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            if self.nodes.leader is not None:
                calls, self._again = self._again, []
                self._outbox.again((call for call in calls if call.sent_at < now), now)
        if self._pulse_at is not None and now >= self._pulse_at:
            self._tick(now)
        if self._locate_at is not None and now >= self._locate_at:
            self.locate(now)

    def _waiting_to_leave(self) -> bool:
        return self.session is not None or any(self._unsent.values())

    def _send_unsent(self, now: float) -> None:
        if self._abandoned > ABANDONED_MAX:
            self._drop_abandoned()
        if self.nodes.leader is None:
            self._seek(now)
            return
        if self._abandoned and self.session is None:
            self._drop_abandoned()  # nobody there: no reason to open a session
        if self._free_unsent:
            calls, self._free_unsent = self._free_unsent, []
            self._outbox.first_free(calls, self._free, now)
        session = self.session
        for plugin, calls in self._unsent.items():
            if not calls:
                continue
            if session is None:
                self._open_session(now)
                return
            self._unsent[plugin] = []
            self._outbox.first(plugin, calls, session, now)

    def _answered(
        self, endpoint: str, sequences: list[int], results: list[Message], now: float
    ) -> None:
        """The hot path: a turn's answers in one frame."""
        if results and type(results[0]) is not Failure and type(results[0]) is not Located:
            self._heard_at = now
            self._silent = False
        table = self.session.open if self.session is not None else {}
        completed = self._completed
        for sequence, result in zip(sequences, results, strict=True):
            call = table.get(sequence)
            kind = type(result)
            if call is None:
                self._answered_free(endpoint, sequence, result, now)
            elif kind is Failure:
                self._refused(endpoint, call, result, now)  # type: ignore[arg-type]
            elif call.state != SENT:
                continue  # a late copy, or one whose Cancel decides
            elif kind is Queued or kind is Waiting:
                self._queued(call, result.wait, now)  # type: ignore[attr-defined]
            elif call.target is not None:
                if kind is Cancelled and result.failure is not None:  # type: ignore[attr-defined]
                    self._was_aborted(call, result.failure)  # type: ignore[attr-defined]
                self._undone(call, call.target)
            else:
                del table[sequence]
                call.state = DONE
                if not call.completed:
                    call.completed = True
                    call.result = result
                    completed.append(call)

    def _answered_free(self, endpoint: str, sequence: int, result: Message, now: float) -> None:
        """An answer to what no session remembers: a query, a pulse, a session's beginning or
        end."""
        if isinstance(result, Located):
            if sequence in self._locating:
                self._located(endpoint, result, now)
            return
        beat = self._beats.pop(sequence, None)
        call = self._free.get(sequence)
        if beat is not None:
            if isinstance(result, Pulsed):
                self._pulsed(endpoint, beat, result, now)
            elif isinstance(result, Failure):
                self._pulse_refused(endpoint, beat, result, now)
        elif call is None:
            return
        elif isinstance(result, Failure):
            self._refused(endpoint, call, result, now)
        else:
            self._finish(call, result)
            if call is self._opening and isinstance(result, SessionOpened):
                self._opened(call, result, now)

    def _refused(self, endpoint: str, call: Call, failure: Failure, now: float) -> None:
        code = failure.code
        if code in RETRIED:
            if definite(code):
                call.copies -= 1
            self._retry(endpoint, call, failure, now)
        elif code is Code.SESSION_EXPIRED and call.session is not None:
            self._lose(call.session, now)
        elif call.state == CANCELLING or call.state == WAITING:
            return
        elif call is self._opening:
            self._not_opened(failure)
        elif call.target is not None:
            self._was_aborted(call, failure)
            self._undone(call, call.target)
        else:
            self._finish(call, failure)

    def _retry(self, endpoint: str, call: Call, failure: Failure, now: float) -> None:
        """Not done here, or not yet: the same sequence is sent again after a short pause."""
        busy = failure.code is Code.BUSY
        if not busy:
            self._led_elsewhere(endpoint, failure, now)
        elif not call.waits and call.copies <= 0 and now - call.submitted_at >= self._timeout_s:
            if type(call.operation) in TAKES:
                # A copy the network made may still be applied: nothing must stay held by it.
                self._complete(call, failure)
                self.cancel(call, now)
            else:
                self._finish(call, failure)
        elif call.waits and call.target is None and call.session is not None:
            call.refused_at = call.refused_at or now
            if now - call.refused_at >= RENUMBER_S and begins_anew(call.operation):
                self._renumber(call, now)
        if call.state == SENT:
            self._again.append(call)
            if self._again_at is None:
                self._again_at = now + self._random.uniform(0.005, 0.1 if busy else 0.02)

    def _renumber(self, call: Call, now: float) -> None:
        """Ask anew under another sequence: that a machine refused this one may be remembered. It is
        cancelled, so that no copy of it holds anything either."""
        session = call.session
        assert session is not None
        refused = Call(call.plugin, call.operation, waits=True, state=SENT, completed=True)
        refused.session, refused.sequence, refused.principal = (
            session,
            call.sequence,
            call.principal,
        )
        session.open[call.sequence] = refused
        self.cancel(refused, now)
        self._resubmit(call)

    def _told(self, hint: Message, now: float) -> None:
        session = self.session
        if session is None:
            return
        kind = type(hint)
        if kind is GrantedLater or kind is WokenLater:
            self._told_wait(session, hint.wait, hint.token, now)  # type: ignore[attr-defined]
        elif type(hint) is GrantedAllLater:
            self._told_wait(session, hint.wait, hint.tokens, now)
        elif type(hint) is FailedLater:
            self._told_wait(session, hint.wait, hint.failure, now)
        elif type(hint) is AbortedLater:
            self._abort(session, hint.owner)
            for wait in hint.waits:
                self._told_wait(session, wait, hint.failure, now)
        elif type(hint) is LostLater:
            session.take(hint.grant)
            self.losing.append(session)

    def _told_wait(self, session: Session, wait: int, told: Told, now: float) -> None:
        call = session.waits.get(wait)
        if call is None:
            session.told_early(wait, told)
        else:
            self._ended(call, told, now)

    def _queued(self, call: Call, wait: int, now: float) -> None:
        session = call.session
        assert session is not None
        call.state = WAITING
        call.wait = wait
        session.waits[wait] = call
        if call.queued is not None:
            self.queued.append(call)
        told = session.early.pop(wait, None)
        if told is not None:
            self._ended(call, told, now)


__all__ = ["Call", "Core"]
