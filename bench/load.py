"""One process of clients: the load that `coterie bench` puts on a cluster.

The law: the bench and its processes speak in lines, so that all of them measure the same seconds.
This one says `ready` when it is connected and warm, waits for `go`, loads the cluster for the
seconds asked, says `done` with its CPU seconds, and hands over its latencies as raw doubles. It
ends when its standard input closes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from threading import Thread
from typing import Any

import msgspec

from ..clients.aio import AsyncClient
from .figures import Recorder, loop_closed, loop_paced

WARM_UP_S = 1.0


class Load(msgspec.Struct, frozen=True):
    """What one process is to do. `rate` is operations per second of this process; 0: as many as
    go. `first` numbers its first task, so that every task of all processes has its own lock, or
    shares one of `names` (0: as many as tasks). `locks`: an operation is a transaction of so many
    locks of its own, taken together, or one `by_one`; 0: an acquire or a release."""

    endpoints: list[str]
    tasks: int
    seconds: float
    rate: float = 0.0
    first: int = 0
    names: int = 0
    locks: int = 0
    by_one: bool = False


def lock_operation(client: AsyncClient, number: int) -> Callable[[], Awaitable[object]]:
    """Acquire and release, in turn, of the task's own lock: one operation each."""
    lock = client.lock(f"bench/{number}")
    held = False

    def operation() -> Awaitable[object]:
        nonlocal held
        held = not held
        return lock.acquire() if held else lock.release()

    return operation


def handover_operation(client: AsyncClient, number: int) -> Callable[[], Awaitable[object]]:
    """Wait for a lock that others want too, and hand it on: one operation, since a task that
    stopped in between would keep the others waiting."""
    lock = client.lock(f"bench/{number}")

    async def operation() -> None:
        await lock.acquire()
        await lock.release()

    return operation


def transaction_operation(
    client: AsyncClient, number: int, locks: int, by_one: bool
) -> Callable[[], Awaitable[object]]:
    """A transaction of the task's own locks: begin, take them, commit."""
    names = [f"bench/{number}/{place}" for place in range(locks)]

    async def operation() -> None:
        async with client.transaction() as transaction:
            if by_one:
                for name in names:
                    await transaction.lock(name)
            else:
                await transaction.lock_all(names)

    return operation


def operation_of(load: Load, client: AsyncClient, number: int) -> Callable[[], Awaitable[object]]:
    """What the task of this number repeats."""
    if load.locks:
        return transaction_operation(client, number, load.locks, load.by_one)
    if load.names:
        return handover_operation(client, number % load.names)
    return lock_operation(client, number)


async def run(load: Load) -> Recorder:
    """Warm up, wait for `go`, and measure."""
    recorder, go = Recorder(), asyncio.Event()
    Thread(target=listen, args=(asyncio.get_running_loop(), go), daemon=True).start()
    async with AsyncClient(load.endpoints, name="bench") as client:
        numbers = range(load.first, load.first + load.tasks)
        operations = [operation_of(load, client, number) for number in numbers]
        await measure(operations, load, recorder, go)
    return recorder


async def measure(
    operations: Sequence[Callable[[], Awaitable[object]]],
    load: Load,
    recorder: Recorder,
    go: asyncio.Event,
) -> None:
    """Warm up, say `ready`, wait for `go`, run all operations side by side, say `done`."""
    warm = time.perf_counter() + WARM_UP_S
    await asyncio.gather(*(loop_closed(each, Recorder(), warm) for each in operations))
    print("ready", flush=True)
    await go.wait()
    start, used = time.perf_counter(), time.process_time()
    until = start + load.seconds
    if load.rate:
        period_s = load.tasks / load.rate
        await asyncio.gather(
            *(
                loop_paced(each, recorder, until, start + i / load.rate, period_s)
                for i, each in enumerate(operations)
            )
        )
    else:
        await asyncio.gather(*(loop_closed(each, recorder, until) for each in operations))
    print(f"done {time.process_time() - used:.3f}", flush=True)


def listen(loop: asyncio.AbstractEventLoop, go: asyncio.Event) -> None:
    """Wait for `go`, then for the end of standard input: nobody wants the rest then. It may come
    at any time, also while the client waits for a cluster that is gone."""
    while os.read(sys.stdin.fileno(), 64):
        loop.call_soon_threadsafe(go.set)
    os._exit(1)


class LoadProcess:
    """The bench's end of one such process."""

    def __init__(self, load: Load, module: str = __name__) -> None:
        """`module`: whose `main` makes the load."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, msgspec.json.encode(load).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is the bench's; it ends us
        )

    def expect(self, word: str) -> str:
        """The rest of the line that begins with `word`."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        if not line.startswith(word):
            raise RuntimeError("a load process ended before its time; see its message above")
        return line.removeprefix(word).strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def latencies(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def main(run: Callable[[Load], Coroutine[Any, Any, Recorder]] = run) -> None:
    recorder = asyncio.run(run(msgspec.json.decode(sys.argv[1].encode(), type=Load)))
    sys.stdout.buffer.write(bytes(recorder.latencies_s))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
