"""`c.call`: a protocol of another distribution, on real nodes."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import coterie
from coterie.protocols.lock.messages import Inspect, LockStates
from coterie.protocols.plugin import Message

METADATA = "Metadata-Version: 2.1\nName: coterie-ratelimit\nVersion: 0.1.0\n"
ENTRY_POINTS = "[coterie.protocols]\nratelimit = coterie_ratelimit:RateLimit\n"


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the example as pip would install it."""
    directory = tmp_path_factory.mktemp("installed")
    shutil.copy(root / "examples" / "ratelimit" / "coterie_ratelimit.py", directory)
    described = directory / "coterie_ratelimit-0.1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(METADATA)
    (described / "entry_points.txt").write_text(ENTRY_POINTS)
    return directory


@pytest.fixture(scope="module")
def limited(installed: Path) -> Iterator[coterie.LocalCluster]:
    """A node that has the example's protocol."""
    with coterie.LocalCluster(1, env={"PYTHONPATH": str(installed)}) as cluster:
        yield cluster


@pytest.fixture
def ratelimit(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(installed))
    yield importlib.import_module("coterie_ratelimit")
    del sys.modules["coterie_ratelimit"]


def test_an_operation_of_a_foreign_protocol(
    limited: coterie.LocalCluster, ratelimit: ModuleType
) -> None:
    with limited.client() as client:
        take = ratelimit.Take("door", 1, 0.001, 2)
        taken = [client.call("ratelimit", take) for _ in range(3)]
        assert [answer.allowed for answer in taken] == [True, True, False]  # type: ignore[attr-defined]
        with client.lock("a"):
            assert client.session_id is not None
        with pytest.raises(coterie.CoterieError, match="amount"):
            client.call("ratelimit", ratelimit.Take("door", 0, 1.0, 1))


def test_what_cannot_be_sent_is_refused_here(
    limited: coterie.LocalCluster, ratelimit: ModuleType
) -> None:
    with limited.client() as client:
        with pytest.raises(coterie.CoterieError, match="no plugin 'nonsense' is installed"):
            client.call("nonsense", ratelimit.Take("door", 1, 1.0, 1))
        with pytest.raises(TypeError, match="Operation or a Query"):
            client.call("ratelimit", ratelimit.Taken(True, 0))
        with pytest.raises(coterie.TooLarge):
            client.call("ratelimit", ratelimit.Take("x" * (1024 * 1024), 1, 1.0, 1))
        with pytest.raises(coterie.CoterieError, match="partitions"):
            client.call("ratelimit", ratelimit.Take("door", 1, 1.0, 1), key="door")


def test_a_cluster_without_the_protocol_keeps_silent(
    cluster: coterie.LocalCluster, ratelimit: ModuleType
) -> None:
    """A node drops a frame of a protocol it does not know."""
    unknown = pytest.raises(coterie.Indeterminate, match="does it know 'ratelimit'")
    with cluster.client(timeout=0.5) as client, unknown:
        client.call("ratelimit", ratelimit.Take("door", 1, 1.0, 1))


def test_the_protocols_of_coterie_are_called_too(cluster: coterie.LocalCluster) -> None:
    with cluster.client() as client:
        answer: Message = client.call("lock", Inspect("nobody's"))
        assert answer == LockStates(())
