"""The pages name tests, files and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coterie.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def missing_tests(text: str) -> list[str]:
    """`test_x.py` and `test_x.py::test_y` of a page that do not exist."""
    sources: dict[str, str] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        sources[path.name] = sources.get(path.name, "") + path.read_text()
    missing = []
    for file, test in re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)(?:::(test_\w+))?`", text):
        if file not in sources or (test and f"def {test}(" not in sources[file]):
            missing.append(f"{file}::{test}")
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_a_page_names_exist(page: Path) -> None:
    assert missing_tests(page.read_text()) == []


def test_a_missing_test_is_seen() -> None:
    text = "`test_pages.py::test_nonsense` and `test_pages.py::test_a_missing_test_is_seen`"
    assert missing_tests(text) == ["test_pages.py::test_nonsense"]
    assert missing_tests("`tests/unit/test_nonsense.py`") == ["test_nonsense.py::"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_a_page_links_to_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/specification.md"])
def test_the_commands_a_page_names_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    assert set(re.findall(r"`(?:\S*/)?coterie (\w+)", text)) <= set(COMMANDS)
