"""The protocols of this installation: ours, and those other distributions add.

The law: a plugin is found by its entry point in the group `coterie.protocols` and by nothing else;
one that cannot be loaded stops the node with its name, as a cluster needs every plugin everywhere.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from ..protocols.plugin import Plugin
from ..protocols.registry import builtin, discover


def installed(deadlock_detection: str = "both") -> list[Plugin]:
    """Fresh instances of all plugins but raft, ours first, the others in order of name."""
    return [*builtin(deadlock_detection), *discover(entry_points(group="coterie.protocols"))]
