"""What holds for every test: no module of ours is ever loaded under two names, and a process that
a test starts can be interrupted."""

from __future__ import annotations

import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import coterie

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("protocols", "bus", "clients", "nodes", "bench")


def loaded_twice() -> dict[Path, list[str]]:
    """Files of the package that this process has loaded under more than one name."""
    names: dict[Path, list[str]] = defaultdict(list)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name != "__main__" and is_ours(Path(file).resolve()):
            names[Path(file).resolve()].append(name)
    return {path: found for path, found in names.items() if len(found) > 1}


def is_ours(path: Path) -> bool:
    """True for the package's own files; tests and an environment in the checkout are not."""
    if not path.is_relative_to(ROOT):
        return False
    folder, *rest = path.relative_to(ROOT).parts
    return not rest or folder in ROOMS


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def one_name_per_module() -> Iterator[None]:
    """Two copies of a module are two sets of classes: `isinstance` and `except` would lie."""
    assert Path(coterie.__file__).resolve().parent == ROOT, (
        f"the tests would run against {coterie.__file__}; "
        "install this checkout: pip install -e '.[test]'"
    )
    yield
    assert not loaded_twice()


@pytest.fixture(scope="session")
def cluster() -> Iterator[coterie.LocalCluster]:
    """Three node processes that all tests share: who hurts a node, heals it."""
    with coterie.LocalCluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background job ignores SIGINT, and so would all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
