"""The bare path: what this machine could do if nothing had to be right.

A client's batch goes to a leader, to two followers, to three disks and back, as in a cluster: the
same sockets, the same coding, one frame per peer and turn, the log written and synced off the
loop's thread. There is no term, no vote, no lock and no retry. It is the ceiling that `coterie
bench` measures a cluster against, in the same run; nothing else may use it.

The law: no node outlives the program that started it. Each ends when its standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import msgspec
import zmq

from .figures import CpuMeter, Figures, Recorder, loop_closed

FRAMES_PER_TURN = 256
LOG_BYTES = 16 << 20
WARM_UP_S = 0.5

encode = msgspec.msgpack.Encoder().encode


class Operation(msgspec.Struct, array_like=True, gc=False):
    """One lock operation as a client sends it: acquire is 1, release 2."""

    sequence: int
    kind: int
    name: str


class Entry(msgspec.Struct, array_like=True, gc=False):
    """All operations of one turn of the leader."""

    index: int
    operations: bytes


decode_operations = msgspec.msgpack.Decoder(list[Operation]).decode
decode_entry = msgspec.msgpack.Decoder(Entry).decode
decode_index = msgspec.msgpack.Decoder(int).decode
decode_answers = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode


class LoopSocket:
    """A ZeroMQ socket on the loop. Its descriptor is edge-triggered: after every send and every
    turn that left something, its events are looked at again."""

    def __init__(self, socket: zmq.Socket[bytes], on_frames: Callable[[list[list[bytes]]], None]):
        self.socket = socket
        self.on_frames = on_frames
        self.loop = asyncio.get_running_loop()
        self.waiting = False
        self.loop.add_reader(socket.FD, self.drain)

    def drain(self) -> None:
        self.waiting = False
        frames: list[list[bytes]] = []
        with contextlib.suppress(zmq.Again):
            while len(frames) < FRAMES_PER_TURN:
                frames.append(self.socket.recv_multipart(zmq.NOBLOCK))
        if frames:
            self.on_frames(frames)
            self.look()

    def look(self) -> None:
        if not self.waiting and int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self.waiting = True
            self.loop.call_soon(self.drain)

    def send(self, frames: Sequence[bytes]) -> None:
        self.socket.send_multipart(frames, zmq.NOBLOCK)
        self.look()

    def close(self) -> None:
        self.loop.remove_reader(self.socket.FD)
        self.socket.close(linger=0)


class Disk:
    """Appends and syncs on a thread; `on_durable(index)` comes on the loop.

    What queues up during one sync is the next write. The file is written through beforehand and
    used in a circle, so that a sync never has to note a new length.
    """

    def __init__(self, durability: str, on_durable: Callable[[int], None]) -> None:
        # Open for as long as the node lives.
        self.storage = tempfile.TemporaryFile(prefix="coterie-bare-")  # noqa: SIM115
        self.file = self.storage.fileno()
        os.pwrite(self.file, bytes(LOG_BYTES), 0)
        os.fsync(self.file)
        self.sync = durability != "relaxed"
        self.offset = 0
        self.on_durable = on_durable
        self.loop = asyncio.get_running_loop()
        self.pending: list[bytes] = []
        self.index = 0
        self.busy = False
        self.batches: queue.SimpleQueue[tuple[bytes, int]] = queue.SimpleQueue()
        threading.Thread(target=self.work, daemon=True).start()

    def append(self, index: int, record: bytes) -> None:
        self.pending.append(record)
        self.index = index
        if not self.busy:
            self.start()

    def start(self) -> None:
        self.busy = True
        batch, self.pending = b"".join(self.pending), []
        self.batches.put((batch, self.index))

    def work(self) -> None:
        while True:
            batch, index = self.batches.get()
            if self.offset + len(batch) > LOG_BYTES:
                self.offset = 0
            os.pwrite(self.file, batch, self.offset)
            self.offset += len(batch)
            if self.sync:
                # macOS has no fdatasync.
                getattr(os, "fdatasync", os.fsync)(self.file)
            self.loop.call_soon_threadsafe(self.written, index)

    def written(self, index: int) -> None:
        self.busy = False
        if self.pending:
            self.start()
        self.on_durable(index)


class Leader:
    """Takes the clients' batches of a turn as one entry; answers each operation with its number
    when two of three disks have it."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], durability: str, peers: list[str]
    ) -> None:
        self.index = self.committed = self.number = 0
        self.stored = [0] * (len(peers) + 1)
        self.answers: dict[int, list[tuple[bytes, list[int]]]] = {}
        self.disk = Disk(durability, lambda index: self.on_stored(0, index))
        clients = context.socket(zmq.ROUTER)
        self.endpoint = bind(clients)
        self.clients = LoopSocket(clients, self.on_clients)
        self.peers = [
            LoopSocket(connect(context, peer), self.on_peer(number))
            for number, peer in enumerate(peers, 1)
        ]

    def on_clients(self, frames: list[list[bytes]]) -> None:
        self.index += 1
        operations: list[Operation] = []
        answers = []
        for client, body in frames:
            batch = decode_operations(body)
            operations += batch
            answers.append((client, [operation.sequence for operation in batch]))
        self.answers[self.index] = answers
        record = encode(Entry(self.index, encode(operations)))
        for peer in self.peers:
            peer.send([record])
        self.disk.append(self.index, record)

    def on_peer(self, number: int) -> Callable[[list[list[bytes]]], None]:
        return lambda frames: self.on_stored(number, decode_index(frames[-1][0]))

    def on_stored(self, number: int, index: int) -> None:
        self.stored[number] = index
        majority = sorted(self.stored)[len(self.stored) // 2]
        finished: dict[bytes, list[tuple[int, int]]] = {}
        while self.committed < majority:
            self.committed += 1
            for client, sequences in self.answers.pop(self.committed):
                numbers = range(self.number + 1, self.number + 1 + len(sequences))
                finished.setdefault(client, []).extend(zip(sequences, numbers, strict=True))
                self.number += len(sequences)
        for client, answers in finished.items():
            self.clients.send([client, encode(answers)])


class Follower:
    """Keeps the leader's entries and says up to which."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], durability: str, _: list[str]
    ) -> None:
        self.leader = b""
        self.disk = Disk(durability, self.on_durable)
        socket = context.socket(zmq.ROUTER)
        self.endpoint = bind(socket)
        self.socket = LoopSocket(socket, self.on_entries)

    def on_entries(self, frames: list[list[bytes]]) -> None:
        records = []
        for self.leader, record in frames:
            index = decode_entry(record).index
            records.append(record)
        self.disk.append(index, b"".join(records))

    def on_durable(self, index: int) -> None:
        self.socket.send([self.leader, encode(index)])


def bind(socket: zmq.Socket[bytes]) -> str:
    socket.bind("tcp://127.0.0.1:*")
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def connect(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    return socket


async def serve(role: str, durability: str, peers: list[str]) -> None:
    """Be one node until standard input closes; the first line printed is the endpoint."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    node = (Leader if role == "leader" else Follower)(zmq.Context(), durability, peers)
    print(node.endpoint, flush=True)
    await ended.wait()


class Client:
    """Sends the operations of a turn of its loop in one frame; an answer ends each one's future."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.loop = asyncio.get_running_loop()
        self.socket = LoopSocket(socket, self.on_answers)
        self.sequence = 0
        self.batch: list[Operation] = []
        self.open: dict[int, asyncio.Future[int]] = {}

    def call(self, kind: int, name: str) -> asyncio.Future[int]:
        if not self.batch:
            self.loop.call_soon(self.flush)
        self.sequence += 1
        self.batch.append(Operation(self.sequence, kind, name))
        future = self.open[self.sequence] = self.loop.create_future()
        return future

    def flush(self) -> None:
        batch, self.batch = self.batch, []
        self.socket.send([encode(batch)])

    def on_answers(self, frames: list[list[bytes]]) -> None:
        for (body,) in frames:
            for sequence, number in decode_answers(body):
                future = self.open.pop(sequence)
                if not future.done():
                    future.set_result(number)


@contextlib.contextmanager
def bare_nodes(durability: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Three nodes: the leader's endpoint, and the process ids. Their logs have no names, so that
    nothing is left behind whatever happens."""
    processes: list[subprocess.Popen[str]] = []

    def start(role: str, peers: list[str]) -> str:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, role, durability, *peers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is the program's that started us; it ends us
        )
        processes.append(process)
        assert process.stdout is not None
        return first_line(process.stdout)

    try:
        followers = [start("follower", []) for _ in range(2)]
        endpoint = start("leader", followers)
        names = ("node2", "node3", "node1")
        pids = {name: process.pid for name, process in zip(names, processes, strict=True)}
        yield endpoint, dict(sorted(pids.items()))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def first_line(output: IO[str]) -> str:
    line = output.readline().strip()
    if not line:
        raise RuntimeError("a node of the bare path ended before it served; see its message above")
    return line


