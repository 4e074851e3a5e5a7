"""The house rules of ARCHITECTURE.md, read from the source itself.

Each rule is a function from modules to the list of what breaks it, so that every rule is also
tried on a few lines that do break it: a rule that cannot fail proves nothing.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import loaded_twice

import coterie

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("protocols", "bus", "clients", "nodes", "bench")

# What a room may import of ours, apart from itself.
MAY_IMPORT: dict[str, set[str]] = {
    "": set(ROOMS),  # __init__ and __main__ only name the homes of what they load
    "protocols": set(),
    "bus": set(),
    "clients": {"protocols", "bus"},
    "nodes": {"protocols", "bus"},
    "bench": {"protocols", "bus", "clients", "nodes"},
}
# The parts of nodes/ that are clients of a cluster themselves, or simulate some.
NODES_WITH_CLIENTS = (
    "nodes.gateway", "nodes.local", "nodes.demo", "nodes.simulation.clients",
    "nodes.administration", "nodes.members", "nodes.ring_view",
)  # fmt: skip

PURE = (
    "protocols", "nodes.engine", "nodes.assembly", "nodes.simulation", "nodes.wal", "clients.core",
)  # fmt: skip
IMPURE = {
    "aiohttp", "asyncio", "click", "concurrent", "ctypes", "datetime", "fcntl", "glob", "http",
    "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "queue", "redis", "rich", "sched",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl",
    "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid", "zmq",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "hash", "id", "__import__"}
UNSAFE_LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
LINES_MAX = 450
PAUSE_S_MAX = 0.05
TYPING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@dataclass(frozen=True)
class Module:
    """One source file of the package. `name` is relative to coterie: "nodes.engine"."""

    name: str
    tree: ast.Module
    lines: int = 0
    is_package: bool = False

    @property
    def room(self) -> str:
        return self.name.split(".")[0] if self.name.split(".")[0] in ROOMS else ""


def module(name: str, source: str) -> Module:
    return Module(name, ast.parse(source), source.count("\n"))


def read(path: Path, root: Path) -> Module:
    source = path.read_text()
    parts = path.relative_to(root).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    return Module(name, ast.parse(source, str(path)), source.count("\n"), is_package)


def source_files() -> list[Path]:
    files = [*ROOT.glob("*.py")]
    for room in ROOMS:
        files += (ROOT / room).rglob("*.py")
    return sorted(files)


@pytest.fixture(scope="module")
def house() -> list[Module]:
    return [read(path, ROOT) for path in source_files()]


def files_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def imports(module: Module, *, types: bool = True) -> Iterator[tuple[str, str]]:
    """(kind, target) of every import, inside functions too: ("ours", "bus.codec") or
    ("foreign", "os.path") or ("absolute", "coterie.bus"). `types=False`: not what only the
    type checker sees."""
    package = module.name.split(".") if module.name else []
    if not module.is_package:
        package = package[:-1]
    skipped: set[int] = set()
    if not types:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in TYPING:
                skipped |= {id(inner) for top in node.body for inner in ast.walk(top)}
    for node in ast.walk(module.tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                absolute = alias.name.split(".")[0] == "coterie"
                yield ("absolute" if absolute else "foreign"), alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            absolute = (node.module or "").split(".")[0] == "coterie"
            yield ("absolute" if absolute else "foreign"), node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)]
            target = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield "ours", f"{target}.{alias.name}".lstrip(".")


def wrong_rooms(modules: Iterable[Module]) -> list[str]:
    wrong = []
    for module in modules:
        allowed = MAY_IMPORT[module.room] | {module.room}
        if module.name.startswith(NODES_WITH_CLIENTS):
            allowed = allowed | {"clients"}
        for kind, target in imports(module):
            if kind == "absolute":
                wrong.append(f"{module.name}: {target} (imports of ours are relative)")
            elif kind == "ours":
                room = target.split(".")[0]
                if room in ROOMS and room not in allowed:
                    wrong.append(f"{module.name}: {target}")
    return wrong


def impurities(modules: Iterable[Module]) -> list[str]:
    found = []
    for module in modules:
        if not module.name.startswith(PURE):
            continue
        for kind, target in imports(module):
            if kind == "foreign" and target.split(".")[0] in IMPURE:
                found.append(f"{module.name}: import {target}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in IMPURE_CALLS:
                    found.append(f"{module.name}:{node.lineno}: {node.func.id}()")
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                # random.Random is a seeded source; random.random() is the shared one.
                if node.value.id == "random" and node.attr != "Random":
                    found.append(f"{module.name}:{node.lineno}: random.{node.attr}")
            elif isinstance(node, ast.For | ast.comprehension) and is_set(node.iter):
                found.append(f"{module.name}: iterates over a set: {ast.unparse(node.iter)}")
    return found


def is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in {"set", "frozenset"}
    return isinstance(node, ast.Set | ast.SetComp)


def cycles(modules: Iterable[Module]) -> list[str]:
    """Import cycles, also through imports inside functions; what only a type checker imports
    makes none."""
    modules = list(modules)
    names = {module.name for module in modules}
    graph: dict[str, list[str]] = {}
    for module in modules:
        edges = []
        for kind, target in imports(module, types=False):
            if kind == "ours":
                while target not in names and "." in target:
                    target = target.rpartition(".")[0]
                if target in names and target != module.name:
                    edges.append(target)
        graph[module.name] = edges
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in graph[name]:
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def unsafe_loaders(modules: Iterable[Module]) -> list[str]:
    return [
        f"{module.name}: {target}"
        for module in modules
        for kind, target in imports(module)
        if kind == "foreign" and target.split(".")[0] in UNSAFE_LOADERS
    ]


def sleeps(module: Module) -> list[str]:
    """Calls of `sleep` that wait for time. What gives others a turn (`asyncio.sleep(0)`) and the
    short pause of a loop that waits for a condition (`while not …:`) are none."""
    polls: set[ast.AST] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.While) and not isinstance(node.test, ast.Constant):
            polls.update(ast.walk(node))
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "sleep":
            pause = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            short = isinstance(pause, int | float) and pause <= PAUSE_S_MAX
            if pause != 0 and not (short and node in polls):
                found.append(f"{module.name}:{node.lineno}")
    return found


def test_rooms_import_only_what_they_may(house: list[Module]) -> None:
    assert wrong_rooms(house) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("protocols.lock", "from ..bus import codec"),
        ("bus.codec", "from ..protocols.plugin import Message"),
        ("clients.core", "def f():\n    from ..nodes import log"),
        ("nodes.engine", "from ..clients.errors import CoterieError"),
        ("nodes.log", "import coterie.bus.codec"),
        ("bus.ports", "from coterie.protocols import errors"),
    ],
)
def test_a_wrong_import_is_seen(name: str, source: str) -> None:
    assert len(wrong_rooms([module(name, source)])) == 1


def test_protocols_engine_simulator_and_client_core_are_pure(house: list[Module]) -> None:
    assert impurities(house) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("protocols.lock", "import time"),
        ("protocols.raft.core", "from os import path"),
        ("nodes.engine", "import asyncio"),
        ("nodes.simulation.network", "def f():\n    import socket"),
        ("clients.core", "import zmq"),
        ("protocols.lock", "x = random.random()"),
        ("protocols.lock", "x = hash('a')"),
        ("protocols.lock", "for x in {1, 2}: pass"),
        ("protocols.lock", "x = [y for y in set(z)]"),
    ],
)
def test_an_impurity_is_seen(name: str, source: str) -> None:
    assert len(impurities([module(name, source)])) == 1


def test_imports_have_no_cycle(house: list[Module]) -> None:
    assert cycles(house) == []


def test_a_cycle_is_seen() -> None:
    a = module("bus.a", "def f():\n    from .b import x")
    b = module("bus.b", "from . import c")
    c = module("bus.c", "from .a import f")
    assert cycles([a, b, c]) == ["bus.a -> bus.b -> bus.c -> bus.a"]
    assert cycles([a, b]) == []
    typed = "if TYPE_CHECKING:\n    from .a import f"
    assert cycles([a, b, module("bus.c", typed)]) == []
    for other in (typed.replace("if", "if not"), "if TYPE_CHECKING: pass\nelse: from .a import f"):
        assert len(cycles([a, b, module("bus.c", other)])) == 1


def test_the_root_holds_two_modules() -> None:
    assert [path.name for path in sorted(ROOT.glob("*.py"))] == ["__init__.py", "__main__.py"]


def test_packages_are_those_of_the_tree() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = sorted(config["options"]["packages"].split())
    folders = {path.parent for path in source_files()}
    found = sorted(".".join(("coterie", *folder.relative_to(ROOT).parts)) for folder in folders)
    assert listed == found
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
    assert config["options"]["package_dir"].split() == ["coterie", "=", "."]


def test_no_other_folder_of_the_root_is_a_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("[!.]*/__init__.py")} - {"build"}
    assert packages == set(ROOMS)


def test_the_version_is_the_same_in_both_places() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == coterie.__version__


def test_modules_can_be_held_in_the_head(house: list[Module]) -> None:
    assert {m.name: m.lines for m in house if m.lines > LINES_MAX} == {}


def test_every_module_says_what_it_is_for(house: list[Module]) -> None:
    assert [module.name for module in house if not ast.get_docstring(module.tree)] == []


def test_nothing_loads_code_from_bytes(house: list[Module]) -> None:
    assert unsafe_loaders(house) == []
    assert unsafe_loaders([module("bus.codec", "import pickle")]) == ["bus.codec: pickle"]


def test_tests_wait_for_conditions() -> None:
    found = [place for path in files_of_tests() for place in sleeps(read(path, ROOT))]
    assert found == []


@pytest.mark.parametrize(
    ("source", "waits_for_time"),
    [
        ("time.sleep(1)", True),
        ("async def f():\n    await asyncio.sleep(0.01)", True),
        ("while True:\n    time.sleep(0.01)", True),
        ("while not done():\n    time.sleep(2)", True),
        ("while not done():\n    time.sleep(0.01)", False),
        ("async def f():\n    await asyncio.sleep(0)", False),
    ],
)
def test_a_sleep_is_seen(source: str, waits_for_time: bool) -> None:
    assert bool(sleeps(module("t", source))) == waits_for_time


def test_a_module_under_two_names_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded_twice() == {}
    monkeypatch.setitem(sys.modules, "bench", importlib.import_module("coterie.bench"))
    assert list(loaded_twice()) == [ROOT / "bench" / "__init__.py"]


def loaded_after(code: str) -> list[str]:
    """The modules a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd="/", capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    loaded: list[str] = json.loads(run.stdout.splitlines()[-1])
    return loaded


