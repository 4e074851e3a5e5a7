"""A data directory: `node.json`, the log, and what to do when they do not fit together.

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
from .disk import FileDisk
from .log import Log

LOG = "log"


class Storage(NamedTuple):
    """An open data directory; `recovered` is what the log holds of each group."""

    directory: Path
    disk: FileDisk
    identity: Identity
    log: Log
    recovered: Mapping[GroupId, GroupState]


def open_storage(configuration: NodeConfiguration) -> Storage:
    """Open or make the data directory. Raises `DirectoryInUse`, `ForeignDirectory`,
    `UnreadableIdentity`, `CorruptLog`, `ForeignLog`, `DiskFailed`, `DiskFull`."""
    directory = configuration.data_dir
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk = FileDisk(directory / LOG)
    try:
        identity = identities.load(directory, configuration.name)
        storage = _open_log(configuration, directory, disk, identity)
        if not _may_lack(storage):
            return storage
        journal.say(
            journal.warning,
            "may have lost what it acknowledged: it comes back as a learner",
            reason="unclean stop in mode relaxed" if storage.log.unclean else "its log is gone",
        )
        storage.log.close()
        disk.close()
        identities.set_aside(directory / LOG)
        disk = FileDisk(directory / LOG)
        renewed = identities.renewed(directory, identity)
        return _open_log(configuration, directory, disk, renewed)
    except BaseException:
        disk.close()
        raise


def _may_lack(storage: Storage) -> bool:
    """May the log lack something that was acknowledged?"""
    log, same_boot = storage.log, identities.same_boot(storage.directory)
    return bool(log.fresh and storage.identity.cluster) or (log.unclean and not same_boot)


def _open_log(
    configuration: NodeConfiguration, directory: Path, disk: FileDisk, identity: Identity
) -> Storage:
    log = Log(
        disk,
        node=identity.node,
        incarnation=identity.incarnation,
        segment_bytes=configuration.segment_bytes,
        mode=configuration.durability,
    )
    return Storage(directory, disk, identity, log, log.open())
