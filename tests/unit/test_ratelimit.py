"""The example of a foreign protocol, against the real replica and the real registry."""

from __future__ import annotations

import configparser
import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from control_group import ControlGroup, DirectPort

from coterie.protocols.errors import Code
from coterie.protocols.plugin import Cancel, Cancelled, Failure
from coterie.protocols.registry import Registry, builtin, discover

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ratelimit"


@pytest.fixture(scope="module")
def ratelimit() -> Iterator[ModuleType]:
    """The example's module, as if its distribution were installed."""
    path = EXAMPLE / "coterie_ratelimit.py"
    spec = importlib.util.spec_from_file_location("coterie_ratelimit", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def group(ratelimit: Any) -> ControlGroup:
    return ControlGroup(ratelimit.RateLimit())


def take(group: ControlGroup, session: int, operation: Any) -> Any:
    return group.ask(session, operation, "ratelimit")


def test_its_entry_point_is_discovered(ratelimit: Any) -> None:
    config = configparser.ConfigParser()
    config.read(EXAMPLE / "setup.cfg")
    line = config["options.entry_points"]["coterie.protocols"].strip()
    name, _, value = (part.strip() for part in line.partition("="))
    found = discover([EntryPoint(name, value, "coterie.protocols")])
    registry = Registry([*builtin(), *found])
    assert registry["ratelimit"].messages == (ratelimit.Take, ratelimit.Taken)


def test_a_bucket_gives_its_burst_and_then_its_rate(group: ControlGroup, ratelimit: Any) -> None:
    session = group.open(7)
    one = ratelimit.Take("login", 1, 2.0, 3)
    answers = [take(group, session, one) for _ in range(4)]
    assert [answer.allowed for answer in answers] == [True, True, True, False]
    assert answers[3].wait_us == 500_000
    group.time_us += 499_999
    assert not take(group, session, one).allowed, "a refusal took nothing"
    group.time_us += 1
    assert take(group, session, one).allowed
    assert not take(group, session, one).allowed
    assert take(group, session, ratelimit.Take("other", 3, 2.0, 3)).allowed


def test_a_retry_takes_once_and_a_cancel_gives_nothing_back(
    group: ControlGroup, ratelimit: Any
) -> None:
    session = group.open(7)
    one = ratelimit.Take("login", 1, 1.0, 2)
    for _ in range(5):
        result = group.one("ratelimit", one, client=7, session=session, sequence=1)
        assert result.allowed  # type: ignore[attr-defined]
    assert group.one("ratelimit", Cancel(1), client=7, session=session) == Cancelled()
    assert take(group, session, one) == Failure(Code.CANCELLED, "the operation was cancelled")
    assert take(group, session, one).allowed
    assert not take(group, session, one).allowed


@pytest.mark.parametrize(
    ("key", "amount", "rate", "burst"),
    [
        ("", 1, 1.0, 1),
        ("x" * 256, 1, 1.0, 1),
        ("a", 0, 1.0, 1),
        ("a", 2, 1.0, 1),
        ("a", 1, 0.0, 1),
        ("a", 1, -1.0, 1),
        ("a", 1, float("nan"), 1),
        ("a", 1, 1e-300, 2**63),
        ("a", 1, 1.0, 86_401),
    ],
)
def test_senseless_limits_are_refused(
    group: ControlGroup, ratelimit: Any, key: str, amount: int, rate: float, burst: int
) -> None:
    result = take(group, group.open(7), ratelimit.Take(key, amount, rate, burst))
    assert isinstance(result, Failure) and result.code is Code.MALFORMED


def test_the_table_is_bounded_and_forgets_full_buckets(
    group: ControlGroup, ratelimit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimit, "BUCKETS_MAX", 3)
    session = group.open(7)
    for key in "abc":
        assert take(group, session, ratelimit.Take(key, 1, 1.0, 1)).allowed
    assert take(group, session, ratelimit.Take("d", 1, 1.0, 1)).code is Code.BUSY
    assert not take(group, session, ratelimit.Take("a", 1, 1.0, 1)).allowed
    group.time_us += 1_000_000
    assert take(group, session, ratelimit.Take("d", 1, 1.0, 1)).allowed


def test_a_snapshot_comes_back(group: ControlGroup, ratelimit: Any) -> None:
    session = group.open(7)
    for key in "abc":
        take(group, session, ratelimit.Take(key, 1, 1.0, 1))
    buckets = group.replica.machines["ratelimit"]
    other = ratelimit.Buckets()
    for chunk in buckets.snapshot():
        other.restore(chunk)
    assert list(other.snapshot()) == list(buckets.snapshot())
    assert list(other.full_at_us) == ["a", "b", "c"]


def test_a_client_is_answered_through_the_plugin(group: ControlGroup, ratelimit: Any) -> None:
    port = DirectPort(group, ratelimit.RateLimit())
    port.request([ratelimit.Take("login", 1, 1.0, 1)], session=group.open(7))
    port.commit()
    assert port.answered() == [ratelimit.Taken(True, 0)]
