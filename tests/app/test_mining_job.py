"""Mining as a job in this process: what it makes, that it goes on where it was, and that it stops when told."""

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import mining_job
from app.job_kinds import run_job
from app.jobs import Cancelled, Job, Jobs
from app.judgements import Judgements, Said
from app.mine_schemas import Knobs, MineRequest
from app.mining import Asked, source_generations
from app.mining_job import MINE, asked_parts, digest, mine_parts
from app.priority import Priority
from app.snapshot import Openers
from indexer.searcher import open_batch_searcher
from miner.filters import REASONS
from retriever.artifacts import Artifact
from retriever.data import Corpus
from retriever.errors import CorruptError, StoreError
from retriever.store import Store
from tests.app.served import OPENERS, TEXTS, damage, new_store, open_encoder, publish_generation, serving
from tests.stand_ins import HashEncoder

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
        gone = {reason: server.metric("hone_filtered_negatives_total", reason=reason) for reason in REASONS}
    assert lines(jobs, job) == whole["results"]
    drawn = sum(len(one["negatives"]) for one in whole["results"])
    counted = {"queries": 11, "lines": 11, "negatives": drawn, "left_out": 0, "cut_queries": 0, "filtered": gone}
    assert result == {"generation": 0, "format": "hone", **counted} and sum(gone.values()) > 0
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


def test_a_job_respects_what_was_judged_before_it_was_queued(store: Store, jobs: Jobs) -> None:
    corpus, judged = Corpus(store.corpora.at(0)), Judgements(jobs.url)
    row = corpus.row_of("p6")
    assert row is not None
    judged.add([Said(None, "alpha 1", "p6", int(corpus.text_hash[row]), 1, "ann", None)], 0)
    made = []
    for position in (0, judged.position()):
        job = queued(jobs, "hone", judgements=position, num_negatives=8, knobs=Knobs.model_validate({}).model_dump())
        jobs.finish(job.id, mine_parts(store, OPENERS, jobs, job, quiet))
        made.append({line["id"]: {one["id"] for one in line["negatives"]} for line in lines(jobs, job)})
        judged.add([Said(None, "alpha 1", "p6", int(corpus.text_hash[row]), 1, "bob", None)], 0)
    judged.close()
    before, after = made
    lost = {query: before[query] - after[query] for query in before if before[query] != after[query]}
    assert lost == {query.id: {"p6"} for query in QUERIES if query.text == "alpha 1"}


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


@pytest.fixture
def later(store: Store) -> Artifact:
    """Generation 2, of another model than 0 and 1 are."""
    corpus = Corpus(store.corpora.at(0))
    for seed in (1, 2):
        publish_generation(store, corpus, seed)
    return store.generations.at(2)


UNION = {"sources": ["generation:-1", "ann", "generation:WARMUP"], "depth": 3, "sampler": {"name": "uniform"}}
OTHERS = {"generation:-1": 1, "generation:WARMUP": 0}


def of_union(jobs: Jobs) -> Job:
    knobs = Knobs.model_validate(UNION).model_dump()
    return queued(jobs, "hone", generation=2, others=OTHERS, knobs=knobs, num_negatives=9)


def test_other_generations_are_searched_by_their_own_encoders(store: Store, jobs: Jobs, later: Artifact) -> None:
    job = of_union(jobs)
    result = mine_parts(store, OPENERS, jobs, job, quiet)
    assert (result["generation"], result["others"]) == (2, OTHERS)
    found, corpus = lines(jobs, job), Corpus(store.corpora.at(0))
    texts, own = [query.text for query in QUERIES], open_encoder(later)
    for name, number in {**OTHERS, "ann": 2}.items():
        generation = store.generations.at(number)
        nearest, _ = open_batch_searcher(generation).search(open_encoder(generation).encode_queries(texts), 3)
        for rows, one in zip(nearest, found, strict=True):
            brought = {hit["id"] for hit in one["negatives"] if name in hit["source"].split("+")}
            assert brought <= {corpus.id(row) for row in rows} and brought
    passages = dict(zip([*TEXTS], own.encode_passages(corpus.texts(range(8))), strict=True))
    for vector, one in zip(own.encode_queries(texts), found, strict=True):
        for hit in one["negatives"]:
            assert hit["score"] == pytest.approx(vector @ passages[hit["id"]], abs=1e-5), "by the one that is mined"


