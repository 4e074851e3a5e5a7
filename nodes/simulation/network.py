"""The simulated network: frames that are lost, doubled, late, or overtaken.

The law: it does to frames what sockets, switches and queues may do, and nothing they cannot: a
frame is never altered, and never reaches any other than whom it was sent to. Between nodes a frame
may come twice at once; a client's comes twice only long after, because the client core takes each
refusal for that of another copy it sent, and a connection does deliver once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

LATE_S = 2.0
"""A late copy comes at least so much later than the frame; up to the end of the run."""


class Weather(msgspec.Struct):
    """How bad the network is: probabilities per frame, and latency in seconds."""

    lose: float = 0.0
    double: float = 0.0
    reorder: float = 0.0
    late: float = 0.0
    latency_s: float = 0.0005
    jitter_s: float = 0.0005


def draw_weather(source: random.Random) -> Weather:
    """Every third world has a good network: then the faults alone are at work."""
    bad = source.random() < 0.67
    return Weather(
        lose=source.choice((0.0, 0.01, 0.05, 0.1)) if bad else 0.0,
        double=source.choice((0.0, 0.02, 0.1)) if bad else 0.0,
        reorder=source.choice((0.0, 0.02, 0.2)) if bad else 0.0,
        late=source.choice((0.0, 0.01)) if bad else 0.0,
        latency_s=source.choice((0.0002, 0.001, 0.005)),
        jitter_s=source.choice((0.0002, 0.001, 0.01)),
    )


class Network:
    """Frames between named ends. `deliver(sender, to, frame)` is called when one arrives."""

    def __init__(
        self,
        source: random.Random,
        weather: Weather,
        at: Callable[..., None],
        deliver: Callable[[str, str, Any], None],
        end_s: float,
        nodes: Sequence[str],
    ) -> None:
        self.weather = weather
        self.sent = self.lost = 0
        self._random = source.random
        self._at = at
        self._deliver = deliver
        self._end_s = end_s
        self._nodes = dict.fromkeys(nodes)
        self._cut_until: dict[tuple[str, str], float] = {}
        self._last_s: dict[tuple[str, str], float] = {}

    def send(self, now: float, sender: str, to: str, frame: Any) -> None:
        """`now`: when it leaves, in the world's time."""
        self.sent += 1
        pair = (sender, to)
        cut_until = self._cut_until.get(pair)
        if cut_until is not None:
            if now < cut_until:
                self.lost += 1
                return
            del self._cut_until[pair]
        weather, draw = self.weather, self._random
        if weather.late and draw() < weather.late:
            earliest = now + LATE_S
            self._at(
                earliest + draw() * max(0.0, self._end_s - earliest),
                self._deliver,
                sender,
                to,
                frame,
            )
        if weather.lose and draw() < weather.lose:
            self.lost += 1
            return
        between_nodes = sender in self._nodes and to in self._nodes
        if between_nodes and weather.double and draw() < weather.double:
            self._at(now + weather.latency_s + draw() * 0.1, self._deliver, sender, to, frame)
        at = now + weather.latency_s + draw() * weather.jitter_s
        if weather.reorder and draw() < weather.reorder:
            at += draw() * 0.1
        else:
            # One connection delivers in order.
            at = max(at, self._last_s.get(pair, 0.0))
            self._last_s[pair] = at
        self._at(at, self._deliver, sender, to, frame)

    def join(self, node: str) -> None:
        """One more node."""
        self._nodes[node] = None

    def cut(self, sender: str, to: str, until: float) -> None:
        """Frames from `sender` to `to` are lost until then; the other direction is not touched."""
        self._cut_until[sender, to] = until

    def heal(self) -> None:
        """From now on nothing is lost, doubled or late; what is under way still comes."""
        self._cut_until.clear()
        self.weather = Weather()
