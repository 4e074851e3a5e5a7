"""The command line: `coterie …` and `python -m coterie`.

The law: a command's module is loaded when the command is used, so that `coterie lock` starts
without the node, its HTTP server or its terminal; and wrong usage exits 64 (EX_USAGE of BSD's
sysexits), which click would call 2.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

EX_USAGE = 64

# command: (module, attribute, what the list of commands says of it). The sentence stands here
# because `coterie --help` loads no command's module.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": (".nodes.commands", "up", "Run a cluster of node processes on this machine."),
    "down": (".nodes.commands", "down", "End a cluster that runs detached."),
    "kill": (".nodes.commands", "kill", "Kill a node of a running cluster (SIGKILL)."),
    "pause": (".nodes.commands", "pause", "Stop a node's process without ending it (SIGSTOP)."),
    "resume": (".nodes.commands", "resume", "Let a paused node go on (SIGCONT)."),
    "restart": (".nodes.commands", "restart", "Start a node of a running cluster again."),
    "node": (".nodes.commands", "node", "Run one node in this process."),
    "status": (".nodes.commands", "status", "Show the nodes, the leader and what they hold."),
    "member": (".nodes.members", "member", "List the nodes, let one join or leave."),
    "leader": (".nodes.members", "leader", "Hand a leadership over."),
    "top": (".nodes.top", "top", "Watch the nodes and what they do each second."),
    "lock": (".clients.commands", "lock", "Take a lock, run a command under it."),
    "locks": (".clients.commands", "locks", "See the locks of a cluster; take one away."),
    "wal": (".nodes.disk_commands", "wal", "Look whether a node's log is whole."),
    "snapshot": (".nodes.disk_commands", "snapshot", "Look whether a snapshot is whole."),
    "demo": (".nodes.demo", "demo", "See a cluster lose its leader and keep its promises."),
    "bench": (".bench.commands", "bench", "Measure a cluster, beside the bare path."),
    "simulate": (".nodes.simulate", "command", "Run seeded worlds of crashes and cut networks."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and loads one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module, __package__), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="coterie")
def cli() -> None:
    """Locks, queues and a cache, replicated by Raft over a few ZeroMQ nodes.

    A client finds its cluster in COTERIE_ENDPOINTS (default tcp://127.0.0.1:7001).
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; exits 64 on wrong usage, 130 on Ctrl-C."""
    try:
        code = cli.main(args=arguments, prog_name="coterie", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        code = EX_USAGE
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = 128 + signal.SIGINT
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
