"""Files that grow and get new names, on the simulated disk: what a crash leaves of them."""

from __future__ import annotations

import random

import pytest

from coterie.nodes.simulation.disk import SECTOR, SimulatedDisk

CONTENT = b"x" * (2 * SECTOR + 100)


def disk(seed: int) -> SimulatedDisk:
    made = SimulatedDisk(random.Random(seed), 1)
    made.create("new", 0)
    made.settle()
    made.append("new", CONTENT)
    return made


def test_what_was_appended_and_synced_survives_under_its_new_name() -> None:
    for seed in range(50):
        kept = disk(seed)
        kept.sync("new")
        kept.rename("new", "kept")
        kept.settle()
        kept.append("kept", b"more")
        kept.settle()
        kept.crash()
        assert kept.names() == ["kept"]
        assert kept.read_at("kept", 0, len(CONTENT)) == CONTENT
        assert len(kept.read("kept")) <= len(CONTENT) + 4


@pytest.mark.parametrize("renamed", [False, True])
def test_of_what_was_appended_and_not_synced_anything_survives(renamed: bool) -> None:
    found, name = set(), "kept" if renamed else "new"
    for seed in range(300):
        kept = disk(seed)
        if renamed:
            kept.rename("new", "kept")
        kept.settle()
        kept.crash()
        content = kept.read(name)
        assert len(content) <= len(CONTENT)
        assert set(content) <= {0, ord("x")}
        found.add((len(content) // SECTOR, bytes(content).startswith(b"x")))
    assert len(found) >= 5


def test_a_new_name_is_there_or_the_old_one() -> None:
    outcomes = set()
    for seed in range(200):
        kept = disk(seed)
        kept.sync("new")
        kept.create("kept", SECTOR)
        kept.settle()
        kept.rename("new", "kept")
        kept.crash()
        outcomes.add((tuple(kept.names()), kept.read("kept") == CONTENT))
    assert outcomes == {(("kept", "new"), False), (("kept",), True)}


def test_a_file_removed_takes_its_unsynced_bytes_along() -> None:
    kept = disk(1)
    kept.settle()
    kept.remove("new")
    kept.settle()
    kept.crash()
    assert kept.names() == []
    with pytest.raises(FileNotFoundError):
        kept.read_at("new", 0, 1)