HEAVY = ("aiohttp", "redis", "rich", "prometheus_client", "coterie.nodes")


def heavy(loaded: Iterable[str]) -> list[str]:
    return [n for n in loaded if any(n == h or n.startswith(h + ".") for h in HEAVY)]


def test_importing_coterie_loads_nothing_else_of_ours() -> None:
    loaded = loaded_after("import coterie")
    assert [name for name in loaded if name.startswith("coterie.")] == []
    assert heavy(loaded) == []


@pytest.mark.parametrize("name", ["Client", "AsyncClient", "Lock", "Grant", "Fence", "Timeout"])
def test_a_client_loads_no_node(name: str) -> None:
    assert heavy(loaded_after(f"import coterie; coterie.{name}")) == []


def test_the_lock_command_loads_no_node() -> None:
    code = (
        "from coterie.__main__ import main\n"
        "try: main(['lock', '--help'])\nexcept SystemExit as e: assert e.code == 0, e.code"
    )
    assert heavy(loaded_after(code)) == []


def test_every_public_name_has_its_home() -> None:
    for name in coterie.__all__:
        value = getattr(coterie, name)
        assert value.__name__ == name
        assert name in dir(coterie)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = coterie.nonsense  # type: ignore[attr-defined]


def test_the_type_checker_sees_the_same_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    seen = {
        (alias.asname, f".{node.module}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert seen == set(coterie._HOMES.items())
