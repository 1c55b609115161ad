import json
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from app.admission import NotComputedError
from app.jobs import Jobs
from app.mine_schemas import MineQuery, MineReply, MineRequest
from app.routes.mine import CHUNK_QUERIES
from app.schemas import JobReply
from app.server import REAP_SECONDS, ServerConfig
from miner.filters import REASONS
from miner.mining import MiningConfig
from miner.samplers import SAMPLERS, SamplerConfig
from retriever.data import Corpus
from tests.app.served import Server, end_children, new_store, publish_generation, serving, wait_for

NOT_FROM_A_REQUEST = {"verdicts", "on_relevant", "live", "per_query"}
"""A file and what is done about it, as no path comes from a request; and what only a trainer does."""
QUERY = {"id": "q", "text": "alpha beta gamma", "positives": ["p0"]}


def mined(server: Server, **fields: object) -> list[dict[str, Any]]:
    body = {"queries": [QUERY], "num_negatives": 8, "sampler": {"name": "top"}, **fields}
    negatives: list[dict[str, Any]] = server.post("/v1/mine", body)["results"][0]["negatives"]
    return negatives


def test_positives_and_copies_of_them_never_come_back(server: Server) -> None:
    negatives = mined(server)
    assert {negative["id"] for negative in negatives} == {"p1", "p2", "p3", "p5", "p6", "p7"}
    assert negatives[0]["id"] == "p6" and negatives[0]["rank"] == 3
    assert {(negative["source"], negative["verdict"]) for negative in negatives} == {("ann", "eligible")}
    scores = [negative["score"] for negative in negatives]
    assert scores == sorted(scores, reverse=True)


def test_a_copy_of_the_query_never_comes_back(server: Server) -> None:
    found = mined(server, queries=[{"id": "q", "text": "ALPHA beta gamma", "positives": ["p1"]}])
    assert {negative["id"] for negative in found} == {"p2", "p3", "p5", "p6", "p7"}


def test_limits_are_the_miner_s(server: Server) -> None:
    everything = mined(server)
    margin = mined(server, relative_margin=0.3)
    assert margin == [negative for negative in everything if negative["score"] <= 0.7 + 1e-6]
    assert margin != everything
    assert mined(server, max_score=0.0) == [negative for negative in everything if negative["score"] <= 0]
    assert mined(server, range_min=4, range_max=6) == [n for n in everything if 4 <= n["rank"] - 1 < 6]
    assert mined(server, depth=3, num_negatives=3) == everything[:1]


def test_the_same_generation_and_seed_give_the_same_draw(server: Server) -> None:
    body = {"queries": [QUERY, {**QUERY, "id": "r"}], "num_negatives": 3, "sampler": {"name": "uniform"}}
    first = server.post("/v1/mine", body)
    MineReply.model_validate(first)
    assert first == server.post("/v1/mine", body)
    alone = server.post("/v1/mine", {**body, "queries": [{**QUERY, "id": "r"}]})
    assert alone["results"] == first["results"][1:]
    others = [server.post("/v1/mine", {**body, "seed": seed})["results"] for seed in range(5)]
    assert any(other != first["results"] for other in others)


def test_unknown_positives_are_named(server: Server) -> None:
    queries = [QUERY, {"id": "r", "text": "beta", "positives": ["gone", "p1", "lost"]}]
    error = server.post("/v1/mine", {"queries": queries}, 422)["error"]
    assert "2 ids are not in the corpus of generation 0: 'gone', 'lost'" in error


