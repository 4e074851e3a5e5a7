"""A node as a process: sockets, disk and clock around one engine, on one event loop.

The law: the loop's thread never waits. It works in turns (DESIGN "The turn"): drain the sockets,
peers first; hand everything to the engine; carry out its effects. A turn takes at most 256
frames, 4,096 operations or 10 ms of receiving, then the loop breathes. The log is written by a
thread of its own; whatever queued up while it synced is its next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from ..bus.codec import Ask, PeerFrame, TooLarge
from ..bus.frame import Kind, Malformed
from ..bus.loop_socket import BindFailed
from ..bus.node_sockets import NodeSockets
from ..protocols.errors import Code
from ..protocols.plugin import Failure, Request, Result
from ..protocols.raft.settings import Settings
from ..protocols.records import GroupId, GroupState, Identity, Member
from . import identity as identities
from .assembly import assemble, bus_codec
from .configuration import NodeConfiguration
from .disk import DiskFull, FileDisk
from .engine import Effects, Engine
from .log import Log, LogWriter
from .plugins import installed

FRAMES_A_TURN = 256
OPERATIONS_A_TURN = 4096
RECEIVING_S = 0.010

EXIT_OK, EXIT_FAULT, EXIT_DATA, EXIT_PROTOCOL = 0, 1, 65, 76
TRANSFER_WAIT_S = 1.0
"""How long SIGTERM waits for another node to take the leadership."""

BACKLOG_RECORDS = 16_384
"""More records than this waiting for the disk: clients' operations are refused as BUSY."""

DISK_IS_SLOW = Failure(Code.BUSY, "the disk of the leader does not keep up; retry later")

SWITCH_S = 0.0005

PEER_KINDS = (Kind.PEER,)
CLIENT_KINDS = (Kind.ASK,)

