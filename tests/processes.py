"""Real processes in tests: waiting for conditions, and seeing that nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.nodes.launch import environment
from coterie.nodes.ports import is_free

DEADLINE_S = 30.0


def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition; fails after a deadline, naming what did not happen."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.01)


def processes_of(directory: Path | str) -> list[str]:
    """The command lines of all living processes that name this directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if int(path.parent.name) == os.getpid():
            continue
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{directory}" in command:
            found.append(f"{path.parent.name} {command}")
    return found


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of a command under test: none of our variables but those given."""
    kept = environment(None)
    for name in list(kept):
        if name.startswith("COTERIE_"):
            del kept[name]
    return {**kept, **more}


def coterie(
    *arguments: object, cwd: Path, deadline_s: float = DEADLINE_S, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "coterie", *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline_s,
    )


@contextmanager
def running(*arguments: object, cwd: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command of ours that goes on; its output is in `cwd`/output. Killed at the end."""
    with open(cwd / "output", "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-u", "-m", "coterie", *map(str, arguments)],
            cwd=cwd,
            env=clean_environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def script(source: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python program of a user, with pipes. Killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_base(nodes: int = 3) -> int:
    """A port such that it and all that `up` derives from it are free."""
    source = iter(range(20_000 + os.getpid() % 1000 * 10, 32_000, nodes))
    for base in source:
        ports = [base + offset + node for offset in (0, 100, 200, 1000) for node in range(nodes)]
        if all(is_free(port) for port in ports):
            return base
    raise AssertionError("no free ports")
