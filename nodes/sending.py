"""What a turn sends: messages to peers, answers and hints to clients, as frames.

The law: one frame per peer and plugin, and per client, plugin and group, however much there is to
say; what is too large for a frame is told and counted, never cut.
"""

from __future__ import annotations

from ..bus.codec import Codec, TooLarge
from ..bus.node_sockets import NodeSockets
from ..protocols.errors import Code
from ..protocols.plugin import Failure, Result
from . import journal
from .counters import Counters
from .engine import Effects, Engine
from .machine import monotonic_s


class Sender:
    """Puts the effects of one node's turns on its sockets."""

    def __init__(self, codec: Codec, sockets: NodeSockets, counters: Counters) -> None:
        self._codec = codec
        self._sockets = sockets
        self._counters = counters

    def send(self, engine: Engine, effects: Effects) -> None:
        """Send all that the turn wants said; peers first."""
        if effects.messages:
            self._send_peers(engine, effects)
        cluster = engine.identity.cluster
        if effects.answers:
            self._counters.answered(effects.answers, monotonic_s())
            self._send_answers(cluster, effects)
        for route, plugin, hints in effects.hints:
            self._counters.hinted(plugin, hints)
            for frame in self._codec.encode_tell(plugin, cluster, hints):
                self._sockets.send_client(route, frame)

    def _send_peers(self, engine: Engine, effects: Effects) -> None:
        identity, log = engine.identity, engine.log
        for (to, plugin), messages in effects.messages.items():
            try:
                frames = self._codec.encode_peer(
                    plugin,
                    identity.cluster,
                    identity.node,
                    identity.incarnation,
                    log.recorded_incarnation(to) or 0,
                    messages,
                )
            except TooLarge as error:
                self._counters.dropped["too_large_for_peer"] += 1
                journal.say(journal.error, "cannot send", to=to, reason=error)
                continue
            for frame in frames:
                self._sockets.send_peer(to, frame)

    def _send_answers(self, cluster: int, effects: Effects) -> None:
        merged: dict[tuple[bytes, str, int], tuple[list[int], list[Result]]] = {}
        for request, results in effects.answers:
            key = (request.route, request.plugin, request.group)
            into = merged.get(key)
            if into is None:
                merged[key] = (list(request.sequences), list(results))
            else:
                into[0].extend(request.sequences)
                into[1].extend(results)
        for (route, plugin, group), (sequences, answered) in merged.items():
            try:
                frames = self._codec.encode_answer(plugin, cluster, group, sequences, answered)
            except TooLarge as error:
                failure = Failure(Code.TOO_LARGE, f"the answer is too large: {error}")
                frames = self._codec.encode_answer(
                    plugin, cluster, group, sequences, [failure] * len(sequences)
                )
            for frame in frames:
                self._sockets.send_client(route, frame)
