from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.authorization import SCOPE_OF, scope_of
from app.job_kinds import KINDS, PROMOTE, REBUILD
from app.keys import SCOPES, Keys
from app.mining_job import MINE
from app.server import ServerConfig
from tests.app.served import Server, new_store, publish_generation, serving

SEARCH = {"queries": "alpha"}


@dataclass
class Guarded:
    """A server that asks for keys."""

    server: Server
    keys: Keys

    def ask(self, path: str, secret: str | None, method: str = "POST", body: object = None) -> tuple[int, str]:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        response = self.server.client.request(method, path, json=body, headers=headers)
        kind = response.json().get("error_type", "") if response.headers["content-type"].endswith("json") else ""
        return response.status_code, kind


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    keys = Keys(f"sqlite:///{tmp_path / 'keys.db'}")
    with serving(store, ServerConfig(keys=keys, max_body_bytes=1000)) as server:
        yield Guarded(server, keys)
    keys.close()


def test_without_a_key_there_is_health_and_documentation_alone(guarded: Guarded) -> None:
    for path in ("/livez", "/readyz", "/health", "/metrics", "/docs", "/openapi.json", "/"):
        assert guarded.server.client.get(path).status_code == 200, path
    for wrong in (None, "", "hone_a_b", "é"):
        headers = [] if wrong is None else [(b"authorization", f"Bearer {wrong}".encode())]
        response = guarded.server.client.post("/v1/search", json=SEARCH, headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.json()["request_id"] == response.headers["x-request-id"]
    assert guarded.server.client.get("/v1/jobs").status_code == 401


def test_a_key_reaches_as_far_as_its_scopes(guarded: Guarded) -> None:
    searcher, _ = guarded.keys.create("searcher", ["search"])
    boss, _ = guarded.keys.create("boss", ["admin"])
    assert guarded.ask("/v1/search", searcher, body=SEARCH)[0] == 200
    assert guarded.ask("/v1/jobs", searcher, "GET")[0] == 200
    for path in ("/v1/encode", "/v1/mine", "/v1/index/rebuild", "/v1/generations/rollback", "/nowhere"):
        assert guarded.ask(path, searcher) == (403, "forbidden"), path
    assert guarded.ask("/v1/encode", boss, body={"inputs": "a"})[0] == 200
    assert guarded.ask("/v1/generations/rollback", boss)[0] == 409
    other = guarded.server.client.post("/v1/search", json=SEARCH, headers={"x-api-key": searcher})
    assert other.status_code == 200


def test_every_documented_route_asks_for_what_it_should(guarded: Guarded) -> None:
    document = guarded.server.get("/openapi.json")
    found = {
        (method.upper(), path): scope_of(method.upper(), path)
        for path, ms in document["paths"].items()
        for method in ms
    }
    assert found[("GET", "/metrics")] is None and found[("GET", "/v1/jobs/{job_id}")] == "any"
    assert found[("GET", "/v1/jobs/{job_id}/result")] == "mine", "texts of the corpus"
    assert found[("GET", "/v1/judgements")] == "write", "who judged, and what was asked"
    assert found[("POST", "/v1/jobs/{job_id}/cancel")] == "any", "the route asks for more, by the kind of the job"
    assert found[("POST", "/v1/index/rebuild")] == found[("POST", "/v1/judgements")] == "write"
    changing = {path: scope for (method, path), scope in found.items() if method == "POST" and path not in SCOPE_OF}
    assert changing == {
        "/v1/jobs/{job_id}/cancel": "any",
        "/v1/generations/{number}/promote": "admin",
        "/v1/generations/rollback": "admin",
    }
    assert set(SCOPE_OF.values()) <= set(SCOPES) and SCOPE_OF.keys() <= document["paths"].keys()
    for (method, path), scope in found.items():
        responses = document["paths"][path][method.lower()]["responses"]
        assert ({"401", "403", "429"} <= responses.keys()) == (scope is not None), path


@pytest.mark.parametrize("kind", [*KINDS])
def test_a_job_is_seen_by_all_and_cancelled_with_the_scope_that_starts_its_kind(guarded: Guarded, kind: str) -> None:
    service = guarded.server.app.state.service
    service.processes.takes = False
    job, _ = service.jobs.create(kind)
    started_at = {REBUILD: "/v1/index/rebuild", MINE: "/v1/mine", PROMOTE: "/v1/generations/0/promote"}
    wanted = scope_of("POST", started_at.get(kind, "/v1/generations/rollback"))
    secrets = {scope: guarded.keys.create(scope, [scope])[0] for scope in SCOPES}
    for scope in sorted(SCOPES, key=lambda scope: scope in (wanted, "admin")):
        assert guarded.ask(f"/v1/jobs/{job.id}", secrets[scope], "GET")[0] == 200
        may = scope in (wanted, "admin")
        expected = (200, "") if may else (403, "forbidden")
        assert guarded.ask(f"/v1/jobs/{job.id}/cancel", secrets[scope]) == expected, scope
        assert (service.jobs.get(job.id).state == "cancelled") == may
    assert guarded.ask(f"/v1/jobs/{job.id}/cancel", None) == (401, "unauthenticated")


def test_a_key_for_mining_follows_and_cancels_the_job_that_it_started(guarded: Guarded) -> None:
    guarded.server.app.state.service.processes.takes = False
    miner, key = guarded.keys.create("miner", ["mine"])
    headers = {"authorization": f"Bearer {miner}"}
    body = {"queries": [{"id": "q", "text": "alpha", "positives": ["p0"]}], "job": "hone"}
    started = guarded.server.client.post("/v1/mine", json=body, headers=headers)
    assert started.status_code == 202
    place = started.headers["location"]
    assert guarded.server.client.get(place, headers=headers).json()["state"] == "queued"
    assert guarded.server.client.post(f"{place}/cancel", headers=headers).json()["outcome"] == "CANCELLED"
    events = guarded.server.client.get(f"{place}/events", headers=headers)
    assert events.status_code == 200 and events.text.startswith("event: end")
    rebuild, _ = guarded.server.app.state.service.jobs.create("rebuild")
    refused = guarded.server.client.post(f"/v1/jobs/{rebuild.id}/cancel", headers=headers)
    assert refused.json()["error"] == f"key {key.id} may mine; this needs write"
    assert guarded.ask("/v1/jobs/none/cancel", miner) == (404, "not_found")


def test_too_many_requests_are_told_when_to_come_back(guarded: Guarded) -> None:
    secret, _ = guarded.keys.create("eager", ["search"], 3)
    other, _ = guarded.keys.create("calm", ["search"])
    assert [guarded.ask("/v1/search", secret, body=SEARCH)[0] for _ in range(4)] == [200, 200, 200, 429]
    response = guarded.server.client.post("/v1/search", json=SEARCH, headers={"authorization": f"Bearer {secret}"})
    assert response.status_code == 429 and 1 <= int(response.headers["retry-after"]) <= 60
    assert guarded.ask("/v1/search", other, body=SEARCH)[0] == 200


def test_a_stranger_s_body_is_not_read(guarded: Guarded) -> None:
    response = guarded.server.client.post("/v1/encode", content=b" " * 2000)
    assert response.status_code == 401
    secret, _ = guarded.keys.create("ann", ["encode"])
    headers = {"authorization": f"Bearer {secret}"}
    assert guarded.server.client.post("/v1/encode", content=b" " * 2000, headers=headers).status_code == 413


def test_no_secret_is_logged(guarded: Guarded) -> None:
    secret, key = guarded.keys.create("ann", ["search"])
    wrong = "hone_aaaaaaaaaaaa_averysecretguess"
    for offered in (secret, wrong):
        guarded.ask("/v1/search", offered, body=SEARCH)
        guarded.server.client.get("/broken", headers={"x-api-key": offered})
    lines = guarded.server.log_lines("request")
    assert [line["key"] for line in lines] == [key.id, key.id, None, None]
    text = str(guarded.server.log_lines())
    assert secret.split("_", 2)[2] not in text and "averysecretguess" not in text


def test_a_lost_database_of_keys_lets_nobody_in(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(offered: str) -> None:
        raise OperationalError("select", {}, Exception("gone"))

    monkeypatch.setattr(guarded.keys, "find", lost)
    response = guarded.server.client.post("/v1/search", json=SEARCH)
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


def test_a_key_spends_its_tokens_and_is_told_when_there_are_more(guarded: Guarded) -> None:
    thrifty, key = guarded.keys.create("thrifty", ["encode", "search"], tokens_per_minute=20)
    free, _ = guarded.keys.create("free", ["encode"])
    text = "alpha beta gamma delta"
    answers = [guarded.ask("/v1/encode", thrifty, body={"inputs": f"{text} {n}"}) for n in range(12)]
    assert answers[0][0] == 200 and answers[-1] == (429, "overloaded")
    refused = guarded.server.client.post(
        "/v1/search", json={"queries": text}, headers={"authorization": f"Bearer {thrifty}"}
    )
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
    assert f"key {key.id} may spend 20 tokens a minute" in refused.json()["error"]
    assert guarded.ask("/v1/encode", free, body={"inputs": text})[0] == 200


def test_what_the_queue_refuses_costs_no_tokens(guarded: Guarded) -> None:
    thrifty, _ = guarded.keys.create("thrifty", ["encode", "search"], tokens_per_minute=4)
    headers = {"authorization": f"Bearer {thrifty}"}
    admission = guarded.server.app.state.service.admission

    def ask(text: str) -> tuple[int, str]:
        response = guarded.server.client.post("/v1/encode", json={"inputs": text}, headers=headers)
        return response.status_code, response.json().get("error", "")

    admission.queued_tokens = admission.config.queue_tokens
    for _ in range(2):
        status, told = ask("alpha beta gamma")
        assert status == 429 and "tokens wait already" in told
    admission.queued_tokens = 0
    admission.problem = "the model's worker died"
    assert ask("alpha beta gamma")[0] == 503
    admission.problem = ""
    assert ask("alpha beta gamma")[0] == 200
    status, told = ask("delta epsilon")
    assert status == 429 and "may spend 4 tokens a minute" in told
    assert admission.queued_tokens == 0, "what may not be paid does not wait"


def test_a_request_beyond_the_tokens_of_a_whole_minute_is_too_large(guarded: Guarded) -> None:
    thrifty, _ = guarded.keys.create("thrifty", ["encode"], tokens_per_minute=3)
    assert guarded.ask("/v1/encode", thrifty, body={"inputs": [f"alpha beta {n}" for n in range(5)]}) == (
        413,
        "too_large",
    )
