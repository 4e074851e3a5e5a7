"""The commands around nodes: node, up, down, kill, pause, resume, restart, status.

The law: a wrong setting is one line that names it and exits 64; what is in the way (a port, a
directory, no quorum) is one line that names who and exits 1. What a command needs is imported when
it runs: the start of a node is part of every fail-over.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from .plans import NodePlan

DATA = "coterie-data"
PORT = 7001


class WrongSetting(click.ClickException):
    """One line that names the setting; exits 64 (EX_USAGE of BSD's sysexits)."""

    exit_code = 64


data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DATA,
    envvar="COTERIE_DATA",
    show_default=True,
    help="Directory of the cluster.",
)


@click.command()
@click.option("--name", help="Name of this node among --peers [node1].")
@click.option("--peers", help="All nodes: NAME=HOST:PORT[:PEERS[:PUB]],… (peers +100, PUB +200).")
@click.option("--join", help="HOST:PORT,… of a running cluster: join it, instead of --peers.")
@click.option("--data", help="Directory of this node [coterie-data/NAME].")
@click.option("--bind", help="Where to listen: HOST[:PORT[:PEERS[:PUB]]] [as in --peers].")
@click.option("--advertise", help="HOST:PORT by which clients reach this node [as in --peers].")
@click.option("--durability", help="fsync or relaxed [fsync].")
@click.option("--election-timeout", help="LEAST-MOST in milliseconds [150-300].")
@click.option("--heartbeat", help="Milliseconds [50].")
@click.option("--insecure", is_flag=True, help="Allow others than loopback, without keys.")
@click.option("--segment-bytes", help="Size of a file of the log.")
@click.option("--keys", help="Not there yet.")
@click.option("--log-level", help="debug, info, warning or error [info].")
@click.option("--log-format", help="logfmt or json [logfmt].")
@click.option("--http-listen", help="Address HTTP is served on [as --bind].")
@click.option("--http-port", help="Port of HTTP, 0 for none [as --bind, +1000].")
@click.option("--http-token", help="Who asks over HTTP bears this; better COTERIE_HTTP_TOKEN.")
@click.option("--http-hosts", help="Names by which browsers may know this node: NAME,…")
@click.option("--deadlock-detection", help="both, enqueue or sweep [both].")
@click.option("--parent-pipe", hidden=True)
def node(insecure: bool, join: str | None, **flags: str | None) -> NoReturn:
    """Run one node in this process, until SIGTERM or SIGINT.

    Nodes that are told of each other by --peers found a cluster together. One more joins it with
    --name, --join and the address by which it is reached, --bind or --advertise.

    Every option can be given as COTERIE_<OPTION> in the environment, too.
    """
    from .configuration import ConfigurationError, NodeConfiguration
    from .serving import run

    joined = join or os.environ.get("COTERIE_JOIN")
    if joined:
        from .members import joined_peers

        flags["peers"] = joined_peers(joined, flags)
    lifted = "yes" if insecure else None
    try:
        configuration = NodeConfiguration.from_options(os.environ, insecure=lifted, **flags)
    except ConfigurationError as error:
        raise WrongSetting(str(error)) from None
    sys.exit(run(configuration))


@click.command()
@click.option("--nodes", type=click.IntRange(1, 15), help="How many [3, or as the data have].")
@data_option
@click.option("--port", type=click.IntRange(1, 65000), help="Clients of node1 [7001].")
@click.option("--http-port", type=click.IntRange(1, 65000), help="HTTP of node1 [8001].")
@click.option("--store", default="embedded", help="Only 'embedded' yet.")
@click.option("--durability", help="fsync or relaxed [fsync].")
@click.option("--detach", is_flag=True, help="Return when a leader serves; end with `down`.")
def up(
    nodes: int | None,
    data: Path,
    port: int | None,
    http_port: int | None,
    store: str,
    durability: str | None,
    detach: bool,
) -> NoReturn:
    """Run a cluster of node processes on this machine, until Ctrl-C.

    The data stay in --data and are found again.
    """
    from .plans import DirectoryInUse, DirectoryLock, PlanDiffers, PortInUse, check_ports

    if store != "embedded":
        raise WrongSetting(f"--store: {store!r}: other stores than 'embedded' come later")
    options = [] if durability is None else ["--durability", durability]
    lock: DirectoryLock | None = None
    try:
        plans = _plans(data, nodes, port, http_port)
        _check_configuration(plans, data, durability)
        data.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(data)
        check_ports(plans)
        if detach:
            lock.release()
            sys.exit(_detach(data, plans, options))
        sys.exit(_serve(data, plans, options))
    except PlanDiffers as error:
        raise WrongSetting(str(error)) from None
    except DirectoryInUse as error:
        raise click.ClickException(f"{error}; end it: coterie down --data {data}") from None
    except PortInUse as error:
        raise click.ClickException(f"{error}; end it, or use --port") from None
    except OSError as error:
        raise click.ClickException(f"--data: {error}") from None
    finally:
        if lock is not None:
            lock.release()


