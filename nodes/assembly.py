"""An engine from its parts: the plugins, their replicas and raft, wired the same way everywhere.

The law: a node and the simulator get their engines here and nowhere else, so that what is proven
in the one is what runs in the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..bus.codec import Codec, Vocabulary
from ..protocols.plugin import Plugin
from ..protocols.raft.messages import MESSAGES as RAFT_MESSAGES
from ..protocols.raft.messages import Introduce, Introduced
from ..protocols.raft.plugin import Raft
from ..protocols.raft.settings import Settings
from ..protocols.records import GroupId, GroupState, Identity, Member
from ..protocols.registry import Registry
from ..protocols.replica import CommandCodec, Replica
from .engine import Engine, make_replicas


def assemble(
    identity: Identity,
    plugins: Sequence[Plugin],
    settings: Settings,
    configured: Sequence[Member],
    recovered: Mapping[GroupId, GroupState],
    seed: int,
) -> Engine:
    """An engine that has not started. `plugins`: fresh instances of all but raft."""
    commands = CommandCodec({plugin.name: plugin.messages for plugin in plugins})

    replicas = make_replicas(
        plugins, settings.groups, lambda group, machines: Replica(group, machines, commands)
    )
    versions = tuple(sorted((plugin.name, plugin.version) for plugin in plugins))
    raft = Raft(identity, settings, replicas, recovered, configured, versions)
    return Engine(identity, plugins, raft, replicas, (Introduce, Introduced), seed)


def bus_codec(plugins: Sequence[Plugin]) -> Codec:
    """The codec of a node with these plugins and raft."""
    vocabularies = {
        name: Vocabulary(**roles) for name, roles in Registry(plugins).vocabularies().items()
    }
    vocabularies[Raft.name] = Vocabulary(peer=RAFT_MESSAGES)
    return Codec(vocabularies)
