"""docs/lock-tests.md names tests that are there, for every number."""

from __future__ import annotations

import re
from pathlib import Path

import coterie

assert coterie.__file__ is not None
HOME = Path(coterie.__file__).parent
ROW = re.compile(r"^\| (\d+) \| .+ \| (.+) \|$", re.MULTILINE)


def test_every_number_has_tests_that_are_there() -> None:
    rows = ROW.findall((HOME / "docs" / "lock-tests.md").read_text(encoding="utf-8"))
    assert [int(number) for number, _ in rows] == list(range(34, 46))
    for number, tests in rows:
        for test in tests.split(" · "):
            path, _, name = test.strip("`").partition("::")
            text = (HOME / "tests" / path).read_text(encoding="utf-8")
            assert re.search(rf"^ *(async )?def {name}\(", text, re.MULTILINE), (number, test)
