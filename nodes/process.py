"""A node as a process: sockets, disk and clock around one engine, on one event loop.

The law: the loop's thread never waits. It works in turns (DESIGN "The turn"): drain the sockets,
peers first; hand everything to the engine; carry out its effects. A turn takes at most 256
frames, 4,096 operations or 10 ms of receiving, then the loop breathes. The log is written by a
thread of its own; whatever queued up while it synced is its next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from importlib import import_module
from typing import Any

import msgspec
import zmq

from ..bus.codec import Ask, PeerFrame
from ..bus.frame import Kind, Malformed
from ..bus.node_sockets import NodeSockets
from ..protocols.errors import Code
from ..protocols.plugin import Failure, Plugin, Request
from ..protocols.raft.settings import Settings
from . import identity as identities
from . import journal
from .assembly import assemble, bus_codec
from .collector import Collector
from .configuration import NodeConfiguration
from .counters import Counters
from .disk import DiskFull
from .disk_thread import DiskThread
from .engine import Effects, Engine
from .keeping import Keeping
from .log_writer import LogWriter
from .machine import monotonic_s, processor_s, resident_bytes
from .peers import PeerLinks
from .plugins import installed
from .ports import http_socket
from .sending import Sender
from .storage import open_storage

FRAMES_A_TURN = 256
OPERATIONS_A_TURN = 4096
RECEIVING_S = 0.010

EXIT_OK, EXIT_SOFTWARE, EXIT_DISK, EXIT_REFUSED = 0, 70, 74, 76
TRANSFER_WAIT_S = 1.0
"""How long SIGTERM waits for another node to take the leadership."""

FAREWELL_S = 0.1
"""Who asks a node that is gone waits for a pulse or two before it looks for another."""

BACKLOG_RECORDS = 16_384
"""More records than this waiting for the disk: clients' operations are refused as BUSY."""

DISK_IS_SLOW = Failure(Code.BUSY, "the disk of the leader does not keep up; retry later")

SWITCH_S = 0.0005

PEER_KINDS = (Kind.PEER,)
CLIENT_KINDS = (Kind.ASK,)


