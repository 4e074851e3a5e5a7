"""`coterie bench`: a cluster measured, and beside it what the machine could do at most.

The law: no figure stands alone. Each comes with its durability, with the CPU it cost, and with its
ratio to the bare path measured in the same run.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

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

CLIENTS = click.option(
    "--clients",
    default=128,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Tasks that work side by side.",
)
MEASURING = (
    click.option(
        "--seconds",
        default=5.0,
        show_default=True,
        type=click.FloatRange(0.1, 3600),
        help="How long to measure.",
    ),
    click.option(
        "--processes",
        default=1,
        show_default=True,
        type=click.IntRange(1, 64),
        help="Client processes the tasks are spread over.",
    ),
    click.option(
        "--rate",
        default=0.0,
        type=click.FloatRange(0),
        help="Operations per second, evenly paced; without it as many as go.",
    ),
    click.option(
        "--repeat",
        default=1,
        show_default=True,
        type=click.IntRange(1, 100),
        help="Pairs of runs, cluster and bare path in turn; the median is shown.",
    ),
    click.option(
        "--endpoints",
        envvar="COTERIE_ENDPOINTS",
        help="A running cluster; without it one is started for the run.",
    ),
    click.option(
        "--durability",
        default="fsync",
        show_default=True,
        type=click.Choice(["fsync", "relaxed"]),
        help="How the cluster that is started for the run writes its log.",
    ),
    click.option(
        "--bare/--no-bare", default=True, show_default=True, help="Measure the bare path too."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
)


class Measuring(msgspec.Struct):
    """How to measure, as the options of every workload say."""

    seconds: float
    processes: int
    rate: float
    repeat: int
    endpoints: str | None
    durability: str
    bare: bool
    as_json: bool


def measuring(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every workload, gathered in its argument `how`."""

    @functools.wraps(command)
    def called(**options: Any) -> None:
        how = {name: options.pop(name) for name in Measuring.__struct_fields__}
        command(how=Measuring(**how), **options)

    wrapped: Callable[..., None] = called
    for option in reversed(MEASURING):
        wrapped = option(wrapped)
    return wrapped


@bench.command()
@CLIENTS
@click.option(
    "--names",
    default=0,
    type=click.IntRange(0, 100_000),
    help="Locks the tasks contend for; without it each has its own.",
)
@measuring
def lock(clients: int, names: int, how: Measuring) -> None:
    """Locks: acquire and release, one operation each.

    With --names the tasks hand so many locks on to one another, and a handover (acquire and
    release) is one operation; one task with a lock of its own is measured as well, and what a
    handover costs is told in its operations.
    """
    load = Load([], clients, how.seconds, how.rate, names=names)
    alone = Load([], 1, how.seconds) if 0 < names < clients else None
    measure(load, how, alone)


@bench.command()
@CLIENTS
@click.option(
    "--locks",
    default=5,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Locks of a transaction.",
)
@click.option("--by-one", is_flag=True, help="Take them one after the other, not all at once.")
@measuring
def transactions(clients: int, locks: int, by_one: bool, how: Measuring) -> None:
    """Transactions: begin, take locks of the task's own, commit; one operation."""
    measure(Load([], clients, how.seconds, how.rate, locks=locks, by_one=by_one), how, None)


def measure(load: Load, how: Measuring, alone: Load | None) -> None:
    """Run the load beside the bare path, and beside the load of one task alone, and print it."""
    runs: list[Run] = []
    ceilings: list[Figures] = []
    singles: list[Run] = []
    with served(how.endpoints, how.durability) as addresses:
        before = look(addresses)
        load = msgspec.structs.replace(load, endpoints=addresses)
        for _ in range(how.repeat):
            runs.append(run_loads(split(load, min(how.processes, load.tasks))))
            if alone is not None:
                singles.append(run_loads([msgspec.structs.replace(alone, endpoints=addresses)]))
            if how.bare:
                ceilings.append(run_bare(load.tasks, load.seconds, before.durability))
        elections = look(addresses).term - before.term
    show(runs, ceilings, singles, elections, how.as_json)


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
    """What the nodes say of themselves at one moment. `cpu_s` since each began, by node;
    `commits`: entries committed in the group of locks."""

    cpu_s: dict[str, float]
    durability: str
    term: int
    commits: int


class Run(NamedTuple):
    """One run of a load, and how many entries the cluster committed in it."""

    figures: Figures
    commits: int


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
        max(said["raft"]["groups"]["0"]["commit"] for said in told.values()),
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


def run_loads(loads: list[Load]) -> Run:
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
    figures = recorder.figures(
        "coterie", tasks, loads[0].seconds, before.durability, {**used, "clients": clients_s}
    )
    return Run(figures, after.commits - before.commits)


def show(
    runs: list[Run], ceilings: list[Figures], singles: list[Run], elections: int, as_json: bool
) -> None:
    """Print the run in the middle of each kind, and the median of the pairs' ratios."""
    measured = [run.figures for run in runs]
    alone = [run.figures for run in singles]
    shown = {
        kind: middle(figures)
        for kind, figures in (("cluster", measured), ("alone", alone), ("bare", ceilings))
        if figures
    }
    pairs = zip(measured, ceilings, strict=False)
    ratios = [run.ops_per_s / bare.ops_per_s for run, bare in pairs if bare.ops_per_s]
    ratio = round(median(ratios), 3) if ratios else None
    handed = handover(runs, singles)
    if as_json:
        found = {kind: figures.as_dict() for kind, figures in shown.items()}
        both = {"cluster": None, "bare": None, **found, **handed}
        click.echo(json.dumps({**both, "ratio": ratio, "elections": elections}))
        return
    click.echo(table(shown.values()))
    if ratio is not None:
        click.echo(f"ratio to the bare path: {ratio:.2f}")
    if handed:
        click.echo(
            f"a handover: {handed['handover_ms']:.2f} ms, {handed['handover_ratio']:.2f} x an "
            f"operation of one task; {handed['commits_per_handover']:.2f} commits each"
        )
    if elections:
        click.echo(f"elections during the run: {elections}")


def handover(runs: list[Run], singles: list[Run]) -> dict[str, float]:
    """What it costs to hand a lock on, beside what an operation costs a task alone; medians of
    the pairs. An operation of the contended run is a handover."""
    pairs = [
        (run, single.figures.ops_per_s)
        for run, single in zip(runs, singles, strict=False)
        if run.figures.operations and single.figures.ops_per_s
    ]
    if not pairs:
        return {}
    per_s = [run.figures.ops_per_s for run, _ in pairs]
    commits = [run.commits / run.figures.operations for run, _ in pairs]
    ratios = [single / rate for (_, single), rate in zip(pairs, per_s, strict=True)]
    return {
        "handover_ms": round(1000 / median(per_s), 3),
        "handover_ratio": round(median(ratios), 3),
        "commits_per_handover": round(median(commits), 3),
    }
