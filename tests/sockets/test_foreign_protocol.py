"""A protocol of another distribution on a real cluster: found by its entry point, everywhere."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path

import pytest

import coterie

assert coterie.__file__ is not None
EXAMPLE = Path(coterie.__file__).parent / "examples" / "ratelimit" / "coterie_ratelimit.py"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example as an installer leaves it: its module, and metadata with the entry point."""
    shutil.copy(EXAMPLE, tmp_path)
    metadata = tmp_path / "coterie_ratelimit-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: coterie-ratelimit\nVersion: 1\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[coterie.protocols]\nratelimit = coterie_ratelimit:RateLimit\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_foreign_protocol_serves_calls(installed: Path) -> None:
    take = importlib.import_module("coterie_ratelimit").Take("api", 1, 0.001, 3)
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    with coterie.LocalCluster(3, env={"PYTHONPATH": path}) as cluster, cluster.client() as c:
        allowed = [c.call("ratelimit", take).allowed for _ in range(5)]
    assert allowed == [True, True, True, False, False]
