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


def test_of_what_there_is_each_answer_is_one_that_the_document_tells(schema: Any) -> None:
    """Names that are made up are hardly ever those of a job or a generation."""
    job: dict[str, Any] = schema["/v1/index/rebuild"]["POST"].Case().call().json()
    there = {"job_id": job["id"], "number": 0, "new": 0, "old": 0}
    asked = [found.ok() for found in schema.get_all_operations() if found.ok().path_parameters]
    for route in sorted(asked, key=lambda route: route.method == "post"):  # a cancelled job has ended
        names = {parameter.name for parameter in route.path_parameters}
        answer = route.Case(path_parameters={name: there[name] for name in names}).call_and_validate(checks=CHECKS)
        assert answer.status_code in (200, 202, 404, 409), route.label
    assert len(asked) == 7
