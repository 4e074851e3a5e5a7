"""To whom a node is connected: whom its settings name, and whom its cluster has.

The law: group 0's configuration knows better than the settings, which are for the first contact.
Who left the cluster stays connected for a while, so that it can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..protocols.records import Configuration, Member, NodeId

TOLD_MAX = 8
"""So many of the last removed nodes are kept connected."""


class Sockets(Protocol):
    """What is used of `bus.node_sockets.NodeSockets`."""

    def connect_peer(self, node: str, peers: str, publish: str) -> None: ...
    def disconnect_peer(self, node: str) -> None: ...


class PeerLinks:
    """Connects `node` to the nodes of its settings at once, and to others as they come and go."""

    def __init__(self, sockets: Sockets, node: NodeId, configured: Sequence[Member]) -> None:
        self._sockets = sockets
        self._node = node
        self._configured = {m.node: (m.peer_endpoint, m.publish_endpoint) for m in configured}
        self._linked: dict[NodeId, tuple[str, str]] = {}
        self._followed: Configuration | None = None
        self._link(self._configured)

    def follow(self, configuration: Configuration | None) -> None:
        """Called at the end of every turn with the configuration as it is now."""
        if configuration is self._followed or configuration is None:
            return
        self._followed = configuration
        wanted = dict(self._configured)
        removed = [node for node, _ in configuration.removed[-TOLD_MAX:]]
        wanted.update({node: self._linked[node] for node in removed if node in self._linked})
        for member in configuration.members:
            if member.peer_endpoint:
                wanted[member.node] = (member.peer_endpoint, member.publish_endpoint)
        self._link(wanted)

    def _link(self, wanted: dict[NodeId, tuple[str, str]]) -> None:
        for node in [node for node in self._linked if node not in wanted]:
            self._sockets.disconnect_peer(node)
            del self._linked[node]
        for node, endpoints in wanted.items():
            if node != self._node and self._linked.get(node) != endpoints:
                self._linked[node] = endpoints
                self._sockets.connect_peer(node, *endpoints)
