"""One flag: rewrite the recorded conversations of tests/cases."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        default=False,
        help="record the outputs in tests/cases anew; commit only changes you understand",
    )