async def drive(endpoint: str, tasks: int, seconds: float, meter: CpuMeter) -> Recorder:
    """`tasks` loops of acquire and release, each of a lock of its own."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = Client(connect(context, endpoint))
    recorder, warm_up = Recorder(), Recorder()

    async def worker(number: int, into: Recorder, until: float) -> None:
        name, kind = f"bench/{number}", 2

        def operation() -> asyncio.Future[int]:
            nonlocal kind
            kind = 3 - kind
            return client.call(kind, name)

        await loop_closed(operation, into, until)

    async def run(into: Recorder, duration_s: float) -> None:
        until = time.perf_counter() + duration_s
        await asyncio.gather(*(worker(number, into, until) for number in range(tasks)))

    try:
        await run(warm_up, WARM_UP_S)
        meter.start()
        await run(recorder, seconds)
    finally:
        client.socket.close()
        context.term()
    return recorder


def run_bare(tasks: int, seconds: float, durability: str = "fsync") -> Figures:
    """Measure the bare path with `tasks` loops in this process and three nodes beside it."""
    with bare_nodes(durability) as (endpoint, pids):
        meter = CpuMeter({**pids, "client": os.getpid()})
        recorder = asyncio.run(drive(endpoint, tasks, seconds, meter))
        return recorder.figures("bare path", tasks, seconds, durability, meter.used())


if __name__ == "__main__":
    role_, durability_, *peers_ = sys.argv[1:]
    asyncio.run(serve(role_, durability_, peers_))
