"""What one turn of 128 lock operations costs in the two codecs: client frames and log entries."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from coterie.bus.codec import Ask, Codec, Vocabulary
from coterie.bus.frame import Kind
from coterie.protocols.commands import CommandCodec
from coterie.protocols.lock.messages import MESSAGES, Acquire, Granted
from coterie.protocols.plugin import Command

pytestmark = pytest.mark.benchmark(group="codec", max_time=0.3, min_rounds=5, disable_gc=True)

OPERATIONS = [Acquire(f"bench/{number}") for number in range(128)]
SEQUENCES = list(range(1, 129))
CLUSTER = 7


@pytest.fixture
def codec() -> Codec:
    return Codec({"lock": Vocabulary(asked=(Acquire,), answered=(Granted,))})


def ask(codec: Codec) -> list[bytes]:
    return codec.encode_ask("lock", CLUSTER, 1, 2, 0, 1, 9_000_000, SEQUENCES, OPERATIONS)


def test_encode_ask(benchmark: BenchmarkFixture, codec: Codec) -> None:
    frames = benchmark(ask, codec)
    assert len(frames) == 1


def test_decode_ask(benchmark: BenchmarkFixture, codec: Codec) -> None:
    (frame,) = ask(codec)
    plugin, _, envelope = benchmark(codec.decode, frame, CLUSTER, (Kind.ASK,))
    assert plugin == "lock"
    assert isinstance(envelope, Ask) and envelope.operations == OPERATIONS


def test_encode_answer(benchmark: BenchmarkFixture, codec: Codec) -> None:
    results = [Granted(number, number) for number in SEQUENCES]
    frames = benchmark(codec.encode_answer, "lock", CLUSTER, 0, SEQUENCES, results)
    assert len(frames) == 1


@pytest.fixture
def commands() -> CommandCodec:
    return CommandCodec({"lock": MESSAGES})


def command() -> Command:
    return Command("lock", 1, 2, 1, 9_000_000, SEQUENCES, OPERATIONS)


def test_encode_entry(benchmark: BenchmarkFixture, commands: CommandCodec) -> None:
    assert benchmark(commands.encode, [command()])


def test_decode_entry(benchmark: BenchmarkFixture, commands: CommandCodec) -> None:
    payload = commands.encode([command()])
    (decoded,) = benchmark(commands.decode, payload)
    assert decoded.operations == OPERATIONS