def _plans(
    data: Path, nodes: int | None, port: int | None, http_port: int | None
) -> list[NodePlan]:
    """The plan of the directory; a new directory gets what the flags say."""
    from .configuration import HTTP_OFFSET
    from .plans import PlanDiffers, kept, numbered, serving_http

    found = kept(data)
    if found is None:
        first = port or PORT
        return numbered(nodes or 3, first, http_port or first + HTTP_OFFSET)
    plans = [plan for plan in found if not plan.removed]
    if nodes is not None and nodes != len(plans):
        raise PlanDiffers(
            f"--nodes: {nodes}: {data} holds a cluster of {len(plans)}; leave --nodes out, and add "
            "nodes while it runs: coterie node --name NAME --join HOST:PORT --bind HOST:PORT"
        )
    if port is not None and port != plans[0].client:
        raise PlanDiffers(
            f"--port: {port}: the nodes of {data} know each other by port {plans[0].client} …; "
            "leave --port out, or take another --data"
        )
    return serving_http(plans, http_port) if http_port is not None else plans


def _check_configuration(plans: list[NodePlan], data: Path, durability: str | None) -> None:
    """Refuse here, in one line, what each node would refuse."""
    from .configuration import ConfigurationError, NodeConfiguration
    from .plans import peers_option

    plan = plans[0]
    try:
        NodeConfiguration.from_options(
            os.environ,
            name=plan.name,
            peers=peers_option(plans),
            data=str(data / plan.name),
            bind=plan.address,
            advertise=f"127.0.0.1:{plan.client}",
            durability=durability,
        )
    except ConfigurationError as error:
        raise WrongSetting(str(error)) from None


def _serve(data: Path, plans: list[NodePlan], options: list[str]) -> int:
    from .live import live_view
    from .plans import keep, kept
    from .up import Up

    if kept(data) is None:
        keep(data, plans)
    cluster = Up(data, plans, options, functools.partial(print, flush=True))
    try:
        leader = cluster.await_ready()
        if leader is None and not cluster.leaving:
            click.echo("no leader serves; see what the nodes say:", err=True)
            for index in range(len(plans)):
                click.echo("  " + cluster.launch.report(index), err=True)
            return 1
        if leader is not None:
            click.echo(_served(data, plans, leader.node, leader.term))
            with live_view([plan.endpoint for plan in plans]) as tick:
                cluster.serve(tick)
        click.echo("ending the nodes …")
    finally:
        cluster.close()
    click.echo(f"all nodes have ended; the data stay in {data}")
    return 0


