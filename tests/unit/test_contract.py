"""docs/api.md is the contract: what exists has the signatures written there, sync as async.

A name of the page that does not exist yet is passed over; one that exists and is not on the page
fails.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import threading
from pathlib import Path
from typing import Any

import pytest

import coterie
from coterie.clients import barrier, condition, election, event, inspection, rlock, semaphore

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
SIGNATURE = re.compile(r"(?:(c|coterie|t)\.)?\.?(\w+)\((.*)\)(?: -> .+)?")

Parameters = list[tuple[str, Any, Any]]


def parameters(text: str) -> Parameters:
    """(name, kind, default) of each parameter, as written on the page."""
    function = ast.parse(f"def f({text}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    code = compile(ast.Module([function], []), "docs/api.md", "exec")
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102  (our own page)
    return listed(inspect.signature(namespace["f"]))


def listed(signature: inspect.Signature) -> Parameters:
    return [(p.name, p.kind, p.default) for p in signature.parameters.values() if p.name != "self"]


def page_signature(name: str, of: str = "") -> Parameters:
    """The longest signature of that name on the page: later mentions leave arguments out. `of`:
    the letter that stands before it, "t" for a transaction's."""
    found = []
    for span in SPANS:
        match = SIGNATURE.fullmatch(span)
        if match and match[2] == name and (match[1] == of if "t" in (of, match[1]) else True):
            found.append(match[3])
    assert found, f"docs/api.md says nothing of {name}()"
    return parameters(max(found, key=len))


def public_methods(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and callable(value)
    }


PAIRS = [
    (coterie.Client, coterie.AsyncClient),
    (coterie.Lock, coterie.AsyncLock),
    (coterie.Transaction, coterie.AsyncTransaction),
    (barrier.Barrier, barrier.AsyncBarrier),
    (condition.Condition, condition.AsyncCondition),
    (election.Election, election.AsyncElection),
    (event.Event, event.AsyncEvent),
    (inspection.ClusterFence, inspection.AsyncClusterFence),
    (rlock.RLock, rlock.AsyncRLock),
    (semaphore.Semaphore, semaphore.AsyncSemaphore),
]
# What honours a namesake of `threading`, method by method. RLock's are C functions without names.
NAMESAKES = [
    (barrier.Barrier, threading.Barrier),
    (condition.Condition, threading.Condition),
    (event.Event, threading.Event),
    (rlock.RLock, threading._RLock),  # type: ignore[attr-defined]
    (semaphore.Semaphore, threading.Semaphore),
    (semaphore.Semaphore, threading.BoundedSemaphore),
]
# Where the page writes arguments that stand for any value.
LOOSE = {"call", "on_lost", "client", "async_client", "close"}
# What `with` does, for who cannot use it.
BESIDE = {("LocalCluster", "start"), ("LocalCluster", "close")}


@pytest.mark.parametrize("name", coterie.__all__)
def test_every_public_name_is_on_the_page(name: str) -> None:
    sync = name.removeprefix("Async") if name != "AsyncClient" else name
    assert re.search(rf"\b{sync}\b", PAGE)


@pytest.mark.parametrize("name", ["Client", "AsyncClient", "LocalCluster", "Fence"])
def test_a_class_is_made_as_the_page_says(name: str) -> None:
    page = page_signature("Client" if name == "AsyncClient" else name)
    assert listed(inspect.signature(getattr(coterie, name))) == page


@pytest.mark.parametrize(
    "name", ["Client", "AsyncClient", "Lock", "AsyncLock", "Grant", "Fence", "LocalCluster"]
)
def test_methods_are_as_the_page_says(name: str) -> None:
    differing = {}
    for method, function in public_methods(getattr(coterie, name)).items():
        if (name, method) in BESIDE:
            continue
        if method in LOOSE:
            assert re.search(rf"\b{method}\(", PAGE), method
            continue
        found = listed(inspect.signature(function))
        if found != page_signature(method):
            differing[method] = (found, page_signature(method))
    assert differing == {}


@pytest.mark.parametrize("kind", [coterie.Transaction, election.Election, inspection.ClusterFence])
def test_what_has_no_namesake_is_as_the_page_says(kind: type) -> None:
    letter = "t" if kind is coterie.Transaction else ""
    for method, function in public_methods(kind).items():
        if method == "leader":  # the page has another one, of LocalCluster
            assert "`leader() -> Leader(" in PAGE and not listed(inspect.signature(function))
        else:
            assert listed(inspect.signature(function)) == page_signature(method, letter), method


@pytest.mark.parametrize(("ours", "namesake"), NAMESAKES)
def test_a_namesake_is_honoured(ours: type, namesake: type) -> None:
    methods = public_methods(ours)
    for method, function in public_methods(namesake).items():
        if method in ("isSet", "notifyAll"):  # deprecated there
            continue
        assert listed(inspect.signature(methods[method])) == listed(inspect.signature(function))
    for name, value in inspect.getmembers(namesake):
        assert not isinstance(value, property) or name == "parties" or hasattr(ours, name)


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_the_two_faces_are_the_same(sync: type, asynchronous: type) -> None:
    left, right = public_methods(sync), public_methods(asynchronous)
    assert sorted(left) == sorted(right)
    for method in left:
        assert listed(inspect.signature(left[method])) == listed(inspect.signature(right[method]))
        assert inspect.getdoc(left[method]), f"{method} says nothing of itself"
        assert not inspect.iscoroutinefunction(left[method])


@pytest.mark.parametrize("name", [n for n in coterie.__all__ if n in coterie._ERRORS])
def test_an_error_has_the_bases_of_the_page(name: str) -> None:
    error = getattr(coterie, name)
    assert issubclass(error, coterie.CoterieError)
    section = PAGE[PAGE.index("## Errors") : PAGE.index("## Command line")]
    base = re.search(rf"`{name}` \((\w+Error)\)", section)
    if base:
        assert issubclass(error, getattr(builtins, base[1]))


def test_the_page_is_read_rightly() -> None:
    assert [name for name, _, _ in page_signature("acquire")] == ["blocking", "timeout"]
    assert [name for name, _, _ in page_signature("release")] == []
    assert page_signature("acquire")[1][2] == -1
    with pytest.raises(AssertionError, match="says nothing of nonsense"):
        page_signature("nonsense")
