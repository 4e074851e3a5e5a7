"""The calls of a client: taken on, completed once, given up without a trace.

The law: a caller is answered exactly once, at the latest when its time is up. A call that may
still hold something in the cluster stays in a table, though its caller is long gone, until the
cluster has confirmed that it holds nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ..protocols.errors import Code
from ..protocols.lock.messages import Abort, Release
from ..protocols.plugin import Cancel, Failure, Message, Query
from .core_nodes import Nodes
from .core_outbox import Outbox
from .core_records import CANCELLING, DONE, SENT, UNSENT, WAITING, Call, Session
from .core_waits import (
    TAKES,
    Told,
    begins_anew,
    is_forgotten,
    outcome,
    taken_back,
    withdrawn,
)
from .errors import CLOSED, Busy, CoterieError, Indeterminate, Timeout, Unavailable

CALLS_MAX = 65_536
"""Calls under way at once; more are refused (`Busy`)."""

CANCEL_GRACE_S = 0.25
"""How long a call that ran out of time waits for its `Cancel` to be confirmed."""

ANSWER_GRACE_S = 0.1
"""How long the first answer is waited for, however short a time the caller would wait in line:
what is free is had."""

SPAN_MAX = 16_384
"""Sequences from the oldest open call to the newest; a longer wait is parked (`_park`)."""

SESSION_ENDED = Failure(Code.SESSION_EXPIRED, "the session has ended")


class Calls:
    """Where each call stands, and the completed ones to hand out."""

    def __init__(
        self, outbox: Outbox, nodes: Nodes, plugins: Iterable[str], timeout_s: float
    ) -> None:
        self.nodes = nodes
        self.session: Session | None = None
        self.closing = False
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._heard_at = float("-inf")
        self._unsent: dict[str, list[Call]] = {plugin: [] for plugin in plugins}
        self._free_unsent: list[Call] = []
        self._free: dict[int, Call] = {}
        """Calls that need no session: queries, and the opening and ending of sessions."""
        self._completed: list[Call] = []
        self._deadlines: list[tuple[float, int, Call]] = []
        self._deadline_count = 0
        self._room = CALLS_MAX
        self._abandoned = 0
        """Calls among the unsent that nobody wants any more."""
        self.losing: list[Session] = []
        """Sessions that lost something, or themselves, since somebody last emptied this list."""

    def submit(self, call: Call, now: float) -> None:
        """Take on a call; it leaves at the next `flush`. Raises `Busy`, or `CoterieError` once
        closed."""
        if self.closing:
            raise CoterieError(CLOSED)
        if self._room <= 0:
            raise Busy(f"{CALLS_MAX} operations are under way; wait for some of them")
        self._room -= 1
        call.submitted_at = now
        if call.session is not None and call.session is not self.session:
            self._finish(call, SESSION_ENDED)
            return
        if call.deadline is not None:
            self._set_deadline(call, call.deadline)
        if isinstance(call.operation, Query):
            self._free_unsent.append(call)
        else:
            self._unsent[call.plugin].append(call)

    def cancel(self, call: Call, now: float) -> None:
        """Nobody waits for this acquire any more: see to it that nothing is held for it."""
        if call.state == UNSENT:
            call.state = DONE
            self._abandoned += 1
        elif call.state in (SENT, WAITING):
            session = call.session
            assert session is not None
            parked = call.state == WAITING and call.sequence not in session.open
            call.state = CANCELLING
            session.waits.pop(call.wait, None)
            undo = withdrawn(call.plugin, call.wait) if parked else Cancel(call.sequence)
            self._undo(call, undo, now)
        elif call.state == DONE:
            # completed into the hands of a caller that had just gone
            self.take_back(call, now)

    def limit(self, call: Call, deadline: float) -> None:
        """Let a call under way end at `deadline`."""
        if not call.completed:
            self._set_deadline(call, deadline)

    def take_back(self, call: Call, now: float) -> None:
        """Undo what a completed call stands for; nobody waits for that."""
        undo = taken_back(call.result)
        if undo is not None:
            call.result = None
            self._undo(call, undo, now)

    def take_completed(self) -> list[Call]:
        """The calls completed since last asked; `result` is an answer or an exception."""
        completed = self._completed
        if completed:
            self._completed = []
        return completed

    def _undo(self, call: Call, operation: Message, now: float) -> None:
        """Send what undoes a call, though nobody waits for it, until it is confirmed."""
        if call.session is not None and call.session is self.session:
            undo = Call(call.plugin, operation, waits=True, submitted_at=now)
            undo.session = call.session
            undo.target = call
            undo.principal = call.principal
            self._unsent[call.plugin].append(undo)

    def _undone(self, undo: Call, target: Call) -> None:
        self._finish(undo, None)
        if target.state == CANCELLING:
            self._finish(target, Timeout("not granted in time"))

    def _ended(self, call: Call, told: Told, now: float) -> None:
        """The wait of a call is over."""
        wait = call.wait
        self._finish(call, outcome(call.operation, wait, told))
        if is_forgotten(call.operation):
            self._undo(call, withdrawn(call.plugin, wait), now)

    def _gone(self, call: Call) -> None:
        """The wait of a call was let go by the cluster: ask anew, if somebody still waits."""
        self._forget(call)
        self._resubmit(call)

    def _finish(self, call: Call, result: object) -> None:
        """Nothing more can come of this call."""
        self._forget(call)
        call.state = DONE
        self._complete(call, result)

    def _complete(self, call: Call, result: object) -> None:
        if not call.completed:
            call.completed = True
            call.result = result
            self._completed.append(call)
        if isinstance(result, Failure):
            self._was_aborted(call, result)

    def _was_aborted(self, call: Call, failure: Failure) -> None:
        """If this is how a call failed, or was found to have failed when it was given up, its
        owner was a victim."""
        if failure.code is Code.DEADLOCK and call.session is not None:
            self._abort(call.session, max(map(int, failure.detail[::3])))

    def _abort(self, session: Session, owner: int) -> None:
        """A victim of a deadlock: it has lost all it held, and the cluster is told we know."""
        if owner not in session.aborted:
            session.abort(owner)
            self.losing.append(session)
            if session is self.session:
                undo = Call("lock", Abort(owner), waits=True, session=session)
                undo.target = undo
                self._unsent["lock"].append(undo)

    def _forget(self, call: Call) -> None:
        if call.session is None:
            self._free.pop(call.sequence, None)
        else:
            call.session.open.pop(call.sequence, None)
            call.session.waits.pop(call.wait, None)

    def _resubmit(self, call: Call) -> None:
        """Begin anew, under a new sequence: nothing of the old one is left."""
        call.state = UNSENT
        if begins_anew(call.operation):
            call.session = None
        call.sequence = call.copies = call.wait = 0
        call.refused_at = 0.0
        self._unsent[call.plugin].append(call)

    def _park(self, session: Session) -> None:
        """Let long waits no longer keep the cluster from forgetting the answers given since.

        The cluster remembers 65,536 answers above the oldest open sequence. A parked wait lives
        on by its number, by which it is also given up.
        """
        newest = self._outbox.next_sequence
        parked: list[int] = []
        for sequence, call in session.open.items():
            if newest - sequence <= SPAN_MAX or call.state != WAITING:
                break
            parked.append(sequence)
        for sequence in parked:
            del session.open[sequence]

    def _sent(self) -> list[Call]:
        """The calls asked and not answered yet."""
        table = self.session.open if self.session is not None else {}
        calls = [call for call in table.values() if call.state == SENT]
        calls.extend(self._free.values())
        return calls

    def _everything(self) -> list[Call]:
        calls = list(self._free.values()) + self._free_unsent
        for unsent in self._unsent.values():
            calls.extend(unsent)
        if self.session is not None:
            calls.extend(self.session.everything())
        return calls

    def _drop_abandoned(self) -> None:
        for calls in (*self._unsent.values(), self._free_unsent):
            calls[:] = [call for call in calls if call.state != DONE]
        self._abandoned = 0

    def _count_room(self) -> None:
        unsent = sum(map(len, self._unsent.values())) + len(self._free_unsent)
        held = len(self.session.open) if self.session is not None else 0
        self._room = CALLS_MAX - held - unsent - len(self._free)

    def _set_deadline(self, call: Call, deadline: float) -> None:
        call.deadline = deadline
        self._deadline_count += 1
        heapq.heappush(self._deadlines, (deadline, self._deadline_count, call))
        if len(self._deadlines) > 2 * CALLS_MAX:  # most of them are of calls long done
            self._deadlines = [entry for entry in self._deadlines if not entry[2].completed]
            heapq.heapify(self._deadlines)

    def _run_out(self, now: float) -> None:
        """Cancel what was not granted in its time."""
        while self._deadlines and self._deadlines[0][0] <= now:
            call = heapq.heappop(self._deadlines)[2]
            if call.completed or call.deadline is None or call.deadline > now:
                continue
            # Within an owner nothing may be asked before this is surely undone: what comes next
            # could count on a grant that the cancel takes away (seed 950).
            owned = getattr(call.operation, "owner", 0)
            if call.state == UNSENT or (call.state == CANCELLING and not owned):
                self.cancel(call, now)
                self._complete(call, Timeout("not granted in time"))
            elif call.state == SENT and now < call.submitted_at + ANSWER_GRACE_S:
                self._set_deadline(call, now + ANSWER_GRACE_S / 10)
            else:
                self.cancel(call, now)
                if not owned:
                    self._set_deadline(call, now + CANCEL_GRACE_S)

    def _give_up(self, now: float) -> None:
        """Tell those who do not wait for their turn that the cluster has been silent too long:
        altogether, or twice as long to this call alone."""
        limit = now - self._timeout_s
        oldest = limit if self._heard_at <= limit else limit - self._timeout_s
        for call in self._everything():
            if call.waits or call.completed or call.submitted_at > oldest:
                continue
            text = self._silence(call, now, limit)
            if type(call.operation) is Release:  # goes on: its caller could not repeat it
                self._complete(call, Indeterminate(f"the release is still under way: {text}"))
            elif type(call.operation) in TAKES or call.state == UNSENT:
                self._complete(call, Unavailable(text))
                self.cancel(call, now)
            elif isinstance(call.operation, Query) or call.copies <= 0:
                self._finish(call, Unavailable(text))
            else:
                self._complete(call, Indeterminate(f"it may have been done: {text}"))

    def _silence(self, call: Call, now: float, limit: float) -> str:
        if self._heard_at <= limit:
            return self.nodes.silence(now - max(call.submitted_at, self._heard_at), limit)
        return (
            f"no answer for {now - call.submitted_at:.1f} s, though the leader "
            f"({self.nodes.leader}) answers others; does it know {call.plugin!r}?"
        )
