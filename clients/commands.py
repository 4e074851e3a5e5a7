"""The client's commands: `lock` and `locks`.

The law: nothing heavy is imported, since `coterie lock` stands in front of other programs; what a
shell script must tell apart has an exit code of its own. A command that runs under a lock ends
before anybody could rely on the lock again: when it is lost, TERM, then KILL.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

from .errors import CoterieError, LockLost, Unavailable

if TYPE_CHECKING:
    from .inspection import Claimant, LockInfo, Owner, Wait
    from .sync import Client

SILENCE_S = 5.0


class Failed(click.ClickException):
    """One line for the user, and by its class the exit code for the script (BSD's sysexits)."""


class WrongUsage(Failed):
    exit_code = 64


class NoQuorum(Failed):
    exit_code = 69


class NotInTime(Failed):
    exit_code = 75


class Lost(Failed):
    exit_code = 76


@contextmanager
def connected(timeout: float = SILENCE_S) -> Iterator[Client]:
    """A client of the cluster in COTERIE_ENDPOINTS; its errors become exit codes."""
    from .sync import Client

    try:
        client = Client(timeout=timeout)
    except ValueError as error:
        raise WrongUsage(f"COTERIE_ENDPOINTS: {error}") from error
    with client:
        try:
            yield client
        except Unavailable as error:
            raise NoQuorum(str(error)) from error
        except LockLost as error:
            raise Lost(str(error)) from error
        except (CoterieError, ValueError) as error:
            kind = WrongUsage if isinstance(error, ValueError) else Failed
            raise kind(str(error)) from error


@click.command()
@click.argument("name")
@click.option("--shared", is_flag=True, help="Hold it together with other shared holders.")
@click.option("--timeout", type=float, metavar="S", help="Give up after S seconds: exit 75.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def lock(name: str, shared: bool, timeout: float | None, command: tuple[str, ...]) -> NoReturn:
    """Take the lock NAME, run COMMAND under it, release it.

    COMMAND finds the fencing token in COTERIE_LOCK_TOKEN. Without COMMAND the token is printed
    and the lock held until a signal comes.

    Exits with the code of COMMAND, 128 + n if it died by signal n; 76: the lock was lost; 75: not
    had in time; 69: no quorum; 64: wrong usage.
    """
    from .guard import Guard, Signalled

    if timeout is not None and not (timeout >= 0 and math.isfinite(timeout)):
        raise click.UsageError("--timeout is a number of seconds from 0")
    silence = SILENCE_S if timeout is None else min(SILENCE_S, max(timeout, 0.5))
    guard = Guard(command)
    try:
        with guard.signals(), connected(silence) as client:
            wanted = client.lock(name, shared=shared)
            wanted.locked()  # finds a leader, or says that there is none
            if not wanted.acquire(timeout=-1 if timeout is None else timeout):
                _not_had(client, name, timeout or 0.0)
            try:
                code = guard.run(wanted.token, wanted.on_lost)
            finally:
                wanted.release()
    except Signalled as signalled:
        code = 128 + signalled.number
    raise SystemExit(code)


def _not_had(client: Client, name: str, timeout: float) -> NoReturn:
    status = client.status()
    if status["leader"] is None:
        answering = sum(node["answers"] for node in status["nodes"])
        text = (
            f"no leader; {answering} of {len(status['nodes'])} nodes answer; try 'coterie status'"
        )
        raise NoQuorum(text)
    text = f"the lock {name!r} was not had in {timeout:g} s; 'coterie locks ls' tells who holds it"
    raise NotInTime(text)


@click.group()
def locks() -> None:
    """See the locks of a cluster; take one away."""


@locks.command()
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def ls(prefix: str, as_json: bool) -> None:
    """The locks held or waited for whose names begin with PREFIX."""
    with connected() as client:
        found = client.locks(prefix)
    if as_json:
        click.echo(json.dumps([_plain(info) for info in found], ensure_ascii=False))
        return
    rows = [
        (info.name, info.mode, str(info.token), _names(info.holders), _names(info.waiters))
        for info in found
    ]
    _table(("NAME", "MODE", "TOKEN", "HOLDERS", "WAITERS"), rows)


@locks.command()
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def watch(prefix: str, as_json: bool) -> None:
    """What happens to the locks whose names begin with PREFIX, until Ctrl-C.

    Begins with those held now ("listed").
    """
    with connected() as client:
        client.locks(prefix)  # finds a leader, or says that there is none
        for event in client.watch_locks(prefix):
            if as_json:
                click.echo(json.dumps(event._asdict(), ensure_ascii=False))
            else:
                who = f"{event.client or '?'}#{event.number}"
                token = f"token {event.token}" if event.token else ""
                click.echo(f"{event.kind:10}  {event.name}  {who}  {token}".rstrip())
            sys.stdout.flush()


@locks.command()
@click.argument("name")
def release(name: str) -> None:
    """Take the lock NAME away from whoever holds it. The next in line gets it.

    The old holder may hear of it late: only a fence keeps it from going on. Exits 1 if nobody
    held it.
    """
    with connected() as client:
        if not client.force_release(name):
            raise Failed(f"nobody holds {name!r}; 'coterie locks ls' tells what is held")
    click.echo(f"{name} was taken from its holders")


@locks.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.option("--dot", "as_dot", is_flag=True, help="A graph for Graphviz.")
def graph(as_json: bool, as_dot: bool) -> None:
    """Who waits for whom, and for which lock."""
    with connected() as client:
        edges, owners = client._graph()
    if as_json:
        click.echo(json.dumps([edge._asdict() for edge in edges], ensure_ascii=False))
        return
    names = {owner.number: _named(owner) for owner in owners}
    rows = [_edge(edge, names) for edge in edges]
    if as_dot:
        lines = [
            f"  {_quoted(waiter)} -> {_quoted(holder)} [label={_quoted(name)}];"
            for waiter, holder, name in rows
        ]
        click.echo("\n".join(["digraph waits {", *lines, "}"]))
    else:
        _table(("WAITER", "HOLDER", "LOCK"), rows)


def _named(owner: Owner) -> str:
    kind = "transaction " if owner.transaction else ""
    return f"{kind}{owner.client or '?'}#{owner.number}"


def _quoted(text: str) -> str:
    """As a string of the DOT language."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _edge(edge: Wait, names: dict[int, str]) -> tuple[str, str, str]:
    waiter, holder = names.get(edge.waiter), names.get(edge.holder)
    return (waiter or f"#{edge.waiter}", holder or f"#{edge.holder}", edge.name)


def _plain(info: LockInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "mode": info.mode,
        "token": info.token,
        "holders": [claimant._asdict() for claimant in info.holders],
        "waiters": [claimant._asdict() for claimant in info.waiters],
    }


def _names(claimants: list[Claimant]) -> str:
    named = [claimant.client or "?" for claimant in claimants]
    shown = ", ".join(named[:3])
    return f"{shown}, … ({len(named)})" if len(named) > 3 else shown or "-"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