def test_one_other_generation_is_open_at_a_time_and_only_for_what_is_left(
    store: Store, jobs: Jobs, later: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining_job, "PART_QUERIES", 4)
    opened: list[int] = []
    open_now: weakref.WeakSet[HashEncoder] = weakref.WeakSet()

    def opening(generation: Artifact) -> HashEncoder:
        assert not open_now, "the one before is closed"
        opened.append(generation.number)
        open_now.add(encoder := open_encoder(generation))
        return encoder

    heard: list[tuple[str, int, int]] = []

    def dies(*place: Any) -> None:
        heard.append(place)
        if place == ("mine", 4, 11):
            raise KeyboardInterrupt

    job = of_union(jobs)
    with pytest.raises(KeyboardInterrupt):
        mine_parts(store, Openers(opening), jobs, job, dies)
    gc.collect()
    assert opened == [0, 1, 2]
    assert heard == [
        ("open", 0, 1),
        *(("search other generations", count, 6) for count in range(1, 7)),
        *(("mine", done, 11) for done in (0, 4)),
    ]
    store.generations.point("WARMUP", 2)
    heard.clear()
    mine_parts(store, OPENERS, jobs, job, lambda *place: heard.append(place))
    assert heard[1:5] == [("search other generations", count, 4) for count in range(1, 5)]
    gone_on = lines(jobs, job)
    jobs.stopped(job.id)
    whole = of_union(jobs)
    mine_parts(store, OPENERS, jobs, whole, quiet)
    assert lines(jobs, whole) == gone_on


def test_a_trained_store_is_mined_by_the_models_that_its_generations_hold(trained: Path) -> None:
    """The same again gives the same bytes; BASELINE is the generation of step 0."""
    store, table = Store(trained), Jobs(f"sqlite:///{trained / 'hone.db'}")
    newest = store.generations.get()
    assert newest is not None
    sources = ["ann", "generation:BASELINE", "generation:-1"]
    others = source_generations(store, newest, sources)
    knobs = Knobs.model_validate({"sources": sources, "depth": 5}).model_dump()
    corpus, made = Corpus(store.corpora.at(0)), []
    queries = [Asked(f"q{row}", corpus.text(row) * (999 if row == 5 else 1), [corpus.id(row)]) for row in range(6)]
    for _ in range(2):
        params = {"generation": newest.number, "format": "hone", "num_negatives": 4, "seed": 5, "knobs": knobs}
        params |= {"others": others, "queries": 6}
        job, _new = table.create(MINE, params, asked_parts(queries))
        run_job(trained, job.id, Priority.NORMAL)
        assert table.get(job.id).state == "done", table.get(job.id).error
        made.append(table.part(job.id, "made", 0))
        result = table.get(job.id).result
        assert result is not None and result["cut_queries"] == 1, "the long one"
    table.close()
    assert made[0] == made[1] and len({*others.values(), newest.number}) == 3
    hits = [hit for line in made[0].splitlines() for hit in json.loads(line)["negatives"]]
    assert {name for hit in hits for name in hit["source"].split("+")} == {*sources}


def test_another_generation_that_is_torn_or_gone_is_named(store: Store, jobs: Jobs, later: Artifact) -> None:
    job = of_union(jobs)
    damage(store.generations.path(1) / "index.faiss")
    with pytest.raises(CorruptError, match=r"000001/index\.faiss"):
        mine_parts(store, OPENERS, jobs, job, quiet)
    store.generations.remove(1)
    with pytest.raises(StoreError, match=r"000001.*removed or never published"):
        mine_parts(store, OPENERS, jobs, job, quiet)
    assert jobs.parts(job.id, "made") == {}


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
