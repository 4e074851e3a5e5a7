"""The watcher of a local cluster: ends its nodes and removes its directory after its owner.

Run as a file, `python -I -S watcher.py OWNER ALIVE PATIENCE [DIRECTORY]`, so that it imports
next to nothing. It leads the process group in which the nodes are.

The law: whatever happens to the owner, SIGKILL included, no node and no temporary file outlives it
by more than a few seconds. Two pipes tell all there is to know, so no process id can be mistaken:
OWNER reaches its end when the owner is gone (or closed it), ALIVE when the last node is.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys


def watch(owner: int, alive: int, patience_s: float, directory: str | None) -> None:
    """Wait for the owner to go; then see the nodes out and remove `directory`.

    The nodes too see the end of the owner's pipe; `patience_s` is how long they may take to end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they end the owner, and that ends us
    while os.read(owner, 64):
        pass
    os.killpg(0, signal.SIGCONT)  # a paused node could not see the pipe
    if not ended(alive, patience_s):
        kill_group()
        ended(alive, patience_s)
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def kill_group() -> None:
    """Kill every node there is. The leader of a group cannot leave it, but its child can."""
    group = os.getpgrp()
    if os.fork():
        os._exit(0)
    os.setsid()
    with contextlib.suppress(ProcessLookupError):  # the last node ended meanwhile
        os.killpg(group, signal.SIGKILL)


def ended(pipe: int, timeout_s: float) -> bool:
    """True if the pipe has reached its end within the time; nobody ever writes to it."""
    return bool(select.select([pipe], [], [], timeout_s)[0])


if __name__ == "__main__":
    _, owner_pipe, alive_pipe, patience, *rest = sys.argv
    watch(int(owner_pipe), int(alive_pipe), float(patience), rest[0] if rest else None)
