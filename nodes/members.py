"""The operator's commands on a running cluster: `member ls|add|remove` and `leader transfer`.

The law: a change is done when the cluster says so, and what to do next is said with it. Waiting
shows how far the cluster is; who stops waiting stops nothing. Exits 69 without a quorum, 75 when
it did not come about in time, 64 when it has no meaning.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..clients.commands import Failed, NoQuorum, NotInTime, WrongUsage
from ..clients.errors import Busy, CoterieError, Unavailable
from ..protocols.placement.messages import MemberRow, Ring
from ..protocols.plugin import CONTROL
from .administration import Administration
from .configuration import PORT, own_address, parse_address, parse_name
from .joining import join_cluster, kept_peers
from .ring_view import aligned

LOOK_S = 0.2
"""Between two looks at how far a change is."""

TRANSFER_S = 5.0
"""How long a leadership may take to change hands."""

COLUMNS = ("NODE", "ENDPOINT", "STATE", "VOTE IN 0", "SHOULD HOLD", "HOLDS")


endpoints_option = click.option(
    "--endpoints",
    envvar="COTERIE_ENDPOINTS",
    default=f"tcp://127.0.0.1:{PORT}",
    show_default=True,
    help="Where to ask; one node is enough. Also COTERIE_ENDPOINTS.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
wait_option = click.option("--wait", is_flag=True, help="Return when it is done, all moves too.")
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(0),
    metavar="S",
    help="Stop waiting after S seconds: exit 75. What began goes on.",
)


@contextlib.contextmanager
def administration(endpoints: str) -> Iterator[Administration]:
    """The cluster at these endpoints; what it refuses becomes an exit code."""
    parts = [part.strip() for part in endpoints.split(",")]
    try:
        with Administration([endpoint_of(part) for part in parts if part]) as found:
            yield found
    except Unavailable as error:
        raise NoQuorum(str(error)) from None
    except Busy as error:
        raise NotInTime(str(error)) from None
    except (CoterieError, ValueError) as error:
        raise WrongUsage(str(error)) from None


def joined_peers(join: str, flags: Mapping[str, str | None]) -> str:
    """The `--peers` of a node that is told to join; it is added to the cluster if it is new."""

    def given(option: str) -> str | None:
        return flags[option] or os.environ.get(f"COTERIE_{option.upper()}")

    name = given("name")
    if given("peers") is not None or name is None:
        raise WrongUsage("--join: goes with --name, and without --peers: the cluster tells them")
    directory = Path(given("data") or f"coterie-data/{name}")
    known = kept_peers(directory)
    if known is not None:
        return known
    try:
        address = own_address(given("bind"), given("advertise"))
        with administration(join) as cluster:
            return join_cluster(cluster, parse_name(name), address, directory)
    except ValueError as error:
        raise WrongUsage(f"--join: {error}") from None
    except OSError as error:
        raise Failed(f"--data: {error}") from None


def endpoint_of(text: str) -> str:
    """HOST:PORT as an endpoint."""
    return text if "://" in text else f"tcp://{text}"


@click.group()
def member() -> None:
    """The nodes of a cluster: list them, let one join, let one leave."""


@member.command("ls")
@endpoints_option
@json_option
def list_members(endpoints: str, as_json: bool) -> None:
    """List the nodes of the cluster and the partitions they hold."""
    with administration(endpoints) as cluster:
        members, ring = cluster.members(), cluster.ring()
    if as_json:
        rows = [_as_json(row) for row in members]
        click.echo(json.dumps({"members": rows, "remaining": ring.remaining}, indent=2))
        return
    click.echo(aligned([COLUMNS, *(_cells(row) for row in members)]))


@member.command()
@click.argument("name", metavar="NODE")
@click.argument("address", metavar="HOST:PORT[:PEERS[:PUB]]")
@endpoints_option
@wait_option
@timeout_option
@json_option
def add(
    name: str, address: str, endpoints: str, wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Let NODE join, which clients will reach at HOST:PORT (peers +100, PUB +200).

    It counts once it runs. `coterie node --join` on its machine does both at once.
    """
    try:
        where = parse_address(address)
        parse_name(name)
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    with administration(endpoints) as cluster:
        cluster.add(name, *where)
        row = cluster.member(name)
        if wait:
            _await(cluster, name, "joins", lambda now: _has_joined(now, name), timeout)
            row = cluster.member(name)
    if row is None:
        raise Failed(f"{name} was removed meanwhile; see: coterie member ls")
    if as_json:
        click.echo(json.dumps(_as_json(row)))
    elif row.state == "joining":
        given = endpoints.replace("tcp://", "")
        click.echo(f"{name} may join; start it on its machine:")
        click.echo(f"  coterie node --name {name} --join {given} --bind {address}")
    elif wait:
        click.echo(f"{name} has joined and holds its share: {len(row.holds)} partitions")
    else:
        click.echo(f"{name} is a member; its partitions move: coterie status")


