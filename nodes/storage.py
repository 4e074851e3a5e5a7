"""A data directory: `node.json`, the log, the snapshots, and what to do when they do not fit
together.

The law: a node goes on with a log only if everything it ever acknowledged is in it. Otherwise the
log is set aside and the node comes back under a new incarnation: as a learner, filled by the
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..protocols.records import GroupId, GroupState, Identity
from . import identity as identities
from . import journal
from .configuration import NodeConfiguration
from .disk import FileDisk, disk_error
from .log import Log
from .snapshots import SnapshotStore

LOG, SNAPSHOTS = "log", "snapshots"


class Storage(NamedTuple):
    """An open data directory; `recovered` is what the log holds of each group."""

    directory: Path
    disk: FileDisk
    identity: Identity
    log: Log
    recovered: Mapping[GroupId, GroupState]
    snapshots: SnapshotStore


def open_storage(configuration: NodeConfiguration) -> Storage:
    """Open or make the data directory. Raises `DirectoryInUse`, `ForeignDirectory`,
    `UnreadableIdentity`, `CorruptLog` (a `CorruptSnapshot` too), `ForeignLog`, `DiskFailed`,
    `DiskFull`."""
    directory = configuration.data_dir
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk = FileDisk(directory / LOG)
    try:
        identity = identities.load(directory, configuration.name)
        log = _log(configuration, disk, identity)
        recovered = log.open()
        if _may_lack(directory, identity, log):
            journal.say(
                journal.warning,
                "may have lost what it acknowledged: it comes back as a learner",
                reason="unclean stop in mode relaxed" if log.unclean else "its log is gone",
            )
            log.close()
            disk.close()
            identities.set_aside(directory / LOG)
            if (directory / SNAPSHOTS).exists():
                identities.set_aside(directory / SNAPSHOTS)
            disk = FileDisk(directory / LOG)
            identity = identities.renewed(directory, identity)
            log = _log(configuration, disk, identity)
            recovered = log.open()
        snapshots = _open_snapshots(directory, recovered)
        return Storage(directory, disk, identity, log, recovered, snapshots)
    except BaseException:
        disk.close()
        raise


def _may_lack(directory: Path, identity: Identity, log: Log) -> bool:
    """May the log lack something that was acknowledged?"""
    same_boot = identities.same_boot(directory)
    return bool(log.fresh and identity.cluster) or (log.unclean and not same_boot)


def _log(configuration: NodeConfiguration, disk: FileDisk, identity: Identity) -> Log:
    return Log(
        disk,
        node=identity.node,
        incarnation=identity.incarnation,
        segment_bytes=configuration.segment_bytes,
        mode=configuration.durability,
    )


def _open_snapshots(directory: Path, recovered: Mapping[GroupId, GroupState]) -> SnapshotStore:
    named = {group: state.snapshot for group, state in recovered.items() if state.snapshot}
    try:
        snapshots = SnapshotStore(FileDisk(directory / SNAPSHOTS, reserve_bytes=0, hold=False))
        snapshots.clean(named)
    except OSError as error:
        raise disk_error("opening the snapshots", error) from error
    return snapshots
