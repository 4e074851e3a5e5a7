"""How a node without a cluster finds one, or founds one.

The law: a node asks before it founds. Only the first configured node founds, and only when a
majority of the configured nodes, itself included, said that they know of no cluster; so a node
whose disk was lost joins the cluster that is there instead of founding a second one, and comes
back under a new incarnation that never voted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from ..errors import Code
from ..plugin import Failure
from ..records import Configuration, Identity, Member, NodeId
from .group import FOREVER
from .membership import encode
from .messages import Introduce, Introduced
from .turn import Turn

PluginSet = tuple[tuple[str, int], ...]

_decoder = msgspec.msgpack.Decoder(Configuration)


def compare_plugins(ours: PluginSet, theirs: PluginSet) -> Failure | None:
    """A failure naming what this node lacks or has too many, compared to its cluster."""
    lacking = [f"{name} {version}" for name, version in theirs if (name, version) not in ours]
    extra = [f"{name} {version}" for name, version in ours if (name, version) not in theirs]
    if not lacking and not extra:
        return None
    parts = [f"lacks {', '.join(lacking)}"] * bool(lacking)
    parts += [f"has {', '.join(extra)} too many"] * bool(extra)
    text = f"this node {' and '.join(parts)}: install the plugins its cluster was founded with"
    return Failure(Code.PLUGINS_DIFFER, text, (*lacking, *extra))


class Founding:
    """The conversation of a node with its configured peers until it belongs to a cluster, and
    after that until its incarnation is recorded. `deadline`: when to introduce itself next;
    `members`: the nodes that group 0's configuration names."""

    def __init__(
        self, turn: Turn, configured: Sequence[Member], plugins: PluginSet,
        join: Callable[[int, bytes], None], members: Callable[[], Iterable[NodeId]],
    ) -> None:  # fmt: skip
        self.turn = turn
        self.identity = turn.identity
        self.configured = sorted(configured, key=lambda member: member.node)
        self.plugins = plugins
        self.join = join
        self.members = members
        self.cluster = 0
        self.payload = b""
        self.empty: dict[NodeId, Member] = {}
        self.asked: list[NodeId] = []
        self.began_at = 0.0
        self.deadline = FOREVER
        self.decided = False

    def begin(self) -> None:
        self.began_at = self.deadline = self.turn.port.now()

    def us(self) -> Member:
        identity: Identity = self.identity
        return Member(
            identity.node, identity.incarnation, True, identity.client_endpoint,
            identity.peer_endpoint, identity.publish_endpoint,
        )  # fmt: skip

    def introduce(self) -> None:
        """Tell every peer we know of who we are; again every 200 ms."""
        port, settings = self.turn.port, self.turn.settings
        self.deadline = port.now() + settings.introduce_s
        message = Introduce(self.cluster, self.us(), self.plugins)
        for node in dict.fromkeys((*self.turn.configured, *self.members())):
            if node != self.identity.node:
                port.send(node, message)
        self.found()

    def answer(self, message: Introduce, recorded: int, removed: bool) -> None:
        """Tell a peer what we know of a cluster."""
        node = message.member.node
        if not self.cluster and node in self.turn.configured and node not in self.asked:
            self.asked.append(node)
        answer = Introduced(
            self.cluster, self.us(), self.plugins, message.member.incarnation, recorded,
            self.payload, removed,
        )  # fmt: skip
        self.turn.port.send(node, answer)

    def on_introduced(self, message: Introduced) -> None:
        """A peer answered: join its cluster, or count it among the empty ones."""
        if message.removed and message.asker == self.identity.incarnation:
            text = "this node was removed from its cluster; to add it again, empty its directory"
            self.turn.port.stop(Failure(Code.REMOVED, text))
            return
        if self.cluster or self.decided:
            return
        if message.cluster:
            # What is founded holds the plugin set; a listener has only the one it was told.
            payload = message.founding
            founding = _decoder.decode(payload) if payload else None
            theirs = founding.plugins if founding else message.plugins
            differ = compare_plugins(self.plugins, theirs)
            if differ is not None:
                self.turn.port.stop(differ)
                return
            ours = founding is not None and any(
                (member.node, member.incarnation) == (self.identity.node, self.identity.incarnation)
                for member in founding.members
            )
            self.decided = True
            self.join(message.cluster, payload if ours else b"")
        elif message.asker == self.identity.incarnation and self._configured(message.member):
            self.empty[message.member.node] = message.member
            self.found()

    def found(self) -> None:
        """Found the cluster if it is for us to do, and time."""
        configured, us = self.configured, self.us()
        if self.cluster or self.decided or configured[0].node != us.node:
            return
        port, settings = self.turn.port, self.turn.settings
        names = [member.node for member in configured]
        heard = {us.node: us, **self.empty}
        waited = port.now() >= self.began_at + settings.founding_s
        if 2 * len(heard) <= len(names) or not (waited or len(heard) == len(names)):
            return
        members = tuple(self._recorded(member, heard.get(member.node)) for member in configured)
        cluster = port.random.getrandbits(64) or 1
        self.decided = True
        self.join(cluster, encode(Configuration(cluster, members, self.plugins)))

    def _configured(self, member: Member) -> bool:
        return member.node in self.turn.configured and member.node != self.identity.node

    @staticmethod
    def _recorded(configured: Member, heard: Member | None) -> Member:
        if heard is None:
            return msgspec.structs.replace(configured, incarnation=0, voter=True)
        return Member(
            configured.node, heard.incarnation, True,
            heard.client_endpoint or configured.client_endpoint,
            heard.peer_endpoint or configured.peer_endpoint,
            heard.publish_endpoint or configured.publish_endpoint,
        )  # fmt: skip

    def joined(self, cluster: int) -> None:
        """We belong to a cluster; who asked meanwhile is told at once."""
        self.cluster = cluster
        asked, self.asked = self.asked, []
        for node in asked:
            port = self.turn.port
            port.send(node, Introduced(cluster, self.us(), self.plugins, 0, 0, self.payload))