def test_a_query_without_positives_is_mined(server: Server) -> None:
    found = mined(server, queries=[{"id": "q", "text": "eta theta", "positives": []}], relative_margin=0.5)
    assert len(found) == 8


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"num_negatives": 5, "depth": 4}, 422, "depth = 4"),
        ({"sampler": {"name": "best"}}, 422, "choose one of top, uniform"),
        ({"range_min": 5, "range_max": 5}, 422, "range_max"),
        ({"depth": 1001}, 422, "depth = 1001: at most 1000"),
        ({"depth": 0}, 422, "depth = 0"),
        ({"sources": ["sparse"]}, 422, "choose from ann"),
        ({"sources": "ann"}, 422, "body.sources"),
        ({"verdicts": "/etc/passwd"}, 422, "body.verdicts"),
        ({"sampler": {"name": "top", "sharpness": 1}}, 422, "body.sampler.sharpness"),
        ({"queries": [QUERY] * 300, "num_negatives": 1000, "depth": 1000}, 413, "200000"),
        ({"queries": []}, 422, "body.queries"),
        ({"queries": [{"id": "q", "text": "a"}]}, 422, "positives"),
        ({"relative_margin": "wide"}, 422, "body.relative_margin"),
    ],
)
def test_invalid_requests_are_refused_by_name(
    server: Server, fields: dict[str, object], status: int, named: str
) -> None:
    assert named in server.post("/v1/mine", {"queries": [QUERY], **fields}, status)["error"]


def filtered_away(server: Server) -> dict[str, float]:
    return {reason: server.metric("hone_filtered_negatives_total", reason=reason) for reason in REASONS}


def test_negatives_and_what_is_filtered_away_are_counted(server: Server) -> None:
    assert filtered_away(server) == dict.fromkeys(REASONS, 0), "there before anything is mined"
    mined(server, num_negatives=2)
    assert server.metric("hone_mined_negatives_total") == 2
    before = filtered_away(server)
    assert before == {**dict.fromkeys(REASONS, 0), "positive": 1, "duplicate": 1}, "p0, and p4 of the same text"
    mined(server, range_min=4, max_score=0.0)
    gone = {reason: count - before[reason] for reason, count in filtered_away(server).items()}
    eligible = len(mined(server, range_min=4, max_score=0.0))
    assert gone["range"] > 0 and sum(gone.values()) + eligible == 8


def test_a_thousand_queries_come_in_one_reply_or_as_lines(server: Server) -> None:
    queries = [{"id": f"q{i}", "text": f"alpha {i % 7}", "positives": [f"p{i % 8}"]} for i in range(1000)]
    body = {"queries": queries, "num_negatives": 3, "sampler": {"name": "uniform"}}
    whole = server.client.post("/v1/mine", json=body)
    streamed = server.client.post("/v1/mine", json={**body, "stream": True})
    assert (whole.status_code, streamed.status_code) == (200, 200)
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert streamed.headers["x-hone-generation"] == "0"
    assert [json.loads(line) for line in streamed.text.splitlines()] == whole.json()["results"]
    assert server.client.post("/v1/mine", json=body).content == whole.content, "the same bytes"
    for query, result in zip(queries, whole.json()["results"], strict=True):
        assert result["id"] == query["id"] and len(result["negatives"]) == 3
        known = {*query["positives"]} | ({"p0", "p4"} if {"p0", "p4"} & {*query["positives"]} else set())
        assert not {one["id"] for one in result["negatives"]} & known
    assert server.metric("hone_mined_negatives_total") == 9000


def test_queries_that_are_cut_are_counted(server: Server) -> None:
    queries = [{**QUERY, "id": str(place), "text": "eta " * (600 if place in (1, 6) else 5)} for place in range(9)]
    whole = server.post("/v1/mine", {"queries": queries})
    assert whole["cut_queries"] == 2 and server.post("/v1/mine", {"queries": queries[:1]})["cut_queries"] == 0
    streamed = server.client.post("/v1/mine", json={"queries": queries, "stream": True}).text.splitlines()
    assert [json.loads(line) for line in streamed] == [*whole["results"], {"cut_queries": 2}]


def test_an_error_midway_is_the_last_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    service, chunks = server.app.state.service, iter([None, NotComputedError("the worker died")])
    encode = type(service).encode

    async def failing(self: Any, *arguments: Any, **named: Any) -> Any:
        error = next(chunks)
        if error is not None:
            raise error
        return await encode(self, *arguments, **named)

    monkeypatch.setattr(type(service), "encode", failing)
    queries = [{**QUERY, "id": str(i)} for i in range(40)]
    answer = server.client.post("/v1/mine", json={"queries": queries, "stream": True})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert len(lines) == CHUNK_QUERIES + 1 and lines[-1] == {"error": "the worker died", "error_type": "unavailable"}


