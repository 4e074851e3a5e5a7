"""The plugin interface: what a protocol is given and what it gives back.

The law: a protocol opens no socket, file or thread, reads no clock and draws no randomness of its
own. It is called with events and calls its `Port` back with effects. Nothing under `protocols/`
can tell whether it runs in a node or in the simulator.

The roles of a message are told by its base class:

* `Message`    between the same plugin on two nodes;
* `Operation`  a write a client asks for: replicated through a group's log, applied once;
* `Query`      a read a client asks for: answered by the leader after a confirmed round;
* `Internal`   a write only a leader proposes (an expiry): clients cannot send it;
* `Result`     the answer to an operation or a query;
* `Hint`       told to a client unasked; may be lost.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from .errors import Code
from .records import (
    GroupId,
    GroupState,
    Member,
    NodeId,
    Record,
    WriteNumber,
)

ClientId: TypeAlias = int
SessionId: TypeAlias = int

CONTROL: GroupId = 0
"""The group of membership, sessions and locks, held by every node."""


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """From a plugin on one node to the same plugin on another. Its `tag` is its position in
    `Plugin.messages`: the wire code. Fields are only ever added at the end, with defaults."""


class Operation(Message, frozen=True, forbid_unknown_fields=True):
    """A write a client asks for."""


class Query(Message, frozen=True, forbid_unknown_fields=True):
    """A read a client asks for; it is not remembered."""


class Internal(Message, frozen=True):
    """A write that only a leader proposes; it names what the leader saw and is checked again."""


class Result(Message, frozen=True):
    """The answer to an operation or a query."""


class Hint(Message, frozen=True):
    """Told to a client; it may be lost and never carries anything a read would not show."""


class Cancel(Operation, frozen=True, tag=-2):
    """Undo the operation `sequence` of the same session, whether it came already or comes later.

    Any plugin in group 0 understands it; the replica answers `Cancelled` (see `replica.py`)."""

    cancelled: int


class Failure(Result, frozen=True, tag=-1):
    """The one failing answer of all plugins. `text` says what to do; `detail` is for programs."""

    code: Code
    text: str = ""
    detail: tuple[str, ...] = ()


class Cancelled(Result, frozen=True, tag=-3):
    """The sequence holds nothing now, and never will. `failure`: it had failed by itself before,
    and took more with it than this operation (DEADLOCK)."""

    failure: Failure | None = None


class Command(msgspec.Struct, gc=False):
    """Writes of one client (or of the leader itself: client 0) to one plugin in one group.

    `sequences[i]` numbers `operations[i]` within the client; answers below `done_below` are no
    longer needed. In group 0 `session` names the session that remembers the answers; 0 means the
    operations need no memory of their own. Applied in no entry later than `not_after_us` (log
    time; 0: no bound). `principals`, if any, name per operation the client for whose session it
    is done (0: the asker's own): numbered and remembered for who asks, it acts for another. Only
    in group 0. Who knows the id of a client may act for it, so it is kept secret like a key.
    """

    plugin: str
    client: ClientId
    session: SessionId
    done_below: int
    not_after_us: int
    sequences: Sequence[int]
    operations: Sequence[Operation | Internal]
    principals: Sequence[ClientId] = ()


class Request(msgspec.Struct, gc=False):
    """One frame of one client for one plugin and group: operations and queries, numbered.

    `route` is opaque: where the answers go. `received_s` is when the frame came, on the clock of
    whoever drives the engine, for its figures only.
    """

    plugin: str
    client: ClientId
    session: SessionId
    group: GroupId
    done_below: int
    not_after_us: int
    sequences: Sequence[int]
    operations: Sequence[Operation | Query]
    route: Any = None
    principals: Sequence[ClientId] = ()
    received_s: float = 0.0


class Moment(msgspec.Struct, gc=False):
    """Where the application of a log stands. One object, reused: never keep it.

    `number` is the operation number (unique in the group, rising for ever), `time_us` the log
    time, `client`/`session`/`sequence` who asks (zeros for `Internal`). `hints` collects what the
    leader tells clients once the entry is applied. `principal`: the client for whom `client` asks,
    if it is another; `session` is then the principal's (0 if it has none).
    """

    number: int = 0
    time_us: int = 0
    client: ClientId = 0
    session: SessionId = 0
    sequence: int = 0
    hints: list[tuple[ClientId, Hint]] = []
    principal: ClientId = 0

    def tell(self, client: ClientId, hint: Hint) -> None:
        self.hints.append((client, hint))


class StateMachine(Protocol):
    """What a plugin replicates in one group. Deterministic: no set iteration, no `hash()`.

    A large one may also have `release() -> Iterable[dict | list]`: which of its own are to be
    emptied, a step in a turn, when its replica is given up. To free all at once could take longer
    than a turn may."""

    def apply(self, moment: Moment, operation: Any) -> Result:
        """Apply an operation or internal command; touches at most 1,000 items."""
        ...

    def query(self, moment: Moment, query: Any) -> Result:
        """Answer a read from the applied state; changes nothing."""
        ...

    def end_session(self, moment: Moment, session: SessionId, limit: int) -> int:
        """Let go at most `limit` things of an ended session; return how many were let go."""
        ...

    def cancel(self, moment: Moment, answered: Result) -> Failure | None:
        """Undo an operation of `moment.session` that was answered with `answered`: a wait leaves,
        a grant is released. What cannot be undone is left as it is. (Called for `Cancel`.)
        Returns how it failed, if it had come to that since and its client must know."""
        ...

    def news(self, moment: Moment, session: SessionId, number: int) -> Result | None:
        """How the wait with this operation number stands; None if there is nothing by that number
        in this session (it was cancelled, or let go). Read by the pulse."""
        ...

    def snapshot(self) -> Iterable[bytes]:
        """The state, in chunks of about 1,000 records. Shallow copies are made within the call;
        encoding waits until a chunk is taken. A machine restored from the chunks gives the same
        ones, byte by byte: replicas compare them."""
        ...

    def restore(self, chunk: bytes) -> None:
        """Take one chunk of a snapshot into a machine that is being made, in their order."""
        ...

    def restored(self) -> None:
        """All chunks came."""
        ...

    def size(self) -> int:
        """How many records a snapshot would hold now; the same on every replica."""
        ...

    def check(self) -> None:
        """Assert the invariants of the state; the simulator calls it."""
        ...


class Port(Protocol):
    """What a plugin may do. Every call returns at once; effects leave at the end of the turn."""

    node: NodeId
    random: random.Random

    def now(self) -> float:
        """Seconds, monotonic, counting suspended time; constant within a turn."""
        ...

    def send(self, to: NodeId, message: Message) -> None:
        """To the same plugin on another node. May be lost, come twice, come an hour late."""
        ...

    def publish(self, topic: bytes, message: Message) -> None: ...

    def reply(self, request: Request, results: Sequence[Result]) -> None:
        """Answer all of a request: `results[i]` answers `request.operations[i]`."""
        ...

    def tell(self, client: ClientId, hint: Hint) -> None: ...
    def groups(self) -> Sequence[GroupId]: ...  # that this node holds now

    def propose(self, group: GroupId, command: Command, token: Any) -> None:
        """Put a command into a group's log. Comes back once, as `on_applied` with the results, or
        as `on_failed` (not leader, too much uncommitted; the outcome may still be open)."""
        ...

    def read(self, group: GroupId, token: Any) -> None:
        """Ask for a linearizable read: `on_read`, or `on_failed`."""
        ...

    def machine(self, group: GroupId) -> StateMachine:
        """The calling plugin's state machine of a group this node holds (KeyError otherwise)."""
        ...

    def moment(self, group: GroupId) -> Moment:
        """Number and log time as applied here; to be read within the call."""
        ...

    def leader(self, group: GroupId) -> tuple[NodeId | None, int]:
        """The leader this node knows of, and its term. It is us if it equals `node`."""
        ...

    def log_time_us(self, group: GroupId) -> int:
        """The group's log time now: on its leader it moves with the clock, by at most 100 ms per
        turn; elsewhere the last one heard of."""
        ...

    def members(self) -> Sequence[Member]:
        """The members of the cluster as this node knows them (group 0)."""
        ...

    def cluster(self) -> int:
        """The cluster this node belongs to; 0 while it belongs to none."""
        ...

    def describe(self) -> dict[str, Any]:
        """The whole node's status, of JSON types."""
        ...

    def note(self, text: str) -> None:
        """A line for the node's log, of what its people want to know."""
        ...


class Plugin(Protocol):
    """A protocol. See `protocols/lock.py` for one, `examples/ratelimit` for a foreign one."""

    name: str
    version: int
    messages: Sequence[type[Message]]
    placement: Literal["control", "partitioned"]

    def start(self, port: Any) -> None: ...
    def machine(self, group: GroupId) -> StateMachine | None: ...
    def on_message(self, sender: NodeId, message: Message) -> None: ...
    def on_request(self, request: Request) -> None: ...
    def on_applied(self, group: GroupId, token: Any, results: Sequence[Result]) -> None: ...
    def on_read(self, group: GroupId, token: Any) -> None: ...
    def on_failed(self, group: GroupId, token: Any, failure: Failure) -> None: ...
    def on_leader(self, group: GroupId, leader: NodeId | None, term: int) -> None: ...
    def deadline(self) -> float | None: ...
    def on_deadline(self) -> None: ...

    def flush(self) -> None:
        """The turn ends: what was gathered over it leaves now."""
        ...

    def check(self) -> None: ...
    def status(self) -> dict[str, Any]: ...


class Replicated:
    """The plugin whose every operation goes through the log and every query to the state machine.

    A third-party plugin subclasses this, names its messages and gives a state machine; the lock
    plugin adds checks before proposing. Requests of one frame are answered together, after its
    operations were applied and its queries confirmed.
    """

    name: str = ""
    version: int = 1
    messages: Sequence[type[Message]] = ()
    placement: Literal["control", "partitioned"] = "control"
    port: Port

    def start(self, port: Port) -> None:
        self.port = port

    def machine(self, group: GroupId) -> StateMachine | None:
        raise NotImplementedError

    def on_message(self, sender: NodeId, message: Message) -> None:
        """No messages between nodes by default."""

    def on_request(self, request: Request) -> None:
        operations = request.operations
        if any(isinstance(operation, Query) for operation in operations):
            if all(isinstance(operation, Query) for operation in operations):
                self.port.read(request.group, request)
            else:
                failure = Failure(Code.MALFORMED, "send operations and queries in separate frames")
                self.port.reply(request, [failure] * len(operations))
            return
        self.port.propose(request.group, self.command(request), request)

    def command(self, request: Request) -> Command:
        return Command(
            self.name,
            request.client,
            request.session,
            request.done_below,
            request.not_after_us,
            request.sequences,
            request.operations,  # type: ignore[arg-type]
            request.principals,
        )

    def on_applied(self, group: GroupId, token: Any, results: Sequence[Result]) -> None:
        if token is not None:
            self.port.reply(token, results)

    def on_read(self, group: GroupId, token: Any) -> None:
        machine, moment = self.port.machine(group), self.port.moment(group)
        self.port.reply(token, [machine.query(moment, query) for query in token.operations])

    def on_failed(self, group: GroupId, token: Any, failure: Failure) -> None:
        if token is not None:
            self.port.reply(token, [failure] * len(token.operations))

    def on_leader(self, group: GroupId, leader: NodeId | None, term: int) -> None:
        """Nothing kept by leadership by default."""

    def deadline(self) -> float | None:
        return None

    def on_deadline(self) -> None:
        """No deadlines by default."""

    def flush(self) -> None:
        """Nothing gathered over a turn by default."""

    def check(self) -> None:
        """No invariants by default."""

    def status(self) -> dict[str, Any]:
        return {}


__all__ = [
    "CONTROL", "Cancel", "Cancelled", "ClientId", "Command", "Failure", "GroupId", "GroupState",
    "Hint", "Internal", "Message", "Moment", "NodeId", "Operation",
    "Plugin", "Port", "Query", "Record", "Replicated", "Request", "Result", "SessionId",
    "StateMachine", "WriteNumber",
]  # fmt: skip
