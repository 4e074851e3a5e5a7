"""The live view of `coterie up` on a terminal: the nodes, below all that was said.

The law: it only looks. What is said meanwhile stands above it and stays; the view goes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

ANSWER_WAIT_S = 0.25
"""Commands to the cluster wait while the view looks."""


@contextlib.contextmanager
def live_view(endpoints: Sequence[str]) -> Iterator[Callable[[], None] | None]:
    """What to call about once a second to look and show; None where there is no terminal."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.console import Console, Group
    from rich.live import Live

    from .status import Observer, summary, to_table

    console = Console(highlight=False)
    with (
        Observer(endpoints) as observer,
        Live(console=console, auto_refresh=False, transient=True) as live,
    ):

        def show() -> None:
            status = observer.look(wait_s=ANSWER_WAIT_S, read=False)
            live.update(Group(to_table(status), summary(status)), refresh=True)

        yield show
