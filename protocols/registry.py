"""The set of plugins of a node or client, checked when it is made.

The law: what is registered can be told apart on the wire. Names, their 4-byte codes and message
types are distinct, and a message's tag is its position in its plugin's `messages`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias

from .coordination.plugin import CoordinationPlugin
from .lock.plugin import LockPlugin
from .placement.plugin import PlacementPlugin
from .plugin import (
    Cancel,
    Cancelled,
    Failure,
    GroupId,
    Hint,
    Internal,
    Message,
    Operation,
    Plugin,
    Query,
    Result,
    StateMachine,
)
from .session.plugin import SessionPlugin

ENTRY_POINT_GROUP = "coterie.protocols"
"""The entry point group under which a distribution offers plugin classes."""

Vocabulary: TypeAlias = dict[str, tuple[type[Message], ...]]
"""Message types by role: the fields of the frame codec's own `Vocabulary`."""

PLACEMENTS = ("control", "partitioned")

METHODS = (
    "start", "machine", "on_message", "on_request", "on_applied", "on_read", "on_failed",
    "on_leader", "deadline", "on_deadline", "flush", "check", "status",
)  # fmt: skip
"""What the engine calls on every plugin."""

_NAME = re.compile(r"[a-z0-9_-]{1,32}")
_ROLES = (Operation, Query, Internal, Result, Hint)


class BadPlugin(ValueError):
    """A plugin cannot be registered: `plugin` is its name, the text says what to mend."""

    def __init__(self, plugin: str, reason: str) -> None:
        super().__init__(f"plugin {plugin!r}: {reason}")
        self.plugin = plugin


class BrokenDistribution(ImportError):
    """An installed distribution offers a plugin that cannot be loaded."""

    def __init__(self, distribution: str, plugin: str, reason: str) -> None:
        super().__init__(
            f"the distribution {distribution!r} offers the protocol {plugin!r}, which cannot be "
            f"loaded ({reason}); repair or uninstall {distribution!r}"
        )
        self.distribution = distribution
        self.plugin = plugin


class EntryPoint(Protocol):
    """What is used of `importlib.metadata.EntryPoint`."""

    @property
    def name(self) -> str: ...
    @property
    def dist(self) -> Any: ...
    def load(self) -> Any: ...


def code(name: str) -> bytes:
    """The address of a plugin in frames: the first 4 bytes of blake2b(name)."""
    return blake2b(name.encode()).digest()[:4]


def vocabulary(messages: Sequence[type[Message]]) -> Vocabulary:
    """Message types by role, with the answers and the `Cancel` that all plugins share: `peer` go
    between nodes, `asked` are operations and queries, `answered` results, `told` hints. An
    `Internal` has no role here: it goes nowhere but into the log."""

    def of(*roles: type[Message]) -> tuple[type[Message], ...]:
        return tuple(message for message in messages if issubclass(message, roles))

    return {
        "peer": tuple(message for message in messages if not issubclass(message, _ROLES)),
        "asked": (*of(Operation, Query), Cancel),
        "answered": (*of(Result), Cancelled, Failure),
        "told": of(Hint),
    }


class Registry:
    """Plugins by name, in order of name. Raises `BadPlugin`."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self._plugins: dict[str, Plugin] = {}
        codes: dict[bytes, str] = {}
        owners: dict[type[Message], str] = {}
        for plugin in plugins:
            name = _checked_name(plugin)
            if name in self._plugins:
                raise BadPlugin(name, "the name is taken; names are unique")
            other = codes.setdefault(code(name), name)
            if other != name:
                raise BadPlugin(name, f"has the same 4-byte code as {other!r}; choose another name")
            _check_interface(name, plugin)
            for position, message in enumerate(plugin.messages):
                _check_message(name, position, message)
                if message in owners:
                    raise BadPlugin(
                        name,
                        f"{message.__name__} is a message of {owners[message]!r} already; "
                        "give each plugin types of its own",
                    )
                owners[message] = name
            self._plugins[name] = plugin
        self._plugins = dict(sorted(self._plugins.items()))

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self._plugins.values())

    def __len__(self) -> int:
        return len(self._plugins)

    def __contains__(self, name: object) -> bool:
        return name in self._plugins

    def __getitem__(self, name: str) -> Plugin:
        return self._plugins[name]

    def versions(self) -> tuple[tuple[str, int], ...]:
        """(name, version) of every plugin, as `Configuration.plugins` records them."""
        return tuple((name, plugin.version) for name, plugin in self._plugins.items())

    def messages(self) -> dict[str, Sequence[type[Message]]]:
        """Message types by plugin, for `CommandCodec`."""
        return {name: plugin.messages for name, plugin in self._plugins.items()}

    def vocabularies(self) -> dict[str, Vocabulary]:
        """Message types by plugin and role, for the codec of frames."""
        return {name: vocabulary(plugin.messages) for name, plugin in self._plugins.items()}

    def machines(self, group: GroupId) -> dict[str, StateMachine]:
        """New state machines for a group's `Replica`, in order of plugin name."""
        made = {name: plugin.machine(group) for name, plugin in self._plugins.items()}
        return {name: machine for name, machine in made.items() if machine is not None}


def builtin(deadlock_detection: str = "both") -> list[Plugin]:
    """The plugins coterie comes with, new. Raft, which owns the log, is added by the engine."""
    return [
        SessionPlugin(),
        LockPlugin(deadlock_detection),
        CoordinationPlugin(),
        PlacementPlugin(),
    ]


def discover(entry_points: Iterable[EntryPoint]) -> list[Plugin]:
    """New plugins of the installed distributions, in order of name. The caller passes
    `importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)`. Raises `BrokenDistribution`."""
    found: list[Plugin] = []
    for entry_point in sorted(entry_points, key=lambda entry_point: entry_point.name):
        distribution = getattr(entry_point.dist, "name", None) or "unknown"
        try:
            plugin: Plugin = entry_point.load()()
            name = plugin.name
        except Exception as error:  # anything at all may happen in foreign code
            raise BrokenDistribution(distribution, entry_point.name, repr(error)) from error
        if name != entry_point.name:
            reason = f"its class is named {name!r}"
            raise BrokenDistribution(distribution, entry_point.name, reason)
        found.append(plugin)
    return found


def _checked_name(plugin: Plugin) -> str:
    name = getattr(plugin, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadPlugin(str(name), "a name is 1 to 32 of a-z, 0-9, _ and -")
    return name


def _check_interface(name: str, plugin: Plugin) -> None:
    missing = [method for method in METHODS if not callable(getattr(plugin, method, None))]
    if missing:
        raise BadPlugin(name, f"lacks {', '.join(missing)}; subclass Replicated to get them")
    if getattr(plugin, "placement", None) not in PLACEMENTS:
        raise BadPlugin(name, f"its placement must be one of {', '.join(PLACEMENTS)}")
    if type(getattr(plugin, "version", None)) is not int or plugin.version < 1:
        raise BadPlugin(name, "its version must be an integer from 1")


def _check_message(name: str, position: int, message: Any) -> None:
    if not isinstance(message, type) or not issubclass(message, Message):
        raise BadPlugin(name, f"messages[{position}] is no subclass of Message")
    config = message.__struct_config__
    if config.tag != position or type(config.tag) is not int:
        raise BadPlugin(
            name,
            f"{message.__name__} has tag {config.tag!r} and stands at {position}; "
            "the tag must be the position",
        )
    if not config.array_like:
        raise BadPlugin(name, f"{message.__name__} must stay array_like")
