"""The command `simulate`: worlds by the thousand, or one to look at.

The law: a world is made from its seed alone; how many processes share the seeds changes nothing
but the time. A broken promise ends the run with exit 1 and the line that replays it.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial

import click

from .simulation.faults import KINDS
from .simulator import Failed, Options, Summary, simulate


def _seeds(context: click.Context, parameter: click.Parameter, value: str | None) -> range | None:
    if value is None:
        return None
    first, dots, last = value.partition("..")
    if not dots or not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise click.BadParameter("give the first and the last seed, as 1..2000")
    return range(int(first), int(last) + 1)


def _faults(context: click.Context, parameter: click.Parameter, value: str) -> str:
    unknown = [kind for kind in value.split(",") if value and kind not in KINDS]
    if unknown:
        raise click.BadParameter(f"no such fault: {unknown[0]}; there are {', '.join(KINDS)}")
    return value


@click.command("simulate")
@click.option("--seed", type=click.IntRange(0), help="Run one world and tell what happened.")
@click.option("--seeds", callback=_seeds, metavar="A..B", help="Run a world for each of these.")
@click.option("--seconds", type=click.FloatRange(0.5), default=10.0, help="Simulated, with faults.")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, help="Nodes of the cluster.")
@click.option("--groups", type=click.IntRange(0, 16), default=0, help="0: the seed chooses.")
@click.option("--faults", callback=_faults, default="", help="Only these: crash,cut,… and often.")
@click.option("--processes", type=click.IntRange(1), default=1, help="Share the seeds among these.")
@click.option("--trace", is_flag=True, help="Print every event of the one world.")
def command(
    seed: int | None,
    seeds: range | None,
    seconds: float,
    nodes: int,
    groups: int,
    faults: str,
    processes: int,
    trace: bool,
) -> None:
    """Run seeded worlds of crashes, pauses, lost writes and cut networks.

    The same code that serves runs in simulated time, and after every event it is checked that
    nothing happened that must never happen. One seed gives one run.
    """
    if (seed is None) == (seeds is None):
        raise click.UsageError("give --seed N or --seeds A..B")
    if trace and seed is None:
        raise click.UsageError("--trace goes with --seed")
    options = Options(seconds, nodes, groups, faults)
    if seed is not None:
        _tell_one(seed, options, trace)
    elif seeds is not None:
        _tell_many(seeds, options, processes)


def _tell_one(seed: int, options: Options, trace: bool) -> None:
    try:
        summary = simulate(seed, options, click.echo if trace else None)
    except Failed as failed:
        click.echo(str(failed), err=True)
        sys.exit(1)
    faults = ", ".join(f"{count} {kind}" for kind, count in summary.faults.items()) or "no faults"
    click.echo(
        f"seed {seed}: every promise kept over {summary.simulated_s:.1f} simulated s:"
        f" {summary.elections} elections, {summary.entries} entries,"
        f" {summary.operations} operations, {summary.frames} frames; {faults};"
        f" snapshots and states: {_told(summary.counts)}"
    )


def _tell_many(seeds: range, options: Options, processes: int) -> None:
    began = time.monotonic()
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    ran = elections = operations = 0
    simulated_s = 0.0
    for outcome in _outcomes(seeds, options, processes):
        if isinstance(outcome, str):
            click.echo(outcome, err=True)
            sys.exit(1)
        ran += 1
        simulated_s += outcome.simulated_s
        elections += outcome.elections
        operations += outcome.operations
        faults.update(outcome.faults)
        counts.update(outcome.counts)
    click.echo(
        f"{ran} worlds, every promise kept: {simulated_s / 3600:.1f} simulated hours,"
        f" {elections} elections, {operations} operations, {time.monotonic() - began:.0f} s"
    )
    click.echo("snapshots and states: " + _told(counts))
    click.echo("faults: " + ", ".join(f"{count} {kind}" for kind, count in faults.most_common()))


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _outcomes(seeds: range, options: Options, processes: int) -> Iterator[Summary | str]:
    run = partial(_run, options)
    if processes == 1:
        yield from map(run, seeds)
        return
    # Ctrl-C reaches the whole group: the workers leave it to this process to end them.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _ignore_interrupts) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=4)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(options: Options, seed: int) -> Summary | str:
    try:
        return simulate(seed, options)
    except Failed as failed:
        return str(failed)
