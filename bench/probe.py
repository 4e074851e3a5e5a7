"""A process of clients beside the bench: paced operations, each with the moment it ended.

The law: the pace is kept whatever happens, so an operation's latency counts from when it was due
(no coordinated omission); moments are of `time.monotonic`, which all processes share. It ends when
its standard input says `stop`, and hands over what it saw; or, without a word, when that closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from threading import Thread
from typing import NamedTuple

import msgspec

from ..clients.aio import AsyncClient
from .figures import Recorder, loop_paced, milliseconds
from .load import lock_operation

TIMEOUT_S = 60.0


class Pace(msgspec.Struct, frozen=True):
    """What to do: operations per second over so many tasks, each with a lock of its own."""

    endpoints: list[str]
    tasks: int
    rate: float


class Stamped(Recorder):
    """Beside each latency the moment it was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.moments_s = array("d")

    def record(self, latency_s: float) -> None:
        super().record(latency_s)
        self.moments_s.append(time.monotonic())


async def run(pace: Pace) -> Stamped:
    """Operate at the pace until told to stop."""
    recorder, stop = Stamped(), asyncio.Event()
    Thread(target=listen, args=(asyncio.get_running_loop(), stop), daemon=True).start()
    async with AsyncClient(pace.endpoints, name="probe", timeout=TIMEOUT_S) as client:
        now, period_s = time.perf_counter(), pace.tasks / pace.rate
        operations = [lock_operation(client, number) for number in range(pace.tasks)]
        tasks = [
            asyncio.create_task(
                loop_paced(each, recorder, math.inf, now + number / pace.rate, period_s)
            )
            for number, each in enumerate(operations)
        ]
        print("ready", flush=True)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # only an error ends it
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return recorder


def listen(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if os.read(sys.stdin.fileno(), 64):
        loop.call_soon_threadsafe(stop.set)
    else:
        os._exit(1)


class Seen(NamedTuple):
    """The operations of a probe: when each ended and how long it took, in seconds."""

    moments_s: Sequence[float]
    latencies_s: Sequence[float]

    def between(self, start: float, end: float) -> tuple[int, float, float]:
        """Of those under way in this time: how many, the p99 and the longest, in ms."""
        found = sorted(
            latency
            for moment, latency in zip(self.moments_s, self.latencies_s, strict=True)
            if moment >= start and moment - latency <= end
        )
        return len(found), milliseconds(found, 0.99), milliseconds(found, 1.0)


class Probe:
    """The bench's end of such a process. A context manager; it runs while the block does."""

    def __init__(self, pace: Pace) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, msgspec.json.encode(pace).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is the bench's; it ends us
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.end()
            raise RuntimeError("the probe ended before its time; see its message above")

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def stop(self) -> Seen:
        """End it; what it saw. Raises RuntimeError if it ended with an error."""
        content, _ = self._process.communicate(b"stop\n")
        if self._process.returncode:
            raise RuntimeError("an operation of the probe failed; see its message above")
        found = array("d")
        found.frombytes(content)
        half = len(found) // 2
        return Seen(found[:half], found[half:])

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(ValueError):  # closed already
            self._process.communicate()


def main() -> None:
    recorder = asyncio.run(run(msgspec.json.decode(sys.argv[1].encode(), type=Pace)))
    sys.stdout.buffer.write(bytes(recorder.moments_s) + bytes(recorder.latencies_s))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
