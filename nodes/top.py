"""`coterie top`: the nodes and what they do each second, live.

The law: a rate is the difference of two looks, divided by the time between them; where a node was
silent or has started again in between there is none.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import click
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .commands import WrongSetting, endpoints_option, listed
from .counters import quantile_s
from .status import Observer, Status, summary, to_table

PERIOD_S = 1.0
PIPE_WIDTH = 160
"""Columns when the output is no terminal."""

RATES = (
    "NODE", "OPS/S", "TURNS/S", "OPS/TURN", "FRAMES IN/S", "FRAMES OUT/S", "KIB IN/S", "KIB OUT/S",
    "DROPPED/S", "CPU",
)  # fmt: skip
PROTOCOLS = ("PROTOCOL", "ANSWERS/S", "P50", "P99", "FAILURES/S", "NOW")


class Look(NamedTuple):
    """What was heard, and when (of `time.monotonic`)."""

    at: float
    status: Status


def node_rates(before: Look, after: Look) -> list[list[str]]:
    """A row of `RATES` for each node."""
    seconds = after.at - before.at
    rows = []
    for name, old, new in _pairs(before.status, after.status):
        if old is None or new is None:
            rows.append([name, *["-"] * (len(RATES) - 1)])
            continue
        turns = new["turns"] - old["turns"]
        operations = new["operations"] - old["operations"]
        rows.append([
            name,
            _rate(operations, seconds),
            _rate(turns, seconds),
            f"{operations / turns:.1f}" if turns else "-",
            *(_rate(_traffic(new, way) - _traffic(old, way), seconds)
              for way in ("frames_in", "frames_out")),
            *(_rate((_traffic(new, way) - _traffic(old, way)) / 1024, seconds)
              for way in ("bytes_in", "bytes_out")),
            _rate(sum(new["dropped"].values()) - sum(old["dropped"].values()), seconds),
            f"{100 * (new['cpu_s'] - old['cpu_s']) / seconds:.0f} %",
        ])  # fmt: skip
    return rows


def protocol_rates(before: Look, after: Look) -> list[list[str]]:
    """A row of `PROTOCOLS` for each, over all nodes; times of the answers since the last look."""
    seconds = after.at - before.at
    answers: dict[str, list[int]] = {}
    failures: dict[str, int] = {}
    operations: dict[str, int] = {}
    for _, old, new in _pairs(before.status, after.status):
        if old is None or new is None:
            continue
        for plugin, counted in new["answers"].items():
            known = old["answers"].get(plugin)
            buckets = _difference(
                counted["answer"]["buckets"], known and known["answer"]["buckets"]
            )
            total = answers.setdefault(plugin, [0] * len(buckets))
            answers[plugin] = [a + b for a, b in zip(total, buckets, strict=True)]
            failed = _failures(counted) - (_failures(known) if known else 0)
            failures[plugin] = failures.get(plugin, 0) + failed
            done = counted["operations"] - (known["operations"] if known else 0)
            operations[plugin] = operations.get(plugin, 0) + done
    now = _now(after.status)
    return [
        [
            plugin,
            _rate(operations[plugin], seconds),
            *(_milliseconds(answers[plugin], q) for q in (0.50, 0.99)),
            _rate(failures[plugin], seconds),
            " ".join(f"{key} {value}" for key, value in now.get(plugin, {}).items()),
        ]
        for plugin in sorted(answers)
    ]


def _pairs(
    before: Status, after: Status
) -> Iterator[tuple[str, dict[str, Any] | None, dict[str, Any] | None]]:
    """(name, process then, process now) of each node; None where it was silent or is another."""
    known = {name: said["process"] for name, _, said in before.nodes if said is not None}
    for name, _, said in after.nodes:
        new = said["process"] if said is not None else None
        old = known.get(name)
        if old is not None and new is not None and old["pid"] != new["pid"]:
            old = None
        yield name, old, new


def _now(status: Status) -> Mapping[str, Mapping[str, int]]:
    """What the leader's plugins count of their state."""
    for name, _, said in status.nodes:
        if said is not None and name == status.leader:
            return {
                plugin: {key: value for key, value in said[plugin].items() if type(value) is int}
                for plugin in said["process"]["answers"]
                if plugin in said
            }
    return {}


def _traffic(process: Mapping[str, Any], way: str) -> int:
    return sum(role[way] for role in process["bus"].values())


def _failures(counted: Mapping[str, Any]) -> int:
    return sum(counted["failures"].values())


def _difference(new: list[int], old: list[int] | None) -> list[int]:
    return [a - b for a, b in zip(new, old or [0] * len(new), strict=True)]


def _rate(count: float, seconds: float) -> str:
    return f"{count / seconds:,.0f}"


def _milliseconds(buckets: list[int], q: float) -> str:
    return f"{quantile_s(buckets, q) * 1000:.1f} ms" if sum(buckets) else "-"


def picture(before: Look, after: Look) -> Group:
    """What `top` shows."""
    return Group(
        Text(summary(after.status), style="bold" if after.status.quorum else "bold red"),
        to_table(after.status),
        _table(RATES, node_rates(before, after)),
        _table(PROTOCOLS, protocol_rates(before, after)),
    )


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        left = column in ("NODE", "PROTOCOL", "NOW")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


@contextlib.contextmanager
def keys() -> Iterator[int | None]:
    """Standard input's descriptor with keys coming at once and unseen; None if it is no terminal.
    Ctrl-C stays what it is."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quit_within(descriptor: int | None, seconds: float) -> bool:
    """Wait for a time; True as soon as q is typed."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([] if descriptor is None else [descriptor], [], [], left)
        if readable and descriptor is not None:
            typed = os.read(descriptor, 64)
            if b"q" in typed or b"Q" in typed or not typed:
                return True
    return False


def _look(observer: Observer) -> Look:
    status = observer.look()
    return Look(time.monotonic(), status)


@click.command()
@endpoints_option
def top(endpoints: str) -> NoReturn:
    """Show the nodes and what they do each second, live; q or Ctrl-C ends.

    When the output is no terminal: one picture of one second.
    """
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else PIPE_WIDTH)
    try:
        code = _show(console, listed(endpoints), live=terminal)
    except ValueError as error:
        raise WrongSetting(f"--endpoints: {error}") from None
    sys.exit(code)


def _show(console: Console, endpoints: list[str], *, live: bool) -> int:
    """The exit code."""
    with Observer(endpoints) as observer, keys() as descriptor:
        before = _look(observer)
        _quit_within(None, PERIOD_S)
        after = _look(observer)
        if not live:
            console.print(picture(before, after))
            return 0 if after.status.quorum else 1
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(picture(before, after), console=console, screen=True, auto_refresh=False) as view,
        ):
            view.refresh()
            while not _quit_within(descriptor, after.at + PERIOD_S - time.monotonic()):
                before, after = after, _look(observer)
                view.update(picture(before, after), refresh=True)
    return 0
