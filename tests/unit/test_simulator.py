"""The parts of the simulator: its disk, its network, its judge and its command."""

from __future__ import annotations

import random
from typing import Any

import pytest
from click.testing import CliRunner

from coterie.__main__ import cli
from coterie.nodes.simulation.disk import SECTOR, SimulatedDisk
from coterie.nodes.simulation.invariants import Violation
from coterie.nodes.simulation.judge import Belief, Judge
from coterie.nodes.simulation.network import LATE_S, Network, Weather
from coterie.nodes.simulator import Failed, Options, World
from coterie.protocols.commands import Window


class Client:
    """What the judge needs of one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True

    def counts_on(self, session: Any) -> bool:
        return self.alive


def disk(seed: int) -> SimulatedDisk:
    made = SimulatedDisk(random.Random(seed), 1)
    made.create("a", 4 * SECTOR)
    made.settle()
    return made


def test_what_was_synced_survives() -> None:
    for seed in range(50):
        kept = disk(seed)
        kept.write("a", 100, b"x" * 1000)
        kept.sync("a")
        kept.settle()
        kept.crash()
        assert kept.read("a")[100:1100] == b"x" * 1000


def test_of_what_was_not_synced_any_sectors_survive() -> None:
    found = set()
    for seed in range(300):
        kept = disk(seed)
        kept.write("a", 0, b"x" * 3 * SECTOR)
        kept.settle()
        kept.crash()
        content = kept.read("a")
        sectors = [content[at : at + SECTOR] for at in range(0, len(content), SECTOR)]
        assert all(sector in (b"x" * SECTOR, bytes(SECTOR)) for sector in sectors)
        found.add(tuple(sector[0] for sector in sectors))
    assert len(found) == 8


def test_a_crash_within_calls_keeps_their_order() -> None:
    """What was written after a sync is there only if what was synced is."""
    outcomes = set()
    for seed in range(200):
        kept = disk(seed)
        kept.write("a", 0, b"1")
        kept.sync("a")
        kept.write("a", SECTOR, b"2")
        kept.crash()
        content = kept.read("a")
        outcomes.add((content[0:1], content[SECTOR : SECTOR + 1]))
    assert outcomes == {(b"\0", b"\0"), (b"1", b"\0"), (b"1", b"2")}


def test_a_kill_takes_nothing_and_a_crash_after_it_what_was_not_synced() -> None:
    outcomes = set()
    for seed in range(300):
        kept = disk(seed)
        kept.write("a", 0, b"1")
        kept.settle()
        kept.write("a", SECTOR, b"2")
        kept.sync("a")
        kept.kill()
        content = kept.read("a")
        assert content[:1] == b"1"
        kept.crash()
        after = kept.read("a")
        outcomes.add((content[SECTOR], after[0], after[SECTOR]))
    one, two = ord("1"), ord("2")
    # Killed before the write, before its sync returned, or after.
    assert {found for found in outcomes if not found[0]} == {(0, 0, 0), (0, one, 0)}
    assert {found for found in outcomes if found[0]} == {
        (two, one_, two_) for one_ in (0, one) for two_ in (0, two)
    }


def test_a_file_made_in_part_is_shorter_and_empty() -> None:
    sizes = set()
    for seed in range(200):
        kept = disk(seed)
        kept.create("b", 4 * SECTOR)
        kept.crash()
        if "b" in kept.names():
            assert not any(kept.read("b"))
            sizes.add(len(kept.read("b")))
    assert len(sizes) == 5


def deliveries(weather: Weather, cut: tuple[str, str] | None = None) -> list[tuple[float, Any]]:
    """When 200 frames from "a" to "b", one each millisecond, come."""
    came: list[tuple[float, Any]] = []

    def at(time: float, action: Any, *arguments: Any) -> None:
        came.append((time, arguments[-1]))

    network = Network(random.Random(1), weather, at, lambda *_: None, 10.0, ("a", "b"))
    if cut is not None:
        network.cut(*cut, until=0.1)
    for number in range(200):
        network.send(number / 1000, "a", "b", number)
    return came


def test_a_good_network_loses_nothing_and_keeps_the_order() -> None:
    came = sorted(deliveries(Weather(jitter_s=0.01)), key=lambda each: each[0])
    assert [frame for _, frame in came] == list(range(200))


def test_a_bad_network_loses_doubles_and_reorders() -> None:
    came = [frame for _, frame in sorted(deliveries(Weather(lose=0.1, double=0.1, reorder=0.1)))]
    assert set(came) < set(range(200))
    assert len(came) > len(set(came))
    assert came != sorted(came)


def test_a_late_copy_comes_long_after() -> None:
    came = deliveries(Weather(late=0.5))
    late = [(time, frame) for time, frame in came if time > frame / 1000 + LATE_S]
    assert len(late) > 50
    assert len(came) == 200 + len(late)


def test_a_cut_is_one_way_and_ends() -> None:
    assert [frame for _, frame in deliveries(Weather(), ("a", "b"))] == list(range(100, 200))
    assert len(deliveries(Weather(), ("b", "a"))) == 200


def belief(client: Any, token: int, shared: bool = False) -> Belief:
    return Belief(client, "lock", shared, token, None)


def test_two_holders_are_seen() -> None:
    judge, one, two = Judge(), Client("one"), Client("two")
    judge.granted(belief(one, 1))
    with pytest.raises(Violation, match="both believe"):
        judge.granted(belief(two, 2))
    one.alive = False
    judge.granted(belief(two, 2))


def test_readers_share_and_bar_a_writer() -> None:
    judge = Judge()
    judge.granted(belief(Client("one"), 1, shared=True))
    judge.granted(belief(Client("two"), 1, shared=True))
    with pytest.raises(Violation, match="both believe"):
        judge.granted(belief(Client("three"), 2))


def test_a_token_that_does_not_rise_is_seen() -> None:
    judge, one = Judge(), Client("one")
    judge.granted(belief(one, 5))
    one.alive = False
    for token in (4, 5):
        with pytest.raises(Violation, match=f"token {token} after 5"):
            judge.granted(belief(Client("two"), token))


def test_a_lost_or_doubled_addition_is_seen() -> None:
    judge = Judge()
    judge.added("one", 2, 2, floor=0)
    with pytest.raises(Violation, match="was told to one too"):
        judge.added("two", 2, 3, floor=0)
    with pytest.raises(Violation, match="was told before"):
        judge.added("two", 1, 2, floor=2)
    with pytest.raises(Violation, match="reads 1"):
        judge.read("two", 1, floor=2)
    with pytest.raises(Violation, match="the counter is 1"):
        Judge.total(judge, 1)


def test_a_total_may_hold_what_nobody_knows_of() -> None:
    judge = Judge()
    judge.added("one", 2, 2, floor=0)
    judge.indeterminate = 3
    judge.total(2)
    judge.total(5)
    with pytest.raises(Violation):
        judge.total(6)


def test_a_session_that_ends_early_is_seen() -> None:
    Judge().lost("one", 7, -0.1)
    with pytest.raises(Violation, match="before its time"):
        Judge().lost("one", 7, 0.1)


def test_options_are_told_as_arguments() -> None:
    assert Options().arguments() == ""
    assert Options(nodes=5, faults="crash").arguments() == " --nodes 5 --faults crash"


def test_the_command_tells_what_happened() -> None:
    run = CliRunner().invoke(cli, ["simulate", "--seed", "1", "--seconds", "1"])
    assert run.exit_code == 0
    assert "every promise kept" in run.output


def test_the_command_prints_every_event() -> None:
    run = CliRunner().invoke(cli, ["simulate", "--seed", "1", "--seconds", "1", "--trace"])
    assert " frame " in run.output and " start " in run.output


def test_the_command_shares_seeds_among_processes() -> None:
    arguments = ["simulate", "--seeds", "1..4", "--seconds", "1", "--processes", "2"]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 0, run.output
    assert run.output.startswith("4 worlds")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--seed", "1", "--seeds", "1..2"],
        ["--seeds", "2..1"],
        ["--seeds", "1..2", "--trace"],
        ["--seed", "1", "--faults", "flood"],
    ],
)
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["simulate", *arguments]).exit_code == 2


def test_a_failing_world_exits_1_and_names_its_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(window: Window, done_below: int) -> None:
        raise Violation("on purpose")

    monkeypatch.setattr(Window, "forget_below", forget)
    run = CliRunner().invoke(cli, ["simulate", "--seeds", "1..3", "--seconds", "2"])
    assert run.exit_code == 1
    assert "replay: coterie simulate --seed" in run.output
    assert "--seconds 2.0" in run.output
    with pytest.raises(Failed, match="on purpose"):
        World(1).run()
