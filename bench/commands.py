"""`coterie bench`: a cluster measured, and beside it what the machine could do at most.

The law: no figure stands alone. Each comes with its durability, with the CPU it cost, and with its
ratio to the bare path measured in the same run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import click
import msgspec

from ..clients.errors import Unavailable
from ..nodes.local import LocalCluster
from ..nodes.status import collect
from .bare import run_bare
from .clusters import NoQuorum
from .failover import failover
from .figures import Figures, Recorder, middle, table
from .load import Load, LoadProcess
from .recovery import recovery
from .snapshot import snapshot

NODES = 3


@click.group()
def bench() -> None:
    """Measure a cluster, beside the bare path of this machine."""


bench.add_command(failover)
bench.add_command(recovery)
bench.add_command(snapshot)


@bench.command()
@click.option(
    "--clients",
    default=128,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Tasks that acquire and release, each a lock of its own.",
)
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="How long to measure.",
)
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Client processes the tasks are spread over.",
)
@click.option(
    "--rate",
    default=0.0,
    type=click.FloatRange(0),
    help="Operations per second, evenly paced; without it as many as go.",
)
@click.option(
    "--repeat",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Pairs of runs, cluster and bare path in turn; the median is shown.",
)
@click.option(
    "--endpoints",
    envvar="COTERIE_ENDPOINTS",
    help="A running cluster; without it one is started for the run.",
)
@click.option(
    "--durability",
    default="fsync",
    show_default=True,
    type=click.Choice(["fsync", "relaxed"]),
    help="How the cluster that is started for the run writes its log.",
)
@click.option(
    "--bare/--no-bare", default=True, show_default=True, help="Measure the bare path too."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def lock(
    clients: int,
    seconds: float,
    processes: int,
    rate: float,
    repeat: int,
    endpoints: str | None,
    durability: str,
    bare: bool,
    as_json: bool,
) -> None:
    """Locks: acquire and release, one operation each, every task on a lock of its own."""
    processes = min(processes, clients)
    measured: list[Figures] = []
    ceilings: list[Figures] = []
    with served(endpoints, durability) as addresses:
        before = look(addresses)
        for _ in range(repeat):
            loads = split(Load(addresses, clients, seconds, rate), processes)
            measured.append(run_loads(loads))
            if bare:
                ceilings.append(run_bare(clients, seconds, before.durability))
        elections = look(addresses).term - before.term
    show(measured, ceilings, elections, as_json)


@bench.command()
@click.option(
    "--connections",
    default=32,
    show_default=True,
    type=click.IntRange(1, 512),
    help="Keep-alive connections, each with a session and a lock of its own.",
)
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="How long to measure.",
)
@click.option(
    "--at",
    default="follower",
    show_default=True,
    type=click.Choice(["leader", "follower"]),
    help="Which node is asked over HTTP.",
)
@click.option(
    "--repeat",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Paired runs of the effect on ZeroMQ; the median is shown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def http(connections: int, seconds: float, at: str, repeat: int, as_json: bool) -> None:
    """HTTP: lock operations at one node, and what half of them do to clients over ZeroMQ."""
    from .http import effect, throughput, told

    with LocalCluster(nodes=NODES) as cluster:
        leader = cluster.leader()
        url = cluster.http[leader if at == "leader" else (leader + 1) % NODES]
        before = look(cluster.endpoints)
        figures = throughput(url, connections, seconds, cluster.endpoints)
        pairs = [
            effect(url, connections, seconds, figures.ops_per_s / 2, cluster.endpoints)
            for _ in range(repeat)
        ]
        elections = look(cluster.endpoints).term - before.term
    click.echo(told(figures, pairs, elections, as_json=as_json))


@contextlib.contextmanager
def served(endpoints: str | None, durability: str) -> Iterator[list[str]]:
    """The endpoints of a running cluster, or of one started for the run."""
    if endpoints:
        yield [endpoint.strip() for endpoint in endpoints.split(",")]
        return
    cluster = LocalCluster(nodes=NODES, env={"COTERIE_DURABILITY": durability})
    try:
        cluster.start()
    except Unavailable as error:
        raise NoQuorum(str(error)) from error
    try:
        yield list(cluster.endpoints)
    finally:
        cluster.close()


class Sight(NamedTuple):
    """What the nodes say of themselves at one moment. `cpu_s` since each began, by node."""

    cpu_s: dict[str, float]
    durability: str
    term: int


def look(addresses: list[str]) -> Sight:
    """Ask every node how it is; the command ends with 69 when nobody leads."""
    try:
        status = collect(addresses)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--endpoints") from error
    if not status.quorum:
        raise NoQuorum("no leader answers; see what 'coterie status' says")
    told = {name: said for name, _, said in status.nodes if said is not None}
    modes = sorted({said["process"]["durability"] for said in told.values()})
    return Sight(
        {name: said["process"]["cpu_s"] for name, said in told.items()},
        "/".join(modes),
        max(said["raft"]["groups"]["0"]["term"] for said in told.values()),
    )


def split(load: Load, processes: int) -> list[Load]:
    """The same load spread over several processes; every task keeps its own number."""
    loads = []
    first = 0
    for number in range(processes):
        tasks = load.tasks // processes + (number < load.tasks % processes)
        rate = load.rate * tasks / load.tasks
        loads.append(msgspec.structs.replace(load, tasks=tasks, rate=rate, first=first))
        first += tasks
    return loads


def run_loads(loads: list[Load]) -> Figures:
    """Run the processes side by side, over the same seconds."""
    recorder, addresses = Recorder(), loads[0].endpoints
    with contextlib.ExitStack() as stack:
        processes = []
        for load in loads:
            processes.append(LoadProcess(load))
            stack.callback(processes[-1].end)
        for process in processes:
            process.expect("ready")
        before = look(addresses)
        for process in processes:
            process.go()
        clients_s = sum(float(process.expect("done")) for process in processes)
        after = look(addresses)
        for process in processes:
            recorder.merge(process.latencies())
    used = {name: cpu_s - before.cpu_s.get(name, 0.0) for name, cpu_s in after.cpu_s.items()}
    tasks = sum(load.tasks for load in loads)
    return recorder.figures(
        "coterie", tasks, loads[0].seconds, before.durability, {**used, "clients": clients_s}
    )


def show(measured: list[Figures], ceilings: list[Figures], elections: int, as_json: bool) -> None:
    """Print the run in the middle of each kind, and the median of the pairs' ratios."""
    shown = [middle(runs) for runs in (measured, ceilings) if runs]
    pairs = zip(measured, ceilings, strict=False)
    ratios = [run.ops_per_s / bare.ops_per_s for run, bare in pairs if bare.ops_per_s]
    ratio = round(median(ratios), 3) if ratios else None
    if as_json:
        cluster, bare = [run.as_dict() for run in shown] + [None] * (2 - len(shown))
        found = {"cluster": cluster, "bare": bare, "ratio": ratio, "elections": elections}
        click.echo(json.dumps(found))
        return
    click.echo(table(shown))
    if ratio is not None:
        click.echo(f"ratio to the bare path: {ratio:.2f}")
    if elections:
        click.echo(f"elections during the run: {elections}")
