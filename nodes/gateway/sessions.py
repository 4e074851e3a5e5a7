"""The room /session: a session of the cluster for a caller that has only HTTP.

The law: what a session holds is let go when it is not kept alive, whichever node it was opened at;
its id is a secret, so whoever knows it is its owner.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated

import msgspec

from . import principals
from .cluster import Cluster
from .describe import answers, parameter, reads
from .failures import Refusal
from .rooms import Answered, Asked, Route

TTL_S = 30.0
Ttl = Annotated[float, msgspec.Meta(ge=1, le=3600)]
Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[!-~]*$(?!\n)")]


class SessionBody(msgspec.Struct, forbid_unknown_fields=True):
    """`ttl`: seconds without a keep-alive after which the session ends. `name`: who this is, for
    those who look at the locks."""

    ttl: Ttl = TTL_S
    name: Name = ""


class SessionOpened(msgspec.Struct):
    """`session` is the secret id; `ttl` in seconds."""

    session: str
    ttl: float


class Sessions:
    """Opens, renews and ends sessions; also for the other rooms."""

    def __init__(self, cluster: Cluster, node: str, secret: str) -> None:
        self._cluster = cluster
        self._node = node
        self._secret = secret

    def routes(self) -> Sequence[Route]:
        identity = parameter("id", "the secret id of the session")
        return [
            Route("POST", "/session", self.open, {
                "summary": "Open a session",
                **reads(SessionBody),
                **answers({200: SessionOpened}, 400, 408, 413, 415, 417),
            }),
            Route("PUT", "/session/{id}", self.keep_alive, {
                "summary": "Keep a session alive",
                "parameters": [identity],
                **answers({200: SessionOpened}, 400, 404),
            }),
            Route("DELETE", "/session/{id}", self.end, {
                "summary": "End a session: what it holds is let go at once",
                "parameters": [identity],
                **answers({200: SessionEnded}, 400),
            }),
        ]  # fmt: skip

    async def open(self, asked: Asked) -> Answered:
        asked.parameters()
        body = asked.json(SessionBody)
        session, alone = self.draw(asked)
        ttl_s = await self.open_for(session, body.ttl, body.name, alone=alone)
        return Answered(SessionOpened(session, ttl_s))

    async def keep_alive(self, asked: Asked) -> Answered:
        asked.parameters()
        session = asked.target.rest or ""
        ttl_s = await self._cluster.keep_alive(self.principal(session))
        return Answered(SessionOpened(session, ttl_s))

    async def end(self, asked: Asked) -> Answered:
        asked.parameters()
        if principal := principals.client_of(asked.target.rest or ""):
            await self._cluster.end_session(principal)
        return Answered(SessionEnded())

    def draw(self, asked: Asked) -> tuple[str, bool]:
        """A session id, and whether this request alone knows it: with an Idempotency-Key it is the
        same for the same key and path, and a repetition may be using it."""
        key = asked.idempotency_key()
        if key:
            path = f"{asked.target.room}/{asked.target.rest}"
            return principals.from_key(key, path, self._secret), False
        return secrets.token_hex(principals.ID_BYTES), True

    async def open_for(self, session: str, ttl_s: float, name: str, *, alone: bool) -> float:
        """Open the session of this id. Raises `CoterieError`; then none stays open that this
        request `alone` knows of."""
        principal = principals.client_of(session)
        try:
            return await self._cluster.open_session(principal, ttl_s, name or f"http@{self._node}")
        except BaseException:
            if alone:
                self._cluster.forget_session(principal)
            raise

    @staticmethod
    def principal(session: str) -> int:
        """The client behind a session id. Raises `Refusal`."""
        principal = principals.client_of(session)
        if not principal:
            text = "a session id has 32 hexadecimal digits; open a session: POST /session"
            raise Refusal(404, "SessionExpired", text)
        return principal


class SessionEnded(msgspec.Struct):
    """The session is no more, whether it was or not."""

    ended: bool = True
