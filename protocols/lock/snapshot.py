"""The lock table as chunks of bytes, and back.

The law: a table restored from its chunks, in their order, gives the identical chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from ..plugin import SessionId
from .claims import Claim, Transaction
from .owners import SWEEP

if TYPE_CHECKING:
    from .table import LockTable

ROWS_MAX = 1_000
"""Rows in one chunk."""

_SCALARS, _DEFERRED, _CLAIMS, _TRANSACTIONS = 0, 1, 2, 3


def give(table: LockTable) -> Iterator[bytes]:
    """The chunks of a table as it is now, encoded while they are taken."""
    claims, transactions = table.share()
    scalars = (table.revision, table.detection)
    chunks = _encode(scalars, list(table.deferred.items()), claims, transactions)

    def shared() -> Iterator[bytes]:
        yield from chunks
        table.share_no_more()

    return shared()


def _encode(
    scalars: tuple[int, int],
    deferred: list[tuple[str, int]],
    claims: list[tuple[SessionId, dict[int, Claim]]],
    transactions: list[Transaction],
) -> Iterator[bytes]:
    encode = msgspec.msgpack.encode
    yield encode((_SCALARS, scalars))
    for start in range(0, len(deferred), ROWS_MAX):
        yield encode((_DEFERRED, deferred[start : start + ROWS_MAX]))
    rows: list[tuple[SessionId, list[Claim]]] = []
    size = 0
    for session, held in claims:
        left = iter(held.values())
        for _ in range(0, max(1, len(held)), ROWS_MAX):
            part = list(islice(left, ROWS_MAX))
            if size + len(part) + 1 > ROWS_MAX and rows:
                yield encode((_CLAIMS, rows))
                rows, size = [], 0
            rows.append((session, part))
            size += len(part) + 1
    if rows:
        yield encode((_CLAIMS, rows))
    for start in range(0, len(transactions), ROWS_MAX):
        yield encode((_TRANSACTIONS, transactions[start : start + ROWS_MAX]))


def take(table: LockTable, chunk: bytes) -> None:
    """One chunk, into a table that had nothing but those before."""
    kind, rows = msgspec.msgpack.decode(chunk)
    if kind == _SCALARS:
        table.revision, table.detection = rows
        table.overlooked = table.detection == SWEEP
    elif kind == _DEFERRED:
        table.deferred.update(rows)
    elif kind == _CLAIMS:
        for session, fields in rows:
            table.take_claims(session, msgspec.convert(fields, list[Claim]))
    else:
        for row in rows:
            number, session, client, begun, waits, cycle = row
            edges = tuple((waiter, holder, name) for waiter, holder, name in cycle)
            table.enroll(Transaction(number, session, client, begun, tuple(waits), edges))
