"""The commands on what a node has on its disk: `wal verify` and `snapshot verify`.

The law: they only read. What is damaged is told with what to do, and exits 65 (EX_DATAERR of BSD's
sysexits); what cannot be looked at exits 1.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import click

from ..protocols.records import GroupState
from ..protocols.snapshot import DamagedSnapshot
from .ring_view import aligned
from .verify import InUse, LogFound, NoSuchLog, SnapshotFound, verify_log, verify_snapshot
from .wal import CorruptLog, ForeignLog

MEBIBYTE = 1024 * 1024
SEGMENTS = ("SEGMENT", "MIB", "USED", "BATCHES", "RECORDS", "ENTRIES")
GROUPS = ("GROUP", "TERM", "VOTE", "COMMIT", "ENTRIES", "SNAPSHOT")


class Damaged(click.ClickException):
    exit_code = 65


@contextlib.contextmanager
def _reading(what: Path) -> Iterator[None]:
    try:
        yield
    except (CorruptLog, ForeignLog) as error:
        raise Damaged(f"{what}: {error}") from None
    except DamagedSnapshot as error:
        text = f"{what} is damaged: {error}; a node that needs it copies another from its peers"
        raise Damaged(text) from None
    except (InUse, NoSuchLog) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{what}: {error.strerror or error}") from None


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def wal() -> None:
    """A node's log on its disk."""


@wal.command("verify")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@json_option
def verify_wal(directory: Path, as_json: bool) -> None:
    """Read the log in a node's data directory DIR: every record, every checksum.

    Nothing is changed, and no node may have it open. Exits 65 if it is damaged.
    """
    with _reading(directory):
        found = verify_log(directory)
    click.echo(json.dumps(found.as_json(), indent=2) if as_json else _log(found))


@click.group()
def snapshot() -> None:
    """A snapshot on its disk."""


@snapshot.command("verify")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@json_option
def verify_file(file: Path, as_json: bool) -> None:
    """Read a snapshot FILE: every record, every checksum, and whether its name fits.

    Exits 65 if it is damaged.
    """
    with _reading(file):
        found = verify_snapshot(file)
    click.echo(json.dumps(found.as_json(), indent=2) if as_json else _snapshot(found))


def _log(found: LogFound) -> str:
    segments = [
        (
            segment.name,
            f"{segment.size / MEBIBYTE:.1f}",
            f"{100 * segment.used / segment.size:.0f} %",
            f"{segment.batches:,}",
            f"{segment.records:,}",
            f"{segment.entries:,}",
        )
        for segment in found.segments
    ]
    groups = [(str(number), *_group(state)) for number, state in found.groups.items()]
    lines = [aligned([SEGMENTS, *segments]), "", aligned([GROUPS, *groups]), ""]
    if found.torn_bytes:
        lines.append(
            f"{found.torn_bytes} bytes of the last write never got to the disk: nobody counted on "
            "them, and the node cuts them off when it starts"
        )
    records = sum(segment.records for segment in found.segments)
    lines.append(f"the log is whole: {len(segments)} segments, {records:,} records")
    return "\n".join(lines)


def _group(state: GroupState) -> tuple[str, ...]:
    entries, kept = state.entries, state.snapshot
    return (
        str(state.term),
        state.vote or "-",
        str(state.commit),
        f"{entries[0].index} to {entries[-1].index}" if entries else "-",
        f"to {kept.index}, {kept.size / MEBIBYTE:.1f} MiB" if kept else "-",
    )


def _snapshot(found: SnapshotFound) -> str:
    header = found.header
    sections = [(name, f"{size:,}") for name, size in found.sections.items()]
    lines = [
        f"group {header.group}, all entries up to {header.index} (term {header.term})",
        f"operation number {header.number}, log time {header.time_us / 1e6:.3f} s",
        f"members: {' '.join(found.members)}  (in brackets: no vote)",
        "",
        aligned([("SECTION", "BYTES"), *sections]),
        "",
        f"the snapshot is whole: {found.size:,} bytes, BLAKE2b {found.digest}",
    ]
    if not found.named:
        lines.append("its name does not say what it holds: no node would find it")
    return "\n".join(lines)
