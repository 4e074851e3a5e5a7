"""`coterie bench`: a cluster measured, and beside it what the machine could do at most.

The law: no figure stands alone. Each comes with its durability, with the CPU it cost, and with its
ratio to the bare path measured in the same run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import click
import msgspec

from ..clients.sync import Client
from ..nodes.local import LocalCluster
from .bare import run_bare
from .figures import CpuMeter, Figures, Recorder, middle, table
from .load import Load, LoadProcess

NODES = 3


@click.group()
def bench() -> None:
    """Measure a cluster, beside the bare path of this machine."""


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
    help="Runs; the one with the median throughput is shown.",
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
    with served(endpoints, durability) as (addresses, durability, pids):
        for _ in range(repeat):
            loads = split(Load(addresses, clients, seconds, rate), processes)
            measured.append(run_loads(loads, durability, pids))
            if bare:
                ceilings.append(run_bare(clients, seconds, durability))
    show(middle(measured), middle(ceilings) if ceilings else None, as_json)


@contextlib.contextmanager
def served(
    endpoints: str | None, durability: str
) -> Iterator[tuple[list[str], str, dict[str, int]]]:
    """Endpoints, durability and the nodes' process ids (none of a cluster that is not ours)."""
    if endpoints:
        addresses = endpoints.split(",")
        with Client(addresses) as client:
            yield addresses, str(client.status().get("durability", "unknown")), {}
        return
    with LocalCluster(nodes=NODES, env={"COTERIE_DURABILITY": durability}) as cluster:
        pids = {f"node{number + 1}": cluster.pid(number) for number in range(NODES)}
        yield list(cluster.endpoints), durability, pids


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


def run_loads(loads: list[Load], durability: str, pids: dict[str, int]) -> Figures:
    """Run the processes side by side, over the same seconds."""
    recorder, meter = Recorder(), CpuMeter(pids)
    with contextlib.ExitStack() as stack:
        processes = []
        for load in loads:
            processes.append(LoadProcess(load))
            stack.callback(processes[-1].end)
        for process in processes:
            process.expect("ready")
        meter.start()
        for process in processes:
            process.go()
        clients_s = sum(float(process.expect("done")) for process in processes)
        used = {**meter.used(), "clients": clients_s}
        for process in processes:
            recorder.merge(process.latencies())
    tasks = sum(load.tasks for load in loads)
    return recorder.figures("coterie", tasks, loads[0].seconds, durability, used)


def show(measured: Figures, ceiling: Figures | None, as_json: bool) -> None:
    """Print the figures and the ratio of the two throughputs."""
    ratio = None
    if ceiling is not None and ceiling.ops_per_s:
        ratio = round(measured.ops_per_s / ceiling.ops_per_s, 3)
    if as_json:
        bare = ceiling.as_dict() if ceiling else None
        click.echo(json.dumps({"cluster": measured.as_dict(), "bare": bare, "ratio": ratio}))
        return
    click.echo(table([measured, ceiling] if ceiling else [measured]))
    if ratio is not None:
        click.echo(f"ratio to the bare path: {ratio:.2f}")