@member.command()
@click.argument("name", metavar="NODE")
@endpoints_option
@wait_option
@timeout_option
@json_option
def remove(name: str, endpoints: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Let NODE leave for good: its partitions move away first, then it can be ended.

    A node that is dead is removed in the same way.
    """
    with administration(endpoints) as cluster:
        row = cluster.member(name)
        if row is None:
            known = ", ".join(row.node for row in cluster.members())
            raise WrongUsage(f"no node {name!r}; there are {known}")
        cluster.remove(name)
        if wait:
            _await(cluster, name, "leaves", lambda now: _row(now, name) is None, timeout)
        row = cluster.member(name)
    if as_json:
        click.echo(json.dumps({"node": name, "removed": row is None}))
    elif row is None:
        click.echo(f"{name} is no member any more: it ends by itself; then delete its data")
    else:
        click.echo(f"{name} leaves: its partitions move away; look with: coterie member ls")


@click.group()
def leader() -> None:
    """Who leads: hand a leadership over."""


@leader.command()
@click.argument("where", nargs=-1, required=True, metavar="[GROUP] NODE")
@endpoints_option
@json_option
def transfer(where: tuple[str, ...], endpoints: str, as_json: bool) -> None:
    """Hand the leadership of GROUP (0, the locks, if none is given) to NODE."""
    *groups, name = where
    if len(groups) > 1 or not all(group.isascii() and group.isdigit() for group in groups):
        raise WrongUsage("give a group's number and a node's name, as in: 0 node2")
    group = int(groups[0]) if groups else CONTROL
    with administration(endpoints) as cluster:
        before = cluster.leaders().get(group)
        if before != name:
            cluster.hand_over(group, name)
        now = before
        deadline = time.monotonic() + TRANSFER_S
        while now != name and time.monotonic() < deadline:
            time.sleep(LOOK_S / 4)
            now = cluster.leaders().get(group)
    if now != name:
        leads = f"{now} leads" if now else "nobody leads"
        raise NotInTime(f"{leads} group {group}, not {name}; see 'coterie status', try again")
    if as_json:
        click.echo(json.dumps({"group": group, "leader": now, "before": before}))
    else:
        click.echo(f"{name} leads group {group}" + (" already" if before == name else ""))


class Progress(NamedTuple):
    """How far the cluster is: the members, and the ring."""

    members: tuple[MemberRow, ...]
    ring: Ring


def _row(progress: Progress, name: str) -> MemberRow | None:
    return next((row for row in progress.members if row.node == name), None)


def _has_joined(progress: Progress, name: str) -> bool:
    row = _row(progress, name)
    return row is None or (row.state == "member" and progress.ring.remaining == 0)


def _await(
    cluster: Administration,
    name: str,
    verb: str,
    done: Callable[[Progress], bool],
    timeout: float | None,
) -> None:
    """Wait until it is done, with a bar of the groups that have moved."""
    deadline = None if timeout is None else time.monotonic() + timeout
    total = moved = 0
    with click.progressbar(
        length=1, label=f"{name} {verb}", file=sys.stderr, show_eta=False
    ) as bar:
        while True:
            now = Progress(cluster.members(), cluster.ring())
            total = max(total, now.ring.remaining)
            bar.length = max(total, 1)
            bar.update(max(0, total - now.ring.remaining - moved))
            moved = max(moved, total - now.ring.remaining)
            if done(now):
                bar.update(bar.length - moved)
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise NotInTime(f"{name} {verb}, but not in time: {_lacking(now, name)}")
            time.sleep(LOOK_S)


def _lacking(progress: Progress, name: str) -> str:
    """What is still to come."""
    row = _row(progress, name)
    if row is not None and not row.incarnation:
        return "it was not heard of yet; does it run?"
    return f"{progress.ring.remaining} groups still move; look with: coterie member ls"


def _cells(row: MemberRow) -> tuple[str, ...]:
    vote = "yes" if row.voter else "no"
    return (
        row.node, row.client_endpoint, row.state, vote, str(len(row.groups)), str(len(row.holds)),
    )  # fmt: skip


def _as_json(row: MemberRow) -> dict[str, Any]:
    return {
        "node": row.node,
        "incarnation": row.incarnation,
        "voter": row.voter,
        "state": row.state,
        "client_endpoint": row.client_endpoint,
        "peer_endpoint": row.peer_endpoint,
        "publish_endpoint": row.publish_endpoint,
        "groups": list(row.groups),
        "holds": list(row.holds),
    }