def test_everything_that_the_miner_knows_may_be_asked_for() -> None:
    known = {one.name for one in fields(MiningConfig)} - NOT_FROM_A_REQUEST
    assert known <= MineRequest.model_fields.keys()
    sampler = MineRequest.model_fields["sampler"].annotation
    assert sampler is not None and {one.name for one in fields(SamplerConfig)} == sampler.model_fields.keys()
    assert MineRequest(queries=[MineQuery(**QUERY)]).config() == MiningConfig()  # type: ignore[arg-type]  # by name


def test_every_source_and_sampler_may_be_asked_for(server: Server) -> None:
    for name in SAMPLERS:
        assert len(mined(server, sampler={"name": name}, num_negatives=3)) == 3
    by_words = mined(server, sources=["bm25"], depth=8)
    assert {one["source"] for one in by_words} == {"bm25"} and {one["id"] for one in by_words} <= {"p1", "p2", "p6"}
    both = mined(server, sources=["ann", "bm25", "lookahead"], depth=8)
    assert {one["id"]: one["source"] for one in both}["p6"] == "ann+lookahead+bm25"
    assert not {one["id"] for one in both} & {"p0", "p4"}
    assert "does not use it" in server.post("/v1/mine", {"queries": [QUERY], "sampler": {"a": 1}}, 422)["error"]


