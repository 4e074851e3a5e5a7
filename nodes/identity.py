"""`node.json`: which node and incarnation a data directory belongs to, and of which cluster.

The law: an incarnation is drawn once, when the directory is made, and never again used by another
directory; so whoever lost its disk is a different member and never votes twice. The file is
replaced atomically and is on disk before the call returns.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import msgspec

from ..protocols.records import Identity

FILE = "node.json"


class ForeignDirectory(Exception):
    """The data directory belongs to another node."""


class UnreadableIdentity(Exception):
    """node.json is damaged; the text says what to do."""


def load(directory: Path, node: str) -> Identity:
    """The identity kept in `directory`; a new one (no cluster yet) is drawn and kept if it is new.

    Raises `ForeignDirectory` if the directory was made for another node, `UnreadableIdentity` if
    the file is damaged or the directory holds a log but no identity.
    """
    path = directory / FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        kept = Identity(int(content["cluster"], 16), content["node"], int(content["incarnation"]))
    except FileNotFoundError:
        if any((directory / "log").glob("*.wal")):
            raise UnreadableIdentity(
                f"{directory} holds a log but no {FILE}: move the directory away and start again;"
                " the node then joins anew and is filled by the others"
            ) from None
        kept = Identity(0, node, _draw_incarnation())
        keep(directory, kept)
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableIdentity(
            f"{path} is damaged ({error}): move the directory away and start again; the node then"
            " joins anew and is filled by the others"
        ) from error
    if kept.node != node:
        raise ForeignDirectory(
            f"{directory} belongs to node {kept.node!r}, not {node!r}; give each node its own"
        )
    return kept


def keep(directory: Path, identity: Identity) -> None:
    """Write `node.json`: temporary file, sync, rename, sync of the directory."""
    content = {
        "cluster": f"{identity.cluster:016x}",
        "node": identity.node,
        "incarnation": identity.incarnation,
    }
    temporary = directory / f".{FILE}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, directory / FILE)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def renewed(directory: Path, identity: Identity) -> Identity:
    """The same node with a new incarnation: it comes back as a learner (unclean stop, relaxed)."""
    anew = msgspec.structs.replace(identity, incarnation=_draw_incarnation())
    keep(directory, anew)
    return anew


def same_boot(directory: Path) -> bool:
    """True if the machine was not restarted since this was last asked for this directory: then a
    process that died lost nothing it had written, synced or not. Notes the present boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return False  # not Linux: nobody can tell
    path = directory / "boot"
    same = path.exists() and path.read_text(encoding="ascii") == boot
    path.write_text(boot, encoding="ascii")
    return same


def set_aside(log: Path) -> None:
    """Move a log out of the way; one such is kept beside it, for the operator."""
    aside = log.with_name(log.name + ".aside")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(log, aside)


def _draw_incarnation() -> int:
    return secrets.randbits(62) + 1