class NodeProcess:
    """One running node. Made on its loop; `run` ends when the node has stopped."""

    def __init__(self, configuration: NodeConfiguration, loop: asyncio.AbstractEventLoop) -> None:
        """Opens the data directory and binds the sockets; raises what they raise."""
        self.configuration = configuration
        self._loop = loop
        self._stopped: asyncio.Future[int] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._turn_scheduled = False
        self._durable = 0
        self._leaving_until: float | None = None
        self._farewell_until = 0.0
        self._disk_full: Failure | None = None
        self._counters = Counters()
        self._began_s = monotonic_s()

        plugins = installed(configuration.deadlock_detection)
        self._codec = bus_codec(plugins)
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        with contextlib.ExitStack() as undo:
            undo.callback(self._context.term)
            self._storage = storage = open_storage(configuration)
            undo.callback(storage.disk.close)
            self._sockets = NodeSockets(
                self._context,
                loop,
                self._schedule,
                clients=configuration.client_bind,
                peers=configuration.peer_bind,
                publish=configuration.publish_bind,
                insecure=configuration.insecure,
            )
            undo.callback(self._sockets.close)
            self._http = http_socket(configuration)
            if self._http is not None:
                undo.callback(self._http.close)
            self.engine = self._assemble(plugins)
            undo.pop_all()
        self._sender = Sender(self._codec, self._sockets, self._counters)
        self._disk_thread = DiskThread(loop.call_soon_threadsafe)
        self._keeping = Keeping(
            storage.snapshots,
            storage.log,
            execute=self._disk_thread.execute,
            clock=monotonic_s,
            schedule=self._schedule,
            on_full=self._on_disk_full,
            on_failed=self._on_write_failed,
        )
        self._writer = LogWriter(
            storage.log,
            self._on_durable,
            loop.call_soon_threadsafe,
            on_failed=self._on_write_failed,
            on_full=self._on_disk_full,
            on_long=self._keeping.on_long,
        )
        self._watch = journal.Watch(
            loop,
            dropped=self._dropped,
            writes=self._writer.write_times,
            configuration=self.engine.log.configuration,
        )

    def _assemble(self, plugins: list[Plugin]) -> Engine:
        configuration, storage = self.configuration, self._storage
        own = next(m for m in configuration.members if m.node == configuration.name)
        identity = msgspec.structs.replace(
            storage.identity,
            client_endpoint=own.client_endpoint,
            peer_endpoint=own.peer_endpoint,
            publish_endpoint=own.publish_endpoint,
        )
        settings = Settings(
            election_timeout_min_s=configuration.election_timeout_s[0],
            election_timeout_max_s=configuration.election_timeout_s[1],
            heartbeat_s=configuration.heartbeat_s,
        )
        seed = int.from_bytes(os.urandom(8), "big")
        engine = assemble(
            identity,
            plugins,
            settings,
            configuration.members,
            storage.recovered,
            seed,
            storage.snapshots.open,
        )
        engine.describe = self.status
        return engine

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or a fault; the exit code."""
        loop = self._loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        parent = self.configuration.parent_pipe
        if parent is not None:
            loop.add_reader(parent, self._on_parent, parent)
        configured = self.configuration.members
        self._peers = PeerLinks(self._sockets, self._node, configured)
        # The log's thread, back from its sync, must not wait 5 ms for the interpreter: with a
        # busy loop that was a third of all operations at 128 clients.
        sys.setswitchinterval(SWITCH_S)
        collector = Collector(loop)
        collector.begin()
        try:
            self._carry_out(self.engine.start(monotonic_s()))
            self._schedule()
            journal.say(
                journal.warning if self.configuration.insecure else journal.info,
                "start",
                clients=self._sockets.clients_endpoint,
                incarnation=f"{self.engine.identity.incarnation:016x}",
                durability=self.configuration.durability,
                insecure=self.configuration.insecure,
            )
            self._watch.begin()
            if self._http is None:
                return await self._stopped
            # Loaded beside the loop, for the start of a node is part of every fail-over; who
            # connects meanwhile waits.
            gateway = await asyncio.to_thread(import_module, ".gateway.server", __package__)
            own = self._sockets.clients_endpoint
            serving = gateway.serve(self.configuration, own, self._http, self.status, self._stopped)
            return int(await serving)
        finally:
            collector.end()
            self.close()

    def close(self) -> None:
        """Stop the log's thread after its last write, close the sockets and the directory."""
        if self._timer is not None:
            self._timer.cancel()
        self._watch.end()
        self._sockets.close()
        self._writer.close()
        self._keeping.close()
        self._disk_thread.close()
        self._storage.disk.close()
        self._context.term()

    @property
    def _node(self) -> str:
        return self.configuration.name

    # The turn

    def _schedule(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._stopped.done():
            return
        try:
            self._take_turn()
        except Exception:
            # A defect. Nothing of this turn has left half done; what comes after it would.
            status = json.dumps(self.status(), default=str)
            journal.say(journal.critical, "a defect", exception=True, status=status)
            self._stop(EXIT_SOFTWARE, "a defect")

    def _take_turn(self) -> None:
        began = monotonic_s()
        self.engine.begin(began)
        if self._durable:
            self.engine.durable(self._durable)
            self._durable = 0
        self._keeping.tell(self.engine)
        slow_disk = DISK_IS_SLOW if self._writer.backlog > BACKLOG_RECORDS else None
        self.engine.refusing = self._disk_full or slow_disk
        self._receive_peers()
        operations = self._receive_clients(began)
        if self._leaving_until is not None:
            self._hand_over(began, self._leaving_until)
        if self._disk_full is not None:
            self.engine.log.transfer()
        self._carry_out(self.engine.end())
        self._keeping.work(monotonic_s())
        ended = monotonic_s()
        self._counters.turn(ended - began, operations)
        if self._sockets.pending():
            self._schedule()
        self._set_timer(ended)

    def _set_timer(self, now: float) -> None:
        at = self.engine.deadline()
        resume = self._keeping.deadline()
        if resume is not None:
            at = min(at or resume, resume)
        if self._leaving_until is not None:
            at = min(at or self._leaving_until, self._leaving_until, now + 0.01)
        if at is None or at == self._timer_at:
            return
        # A timer that fires early finds nothing to do and is set again; re-arming costs more.
        if at > self._timer_at and self._timer_at > now:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer_at = float("inf")
        self._schedule()

    def _receive_peers(self) -> None:
        engine = self.engine
        for frame in self._sockets.receive_peers(FRAMES_A_TURN):
            try:
                plugin, cluster, envelope = self._codec.decode(
                    frame, engine.identity.cluster, PEER_KINDS, first_contact=True
                )
            except Malformed as malformed:
                self._drop(malformed.reason)
                continue
            assert isinstance(envelope, PeerFrame)
            engine.receive(
                envelope.sender,
                envelope.incarnation,
                envelope.to_incarnation,
                plugin,
                envelope.messages,
                foreign=cluster != engine.identity.cluster,
            )

    def _receive_clients(self, began: float) -> int:
        """How many operations came."""
        engine, until = self.engine, began + RECEIVING_S
        frames = operations = 0
        while frames < FRAMES_A_TURN and operations < OPERATIONS_A_TURN and monotonic_s() < until:
            received = self._sockets.receive_clients(32)
            for route, frame in received:
                frames += 1
                try:
                    plugin, _, ask = self._codec.decode(
                        frame, engine.identity.cluster, CLIENT_KINDS, first_contact=True
                    )
                except Malformed as malformed:
                    self._drop(malformed.reason)
                    continue
                assert isinstance(ask, Ask)
                operations += len(ask.operations)
                engine.ask(
                    Request(
                        plugin,
                        ask.client,
                        ask.session,
                        ask.group,
                        ask.done_below,
                        ask.not_after_us,
                        ask.sequences,
                        ask.operations,
                        route,
                        ask.principals,
                        began,
                    )
                )
            if len(received) < 32:
                break
        return operations

    # Effects

    def _carry_out(self, effects: Effects) -> None:
        if effects.cluster is not None:
            identities.keep(self._storage.directory, self.engine.identity)
            journal.say(journal.info, "joined", cluster=f"{effects.cluster:016x}")
        for note in effects.notes:
            journal.say(journal.info, "note", text=note)
        if effects.records:
            self._writer.submit(effects.write_number, effects.records)
        if effects.disk_tasks:
            self._keeping.carry_out(effects.disk_tasks)
        self._peers.follow(self.engine.log.configuration())
        self._sender.send(self.engine, effects)
        if effects.stop is not None:
            self._stop(EXIT_REFUSED, effects.stop.text)
        for group, leader, term in effects.led:
            journal.say(journal.info, "leader", group=group, term=term, leader=leader or "none")

    # What comes from elsewhere

    def _on_durable(self, write_number: int) -> None:
        self._durable = write_number
        self._schedule()

    def _on_write_failed(self, error: Exception) -> None:
        """A write or sync that failed is never tried again: what the disk holds is unknown."""
        journal.say(journal.critical, "stop", reason=f"its log cannot be written: {error}")
        # At once, with nothing more sent: an answer may count on what is not on the disk.
        os._exit(EXIT_DISK)

    def _on_disk_full(self, error: DiskFull) -> None:
        """The log still takes a little: enough to hand over and to refuse what is asked."""
        journal.say(journal.error, "disk full", reason=error)
        self._disk_full = Failure(Code.DISK_FULL, str(error))
        self._storage.disk.release_reserve()
        self._schedule()

    def _on_parent(self, parent: int) -> None:
        if not os.read(parent, 1):
            self._loop.remove_reader(parent)
            self._stop(EXIT_OK, "the process that started it has ended")

    def _leave(self) -> None:
        """SIGTERM: hand the leadership over, then stop; a second signal stops at once."""
        if self._leaving_until is not None:
            self._stop(EXIT_OK, "it was told to, twice")
            return
        self._leaving_until = monotonic_s() + TRANSFER_WAIT_S
        self._schedule()

    def _hand_over(self, now: float, until: float) -> None:
        """Give all leaderships away; who had one stays a moment to tell clients who leads now."""
        if not self.engine.log.transfer():
            self._farewell_until = now + FAREWELL_S
        if now >= min(until, self._farewell_until):
            self._stop(EXIT_OK, "it was told to")

    def _stop(self, code: int, reason: str) -> None:
        if not self._stopped.done():
            level = journal.error if code else journal.info
            journal.say(level, "stop", reason=reason, exit_code=code)
            self._stopped.set_result(code)

    def _drop(self, cause: str) -> None:
        self._counters.dropped[cause] += 1

    def status(self) -> dict[str, Any]:
        """What this node says of itself, of JSON types; `metrics.py` makes metrics of it."""
        p50_s, p99_s = self._writer.write_times()
        return {
            **self.engine.status(),
            "process": {
                "pid": os.getpid(),
                "up_s": round(monotonic_s() - self._began_s, 3),
                "memory_bytes": resident_bytes(),
                "cpu_s": round(processor_s(), 3),
                "durability": self.configuration.durability,
                "insecure": self.configuration.insecure,
                "client_endpoint": self._sockets.clients_endpoint,
                **self._counters.status(),
                "log_write_ms_p50": round(p50_s * 1000, 3),
                "log_write_ms_p99": round(p99_s * 1000, 3),
                "log_backlog": self._writer.backlog,
                "bus": self._sockets.traffic(),
                "dropped": self._dropped(),
            },
        }

    def _dropped(self) -> dict[str, int]:
        return dict(self._counters.dropped + Counter(self.engine.dropped) + self._sockets.counters)
