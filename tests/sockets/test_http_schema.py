"""The OpenAPI document against the nodes: whatever is sent, nothing comes that it does not tell."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from http_asking import ask
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

import coterie

CHECKS = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
)


@pytest.fixture(scope="module")
def told(cluster: coterie.LocalCluster) -> Any:
    """The document, with waits cut short: what is sent for one test holds locks of another."""
    document: dict[str, Any] = ask(cluster.http[1], "GET", "/openapi.json").json
    document["paths"]["/lock/{name}"]["post"]["requestBody"]["required"] = True
    body = document["components"]["schemas"]["LockBody"]
    body["required"] = ["timeout"]
    body["properties"]["timeout"]["maximum"] = 0.1
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.update(base_url=cluster.http[1])
    return loaded


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_comes_that_is_not_told(told: Any, mode: GenerationMode) -> None:
    tried = 0
    for found in told.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        def serves(case: Any) -> None:
            answer = case.call()
            assert answer.status_code < 500, answer.content
            case.validate_response(answer, checks=CHECKS)

        try:
            serves()
        except Unsatisfiable:  # nothing wrong can be sent to what takes nothing
            assert mode is GenerationMode.NEGATIVE
        else:
            tried += 1
    assert tried > (10 if mode is GenerationMode.POSITIVE else 3)