@pytest.fixture
def mining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose jobs mine in a process of their own."""
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("HONE_STORE", str(store.root))
    script = Path(__file__).parent.with_name("job_script.py")
    with serving(store, ServerConfig(job_command=(sys.executable, str(script), "mine"))) as server:
        yield server
        end_children(server.app.state.service.processes)


def test_many_queries_are_mined_by_a_job_whose_file_is_read(mining: Server) -> None:
    queries = [{"id": f"q{i}", "text": f"alpha {i % 7}", "positives": [f"p{i % 8}"]} for i in range(3000)]
    body = {"queries": queries, "num_negatives": 3, "job": "hone"}
    asked = mining.client.post("/v1/mine", json=body)
    assert asked.status_code == 202, asked.text
    job = JobReply.model_validate_json(asked.content)
    place = asked.headers["location"]
    assert place == f"/v1/jobs/{job.id}" and asked.headers["x-hone-generation"] == "0"
    assert mining.get(f"{place}/result", 409)["error"].endswith("its file can be read once it is done")
    assert mining.post("/v1/mine", body, 202)["id"] == job.id, "the same again is the same job"
    assert job.id in mining.post("/v1/mine", {**body, "seed": 4}, 409)["error"]
    wait_for(lambda: mining.get(place)["state"] not in ("queued", "running"), seconds=60)
    done = mining.get(place)
    assert done["state"] == "done", done
    assert (done["done"], done["total"], done["phase"]) == (3000, 3000, "mine")
    made = mining.client.get(f"{place}/result")
    assert (made.headers["content-type"], made.headers["x-hone-generation"]) == ("application/x-ndjson", "0")
    assert f"{job.id}.jsonl" in made.headers["content-disposition"]
    lines = [json.loads(line) for line in made.text.splitlines()]
    small = mining.post("/v1/mine", {**body, "queries": queries[:40], "job": None})
    assert [line["id"] for line in lines] == [query["id"] for query in queries] and lines[:40] == small["results"]
    negatives = sum(len(line["negatives"]) for line in lines)
    counted = {"queries": 3000, "lines": 3000, "negatives": negatives, "left_out": 0, "cut_queries": 0}
    gone = done["result"].pop("filtered")
    assert done["result"] == {"generation": 0, "format": "hone", **counted}
    assert list(gone) == list(REASONS) and gone["positive"] == 3000
    by_request = sum(len(one["negatives"]) for one in small["results"])
    wait_for(lambda: mining.metric("hone_mined_negatives_total") >= negatives + by_request)
    assert mining.metric("hone_mined_negatives_total") == negatives + by_request
    assert filtered_away(mining)["positive"] == 3000 + 40


def test_a_job_is_counted_by_one_of_the_servers_that_watch_it(tmp_path: Path) -> None:
    """Wherever it was done, also while no server was there."""
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    table = Jobs(f"sqlite:///{store.root / 'hone.db'}")

    def mine(**result: Any) -> None:
        job, _ = table.create("mine")
        table.begin(job.id, 1)
        table.finish(job.id, result)

    def counted() -> list[float]:
        return [server.metric("hone_mined_negatives_total") for server in servers]

    def gone() -> float:
        return sum(sum(filtered_away(server).values()) for server in servers)

    mine(negatives=100, filtered={"range": 3, "adaptive": 2, "whim": 9})
    mine(lines=1)  # as no version here says it: the watch over jobs must not end by it
    with serving(store) as first, serving(store) as second:
        servers = [first, second]
        for server in servers:
            server.app.state.service.processes.takes = False
        wait_for(lambda: sum(counted()) == 100)
        assert gone() == 5, "and no reason that is not the miner's is a label"
        for _ in range(5):
            mine(negatives=7)
        wait_for(lambda: sum(counted()) == 135)
        time.sleep(3 * REAP_SECONDS)  # each has looked once more
        assert sum(counted()) == 135 and gone() == 5
    table.close()


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"queries": [QUERY] * 2049}, 413, "2048"),
        ({"queries": [QUERY] * 2049, "job": "csv"}, 422, "body.job"),
        ({"job": "/tmp/out.jsonl"}, 422, "body.job"),
        ({"job": "hone", "stream": True}, 422, "choose one of the two"),
        ({"queries": [QUERY] * 2001, "num_negatives": 1000, "depth": 1000, "job": "hone"}, 413, "2000000"),
        ({"queries": [{**QUERY, "positives": ["gone"]}], "job": "hone"}, 422, "'gone'"),
        ({"sources": ["ann", "generation:CURRENT"]}, 422, "generation:CURRENT: a job alone opens other generations"),
        ({"sources": ["ann", "momentum"]}, 422, "momentum draws from a run's sets; choose from ann, lookahead, bm25"),
        ({"sources": ["ann", "generation:../1"], "job": "hone"}, 422, "generation:NAME"),
        ({"sources": ["ann", "generation:" + "A" * 256], "job": "hone"}, 422, "generation:NAME"),
        ({"sources": ["ann", "generation:-" + "9" * 5000], "job": "hone"}, 422, "generation:NAME"),
        ({"sources": ["generation:-1"], "job": "hone"}, 422, "the first set may have none"),
        ({"sources": ["ann", "generation:WARMUP"], "job": "hone"}, 409, "hone pin generations N WARMUP"),
        ({"sources": ["ann", "generation:-1"], "job": "hone"}, 409, "there is no such generation before 0 yet"),
        ({"quotas": {"ann": 3}}, 422, "quotas add up to 3 negatives, but 8 are drawn"),
    ],
)
def test_a_job_that_cannot_be_is_refused_by_name(
    server: Server, fields: dict[str, object], status: int, named: str
) -> None:
    assert named in server.post("/v1/mine", {"queries": [QUERY], **fields}, status)["error"]


def test_quotas_in_another_order_are_another_request(mining: Server) -> None:
    """The first source of quotas draws first, so the order changes what is drawn."""
    body = {"queries": [QUERY] * 3000, "num_negatives": 3, "sources": ["ann", "bm25"], "job": "hone"}
    first = mining.post("/v1/mine", {**body, "quotas": {"ann": 2, "bm25": 1}}, 202)
    assert mining.post("/v1/mine", {**body, "quotas": {"ann": 2, "bm25": 1}}, 202)["id"] == first["id"]
    assert first["id"] in mining.post("/v1/mine", {**body, "quotas": {"bm25": 1, "ann": 2}}, 409)["error"]


def test_a_job_mines_other_generations_by_the_numbers_that_they_had(mining: Server) -> None:
    store = mining.store
    corpus = Corpus(store.corpora.at(0))
    publish_generation(store, corpus, 1)
    publish_generation(store, corpus, 2)
    mining.wait_for(2)
    store.generations.point("WARMUP", 0)
    sources = ["generation:WARMUP", "ann", "generation:-1"]
    body = {"queries": [{**QUERY, "id": str(i)} for i in range(300)], "sources": sources, "depth": 4, "job": "hone"}
    body["quotas"] = {"generation:WARMUP": 2, "generation:-1": 1, "ann": 1}
    body["num_negatives"] = 4
    asked = mining.post("/v1/mine", body, 202)
    store.generations.point("WARMUP", 1)
    moved = mining.client.post("/v1/mine", json=body)
    assert moved.status_code == 409 or moved.json()["id"] != asked["id"], "another generation is another request"
    place = f"/v1/jobs/{asked['id']}"
    wait_for(lambda: mining.get(place)["state"] not in ("queued", "running"), seconds=60)
    done = mining.get(place)
    assert done["state"] == "done", done
    assert done["result"]["others"] == {"generation:WARMUP": 0, "generation:-1": 1}
    made = [json.loads(line) for line in mining.client.get(f"{place}/result").text.splitlines()]
    assert len(made) == 300
    for one in made:
        first = [hit["source"].split("+") for hit in one["negatives"]]
        assert "generation:WARMUP" in first[0] and all({*names} <= {*sources} for names in first)


@pytest.mark.parametrize(
    ("facts", "corpus", "named"),
    [
        ({}, 7, "generation:OTHER is generation 1 of corpus 7, mined is corpus 0"),
        ({"partial": {"method": "rescore"}}, 0, "generation:OTHER is generation 1, which scores"),
        (None, 0, "generation:OTHER is generation 1, which was removed"),
    ],
)
def test_a_generation_that_cannot_be_mined_from_is_named(
    server: Server, facts: dict[str, Any] | None, corpus: int, named: str
) -> None:
    generations = server.store.generations
    with generations.stage({"checkpoint": 0, "corpus": corpus}) as draft:
        draft.facts.update(step=0, **(facts or {}))
    generations.point("OTHER", draft.number)
    if facts is None:
        generations.remove(draft.number)
    body = {"queries": [QUERY], "sources": ["ann", "generation:OTHER"], "job": "hone"}
    error = server.post("/v1/mine", body, 409)
    assert named in error["error"] and error["error"].startswith("sources: ")
    assert server.get("/v1/jobs")["total"] == 0


@pytest.mark.parametrize("how", [{}, {"stream": True}, {"job": "hone"}])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"quotas": {"ann": 9}, "num_negatives": 9}, "quotas = {'ann': 9}: none may exceed depth = 8"),
        ({"range_min": 8}, "range_min = 8 leaves nothing of depth = 8"),
    ],
)
def test_what_this_corpus_is_too_small_for_is_refused_at_once(
    server: Server, how: dict[str, object], fields: dict[str, object], named: str
) -> None:
    error = server.post("/v1/mine", {"queries": [QUERY], **fields, **how}, 422)
    assert error["error"] == named


def test_a_generation_without_words_says_so_at_once(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus, lexical=False)
    with serving(store) as server:
        for how in ({}, {"stream": True}, {"job": "hone"}):
            body = {"queries": [QUERY], "sources": ["ann", "bm25"], **how}
            assert "lexical = true" in server.post("/v1/mine", body, 409)["error"]


def test_only_a_mining_job_has_a_file(mining: Server) -> None:
    job, _ = mining.app.state.service.jobs.create("rebuild")
    assert "makes no file" in mining.get(f"/v1/jobs/{job.id}/result", 404)["error"]
    assert mining.get("/v1/jobs/none/result", 404)["error_type"] == "not_found"
