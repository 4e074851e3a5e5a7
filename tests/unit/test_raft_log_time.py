"""Log time over changes of leader: no deadline comes nearer than it was promised.

Found by `coterie simulate --seed 312`: a session of one second ended after half of it.
"""

from __future__ import annotations

from raft_world import World


def ahead(world: World) -> int:
    """n1 leads; n3 hears how its time goes on, n2 does not. The time that n3 heard."""
    world.elect("n1")
    world.settle()
    for _ in range(10):
        world.time += 0.06
        world.beat("n1")
        world.drop(to="n2")
        world.settle()
    reached = world.nodes["n3"].log_time_us(0)
    assert reached > world.nodes["n2"].log_time_us(0) + 500_000
    world.crash("n1")
    return reached


def test_a_leader_goes_on_from_the_time_its_log_was_counted_by() -> None:
    world = World()
    reached = ahead(world)
    world.elect("n2")
    world.propose("n2", "a")
    world.settle()
    time_us = world.group("n2").log.entries[-1].time_us
    assert time_us < reached
    world.crash("n2")
    world.restart("n1")
    world.elect("n3")
    assert world.nodes["n3"].log_time_us(0) < reached
    assert world.nodes["n3"].log_time_us(0) >= time_us


def test_the_time_heard_counts_for_who_has_the_log_it_goes_with() -> None:
    world = World()
    reached = ahead(world)
    world.elect("n3")
    assert world.nodes["n3"].log_time_us(0) == reached
