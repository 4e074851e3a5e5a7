"""The room /transaction: locks that go together, and deadlocks that are told.

The law: a transaction belongs to a session and ends with it. What was asked for within it is held
until it ends. A victim of a deadlock has lost everything at that moment; whatever names it is
answered 409 with the cycle until it is ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from .cluster import Cluster
from .describe import answers, parameter, reads
from .failures import Refusal
from .locks import operation_number
from .rooms import Answered, Asked, Route
from .sessions import TTL_S, Sessions, Ttl


class TransactionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Without `session` one of `ttl` seconds is opened; its id is in the answer."""

    session: str | None = None
    ttl: Ttl = TTL_S


class TransactionBegun(msgspec.Struct):
    """`transaction` is its id: a later one is higher, and of a deadlock the highest dies."""

    transaction: Annotated[int, msgspec.Meta(ge=1)]
    session: str


class TransactionEnded(msgspec.Struct):
    """Its locks are let go."""

    ended: bool = True


class Transactions:
    def __init__(self, cluster: Cluster, sessions: Sessions) -> None:
        self._cluster = cluster
        self._sessions = sessions

    def routes(self) -> Sequence[Route]:
        number = parameter("id", "of the transaction", type="integer", minimum=1)
        session = parameter("session", "whose transaction it is", place="query", required=True)
        abort = parameter("abort", "true: it is ended, victim or not", place="query",
                          enum=["true", "false"])  # fmt: skip
        return [
            Route("POST", "/transaction", self.begin, {
                "summary": "Begin a transaction; take its locks by POST /lock/{name}",
                **reads(TransactionBody),
                **answers({200: TransactionBegun}, 400, 404, 408, 413, 415, 417),
            }),
            Route("DELETE", "/transaction/{id}", self.end, {
                "summary": "End a transaction; 409 with the cycle if it was a deadlock's victim",
                "parameters": [number, session, abort],
                **answers({200: TransactionEnded}, 400, 404, 409),
            }),
        ]  # fmt: skip

    async def begin(self, asked: Asked) -> Answered:
        asked.parameters()
        body = asked.json(TransactionBody)
        alone, session = False, body.session
        asked.idempotency_key()
        if session is None:
            session, alone = self._sessions.draw(asked)
            await self._sessions.open_for(session, body.ttl, "", alone=alone)
        principal = self._sessions.principal(session)
        try:
            number = await self._cluster.begin(principal)
        except BaseException:
            if alone:
                self._cluster.forget_session(principal)
            raise

        def confirm(written: bool) -> None:
            if not written and alone:
                self._cluster.forget_session(principal)
            elif not written:
                self._cluster.forget_transaction(principal, number)

        return Answered(TransactionBegun(number, session), confirm=confirm)

    async def end(self, asked: Asked) -> Answered:
        given = asked.parameters("session", "abort")
        number = operation_number(asked.target.rest or "", "transaction")
        if "session" not in given:
            text = "say whose transaction it is: DELETE /transaction/ID?session=…"
            raise Refusal(400, "BadRequest", text)
        if given.get("abort", "false") not in ("true", "false"):
            raise Refusal(400, "BadRequest", "abort is true or false")
        principal = self._sessions.principal(given["session"])
        if given.get("abort") == "true":
            await self._cluster.abort(principal, number)
        else:
            await self._cluster.commit(principal, number)
        return Answered(TransactionEnded())
