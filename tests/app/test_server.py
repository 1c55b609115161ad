import math
import re
import time
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from sqlalchemy.exc import InterfaceError, SQLAlchemyError, TimeoutError

from app.foreign_pages import is_loopback
from app.server import ServerConfig
from retriever.artifacts import Artifact
from retriever.protocols import TokenEncoder
from tests.app.served import OPENERS, Server, listening, new_store, publish_generation, serving, wait_for

ROUTES = {
    ("post", "/v1/encode"): {200, 400, 413, 415, 422, 429, 500, 503},
    ("post", "/v1/search"): {200, 400, 409, 413, 415, 422, 429, 500, 503},
    ("post", "/v1/mine"): {200, 202, 400, 409, 413, 415, 422, 429, 500, 503, 507},
    ("post", "/v1/judgements"): {200, 400, 413, 415, 422, 500, 503, 507},
    ("get", "/v1/judgements"): {200, 422, 500, 503},
    ("post", "/v1/embeddings"): {200, 400, 404, 413, 415, 422, 429, 500, 503},
    ("post", "/v1/rerank"): {200, 400, 409, 413, 415, 422, 429, 500, 503},
    ("post", "/v2/rerank"): {200, 400, 409, 413, 415, 422, 429, 500, 503},
    ("post", "/"): {200, 400, 413, 415, 422, 424, 429, 500, 503},
    ("post", "/embed"): {200, 400, 413, 415, 422, 424, 429, 500, 503},
    ("post", "/rerank"): {200, 400, 409, 413, 415, 422, 424, 429, 500, 503},
    ("get", "/info"): {200, 500, 503},
    ("get", "/health"): {200, 500, 503},
    ("post", "/v1/index/rebuild"): {200, 202, 500, 503, 507},
    ("get", "/v1/jobs"): {200, 422, 500, 503},
    ("get", "/v1/jobs/{job_id}"): {200, 404, 422, 500, 503},
    ("post", "/v1/jobs/{job_id}/cancel"): {200, 404, 409, 422, 500, 503, 507},
    ("get", "/v1/jobs/{job_id}/events"): {200, 404, 422, 500, 503},
    ("get", "/v1/jobs/{job_id}/result"): {200, 404, 409, 422, 500, 503},
    ("get", "/v1/generations"): {200, 422, 500, 503},
    ("get", "/v1/generations/{number}"): {200, 404, 422, 500, 503},
    ("post", "/v1/generations/{number}/promote"): {200, 202, 404, 409, 422, 500, 503, 507},
    ("post", "/v1/generations/rollback"): {200, 202, 409, 500, 503, 507},
    ("get", "/v1/generations/{new}/diff/{old}"): {200, 404, 409, 422, 500, 503},
    ("get", "/livez"): {200, 500},
    ("get", "/readyz"): {200, 500, 503},
    ("get", "/metrics"): {200, 500},
    ("get", "/"): {200, 500},
}


def test_the_document_lists_every_route_with_its_statuses(server: Server) -> None:
    document = server.get("/openapi.json")
    found = {
        (method, path): {int(status) for status in route["responses"]}
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    }
    assert found == ROUTES
    for path, methods in document["paths"].items():
        body = "OpenAIErrorBody" if path == "/v1/embeddings" else "ErrorBody"
        for route in methods.values():
            assert route["description"]
            for status, response in route["responses"].items():
                if int(status) >= 400:
                    ((kind, content),) = response["content"].items()
                    assert kind == "application/json" and content["schema"]["$ref"].endswith(f"/{body}"), path
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_a_worker_among_others_lets_nothing_in_before_it_has_loaded(tmp_path: Path) -> None:
    """Else a worker that was started again would answer 503 while those beside it could answer."""

    def slowly(generation: Artifact) -> TokenEncoder:
        time.sleep(0.3)
        return OPENERS.encoder(generation)

    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    slow = replace(OPENERS, encoder=slowly)
    with listening(store, ServerConfig(load_first=True), slow) as port:
        assert httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200


def test_docs_need_no_other_server(server: Server) -> None:
    page = server.client.get("/docs")
    assert page.status_code == 200 and "://" not in page.text
    places = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert any(place.endswith(".js") for place in places) and any(place.endswith(".css") for place in places)
    for place in [*places, "/openapi.json"]:
        assert place.startswith("/") and server.client.get(place).status_code == 200, place


def test_staleness_is_counted_from_the_newest_checkpoint(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus, seed=3)
    with serving(store) as server:
        assert math.isnan(server.metric("hone_staleness_steps"))
        with store.checkpoints.stage({}) as draft:
            draft.facts.update(step=75)
        assert server.metric("hone_staleness_steps") == 45
        assert 0 <= server.metric("hone_generation_age_seconds") < 60
        assert server.metric("hone_generation_number") == 0
        assert server.metric("hone_swaps_total", result="loaded") == 1
        (store.checkpoints.at(0).path / "manifest.json").write_text("{")
        assert math.isnan(server.metric("hone_staleness_steps"))
        assert server.log_lines("checkpoint_unreadable")


def test_gauges_of_a_server_without_a_snapshot_are_unknown(empty_server: Server) -> None:
    for name in ("hone_generation_number", "hone_generation_age_seconds", "hone_staleness_steps"):
        assert math.isnan(empty_server.metric(name))


def test_a_process_that_cannot_start_does_not_end_the_watch(tmp_path: Path) -> None:
    store, _ = new_store(tmp_path)
    with serving(store, ServerConfig(job_command=("/nowhere/python",))) as server:
        jobs = server.app.state.service.jobs
        for _ in range(2):  # by another process, such as `hone index --queue`
            job, _new = jobs.create("rebuild")
            wait_for(lambda: jobs.get(job.id).state == "failed")  # noqa: B023 - waited for in this turn of the loop
        wait_for(lambda: len(server.log_lines("jobs_untended")) == 2)


def test_a_lost_database_leaves_search_and_metrics(server: Server) -> None:
    """Mining goes without it as little as jobs: what people judged is in there."""
    database, service = server.store.root / "hone.db", server.app.state.service
    service.jobs.close()
    service.judgements.close()
    for path in database.parent.glob("hone.db*"):
        path.unlink()
    database.mkdir()
    away = "the database of jobs and judgements does not answer"
    assert server.get("/v1/jobs", 503)["error"] == away
    for how in ({}, {"stream": True}, {"job": "hone"}):
        body = {"queries": [{"id": "q", "text": "alpha", "positives": []}], **how}
        assert server.post("/v1/mine", body, 503)["error"] == away
    assert server.log_lines("database_lost")
    assert "hone_generation_number 0.0" in server.client.get("/metrics").text
    assert server.log_lines("jobs_unreadable")
    for route, asked in (("search", {"queries": "alpha"}), ("encode", {"inputs": "alpha"})):
        assert server.post(f"/v1/{route}", asked)["generation"] == 0
    assert server.get("/v1/generations")["served"] == server.get("/readyz")["generation"] == 0


@pytest.mark.parametrize(
    "error", [TimeoutError("all connections are in use"), InterfaceError("", {}, OSError("closed"))]
)
def test_a_database_that_is_away_in_another_way_is_worth_another_try(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: SQLAlchemyError
) -> None:
    def newest(*_: object) -> None:
        raise error

    monkeypatch.setattr(server.app.state.service.jobs, "newest", newest)
    answer = server.client.get("/v1/jobs")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_no_other_machine_reaches_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "2130706433"])
def test_other_machines_may_reach_any_other_address(host: str) -> None:
    assert not is_loopback(host)
