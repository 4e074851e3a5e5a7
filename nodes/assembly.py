"""An engine from its parts: the plugins, their replicas and raft, wired the same way everywhere.

The law: a node and the simulator get their engines here and nowhere else, so that what is proven
in the one is what runs in the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from ..bus.codec import Codec, Vocabulary
from ..protocols.commands import CommandCodec
from ..protocols.placement.plugin import PlacementPlugin
from ..protocols.plugin import CONTROL, Plugin
from ..protocols.raft.messages import MESSAGES as RAFT_MESSAGES
from ..protocols.raft.messages import Introduce, Introduced
from ..protocols.raft.plugin import Raft
from ..protocols.raft.settings import Settings
from ..protocols.records import GroupId, GroupState, Identity, Member, Snapshot
from ..protocols.registry import Registry
from ..protocols.replica import Replicas
from ..protocols.restoring import restore
from ..protocols.snapshot import DamagedSnapshot
from .engine import Engine, machines_of

OpenSnapshot: TypeAlias = Callable[[GroupId, Snapshot], Iterable[bytes]]
"""The bytes of a snapshot that the log says is on disk. Raises `DamagedSnapshot`."""


def no_snapshots(group: GroupId, snapshot: Snapshot) -> Iterable[bytes]:
    """For a node whose log names none."""
    raise DamagedSnapshot(f"snapshot {snapshot.index} of group {group} is not there")


def assemble(
    identity: Identity,
    plugins: Sequence[Plugin],
    settings: Settings,
    configured: Sequence[Member],
    recovered: Mapping[GroupId, GroupState],
    seed: int,
    open_snapshot: OpenSnapshot = no_snapshots,
) -> Engine:
    """An engine that has not started. `plugins`: fresh instances of all but raft. Raises
    `DamagedSnapshot`."""
    commands = CommandCodec({plugin.name: plugin.messages for plugin in plugins})
    replicas = Replicas(
        lambda group: machines_of(plugins, group), commands, settings.digest_operations
    )
    held = [group for group, state in recovered.items() if state.held]
    for group in sorted({CONTROL, *held}):
        replica = replicas[group] = replicas.make(group)
        state = recovered.get(group)
        if state is not None and state.snapshot is not None:
            restore(replica, open_snapshot(group, state.snapshot))
    versions = tuple(sorted((plugin.name, plugin.version) for plugin in plugins))
    raft = Raft(identity, settings, replicas, recovered, configured, versions)
    for plugin in plugins:
        if isinstance(plugin, PlacementPlugin):
            plugin.attach(
                raft.holding, identity.incarnation, settings.partitions, settings.return_s
            )
    return Engine(identity, plugins, raft, replicas, (Introduce, Introduced), seed)


def bus_codec(plugins: Sequence[Plugin]) -> Codec:
    """The codec of a node with these plugins and raft."""
    vocabularies = {
        name: Vocabulary(**roles) for name, roles in Registry(plugins).vocabularies().items()
    }
    vocabularies[Raft.name] = Vocabulary(peer=RAFT_MESSAGES)
    return Codec(vocabularies)
