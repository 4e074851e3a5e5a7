"""The replicated state of one group: a number, a time, who was answered what, and the machines.

The law: the state after an entry is a function of the entries up to it and of nothing else. Every
applied command gets the next operation number, whoever leads; a command whose answer is remembered
is answered again and not applied again (exactly once, Ongaro's thesis §6.3).

In group 0 the memory of answers (a window) belongs to a session, is made when the session opens
and dropped when it ends. In the other groups it belongs to a client, is made at first use, and
dropped when the last `not_after_us` it was used with has passed in log time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from .commands import CommandCodec, Window
from .errors import Code
from .plugin import (
    CONTROL,
    Cancel,
    Cancelled,
    ClientId,
    Command,
    Failure,
    GroupId,
    Hint,
    Internal,
    Moment,
    Operation,
    Result,
    SessionId,
    StateMachine,
)
from .records import COMMANDS, Entry
from .snapshot import VERSION, WINDOWS, Header, encode

WINDOW_MAX = 65_536
"""Answers remembered for one session or client; more operations at once are refused (BUSY)."""

CLIENTS_MAX = 65_536
"""Windows of clients kept by a group other than 0."""

NOT_AFTER_MAX_US = 2 * 300_000_000
"""How far ahead a `not_after_us` may be: the client's 5 minutes, and as much again because a new
leader's log time may be behind what its predecessor told the client."""

WINDOWS_DROPPED_MAX = 1_000
"""Old windows dropped by one entry."""

DIGEST_OPERATIONS = 100_000
"""Replicas compare their states after so many operations, or twice the records of the state."""

RELEASE_STEP = 4_000
"""Records of a replica that nobody needs any more, given back at once."""

MEMORYLESS = -1
"""A sequence number that asks for no memory: the operation is harmless when repeated."""

SESSIONS = "session"
"""The plugin that knows which session a client has, and alone acts for one that has none."""

NO_PRINCIPAL = Failure(
    Code.PERMISSION_DENIED, "no session is known by this id (any more); open another"
)

Reply: TypeAlias = list[Result]


