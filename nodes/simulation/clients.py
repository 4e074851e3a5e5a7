"""Simulated clients: the shipped client core, with programs on it that take locks and count.

The law: a client is on no machine of the cluster: its frames are bytes, its clock is its own, and
it may stop or die at any point without telling anyone.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any

from ...clients.core import Call, Core
from ...clients.errors import CoterieError, Indeterminate
from ...protocols.errors import definite
from ...protocols.lock.messages import Acquire, Granted, ListLocks, LockStates, Release
from ...protocols.plugin import CONTROL, Failure
from ...protocols.session.messages import ListSessions, SessionList
from .counter import Add, Get, Value
from .judge import Belief, Judge
from .transactions import Transactions

if TYPE_CHECKING:
    from ..engine import Engine
    from ..simulator import World

NAMES = ("a", "b", "c")
PROGRAMS = ((1, 0), (1, 1), (2, 1), (0, 2))
"""How many programs of a client take locks, and how many count."""

INBOX_FRAMES = 1_000
GRACE_S = 60.0
LONG_S = 3.0
"""Some locks are held about as long as a session lives without contact."""


class SimulatedClient:
    """One client process with a core, and programs that run on it as tasks would."""

    def __init__(self, world: World, judge: Judge, name: str, source: random.Random) -> None:
        self.world = world
        self.judge = judge
        self.name = name
        self.random = source
        self.crashed = False
        self.finishing = False
        self.paused_until_s = 0.0
        self.running = 0
        self.completed = 0
        self.pace_s = source.choice((0.02, 0.1, 0.3))
        self.reads = source.choice((0.2, 0.5, 0.8))
        self._offset_s = source.uniform(1.0, 100_000.0)
        self._rate = 1.0 + source.uniform(-0.01, 0.01)
        self._inbox: deque[tuple[str, bytes]] = deque(maxlen=INBOX_FRAMES)
        self._wake_s = float("inf")
        self.core = Core(
            list(world.nodes),
            world.codec,
            random.Random(source.getrandbits(62)),
            plugins=("lock", "counter"),
            name=name,
            session_ttl=source.choice((1.0, 1.0, 2.0, 3.0)),
            timeout=source.choice((0.5, 2.0, 5.0)),
        )

    def clock(self) -> float:
        return self._offset_s + self.world.now * self._rate

    def start(self) -> None:
        self.core.locate(self.clock())
        locks, counts = self.random.choice(PROGRAMS)
        programs = [self._lock] * locks + [self._count] * counts
        if self.world.drawn.detection:
            seed = f"{self.world.seed}/transactions/{self.name}"
            programs += [
                Transactions(self, random.Random(f"{seed}/{place}")).begin for place in range(2)
            ]
        for program in programs:
            self.running += 1
            self._later(program)
        self._turn()

    def receive(self, sender: str, frame: bytes) -> None:
        if self.crashed:
            return
        self._inbox.append((sender, frame))
        self._turn()

    def pause(self, until: float) -> None:
        self.paused_until_s = until
        self._wake(until)

    def counts_on(self, session: Any) -> bool:
        """By its own clock this client may still count on that session."""
        return not self.crashed and not session.lost and self.clock() < session.lost_at

    def _turn(self) -> None:
        """Take in what came, then send what is to be sent."""
        if self.crashed or self.world.now < self.paused_until_s:
            return
        core, now = self.core, self.clock()
        while self._inbox:
            core.receive(*self._inbox.popleft(), now)
        deadline = core.deadline()
        if deadline is not None and deadline <= now:
            core.on_deadline(now)
        completed = core.take_completed()
        while completed:
            for call in completed:
                if call.future is not None:
                    self.completed += 1
                    call.future(call)
            completed = core.take_completed()
        lost, core.losing = core.losing, []
        for session in (session for session in lost if session.lost):
            self.judge.lost(self.name, session.number, session.lost_at - now)
        send = self.world.network.send
        for endpoint, frame in core.flush(now):
            send(self.world.now, self.name, endpoint, frame)
        deadline = core.deadline()
        if deadline is not None:
            self._wake(max(self.world.now, (deadline - self._offset_s) / self._rate) + 1e-6)

    def _wake(self, at: float) -> None:
        if at < self._wake_s:
            self._wake_s = at
            self.world.at(at, self._woken, at)

    def _woken(self, at: float) -> None:
        if at == self._wake_s:
            self._wake_s = float("inf")
            self._turn()

    # Programs

    def _later(self, step: Any, *arguments: Any) -> None:
        """Go on with a program after a while of its own work."""
        self._after(self.random.expovariate(1 / self.pace_s), step, *arguments)

    def _after(self, seconds: float, step: Any, *arguments: Any) -> None:
        def go_on() -> None:
            if self.crashed:
                return
            if self.world.now < self.paused_until_s:
                self.world.at(self.paused_until_s, go_on)
                return
            step(*arguments)
            self._turn()

        self.world.at(self.world.now + seconds, go_on)

    def _submit(self, plugin: str, operation: Any, future: Any, **settings: Any) -> Call:
        call = Call(plugin, operation, future=future, **settings)
        self.core.submit(call, self.clock())
        return call

    def _lock(self) -> None:
        """Acquire, hold, release; now and then give up waiting."""
        if self.finishing:
            self.running -= 1
            return
        draw = self.random.random
        wait = draw() < 0.8
        operation = Acquire(self.random.choice(NAMES), shared=draw() < 0.3, wait=wait)
        deadline = self.clock() + draw() * 2.0 if wait and draw() < 0.4 else None
        call = self._submit("lock", operation, self._acquired, waits=wait, deadline=deadline)
        if draw() < 0.1:
            self._later(self._give_up, call)

    def _give_up(self, call: Call) -> None:
        """The program no longer wants what it asked for (its task was cancelled)."""
        if not call.completed:
            call.future = None
            self.core.cancel(call, self.clock())
            self._later(self._lock)

    def _acquired(self, call: Call) -> None:
        result, session = call.result, call.session
        if type(result) is not Granted or session is None or not self.counts_on(session):
            self._later(self._lock)
            return
        operation = call.operation
        assert isinstance(operation, Acquire)
        belief = Belief(self, operation.name, operation.shared, result.token, session)
        self.judge.granted(belief)
        if self.random.random() < 0.15:
            self._after(self.random.random() * LONG_S, self._release, call, belief)
        else:
            self._later(self._release, call, belief)

    def _release(self, call: Call, belief: Belief) -> None:
        belief.ended = True
        operation = Release(belief.name, call.result.grant)
        self._submit("lock", operation, self._released, waits=True, session=call.session)

    def _released(self, call: Call) -> None:
        self._later(self._lock)

    def _count(self) -> None:
        if self.finishing:
            self.running -= 1
            return
        floor = self.judge.high
        if self.random.random() < self.reads:
            self._submit("counter", Get(), lambda call: self._got(call, floor))
        else:
            amount = self.random.randint(1, 3)
            # Until it is answered nobody knows: so it stays, should this client die.
            self.judge.indeterminate += amount
            self._submit("counter", Add(amount), lambda call: self._added(call, amount, floor))

    def _got(self, call: Call, floor: int) -> None:
        if type(call.result) is Value:
            self.judge.read(self.name, call.result.total, floor)
        self._later(self._count)

    def _added(self, call: Call, amount: int, floor: int) -> None:
        result = call.result
        if type(result) is Value:
            self.judge.added(self.name, amount, result.total, floor)
        if type(result) is Value or not _may_have_happened(result):
            self.judge.indeterminate -= amount
        self._later(self._count)


class Clients:
    """The clients of one world; when one dies another takes its place."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.judge = Judge()
        self.random = random.Random(f"{world.seed}/clients")
        self._all: dict[str, SimulatedClient] = {}
        self._closing = False

    def start(self) -> None:
        for _ in range(self.random.randint(2, 4)):
            self._add()

    def _add(self) -> None:
        name = f"client{len(self._all) + 1}"
        source = random.Random(self.random.getrandbits(62))
        client = self._all[name] = SimulatedClient(self.world, self.judge, name, source)
        client.start()

    @property
    def completed(self) -> int:
        return sum(client.completed for client in self._all.values())

    def names(self) -> list[str]:
        return [client.name for client in self._living()]

    def _living(self) -> list[SimulatedClient]:
        return [client for client in self._all.values() if not client.crashed]

    def receive(self, sender: str, to: str, frame: bytes) -> None:
        client = self._all.get(to)
        if client is not None:
            client.receive(sender, frame)

    def crash(self, source: random.Random) -> None:
        """One dies without a word, or stops for a while."""
        client = source.choice(self._living())
        if source.random() < 0.5:
            self.world.note("pause", client.name, "")
            client.pause(self.world.now + source.random() * 3.0)
        else:
            self.world.note("crash", client.name, "")
            client.crashed = True
            self._add()

    # The end

    def finish(self) -> None:
        """No new work; what was begun is finished."""
        for client in self._living():
            client.finishing = True
            client.pause(0.0)

    def unfinished(self, engine: Engine) -> str:
        """What is still to come; "" when nothing is. `engine`: of any node that is up to date."""
        living = self._living()
        busy = [client.name for client in living if client.running]
        if busy:
            return f"programs run: {', '.join(busy)}"
        if not self._closing:
            # Sessions are open still: what is held or waits now was given up and not let go.
            sessions = {c.core.session.number for c in living if c.core.session is not None}
            for lock in _locks(engine).locks:
                for row in (*lock.holders, *lock.waiters):
                    if row[1] in sessions:
                        return f"held or waiting, though given up: {lock}"
            self._closing = True
            for client in living:
                client.core.close(client.clock(), GRACE_S)
                client._turn()
        if not all(client.core.closed for client in living):
            return "clients close"
        locks, sessions_left = _locks(engine), _sessions(engine)
        if locks.locks or sessions_left.sessions:
            return f"left over: {locks} {sessions_left}"
        return ""

    def check_total(self, engine: Engine) -> None:
        self.judge.total(engine.replicas[CONTROL].machines["counter"].total)  # type: ignore[attr-defined]


def _may_have_happened(result: object) -> bool:
    if isinstance(result, Failure):
        return not definite(result.code)
    return not isinstance(result, CoterieError) or isinstance(result, Indeterminate)


def _locks(engine: Engine) -> LockStates:
    replica = engine.replicas[CONTROL]
    found = replica.machines["lock"].query(replica.moment, ListLocks())
    assert isinstance(found, LockStates)
    return found


def _sessions(engine: Engine) -> SessionList:
    replica = engine.replicas[CONTROL]
    found = replica.machines["session"].query(replica.moment, ListSessions())
    assert isinstance(found, SessionList)
    return found
