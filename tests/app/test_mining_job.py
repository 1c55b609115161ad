"""Mining as a job in this process: what it makes, that it goes on where it was, and that it stops when told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import mining_job
from app.jobs import Cancelled, Job, Jobs
from app.mine_schemas import Knobs, MineRequest
from app.mining import Asked
from app.mining_job import MINE, asked_parts, digest, mine_parts
from retriever.errors import StoreError
from retriever.store import Store
from tests.app.served import OPENERS, new_store, publish_generation, serving

QUERIES = [Asked(f"q{place}", f"alpha {place % 3}", [f"p{place % 8}"] if place % 5 else []) for place in range(11)]
KNOBS: dict[str, Any] = {"sampler": {"name": "uniform"}, "sources": ["ann", "bm25"], "quotas": {"bm25": 1, "ann": 2}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    return store


@pytest.fixture
def jobs(store: Store) -> Iterator[Jobs]:
    table = Jobs(f"sqlite:///{store.root / 'hone.db'}")
    yield table
    table.close()


def queued(jobs: Jobs, file_format: str, **changed: Any) -> Job:
    """Queue a job as the route does, and begin it."""
    knobs = Knobs.model_validate(KNOBS).model_dump()
    parts = asked_parts(QUERIES)
    params = {"generation": 0, "format": file_format, "num_negatives": 3, "seed": 5, "knobs": knobs}
    job, new = jobs.create(MINE, {**params, "queries": len(QUERIES), "sha256": digest(parts), **changed}, parts)
    assert new
    jobs.begin(job.id, 1)
    return job


def quiet(phase: str, done: int, total: int) -> None:
    """Take the progress."""


def lines(jobs: Jobs, job: Job) -> list[dict[str, Any]]:
    data = b"".join(jobs.part(job.id, "made", number) for number in jobs.parts(job.id, "made"))
    return [json.loads(line) for line in data.splitlines()]


def test_hone_s_own_lines_are_those_of_the_route(store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining_job, "PART_QUERIES", 4)
    job = queued(jobs, "hone")
    heard: list[tuple[str, int, int]] = []
    result = mine_parts(store, OPENERS, jobs, job, lambda *place: heard.append(place))
    assert heard == [("open", 0, 1), *(("mine", done, 11) for done in (0, 4, 8, 11))]
    with serving(store) as server:
        queries = [{"id": one.id, "text": one.text, "positives": [*one.positives]} for one in QUERIES]
        whole = server.post("/v1/mine", {"queries": queries, "num_negatives": 3, "seed": 5, **KNOBS})
    assert lines(jobs, job) == whole["results"]
    drawn = sum(len(one["negatives"]) for one in whole["results"])
    counted = {"queries": 11, "lines": 11, "negatives": drawn, "left_out": 0}
    assert result == {"generation": 0, "format": "hone", **counted}
    for one in whole["results"]:
        sources = [negative["source"] for negative in one["negatives"]]
        assert "bm25" in sources[0] and all("ann" in source for source in sources[1:]), "by quota, in their order"


def test_each_trainer_gets_its_form(store: Store, jobs: Jobs) -> None:
    columns = {
        "sentence-transformers": ["anchor", "positive", "negative_1", "negative_2", "negative_3"],
        "flagembedding": ["query", "pos", "neg"],
        "tevatron": ["query_id", "query", "positive_passages", "negative_passages"],
    }
    for file_format, names in columns.items():
        job = queued(jobs, file_format)
        result = mine_parts(store, OPENERS, jobs, job, quiet)
        jobs.finish(job.id, result)
        found = lines(jobs, job)
        assert len(found) == result["lines"] and all(list(line) == names for line in found)
        left_out = 3 if file_format == "sentence-transformers" else 0  # those without a positive have no pair
        assert result["left_out"] == left_out and result["lines"] == 11 - left_out


def test_a_job_goes_on_where_it_was_and_gives_the_same_bytes(
    store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining_job, "PART_QUERIES", 3)
    job = queued(jobs, "tevatron")

    def dies(phase: str, done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine_parts(store, OPENERS, jobs, job, dies)
    assert [*jobs.parts(job.id, "made")] == [0, 1]
    heard: list[int] = []
    result = mine_parts(store, OPENERS, jobs, job, lambda phase, done, total: heard.append(done))
    assert heard == [0, 6, 9, 11], "what was made is not made again"
    whole = lines(jobs, job)
    jobs.finish(job.id, result)
    other = queued(jobs, "tevatron")
    assert mine_parts(store, OPENERS, jobs, other, quiet) == result and lines(jobs, other) == whole


def test_a_job_that_is_to_stop_keeps_nothing_more(store: Store, jobs: Jobs) -> None:
    job = queued(jobs, "hone")
    jobs.request_cancel(job.id)
    with pytest.raises(Cancelled):
        mine_parts(store, OPENERS, jobs, job, quiet)
    assert jobs.parts(job.id, "made") == {}


def test_a_generation_that_is_gone_is_named(store: Store, jobs: Jobs) -> None:
    with pytest.raises(StoreError, match=r"000004.*removed or never published"):
        mine_parts(store, OPENERS, jobs, queued(jobs, "hone", generation=4), quiet)


def test_the_knobs_of_a_job_are_those_of_a_request() -> None:
    assert set(Knobs.model_fields) == set(MineRequest.model_fields) - {
        "queries",
        "num_negatives",
        "seed",
        "stream",
        "job",
    }