def _served(data: Path, plans: list[NodePlan], leader: str, term: int) -> str:
    endpoints = ",".join(plan.endpoint for plan in plans)
    given = "" if data == Path(DATA) else f" --data {data}"
    lines = [f"{len(plans)} nodes serve from {data}; {leader} leads (term {term})", ""]
    for plan in plans:
        http = f"  {plan.http_url}" if plan.http else ""
        lines.append(
            f"  {plan.name}  {plan.endpoint}{http}  (peers {plan.peer}, PUB {plan.publish})"
        )
    lines += [
        "",
        "In another terminal:",
        "",
        f"  export COTERIE_ENDPOINTS={endpoints}",
        "  coterie status",
        "  coterie top",
        "  coterie lock demo -- sh -c 'echo token $COTERIE_LOCK_TOKEN; sleep 5'",
        f"  coterie kill {leader}{given}",
        f"  coterie restart {leader}{given}",
        *(f"  curl {plan.http_url}/health" for plan in plans[:1] if plan.http),
        "",
        "In Python:",
        "",
        "  import coterie",
        f'  with coterie.Client("{endpoints}") as c:',
        '      with c.lock("orders/42") as grant:',
        "          print(grant.token)",
        "",
        f"Ctrl-C (or: coterie down{given}) ends the nodes; the data stay.",
    ]
    return "\n".join(lines)


def _detach(data: Path, plans: list[NodePlan], options: list[str]) -> int:
    """Run the same command in a session of its own, and wait until it serves."""
    import subprocess
    import time

    from .launch import environment
    from .up import START_WAIT_S, NoCluster, read_state

    log = data / "up.log"
    arguments = [sys.executable, "-P", "-m", __package__.partition(".")[0], "up"]
    arguments += ["--data", str(data), "--nodes", str(len(plans))]
    arguments += ["--port", str(plans[0].client), *options]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            arguments,
            env=environment(None),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_WAIT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            state = read_state(data)
            if state["ready"] and state["pid"] == process.pid:
                click.echo(log.read_text(encoding="utf-8"), nl=False)
                return 0
        except NoCluster:
            pass
        time.sleep(0.02)
    if process.poll() is None:
        process.terminate()
        process.wait()
    click.echo(log.read_text(encoding="utf-8"), nl=False, err=True)
    return process.returncode or 1


def _ask(data: Path, verb: str, name: str = "-") -> str:
    from .up import NoCluster, Refused, request

    try:
        return request(data, verb, name)
    except (NoCluster, Refused) as error:
        raise click.ClickException(str(error)) from None


@click.command()
@data_option
def down(data: Path) -> None:
    """End a cluster that `up` runs, here or elsewhere; its data stay."""
    click.echo(_ask(data, "down"))


def _for_node(verb: str, text: str) -> Callable[..., Any]:
    @click.command(verb, help=text)
    @click.argument("name", metavar="NODE")
    @data_option
    def command(name: str, data: Path) -> None:
        click.echo(_ask(data, verb, name))

    return command


kill = _for_node("kill", "Kill a node of a cluster that `up` runs (SIGKILL).")
pause = _for_node("pause", "Stop a node's process without ending it (SIGSTOP).")
resume = _for_node("resume", "Let a paused node go on (SIGCONT).")
restart = _for_node("restart", "Start a node again with the same command, ending it first.")


endpoints_option = click.option(
    "--endpoints",
    envvar="COTERIE_ENDPOINTS",
    default=f"tcp://127.0.0.1:{PORT}",
    show_default=True,
    help="Where to ask; one node is enough. Also COTERIE_ENDPOINTS.",
)


def listed(endpoints: str) -> list[str]:
    """The endpoints of a list with commas."""
    return [part.strip() for part in endpoints.split(",") if part.strip()]


@click.command()
@endpoints_option
@click.option("--json", "as_json", is_flag=True, help="All that the nodes say of themselves.")
def status(endpoints: str, as_json: bool) -> NoReturn:
    """Show the nodes, the leader and what they hold. Exits 1 without a quorum."""
    import json

    from .ring_view import collect_ring
    from .status import collect, summary, to_json, to_table, to_text

    try:
        addresses = listed(endpoints)
        found = collect(addresses)
    except ValueError as error:
        raise WrongSetting(f"--endpoints: {error}") from None
    ring = collect_ring(addresses) if found.quorum else None
    if as_json:
        content = json.loads(to_json(found))
        click.echo(json.dumps({**content, "ring": ring and ring.as_json()}, indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(to_table(found), summary(found))
        click.echo(f"\n{ring.as_table()}" if ring else "")
    else:
        click.echo(to_text(found) + (f"\n\n{ring.as_table()}" if ring else ""))
    sys.exit(0 if found.quorum else 1)