logger = logging.getLogger("coterie.node")

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic_s() -> float:
    """Seconds, monotonic; on Linux time spent suspended counts too."""
    return time.clock_gettime(_CLOCK)


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
        self._disk_full: Failure | None = None
        self._connected: dict[str, Member] = {}
        self._turns = self._operations = self._turn_s_max = 0.0
        self._dropped: dict[str, int] = {}

        self._directory = Path(configuration.data_dir)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        plugins = installed()
        self._codec = bus_codec(plugins)
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._disk = FileDisk(self._directory / "log")
        with contextlib.ExitStack() as undo:
            undo.callback(self._context.term)
            undo.callback(lambda: self._disk.close())
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
            self.engine = self._open(plugins)
            undo.pop_all()

    def _open(self, plugins: list[Any]) -> Engine:
        configuration = self.configuration
        identity = identities.load(self._directory, configuration.name)
        identity, log, recovered = self._open_log(identity)
        self._writer = LogWriter(
            log,
            self._on_durable,
            self._loop.call_soon_threadsafe,
            on_failed=self._on_write_failed,
            on_full=self._on_disk_full,
        )
        endpoints = next(m for m in configuration.members if m.node == configuration.name)
        identity = msgspec.structs.replace(
            identity,
            client_endpoint=endpoints.client_endpoint,
            peer_endpoint=endpoints.peer_endpoint,
            publish_endpoint=endpoints.publish_endpoint,
        )
        settings = Settings(
            groups=1,
            election_timeout_min_s=configuration.election_timeout_s[0],
            election_timeout_max_s=configuration.election_timeout_s[1],
            heartbeat_s=configuration.heartbeat_s,
        )
        seed = int.from_bytes(os.urandom(8), "big")
        engine = assemble(identity, plugins, settings, configuration.members, recovered, seed)
        engine.describe = self.status
        return engine

    def _open_log(self, identity: Identity) -> tuple[Identity, Log, dict[GroupId, GroupState]]:
        """Open the log. If what was acknowledged may be missing from it, it is set aside, and the
        node comes back under a new incarnation: as a learner, filled by the others."""
        log = self._new_log(identity)
        recovered = log.open()
        same_boot = identities.same_boot(self._directory)
        if not (log.fresh and identity.cluster) and (not log.unclean or same_boot):
            return identity, log, recovered
        logger.warning(
            "node %s may have lost what it acknowledged (%s): it comes back as a learner",
            identity.node,
            "unclean stop in mode relaxed" if log.unclean else "its log is gone",
        )
        log.close()
        self._disk.close()
        identities.set_aside(self._directory / "log")
        self._disk = FileDisk(self._directory / "log")
        identity = identities.renewed(self._directory, identity)
        log = self._new_log(identity)
        return identity, log, log.open()

    def _new_log(self, identity: Identity) -> Log:
        return Log(
            self._disk,
            node=identity.node,
            incarnation=identity.incarnation,
            segment_bytes=self.configuration.segment_bytes,
            mode=self.configuration.durability,
        )

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or a fault; the exit code."""
        loop = self._loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        parent = self.configuration.parent_pipe
        if parent is not None:
            loop.add_reader(parent, self._on_parent, parent)
        for member in self.configuration.members:
            self._connect(member)
        # The log's thread, back from its sync, must not wait 5 ms for the interpreter: with a
        # busy loop that was a third of all operations at 128 clients.
        sys.setswitchinterval(SWITCH_S)
        # What lives now lives for good: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        try:
            self._carry_out(self.engine.start(monotonic_s()))
            self._schedule()
            logger.info("node %s serves %s", self._node, self._sockets.clients_endpoint)
            return await self._stopped
        finally:
            self.close()

    def close(self) -> None:
        """Stop the log's thread after its last write, close the sockets and the directory."""
        if self._timer is not None:
            self._timer.cancel()
        self._sockets.close()
        self._writer.close()
        self._disk.close()
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
        began = monotonic_s()
        self.engine.begin(began)
        if self._durable:
            self.engine.durable(self._durable)
            self._durable = 0
        slow_disk = DISK_IS_SLOW if self._writer.backlog > BACKLOG_RECORDS else None
        self.engine.refusing = self._disk_full or slow_disk
        self._receive_peers()
        self._receive_clients(began + RECEIVING_S)
        if self._leaving_until is not None and (
            self.engine.log.transfer() or began >= self._leaving_until
        ):
            self._stop(EXIT_OK)
        if self._disk_full is not None:
            self.engine.log.transfer()
        self._carry_out(self.engine.end())
        self._turns += 1
        ended = monotonic_s()
        self._turn_s_max = max(self._turn_s_max, ended - began)
        if self._sockets.pending():
            self._schedule()
        self._set_timer(ended)

    def _set_timer(self, now: float) -> None:
        at = self.engine.deadline()
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

    def _receive_clients(self, until: float) -> None:
        engine = self.engine
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
                    )
                )
            if len(received) < 32:
                break
        self._operations += operations

    # Effects

    def _carry_out(self, effects: Effects) -> None:
        if effects.cluster is not None:
            identities.keep(self._directory, self.engine.identity)
            logger.info("node %s belongs to cluster %016x", self._node, effects.cluster)
        if effects.records:
            self._writer.submit(effects.write_number, effects.records)
        if effects.messages:
            self._send_peers(effects)
        if effects.answers:
            self._send_answers(effects)
        identity = self.engine.identity
        for route, plugin, hints in effects.hints:
            for frame in self._codec.encode_tell(plugin, identity.cluster, hints):
                self._sockets.send_client(route, frame)
        if effects.stop is not None:
            logger.error("node %s stops: %s", self._node, effects.stop.text)
            self._stop(EXIT_PROTOCOL)

    def _send_peers(self, effects: Effects) -> None:
        identity, log = self.engine.identity, self.engine.log
        for (to, plugin), messages in effects.messages.items():
            try:
                frames = self._codec.encode_peer(
                    plugin,
                    identity.cluster,
                    identity.node,
                    identity.incarnation,
                    log.recorded_incarnation(to) or 0,
                    messages,
                )
            except TooLarge as error:
                self._drop("too_large_for_peer")
                logger.error("node %s cannot send to %s: %s", self._node, to, error)
                continue
            for frame in frames:
                self._sockets.send_peer(to, frame)

    def _send_answers(self, effects: Effects) -> None:
        """One frame per client, plugin and group, however many frames of it were answered."""
        merged: dict[tuple[bytes, str, int], tuple[list[int], list[Result]]] = {}
        for request, results in effects.answers:
            key = (request.route, request.plugin, request.group)
            into = merged.get(key)
            if into is None:
                merged[key] = (list(request.sequences), list(results))
            else:
                into[0].extend(request.sequences)
                into[1].extend(results)
        cluster = self.engine.identity.cluster
        for (route, plugin, group), (sequences, answered) in merged.items():
            try:
                frames = self._codec.encode_answer(plugin, cluster, group, sequences, answered)
            except TooLarge as error:
                failure = Failure(Code.TOO_LARGE, f"the answer is too large: {error}")
                frames = self._codec.encode_answer(
                    plugin, cluster, group, sequences, [failure] * len(sequences)
                )
            for frame in frames:
                self._sockets.send_client(route, frame)

    def _connect(self, member: Member) -> None:
        if member.node != self._node and self._connected.get(member.node) != member:
            self._connected[member.node] = member
            self._sockets.connect_peer(member.node, member.peer_endpoint, member.publish_endpoint)

    # What comes from elsewhere

    def _on_durable(self, write_number: int) -> None:
        self._durable = write_number
        self._schedule()

    def _on_write_failed(self, error: Exception) -> None:
        """A write or sync that failed is never tried again: what the disk holds is unknown."""
        logger.critical("node %s stops: its log cannot be written: %s", self._node, error)
        # At once, with nothing more sent: an answer may count on what is not on the disk.
        os._exit(74)

    def _on_disk_full(self, error: DiskFull) -> None:
        """The log still takes a little: enough to hand over and to refuse what is asked."""
        logger.error("node %s refuses writes: %s", self._node, error)
        self._disk_full = Failure(Code.DISK_FULL, str(error))
        self._disk.release_reserve()
        self._schedule()

    def _on_parent(self, parent: int) -> None:
        if not os.read(parent, 1):
            self._loop.remove_reader(parent)
            self._stop(EXIT_OK)

    def _leave(self) -> None:
        """SIGTERM: hand the leadership over, then stop; a second signal stops at once."""
        if self._leaving_until is not None:
            self._stop(EXIT_OK)
            return
        self._leaving_until = monotonic_s() + TRANSFER_WAIT_S
        self._schedule()

    def _stop(self, code: int) -> None:
        if not self._stopped.done():
            self._stopped.set_result(code)

    def _drop(self, cause: str) -> None:
        self._dropped[cause] = self._dropped.get(cause, 0) + 1

    def status(self) -> dict[str, Any]:
        """What `coterie status` shows of this node, of JSON types."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **self.engine.status(),
            "process": {
                "pid": os.getpid(),
                "memory_bytes": _resident_bytes(),
                "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
                "durability": self.configuration.durability,
                "insecure": self.configuration.insecure,
                "client_endpoint": self._sockets.clients_endpoint,
                "turns": int(self._turns),
                "operations": int(self._operations),
                "turn_ms_max": round(self._turn_s_max * 1000, 3),
                "log_write_ms_p50": round(self._writer.write_times()[0] * 1000, 3),
                "log_write_ms_p99": round(self._writer.write_times()[1] * 1000, 3),
                "log_backlog": self._writer.backlog,
                "dropped": {
                    **self._dropped,
                    **self.engine.dropped,
                    **dict(self._sockets.counters),
                },
            },
        }


def _resident_bytes() -> int:
    """Resident memory now where /proc tells it, else the peak (getrusage)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(configuration: NodeConfiguration) -> int:
    """Run a node until it is told to stop; the exit code. Faults are told on standard error."""
    logging.basicConfig(
        level=configuration.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )

    async def serve() -> int:
        return await NodeProcess(configuration, asyncio.get_running_loop()).run()

    try:
        return asyncio.run(serve())
    except BindFailed as error:
        logger.error("%s", error)
        return EXIT_FAULT
