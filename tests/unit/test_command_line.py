"""The command line as a whole: its list, its exit codes, and that nothing is loaded unused."""

from __future__ import annotations

import importlib
import subprocess
import sys

import click
import pytest

import coterie
from coterie.__main__ import COMMANDS, EX_USAGE, cli, main


def exit_code(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_home(name: str) -> None:
    module, attribute, _ = COMMANDS[name]
    command = getattr(importlib.import_module(module, "coterie"), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert exit_code(name, "--help") == 0


def test_help_names_every_command_and_loads_none() -> None:
    script = (
        "import sys\n"
        "from coterie.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "sys.stderr.write(' '.join(n for n in sys.modules if n.startswith('coterie.')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert all(f"  {name} " in run.stdout for name in COMMANDS)
    assert run.stderr == "coterie.__main__"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("--nonsense",),
        ("bench", "nonsense"),
        ("bench", "lock", "--clients", "none"),
        ("bench", "lock", "--seconds", "-1"),
        ("lock",),
        ("locks", "nonsense"),
        ("kill",),
        ("up", "--nodes", "several"),
        ("simulate", "--seeds", "a..b"),
    ],
)
def test_wrong_usage_exits_64(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == EX_USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert coterie.__version__ in capsys.readouterr().out


def test_a_command_ends_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.pass_context
    def eleven(context: click.Context) -> None:
        context.exit(11)

    monkeypatch.setattr(cli, "get_command", lambda *_: eleven)
    assert exit_code("eleven") == 11


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "invoke", interrupt)
    assert exit_code("bench", "lock") == 130


def test_a_reader_that_left_ends_the_command_quietly() -> None:
    run = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m coterie --help | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stderr == ""
    assert int(run.stdout) in (0, 1)
