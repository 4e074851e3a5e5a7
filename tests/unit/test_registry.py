"""What may be registered, what message types play which role, and what is found installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from coterie.bus.codec import Codec, Vocabulary
from coterie.bus.frame import plugin_code
from coterie.protocols import registry as registry_module
from coterie.protocols.commands import CommandCodec
from coterie.protocols.lock.messages import MESSAGES, Acquire, GrantedLater, OpenLock
from coterie.protocols.plugin import (
    Cancel,
    Cancelled,
    Failure,
    Message,
    Operation,
    Replicated,
)
from coterie.protocols.registry import (
    BadPlugin,
    BrokenDistribution,
    Registry,
    builtin,
    code,
    discover,
)


class Ping(Message, frozen=True, tag=0):
    pass


class Poke(Operation, frozen=True, tag=1):
    pass


class Misplaced(Operation, frozen=True, tag=5):
    pass


class Example(Replicated):
    name = "example"
    messages: Sequence[type[Message]] = (Ping, Poke)

    def machine(self, group: int) -> None:
        return None


def plugin(**attributes: Any) -> Any:
    return type("Changed", (Example,), attributes)()


def test_ours_and_a_foreign_one() -> None:
    found = Registry([*builtin(), Example()])
    names = ["coordination", "example", "lock", "placement", "session"]
    assert [one.name for one in found] == names, "in order of name"
    assert len(found) == 5 and "lock" in found and "raft" not in found
    assert found["lock"].name == "lock"
    assert found.versions() == tuple((name, 1) for name in names)
    assert list(found.machines(0)) == ["coordination", "lock", "placement", "session"]
    assert found.machines(1) == {}
    assert found.messages()["lock"] == MESSAGES
    CommandCodec(found.messages())


def test_roles_are_told_by_the_base_class() -> None:
    found = Registry([*builtin(), Example()]).vocabularies()
    assert found["example"] == {
        "peer": (Ping,),
        "asked": (Poke, Cancel),
        "answered": (Cancelled, Failure),
        "told": (),
    }
    assert found["lock"]["told"][0] is GrantedLater and found["lock"]["asked"][0] is Acquire
    assert not any(OpenLock in types for types in found["lock"].values()), "never in a frame"
    Codec({name: Vocabulary(**roles) for name, roles in found.items()})


@pytest.mark.parametrize("name", ["lock", "session", "raft", "x" * 32])
def test_the_code_is_the_one_of_the_bus(name: str) -> None:
    assert code(name) == plugin_code(name) and len(code(name)) == 4


@pytest.mark.parametrize("name", ["", "x" * 33, "Lock", "a b", "é", "a/b", None, 3, "lock\n"])
def test_bad_names(name: Any) -> None:
    with pytest.raises(BadPlugin, match="a name is"):
        Registry([plugin(name=name)])


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"messages": (Poke, Ping)}, "Poke has tag 1 and stands at 0"),
        ({"messages": (Ping, Misplaced)}, "Misplaced has tag 5 and stands at 1"),
        ({"messages": (Ping, int)}, r"messages\[1\] is no subclass of Message"),
        ({"on_request": None}, "lacks on_request"),
        ({"flush": None, "check": 3}, "lacks flush, check"),
        ({"placement": "everywhere"}, "placement"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
    ],
)
def test_what_is_wrong_is_named(attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadPlugin, match=reason) as caught:
        Registry([plugin(**attributes)])
    assert caught.value.plugin == "example"


def test_names_and_types_belong_to_one_plugin() -> None:
    with pytest.raises(BadPlugin, match="the name is taken"):
        Registry([Example(), plugin(messages=())])
    with pytest.raises(BadPlugin, match="Ping is a message of 'example' already"):
        Registry([Example(), plugin(name="other")])


def test_a_collision_of_codes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "code", lambda name: b"same")
    with pytest.raises(BadPlugin, match="same 4-byte code as 'example'"):
        Registry([Example(), plugin(name="other", messages=())])


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no such library")


def installed(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "coterie.protocols")


def test_installed_plugins_are_found_in_order_of_name() -> None:
    points = [
        installed("session", "coterie.protocols.session.plugin:SessionPlugin"),
        installed("lock", "coterie.protocols.lock.plugin:LockPlugin"),
    ]
    assert [one.name for one in discover(points)] == ["lock", "session"]
    assert discover([]) == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("lock", "coterie.protocols.nowhere:Plugin", "ModuleNotFoundError"),
        ("lock", "coterie.protocols.lock.plugin:Nothing", "AttributeError"),
        ("other", "coterie.protocols.lock.plugin:LockPlugin", "its class is named 'lock'"),
        ("lock", "builtins:object", "AttributeError"),
        ("lock", f"{__name__}:Broken", "Error"),
    ],
)
def test_a_broken_distribution_is_named(name: str, value: str, reason: str) -> None:
    class Distribution:
        name = "some-distribution"

    point = installed(name, value)
    vars(point).update(dist=Distribution)
    with pytest.raises(BrokenDistribution, match=reason) as caught:
        discover([point])
    assert (caught.value.distribution, caught.value.plugin) == ("some-distribution", name)
    assert "repair or uninstall 'some-distribution'" in str(caught.value)
