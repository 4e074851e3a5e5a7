"""The pure core on real sockets: one loop, one timer, one flush a turn.

The law: the core decides, the shell carries. Frames received in a turn are completed together,
and what their callers then submit leaves together. After a fork the child's copy touches nothing
of the parent's; when the interpreter exits, sessions still open are ended.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import zmq

from ..bus.client_sockets import ClientSockets
from ..bus.frame import PEER_FRAME_BYTES
from ..bus.options import new_socket
from ..protocols.plugin import Plugin
from .clock import now
from .core import OURS, Call, Core
from .core_records import Session
from .core_waits import TAKES
from .errors import CLOSED, FORKED, CoterieError
from .nests import Nests
from .settings import Settings
from .vocabulary import codec_for

FRAMES_PER_TURN = 256
GATHERED_MAX = 512
"""So many calls of one turn leave before it ends: the cluster works on them while the rest is
still being submitted (measured at 1,024 tasks: 111,000 operations/s instead of 77,000)."""

LINGER_US = 700_000
"""How long a node may hold back the answer to who watches: less than the core waits with asking
again."""

CLOSE_S = 2.0
"""How long `close` waits for the end of the session to be confirmed."""

EXIT_S = 0.7
"""The same when the interpreter exits."""

_started: set[Shell] = set()


class Shell:
    """A core, its sockets and its timer on the loop that first used it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.core: Core | None = None
        self.call_back: Callable[[list[Callable[[], object]]], None] = self._call_soon
        self.at_exit: Callable[[], None] = self.farewell
        self.nests = Nests()
        self.rlocks: WeakValueDictionary[str, Any] = WeakValueDictionary()
        """The re-entrant lock of each name."""
        self.rlocks_held: dict[str, object] = {}
        self.permits: dict[str, list[Session]] = {}
        """Of each semaphore, the sessions of the permits in hand, oldest first."""
        self._plugins: list[Plugin] = []
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: zmq.Context[Any] | None = None
        self._sockets: ClientSockets | None = None
        self._connected: set[str] = set()
        self._closed = False
        self._flush_scheduled = False
        self._gathered = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._turned = asyncio.Event()
        """Set at the end of each turn: for the few who wait for the core to be in a state."""

    # --- what clients and locks call, on the loop -------------------------------------------------

    def future(self) -> asyncio.Future[Any]:
        """A future of the loop; connects at first use. Raises `CoterieError`."""
        loop = self._loop
        # Who awaits it on another running loop is told so by asyncio itself; asking which loop
        # runs here costs a system call.
        if loop is None or not loop.is_running():
            loop = asyncio.get_running_loop()
            if loop is not self._loop:
                self._start(loop)
        return loop.create_future()

    def task(self) -> asyncio.Task[Any] | None:
        """The task that runs now."""
        return asyncio.current_task(self._loop)

    def attach(self) -> None:
        """Belong to the running loop from now on. Raises `CoterieError`."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._start(loop)

    def submit(self, call: Call) -> None:
        """Take on a call; its `future` is completed later. Raises `CoterieError`."""
        core = self.core
        if core is None or self._loop is None:
            raise self._unusable()
        core.submit(call, now())
        self._gathered += 1
        if self._gathered >= GATHERED_MAX:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def cancel(self, call: Call) -> None:
        """Nobody waits for this acquire any more."""
        if self.core is not None and self._loop is not None and not self._loop.is_closed():
            self.core.cancel(call, now())
            self._schedule_flush()

    async def ask(self, call: Call) -> Any:
        """Submit a call and wait for its result. Cancelled, it leaves nothing held; what takes
        nothing goes on by itself."""
        call.future = self.future()
        self.submit(call)
        try:
            return await call.future
        except BaseException:
            if type(call.operation) in TAKES:
                self.cancel(call)
            raise

    def limit(self, call: Call, deadline: float | None) -> None:
        """Let a call under way end at `deadline`."""
        if self.core is not None and deadline is not None:
            self.core.limit(call, deadline)
            self._schedule_flush()

    def take_back(self, call: Call) -> None:
        """Undo what a completed call stands for, without waiting."""
        if self.core is not None and self._loop is not None and not self._loop.is_closed():
            self.core.take_back(call, now())
            self._schedule_flush()

    def use(self, plugins: list[Plugin]) -> None:
        """Understand further plugins from now on."""
        self._plugins = plugins
        if self.core is not None:
            self.core.speak(codec_for(plugins), [plugin.name for plugin in plugins])

    def locate(self) -> None:
        """Ask all nodes who leads; `core.nodes.located` fills."""
        if self.core is not None:
            self.core.locate(now())
            self._schedule_flush()

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for the core to come into a state; False if it does not in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._turned.clear()
                    await self._turned.wait()
        except TimeoutError:
            return condition()
        return True

    async def close(self, grace_s: float = CLOSE_S) -> None:
        """End the session and close the sockets. Idempotent; in a forked child it does nothing."""
        self._closed = True
        if self.core is None or self._loop is None:
            return
        self.core.close(now(), grace_s)
        self._schedule_flush()
        await self.until(lambda: self._context is None, grace_s + 1.0)

    def forget(self) -> None:
        """This process is a fork of the one that made the client: let everything be."""
        self._loop = None
        self._closed = True
        if self.core is not None and self.core.session is not None:
            self.core.session.lost = True

    def farewell(self) -> None:
        """The interpreter exits and the loop with it: end the session without a loop."""
        core, context = self.core, self._context
        if core is None or context is None or os.getpid() != self._pid:
            return
        core.close(now(), EXIT_S)
        sockets: dict[str, zmq.Socket[Any]] = {}
        try:
            end = time.monotonic() + EXIT_S
            while not core.closed and time.monotonic() < end:
                self._exchange(context, core, sockets)
        finally:
            for raw in sockets.values():
                raw.close(0)

    # --- turns ------------------------------------------------------------------------------------

    def _unusable(self) -> CoterieError:
        if os.getpid() != self._pid:
            return CoterieError(FORKED)
        return CoterieError(CLOSED)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._closed or os.getpid() != self._pid:
            raise self._unusable()
        if self._loop is not None:
            raise CoterieError(
                "a client belongs to the event loop that first used it; make one each"
            )
        made = self.settings
        self.core = Core(
            made.endpoints,
            codec_for(self._plugins),
            random.Random(random.SystemRandom().getrandbits(128)),
            plugins=("session", *OURS, *(plugin.name for plugin in self._plugins)),
            name=made.name,
            session_ttl=made.session_ttl,
            timeout=made.timeout,
        )
        self._loop = loop
        self._context = zmq.Context()
        self._sockets = ClientSockets(self._context, loop, self._on_readable)
        _started.add(self)

    def _on_readable(self) -> None:
        sockets, core = self._sockets, self.core
        if sockets is None or core is None:
            return
        at = now()
        for endpoint, frame in sockets.receive(FRAMES_PER_TURN):
            core.receive(endpoint, frame, at)
        self._complete(core)
        # after the callers that were just woken, so that what they submit leaves in one frame
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled and self._loop is not None:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._gathered = 0
        core, sockets = self.core, self._sockets
        if core is None or sockets is None:
            return
        for endpoint, frame in core.flush(now()):
            if endpoint not in self._connected:
                self._connect(sockets, endpoint)
            sockets.send(endpoint, frame)
        self._complete(core)
        if core.closed:
            self._teardown()
            return
        deadline = core.deadline()
        if deadline is not None and deadline < self._timer_at:
            self._arm(deadline)

    def _connect(self, sockets: ClientSockets, endpoint: str) -> None:
        self._connected.add(endpoint)
        with contextlib.suppress(ValueError):  # like an endpoint at which nobody answers
            sockets.connect(endpoint)

    def _complete(self, core: Core) -> None:
        for call in core.take_completed():
            future = call.future
            if future is not None and not future.done():
                future.set_result(call.result)
            if call.queued is not None and not call.queued.done():
                call.queued.set_result(None)
        if core.queued:
            calls, core.queued = core.queued, []
            for call in calls:
                if not call.queued.done():
                    call.queued.set_result(None)
        if core.losing:
            sessions, core.losing = core.losing, []
            for session in sessions:
                self.tell_lost(session)
        if not self._turned.is_set():
            self._turned.set()

    def tell_lost(self, session: Session) -> None:
        """Call back those who watch what this session has lost."""
        callbacks: list[Callable[[], object]] = []
        for grant in list(session.watched):  # other threads may add to it now
            if grant.lost:
                callbacks += session.watched.pop(grant, [])
        if callbacks:
            self.call_back(callbacks)

    def _call_soon(self, callbacks: list[Callable[[], object]]) -> None:
        if self._loop is not None:
            for callback in callbacks:
                self._loop.call_soon(callback)

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._loop is not None
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        if self.core is not None:
            self.core.on_deadline(now())
            self._complete(self.core)
            self._flush()

    def _teardown(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        sockets, self._sockets = self._sockets, None
        context, self._context = self._context, None
        if sockets is not None:
            sockets.close()
        if context is not None:  # waits for what is still being sent: not on the loop
            threading.Thread(target=context.term, name="coterie-term", daemon=True).start()
        _started.discard(self)
        self._turned.set()

    def _exchange(
        self, context: zmq.Context[Any], core: Core, sockets: dict[str, zmq.Socket[Any]]
    ) -> None:
        """One round without a loop: send what there is, wait briefly for what comes."""
        core.on_deadline(now())
        for endpoint, frame in core.flush(now()):
            if endpoint not in sockets:
                raw = new_socket(context, zmq.DEALER, endpoint, max_bytes=PEER_FRAME_BYTES)
                raw.connect(endpoint)
                raw.poll(200, zmq.POLLOUT)
                sockets[endpoint] = raw
            try:
                sockets[endpoint].send(frame, zmq.NOBLOCK)
            except zmq.Again:
                continue
        poller = zmq.Poller()
        for raw in sockets.values():
            poller.register(raw, zmq.POLLIN)
        for raw, _ in poller.poll(50):
            endpoint = next(name for name, found in sockets.items() if found is raw)
            core.receive(endpoint, raw.recv(), now())


def _forget_all() -> None:
    for shell in list(_started):
        shell.forget()
    _started.clear()


def _farewell_all() -> None:
    for shell in list(_started):
        shell.at_exit()
    _started.clear()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_farewell_all)
