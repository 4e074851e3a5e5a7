"""The room /lock: locks of the whole cluster, over HTTP.

The law: asking for a lock is idempotent per session, so a caller that is not sure asks again, at
any node. A caller that hangs up leaves no wait behind, and no lock it was not told of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from ...protocols.lock.messages import LockState
from . import principals
from .cluster import Cluster
from .describe import answers, parameter, reads
from .failures import Refusal
from .rooms import Answered, Asked, Route
from .sessions import TTL_S, Sessions, Ttl

TIMEOUT_S = 30.0
TIMEOUT_MAX_S = 3600.0
ONCE_S = 3600.0
TOKEN_MAX = 2**63 - 1
NAME = r"^[^\x00-\x1f\x7f-\x9f]+$"
"""No control characters, as OpenAPI says it; and at most 255 bytes, no segment `.` or `..`."""


class LockBody(msgspec.Struct, forbid_unknown_fields=True):
    """`timeout`: seconds to wait for the lock, 0 to have it at once or not at all. Without
    `session` one of `ttl` seconds is opened; its id is in the answer. `transaction`: of that
    session; the lock is then held until the transaction ends."""

    session: str | None = None
    shared: bool = False
    timeout: Annotated[float, msgspec.Meta(ge=0, le=TIMEOUT_MAX_S)] = TIMEOUT_S
    ttl: Ttl = TTL_S
    transaction: Annotated[int, msgspec.Meta(ge=1, le=TOKEN_MAX)] | None = None


class LockTaken(msgspec.Struct):
    """`token` fences the resource: it rises from each exclusive holder to the next."""

    token: int
    session: str


class Claim(msgspec.Struct):
    """Who holds a lock or waits for it. `session` and `number` are the cluster's own numbers."""

    client: str
    session: int
    number: int
    mode: str


class Lock(msgspec.Struct):
    """A lock as it stands; `token` is 0 and `mode` null while nobody holds it."""

    name: str
    mode: str | None
    token: int
    holders: list[Claim]
    waiters: list[Claim]


class LockList(msgspec.Struct):
    """`more`: ask again with `after` = the last name."""

    locks: list[Lock]
    more: bool


class LockReleased(msgspec.Struct):
    released: bool = True


class Locks:
    def __init__(self, cluster: Cluster, sessions: Sessions) -> None:
        self._cluster = cluster
        self._sessions = sessions

    def routes(self) -> Sequence[Route]:
        named = parameter(
            "name", "the name of the lock: all the rest of the path, decoded once",
            minLength=1, maxLength=255, pattern=NAME,
        )  # fmt: skip
        prefix = parameter("prefix", "only names that begin with this", place="query")
        after = parameter("after", "only names after this one", place="query")
        session = parameter("session", "whose lock it is", place="query", required=True)
        token = parameter("token", "as it was given", place="query", required=True, type="integer")
        return [
            Route("GET", "/lock", self.list, {
                "summary": "The locks held or waited for, in order of name, at most 1,000",
                "parameters": [prefix, after],
                **answers({200: LockList}, 400),
            }),
            Route("GET", "/lock/{name}", self.look, {
                "summary": "One lock",
                "parameters": [named],
                **answers({200: Lock}, 400),
            }),
            Route("POST", "/lock/{name}", self.take, {
                "summary": "Take a lock; a session that has it is given the same token",
                "parameters": [named],
                **reads(LockBody),
                **answers({200: LockTaken}, 400, 404, 408, 409, 413, 415, 417),
            }),
            Route("DELETE", "/lock/{name}", self.release, {
                "summary": "Release a lock",
                "parameters": [named, session, token],
                **answers({200: LockReleased}, 400, 404, 409),
            }),
        ]  # fmt: skip

    async def list(self, asked: Asked) -> Answered:
        given = asked.parameters("prefix", "after")
        states = await self._cluster.locks(given.get("prefix", ""), given.get("after", ""))
        return Answered(LockList([_lock(state) for state in states.locks], states.more))

    async def look(self, asked: Asked) -> Answered:
        asked.parameters()
        states = await self._cluster.lock(asked.name)
        found = states.locks[0] if states.locks else LockState(asked.name, False, 0, (), ())
        return Answered(_lock(found))

    async def take(self, asked: Asked) -> Answered:
        asked.parameters()
        name, body = asked.name, asked.json(LockBody)
        if body.session is not None:
            asked.idempotency_key()
            return await self._take(name, body, body.session)
        if body.transaction is not None:
            text = 'say whose transaction it is: "session" as POST /transaction told it'
            raise Refusal(400, "BadRequest", text)
        session, alone = self._sessions.draw(asked)
        await self._sessions.open_for(session, body.ttl, "", alone=alone)
        try:
            return await self._take(name, body, session, alone=alone)
        except BaseException:
            if alone:
                self._cluster.forget_session(principals.client_of(session))
            raise

    async def _take(
        self, name: str, body: LockBody, session: str, *, alone: bool = False
    ) -> Answered:
        """`alone`: nobody but this request knows of the session."""
        principal = self._sessions.principal(session)
        begin = self._cluster.ask if body.timeout else self._cluster.ask_once
        asking = begin(principal, name, body.shared, body.transaction or 0)
        try:
            token = await asking.granted(body.timeout or ONCE_S)
        except BaseException:
            asking.leave()
            raise

        def confirm(written: bool) -> None:
            if written:
                asking.keep()
            asking.leave()
            if alone and not written:
                self._cluster.forget_session(principal)

        return Answered(LockTaken(token, session), confirm=confirm)

    async def release(self, asked: Asked) -> Answered:
        given = asked.parameters("session", "token")
        name = asked.name
        if "session" not in given or "token" not in given:
            text = "say whose lock it is: DELETE /lock/NAME?session=…&token=…"
            raise Refusal(400, "BadRequest", text)
        number = operation_number(given["token"], "token")
        await self._cluster.release(self._sessions.principal(given["session"]), name, number)
        return Answered(LockReleased())


def operation_number(text: str, what: str) -> int:
    """A positive number from a path or query. Raises `Refusal`."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) <= TOKEN_MAX):
        raise Refusal(400, "BadRequest", f"{text[:40]!r} is no {what}")
    return int(text)


def _lock(state: LockState) -> Lock:
    mode = None if not state.holders else "shared" if state.shared else "exclusive"
    return Lock(
        state.name,
        mode,
        state.token,
        [_claim(*holder) for holder in state.holders],
        [_claim(*waiter) for waiter in state.waiters],
    )


def _claim(client: str, session: int, number: int, shared: bool) -> Claim:
    return Claim(client, session, number, "shared" if shared else "exclusive")
