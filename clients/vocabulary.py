"""The codec of a client: what it may ask, and what it understands.

The law: third-party plugins are looked for only when one of them is called, since that reads the
metadata of every installed distribution.
"""

from __future__ import annotations

from ..bus.codec import Codec, Vocabulary
from ..protocols.coordination.messages import MESSAGES as COORDINATION
from ..protocols.lock.messages import MESSAGES as LOCK
from ..protocols.plugin import Plugin
from ..protocols.session.messages import MESSAGES as SESSION


def codec_for(plugins: list[Plugin]) -> Codec:
    """A codec for sessions, locks and their kin, and the plugins given."""
    # Here, because the registry brings the state machines with it.
    from ..protocols.registry import vocabulary

    ours = {"session": SESSION, "lock": LOCK, "coordination": COORDINATION}
    messages = {**ours, **{plugin.name: plugin.messages for plugin in plugins}}
    return Codec({name: Vocabulary(**vocabulary(spoken)) for name, spoken in messages.items()})


def foreign_plugins() -> list[Plugin]:
    """The plugins of installed distributions. Raises `BrokenDistribution`."""
    from importlib.metadata import entry_points

    from ..protocols.registry import ENTRY_POINT_GROUP, discover

    return discover(entry_points(group=ENTRY_POINT_GROUP))