class Replica:
    """One group's state on one node. `applied` is the index of the last entry applied, `header`
    that of the snapshot it was restored from, `digest_at` the number at which to compare states.

    A machine that needs the others, or the windows, has `attach(replica)`; one that waits for log
    time has `deadlines_pending() -> bool`; one that is large has `release()` (see `StateMachine`).
    All are optional."""

    def __init__(
        self,
        group: GroupId,
        machines: Mapping[str, StateMachine],
        codec: CommandCodec,
        digest_operations: int = DIGEST_OPERATIONS,
    ) -> None:
        self.group = group
        self.header: Header | None = None
        self.digest_at = self._digest_operations = digest_operations
        self.machines = dict(sorted(machines.items()))
        self.codec = codec
        self.applied = 0
        self.moment = Moment(hints=[])
        self.windows: OrderedDict[int, Window] = OrderedDict()
        for machine in self.machines.values():
            attach = getattr(machine, "attach", None)
            if attach is not None:
                attach(self)
        hooks = [getattr(machine, "deadlines_pending", None) for machine in self.machines.values()]
        self._pending: list[Callable[[], bool]] = [hook for hook in hooks if hook is not None]

    @property
    def number(self) -> int:
        return self.moment.number

    @property
    def time_us(self) -> int:
        return self.moment.time_us

    def apply(self, entry: Entry, commands: Sequence[Command] | None = None) -> list[Reply]:
        """Apply the next entry; one reply per command. `commands`: the entry's, if at hand."""
        assert entry.index == self.applied + 1, (entry.index, self.applied)
        self.moment.time_us = max(self.moment.time_us, entry.time_us)
        self.applied = entry.index
        if self.group != CONTROL:
            self._drop_old_windows()
        if entry.kind != COMMANDS:
            return []
        if commands is None:
            commands = self.codec.decode(entry.payload)
        return [self._apply(command) for command in commands]

    def take_hints(self) -> list[tuple[ClientId, Hint]]:
        """What the machines want clients told since this was last asked (followers drop it)."""
        hints = self.moment.hints
        if hints:
            self.moment.hints = []
        return hints

    def deadlines_pending(self) -> bool:
        """True while something here waits for log time to pass."""
        return bool(self.windows) or any(pending() for pending in self._pending)

    def snapshot(
        self, term: int, configuration_index: int, configuration: bytes
    ) -> Iterator[bytes]:
        """The whole state as of now, as a stream: what is copied within the call is encoded while
        the stream is taken. `term` is the last applied entry's; the configuration is the latest
        one up to there."""
        moment = self.moment
        header = Header(
            VERSION, self.group, self.applied, term, moment.time_us, moment.number,
            self.digest_at, configuration_index, configuration,
        )  # fmt: skip
        windows = [
            (key, Window(w.client, w.done_below, w.last_not_after_us, w.answers.copy()))
            for key, w in self.windows.items()
        ]
        sections: list[tuple[str, Iterable[bytes]]] = [
            (WINDOWS, self.codec.encode_windows(windows))
        ]
        sections += [(name, machine.snapshot()) for name, machine in self.machines.items()]
        return encode(header, sections)

    def size(self) -> int:
        """How many records a snapshot would hold now."""
        windows = sum(1 + len(window.answers) for window in self.windows.values())
        return windows + sum(machine.size() for machine in self.machines.values())

    def put_off_digest(self) -> None:
        """The operation number has reached `digest_at`: say when to compare states next."""
        self.digest_at = self.number + max(self._digest_operations, 2 * self.size())

    def release(self) -> Iterator[None]:
        """Nobody needs this replica any more: give its memory back, a step each time. Machines
        refer to themselves and each other, so that else only the collector would free them, and
        to free a million records takes longer than a turn may. Only what the machines name is
        emptied: whatever else they refer to need not be their own."""
        large: list[Any] = [self.windows]
        for machine in self.machines.values():
            release = getattr(machine, "release", None)
            if release is not None:
                large += release()
        self.machines.clear()
        for records in large:
            while records:
                if isinstance(records, list):
                    del records[-RELEASE_STEP:]
                else:
                    for _ in range(min(len(records), RELEASE_STEP)):
                        records.popitem()
                yield

    def check(self) -> None:
        for machine in self.machines.values():
            machine.check()

    def _apply(self, command: Command) -> Reply:
        moment = self.moment
        operations = command.operations
        if 0 < command.not_after_us < moment.time_us:
            late = Failure(Code.STALE_REQUEST, "the request came after its time; send it anew")
            return [late] * len(operations)
        moment.client, moment.session, moment.principal = command.client, command.session, 0
        machine = self.machines.get(command.plugin)
        if machine is None:
            unknown = Failure(Code.UNKNOWN_PLUGIN, f"{command.plugin!r} keeps nothing here")
            return [unknown] * len(operations)
        window = self._window(command)
        if isinstance(window, Failure):
            return [window] * len(operations)
        if window is None:
            return [self._memoryless(machine, operation) for operation in operations]
        if command.done_below > window.done_below:
            window.forget_below(command.done_below)
        done_below, answers, apply = window.done_below, window.answers, machine.apply
        acting, principals = bool(command.principals), iter(command.principals)
        replies: Reply = []
        for sequence, operation in zip(command.sequences, operations, strict=True):
            result: Result | None
            if acting:
                self._act_for(next(principals), command.session)
            if type(operation) is Cancel:
                result = self._cancel(machine, window, operation)
            elif sequence == MEMORYLESS:
                result = self._memoryless(machine, operation)
            elif sequence < done_below:
                result = Failure(Code.STALE_REQUEST, "a late copy of a finished request")
            else:
                result = answers.get(sequence)
                if result is None:
                    if len(answers) >= WINDOW_MAX:
                        # Not remembered, for want of room: a client keeps below the limit itself.
                        result = Failure(Code.BUSY, "too many unfinished operations; wait for some")
                    else:
                        moment.number += 1
                        moment.sequence = sequence
                        if acting and self._acts_for_nobody(command.plugin):
                            result = NO_PRINCIPAL
                        else:
                            result = apply(moment, operation)
                        answers[sequence] = result
            replies.append(result)
        return replies

    def _act_for(self, principal: ClientId, session: SessionId) -> None:
        """The next operation is done for the session of `principal`; 0: for the asker's own."""
        moment = self.moment
        moment.principal = principal
        moment.session = self.session_of(principal) if principal else session

    def _acts_for_nobody(self, plugin: str) -> bool:
        return bool(self.moment.principal) and not self.moment.session and plugin != SESSIONS

    def session_of(self, client: ClientId) -> SessionId:
        """The session a client has in this group; 0 if it has none."""
        sessions: Any = self.machines.get(SESSIONS)
        return sessions.by_client.get(client, 0) if sessions is not None else 0

    def _window(self, command: Command) -> Window | Failure | None:
        """The memory the command counts on: None if it needs none."""
        if command.client == 0:
            return None
        if self.group == CONTROL:
            if command.session == 0:
                return None
            window = self.windows.get(command.session)
            if window is None:
                return Failure(Code.SESSION_EXPIRED, "the session has ended; open a new one")
            if window.client != command.client:
                return Failure(Code.PERMISSION_DENIED, "the session belongs to another client")
            return window
        if not 0 < command.not_after_us <= self.moment.time_us + NOT_AFTER_MAX_US:
            text = "a request to a partition names a not_after at most 5 minutes ahead"
            return Failure(Code.MALFORMED, text)
        window = self.windows.get(command.client)
        if window is None:
            if len(self.windows) >= CLIENTS_MAX:
                return Failure(Code.BUSY, "too many clients at this partition; retry later")
            window = self.windows[command.client] = Window(command.client, answers={})
        else:
            self.windows.move_to_end(command.client)
        window.last_not_after_us = max(window.last_not_after_us, command.not_after_us)
        return window

    def _memoryless(self, machine: StateMachine, operation: Operation | Internal) -> Result:
        if type(operation) is Cancel:
            return Failure(Code.MALFORMED, "without a session there is nothing to cancel")
        moment = self.moment
        moment.number += 1
        moment.sequence = 0
        return machine.apply(moment, operation)

    def _cancel(self, machine: StateMachine, window: Window, operation: Operation) -> Result:
        assert isinstance(operation, Cancel)
        sequence = operation.cancelled
        if sequence < window.done_below:
            return Cancelled()
        answered = window.answers.get(sequence)
        if answered is None and len(window.answers) >= WINDOW_MAX:
            return Failure(Code.BUSY, "too many unfinished operations; wait for some")
        failure = answered if isinstance(answered, Failure) else None
        if answered is not None and failure is None:
            self.moment.number += 1
            self.moment.sequence = sequence
            failure = machine.cancel(self.moment, answered)
        if failure is None or failure.code is not Code.DEADLOCK:
            failure = None
        # Remembered even when nothing came yet: a late copy of the operation does nothing.
        cancelled = Failure(Code.CANCELLED, "the operation was cancelled")
        window.answers[sequence] = failure or cancelled
        return Cancelled(failure)

    def _drop_old_windows(self) -> None:
        """Clients whose last request can no longer be repeated need no memory.

        The windows stand in order of their last use; a bound is at most `NOT_AFTER_MAX_US` away,
        so that one far bound keeps those behind it from going for no longer than that."""
        windows, time_us = self.windows, self.moment.time_us
        for _ in range(WINDOWS_DROPPED_MAX):
            oldest = next(iter(windows), None)
            if oldest is None or windows[oldest].last_not_after_us >= time_us:
                return
            del windows[oldest]


class Replicas(dict[GroupId, Replica]):
    """The groups a node holds. `machines` gives the fresh machines of a group."""

    def __init__(
        self,
        machines: Callable[[GroupId], Mapping[str, StateMachine]],
        codec: CommandCodec,
        digest_operations: int = DIGEST_OPERATIONS,
    ) -> None:
        super().__init__()
        self._machines = machines
        self._codec = codec
        self._digest_operations = digest_operations

    def make(self, group: GroupId) -> Replica:
        """A replica of the group in which nothing happened yet. It is not put in."""
        return Replica(group, self._machines(group), self._codec, self._digest_operations)
