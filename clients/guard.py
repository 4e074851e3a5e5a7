"""A program run under a lock.

The law: the program never outlives the lock by more than the time between TERM and KILL, and every
signal meant for it reaches it once. A signal that comes while there is no program yet ends the
waiting.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

KILL_AFTER_S = 5.0
PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
NOT_FOUND, NOT_EXECUTABLE = 127, 126
LOST = 76


class Signalled(BaseException):
    """A signal ended the waiting; not an Exception, so that nothing on the way swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Guard:
    """Runs `command` (or nothing) while a lock is held."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._pid: int | None = None
        self._starting = False
        self._early: list[int] = []
        self._mutex = threading.RLock()
        self._lost = threading.Event()
        self._ended = threading.Event()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Signals go to the program while there is one; else they raise `Signalled`."""
        before = {number: signal.signal(number, self._on_signal) for number in PASSED_ON}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, token: int, on_lost: Callable[[Callable[[], object]], None]) -> int:
        """Run the program to its end, or hold the lock until a signal; the exit code."""
        on_lost(self._on_lost)
        if not self._command:
            return self._hold(token)
        self._starting = True
        try:
            self._pid = self._spawn(token)
        except OSError as error:
            self._starting = False
            click.echo(f"{self._command[0]}: {error.strerror}", err=True)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        self._starting = False
        for number in self._early:
            self._kill(number)
        if self._lost.is_set():
            self._kill(signal.SIGTERM)
        return self._wait()

    def _hold(self, token: int) -> int:
        click.echo(str(token))
        sys.stdout.flush()
        try:
            self._lost.wait()
        except Signalled:
            return 0
        return LOST

    def _spawn(self, token: int) -> int:
        environment = {**os.environ, "COTERIE_LOCK_TOKEN": str(token)}
        # Python ignores SIGPIPE, which a program would inherit.
        return os.posix_spawnp(
            self._command[0], self._command, environment, setsigdef=[signal.SIGPIPE]
        )

    def _wait(self) -> int:
        assert self._pid is not None
        with self._woken_by_signals() as woken:
            # Not reaped yet, so that its number cannot be another's while one sends a signal.
            while os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                select.select([woken], [], [])
                os.read(woken, 4096)
        with self._mutex:
            self._ended.set()
            _, status = os.waitpid(self._pid, 0)
        if self._lost.is_set():
            return LOST
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    @contextmanager
    def _woken_by_signals(self) -> Iterator[int]:
        """A descriptor that every signal makes readable, the end of a child too: no signal can
        fall between looking and sleeping."""
        woken, waker = os.pipe()
        os.set_blocking(waker, False)
        handler = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        try:
            yield woken
        finally:
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGCHLD, handler)
            os.close(woken)
            os.close(waker)

    def _kill(self, number: int) -> None:
        with self._mutex:
            if self._pid is not None and not self._ended.is_set():
                os.kill(self._pid, number)

    def _on_lost(self) -> None:
        """On a worker thread."""
        self._lost.set()
        self._kill(signal.SIGTERM)
        if self._command and not self._ended.wait(KILL_AFTER_S):
            self._kill(signal.SIGKILL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._starting:
            self._early.append(number)
        elif self._pid is None:
            raise Signalled(number)
        elif not (number in (signal.SIGINT, signal.SIGQUIT) and _in_foreground()):
            self._kill(number)


def _in_foreground() -> bool:
    """True if the terminal's Ctrl-C went to the program as well, which shares our group."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
