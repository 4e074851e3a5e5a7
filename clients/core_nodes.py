"""Who leads: what the core knows of the nodes.

The law: a higher term always wins, a lower one never does; a leader that is silent is asked for
again at every node ever named. The endpoints the program gave are never forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..protocols.records import Member
from ..protocols.session.messages import Located

ENDPOINTS_MAX = 64
"""Endpoints kept; beyond that, newly learned ones are ignored."""


class Nodes:
    """The endpoints of the cluster, and which of them leads in which term."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.endpoints: list[str] = list(dict.fromkeys(endpoints))
        self.leader: str | None = None
        self.term = 0
        self.cluster = 0
        self.log_time_us = 0
        self.log_time_at: float | None = None
        self.answered_at: dict[str, float] = {}
        self.located: dict[str, tuple[float, Located]] = {}
        self._endpoint_of: dict[str, str] = {}
        self._spoken_to: dict[str, str] = {}

    def learn(self, members: Sequence[Member]) -> None:
        """Keep the endpoints the cluster advertises beside those given."""
        for member in members:
            endpoint = member.client_endpoint
            if not endpoint or member.node in self._spoken_to:
                continue
            if self._endpoint_of.get(member.node) == endpoint:
                continue
            if len(self._endpoint_of) < ENDPOINTS_MAX or member.node in self._endpoint_of:
                self._endpoint_of[member.node] = endpoint
                if endpoint not in self.endpoints and len(self.endpoints) < ENDPOINTS_MAX:
                    self.endpoints.append(endpoint)

    def endpoint_of(self, node: str) -> str | None:
        """Where a node is reached: the endpoint at which it gave its name, else the advertised."""
        return self._spoken_to.get(node) or self._endpoint_of.get(node)

    def heard(self, endpoint: str, located: Located, now: float) -> bool:
        """Take in an answer to `Locate`; True if it names a leader of at least our term."""
        self.located[endpoint] = (now, located)
        if located.cluster:
            self.cluster = self.cluster or located.cluster
        if len(self._spoken_to) < ENDPOINTS_MAX or located.node in self._spoken_to:
            self._spoken_to[located.node] = endpoint
        self.learn(located.members)
        self.passed(located.log_time_us, now)
        if not located.leader or located.term < self.term:
            return False
        leader = self.endpoint_of(located.leader)
        if leader is None:
            return False
        self.leader, self.term = leader, located.term
        return True

    def passed(self, log_time_us: int, now: float) -> None:
        """The log time was at least this."""
        if log_time_us >= self.log_time_us:
            self.log_time_us, self.log_time_at = log_time_us, now

    def refused(self, hint: str | None) -> bool:
        """The node asked does not lead; True if it named one that can be asked at once."""
        leader = self.endpoint_of(hint) if hint else None
        moved = leader is not None and leader != self.leader
        self.leader = leader if moved else None
        return moved

    def distinct(self) -> list[str]:
        """One endpoint for each node, as far as they are known apart: its name at the front door
        (localhost) and the one it advertises (127.0.0.1) are one node, even if both answer."""
        node_of = {endpoint: node for node, endpoint in self._endpoint_of.items()}
        node_of.update((endpoint, found.node) for endpoint, (_, found) in self.located.items())
        distinct: dict[str, str] = {}
        for endpoint in self.endpoints:
            node = node_of.get(endpoint, endpoint)
            distinct.setdefault(node, self._spoken_to.get(node, endpoint))
        return list(distinct.values())

    def silence(self, seconds: float, since: float) -> str:
        """What to tell a caller who waited for nothing."""
        known = self.distinct()
        answering = [e for e in known if self.answered_at.get(e, since - 1.0) >= since]
        verb = "answers" if len(answering) == 1 else "answer"
        return (
            f"no leader for {seconds:.1f} s; {len(answering)} of {len(known)} nodes "
            f"{verb} ({', '.join(answering or known)}); try 'coterie status'"
        )
