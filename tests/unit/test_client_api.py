"""The public names of the client, as the contract in the documentation writes them."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from typing import Any

import pytest

import coterie
from coterie.clients import errors
from coterie.protocols.errors import KINDS, Code, definite
from coterie.protocols.plugin import Failure

# Without annotations: names, kinds and defaults are the contract.
SIGNATURES = {
    "Client": "(endpoints=None, *, name=None, session_ttl=10.0, timeout=5.0, keys=None)",
    "Client.lock": "(self, name, *, shared=False, timeout=None, lock_delay=0.0)",
    "Client.call": "(self, plugin, request, *, key=None)",
    "Client.status": "(self)",
    "Client.locks": "(self, prefix='')",
    "Client.wait_graph": "(self)",
    "Client.rlock": "(self, name)",
    "Client.transaction": "(self)",
    "Client.run": "(self, function, *, attempts=10)",
    "Client.semaphore": "(self, name, value=1)",
    "Client.bounded_semaphore": "(self, name, value=1)",
    "Client.event": "(self, name)",
    "Client.barrier": "(self, name, parties, *, timeout=None)",
    "Client.condition": "(self, lock, name=None)",
    "Client.election": "(self, name)",
    "Client.fence": "(self, name)",
    "Client.watch_locks": "(self, prefix='')",
    "Client.force_release": "(self, name)",
    "Transaction.lock": "(self, name, *, shared=False, timeout=None)",
    "Transaction.lock_all": "(self, names, *, shared=False, timeout=None)",
    "Transaction.commit": "(self)",
    "Transaction.abort": "(self)",
    "Lock.upgrade": "(self, timeout=None)",
    "Lock.downgrade": "(self)",
    "Client.close": "(self)",
    "Lock.acquire": "(self, blocking=True, timeout=-1)",
    "Lock.release": "(self)",
    "Lock.locked": "(self)",
    "Lock.ensure_held": "(self)",
    "Lock.on_lost": "(self, callback)",
    "Grant.ensure_held": "(self)",
    "Grant.on_lost": "(self, callback)",
    "Fence": "(name)",
    "Fence.check": "(self, token)",
}

BASES: dict[str, tuple[type[BaseException], ...]] = {
    "Timeout": (TimeoutError,),
    "Unavailable": (ConnectionError,),
    "LockLost": (RuntimeError,),
    "Full": (queue.Full, asyncio.QueueFull),
    "Empty": (queue.Empty, asyncio.QueueEmpty),
    "BrokenBarrier": (threading.BrokenBarrierError,),
    "BadName": (ValueError,),
    "PermissionDenied": (PermissionError,),
}


def named(path: str) -> Any:
    found: Any = coterie
    for part in path.split("."):
        found = getattr(found, part)
    return found


def signature(callable_: Any) -> str:
    found = inspect.signature(callable_)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(inspect.Signature(bare))


@pytest.mark.parametrize("path", SIGNATURES)
def test_the_signature_is_the_promised_one(path: str) -> None:
    assert signature(named(path)) == SIGNATURES[path]


@pytest.mark.parametrize(("sync", "aio"), [("Client", "AsyncClient"), ("Lock", "AsyncLock")])
def test_sync_and_async_are_the_same_but_for_await(sync: str, aio: str) -> None:
    def public(kind: Any) -> dict[str, Any]:
        return {name: value for name, value in inspect.getmembers(kind) if name[0] != "_"}

    ours, theirs = public(named(sync)), public(named(aio))
    assert ours.keys() == theirs.keys()
    for name in ours:
        if callable(ours[name]):
            assert signature(ours[name]) == signature(theirs[name]), name
    talking = {name for name, value in theirs.items() if inspect.iscoroutinefunction(value)}
    assert talking == (
        {"acquire", "release", "locked", "upgrade", "downgrade"}
        if aio == "AsyncLock"
        else {"call", "close", "force_release", "locks", "run", "status", "wait_graph"}
    )


@pytest.mark.parametrize("name", BASES)
def test_errors_are_the_standard_librarys_too(name: str) -> None:
    kind = named(name)
    assert issubclass(kind, (coterie.CoterieError,)) and issubclass(kind, BASES[name])
    assert str(kind("what to do next")) == "what to do next"


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_public_error_that_keeps_its_promise(code: Code) -> None:
    error = errors.error_of(Failure(code, "text"))
    assert type(error) is errors.CLASSES[code] and str(error) == "text"
    if not definite(code):
        assert isinstance(error, coterie.Indeterminate)
    assert errors.error_of(Failure(code)).args[0]
    assert code in KINDS


def test_making_a_client_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    monkeypatch.setenv("COTERIE_ENDPOINTS", "tcp://127.0.0.1:1, tcp://127.0.0.1:2")
    for kind in (coterie.Client, coterie.AsyncClient):
        client = kind()
        client.lock("a")
        assert client._shell.core is None if kind is coterie.AsyncClient else True
        assert client.session_id is None and client.name
    assert threading.active_count() == threads


def test_endpoints_come_from_argument_environment_or_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def endpoints(given: Any = None) -> tuple[str, ...]:
        return coterie.AsyncClient(given)._shell.settings.endpoints

    monkeypatch.setenv("COTERIE_ENDPOINTS", "tcp://h:1,tcp://h:2")
    assert endpoints() == ("tcp://h:1", "tcp://h:2")
    assert endpoints("tcp://a:1") == ("tcp://a:1",)
    assert endpoints(["tcp://a:1", "tcp://b:2"]) == ("tcp://a:1", "tcp://b:2")
    monkeypatch.delenv("COTERIE_ENDPOINTS")
    assert endpoints() == ("tcp://127.0.0.1:7001",)
    for bad in ("", "127.0.0.1:7001", "http://h:1", ["tcp://h"]):
        with pytest.raises(ValueError):
            endpoints(bad)


@pytest.mark.parametrize(
    "wrong", [{"session_ttl": 0.5}, {"session_ttl": 1e9}, {"timeout": 0.0}, {"name": "a\n"}]
)
def test_wrong_settings_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        coterie.Client(**wrong)


def test_keys_are_refused_until_they_exist() -> None:
    with pytest.raises(NotImplementedError, match="keys are not supported yet"):
        coterie.Client(keys="directory")


def test_a_fence_lets_rising_tokens_pass() -> None:
    fence = coterie.Fence("disk")
    for token in (3, 3, 5):
        fence.check(token)
    with pytest.raises(coterie.StaleToken, match="4 is stale"):
        fence.check(4)
    fence.check(5)
