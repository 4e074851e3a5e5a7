"""The synchronous face of what the asynchronous client does.

The law: what talks to the cluster is written once, as a coroutine; its mirror runs it on the
client's loop and waits, with the same name, arguments and description. So the two faces cannot
drift apart.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from .runner import Runner

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


def mirrored(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
    undo: Callable[[Any, T], object] | None = None,
) -> Callable[Concatenate[Any, P], T]:
    """The same method for threads, of a class that has `_mirrored`, the asynchronous object, and
    `_runner`. `undo(object, result)`, on the loop, takes back what came to
    its end though its caller had been interrupted."""

    @functools.wraps(method)
    def call(self: Any, /, *arguments: P.args, **named: P.kwargs) -> T:
        runner: Runner = self._runner
        begin = partial(method, self._mirrored, *arguments, **named)
        taken_back = None if undo is None else partial(undo, self._mirrored)
        return runner.run(begin, taken_back)  # type: ignore[no-any-return]

    return call


def mirrored_iterator(
    method: Callable[Concatenate[Any, P], AsyncIterator[T]],
) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """The same iterator for threads."""

    @functools.wraps(method)
    def call(self: Any, /, *arguments: P.args, **named: P.kwargs) -> Iterator[T]:
        return MirroredIterator(self._runner, method(self._mirrored, *arguments, **named))

    return call


class MirroredIterator(Generic[T]):
    """Each `next` is one turn on the loop; ends when the client closes."""

    def __init__(self, runner: Runner, iterator: AsyncIterator[T]) -> None:
        self._runner = runner
        self._mirrored = iterator

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._runner.run(self._next)
        except StopAsyncIteration:
            raise StopIteration from None

    async def _next(self) -> T:
        return await anext(self._mirrored)
