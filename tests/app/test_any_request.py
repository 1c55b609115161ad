"""The promise that no request, however odd, is answered by an error of the server or by what /docs does not tell."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.server import REAP_SECONDS, ServerConfig
from tests.app.served import WITH_RANKER, listening, new_store, publish_generation, wait_for

EXAMPLES = 30
"""Of each route and kind: fitting requests, and others."""
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store, corpus = new_store(tmp_path_factory.mktemp("any"))
    publish_generation(store, corpus)
    job = (sys.executable, "-c", "pass")
    with listening(store, ServerConfig(job_command=job), WITH_RANKER) as port:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")
        time.sleep(2 * REAP_SECONDS)  # so that no process is left behind


@pytest.mark.parametrize("mode", [*GenerationMode])
def test_every_answer_is_one_that_the_document_tells(schema: Any, mode: GenerationMode) -> None:
    for found in schema.get_all_operations():
        route = found.ok()
        if mode is GenerationMode.NEGATIVE and not (route.body or route.query):
            continue  # where nothing is said, nothing can be said wrongly

        @seed(0)
        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[*HealthCheck])
        @given(route.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        check()
