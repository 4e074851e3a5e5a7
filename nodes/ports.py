"""Ports of this machine: which are free, and who holds one that is not.

The law: a free port is a hint. Between the look and the bind another program may take it, so
whoever binds it must be ready to fail and choose again. Ports are drawn from below the ranges the
kernel gives to outgoing connections (32768 … on Linux, 49152 … on macOS), so that only another
cluster of ours is likely to want the same.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..bus.loop_socket import AddressInUse, BindFailed

if TYPE_CHECKING:
    from .configuration import NodeConfiguration

LOWEST, HIGHEST = 15_000, 32_000
BACKLOG = 1_024
LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


class NoFreePort(OSError):
    """So many ports are taken that none was found."""


class Holder(NamedTuple):
    """A process and its command line."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """True if nobody listens on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As ZeroMQ binds: ended connections that linger in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def http_socket(configuration: NodeConfiguration) -> socket.socket | None:
    """A socket that listens where a node serves HTTP, None if it does not. Who connects waits until
    it is accepted. Raises `BindFailed`."""
    host, port = configuration.http_listen, configuration.http_port
    if not port:
        return None
    address = host.strip("[]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        endpoint = f"http://{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(endpoint) from error
        raise BindFailed(endpoint, error.strerror or str(error)) from error


def find_free(count: int) -> list[int]:
    """`count` different free ports of the loopback address. Raises `NoFreePort`."""
    found: list[int] = []
    source = random.Random()
    for _ in range(100 * count):
        port = source.randrange(LOWEST, HIGHEST)
        if port not in found and is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise NoFreePort(f"fewer than {count} free ports between {LOWEST} and {HIGHEST}")


def command_of(pid: int) -> str:
    """The command line of a process, cut to 120 characters; "?" where it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return "?"
    text = b" ".join(words).decode(errors="replace")
    return text if len(text) <= 120 else text[:119] + "…"


def holder(port: int) -> Holder | None:
    """Who listens on a TCP port; None if nobody does or this system or its owner hides it."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (directory / "fd").iterdir():
                if os.readlink(descriptor) in wanted:
                    return Holder(int(directory.name), command_of(int(directory.name)))
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return None


def held_by(port: int) -> str:
    """Who listens on a TCP port, in words."""
    return str(holder(port) or "another process, which this user may not see")


def _listening_inodes(port: int) -> list[str]:
    inodes = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.append(fields[9])
    return inodes
