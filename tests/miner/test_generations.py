"""Other generations as sources: which one is meant, by which encoder it is searched, what keeps it, what goes wrong."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.searcher import open_batch_searcher
from miner.generations import check_pinned, earlier, furthest_back, generation_source, named_generations
from miner.loop import Retention
from miner.stored_pool import StoredPool
from retriever.artifacts import Artifact
from retriever.errors import CorruptError, InputError, StoreError
from retriever.negatives import MAY_BE_DRAWN, open_negative_set
from retriever.store import Store
from tests.miner.bench import DEPTH, Bench
from tests.miner.refreshers import Refresher, mark
from tests.stand_ins import HashEncoder

NAMES = ("bm25", "generation:WARMUP", "generation:-1", "generation:-2", "ann")


def steps_of(store: Store, *steps: int, **facts: Any) -> list[Artifact]:
    """Publish an empty generation of each step."""
    found = []
    for step in steps:
        with store.generations.stage({"checkpoint": 0, "corpus": 0}) as draft:
            draft.facts.update(step=step, **facts)
        found.append(store.generations.at(draft.number))
    return found


def nearest(bench: Bench, generation: Artifact, seed: int) -> list[set[int]]:
    """Return what the queries find in ``generation`` by the encoder of ``seed``."""
    vectors = HashEncoder(seed=seed).encode_queries(bench.task.queries.texts)
    return [set(rows.tolist()) for rows in open_batch_searcher(generation).search(vectors, DEPTH)[0]]


def test_each_generation_brings_what_its_own_encoder_finds_in_it(bench: Bench) -> None:
    task = bench.with_config(sources=NAMES)
    generations = [bench.generation(step, seed=seed) for seed, step in enumerate((0, 100, 200, 300))]
    bench.store.generations.point("WARMUP", 0)
    published = bench.publish(generations[3], task, seed=3)
    bits = {"bm25": 8, "generation:WARMUP": 16, "generation:-1": 32, "generation:-2": 64, "ann": 1}
    assert published.facts["sources"] == bits
    found = open_negative_set(published.path)
    for name, seed in (("generation:WARMUP", 0), ("generation:-1", 2), ("generation:-2", 1), ("ann", 3)):
        expected = nearest(bench, generations[seed], seed)
        for query, rows in enumerate(found.passages):
            assert set(rows[found.sources[query] & bits[name] > 0].tolist()) == expected[query]
        assert published.facts["candidates"][name] == 20 * DEPTH
    lineage = {"generation:WARMUP": 0, "generation:-1": 2, "generation:-2": 1}
    assert published.parents == {"generation": 3, "checkpoint": 3, "corpus": 0, **lineage}
    encoder, real = HashEncoder(seed=3), found.passages[0] >= 0
    own = encoder.encode_queries(bench.task.queries.texts[:1])[0]
    expected_scores = encoder.encode_passages(bench.corpus.texts(found.passages[0][real])) @ own
    np.testing.assert_allclose(found.scores[0][real], expected_scores, atol=1e-5)  # by the generation that is mined


def test_quotas_are_met_per_source_and_the_source_stands_on_each_negative(bench: Bench) -> None:
    """R²anker's observable: 2 by words, 1 by the warm-up retriever, 3 by the newest."""
    quotas = {"bm25": 2, "generation:WARMUP": 1, "ann": 3}
    task = bench.with_config(sources=("ann", "bm25", "generation:WARMUP"), quotas=quotas)
    first, second = bench.generation(0, seed=0), bench.generation(100, seed=1)
    bench.store.generations.point("WARMUP", first.number)
    published = bench.publish(second, task, seed=1)
    pool, bits = open_negative_set(published.path), published.facts["sources"]
    drawn = StoredPool(pool, published.number, task.config.sampler, task.config.wanted(6), 13, 5).draw(pool.queries, 0)
    assert drawn.sources is not None
    for query in range(20):
        left = {
            int(row): int(mask)
            for row, mask, verdict in zip(pool.passages[query], pool.sources[query], pool.verdicts[query], strict=True)
            if row >= 0 and verdict in MAY_BE_DRAWN
        }
        place = 0
        for name, quota in quotas.items():
            rows = [int(row) for row in drawn.rows[query][place : place + quota] if row >= 0]
            here = {row for row, mask in left.items() if mask & bits[name]}
            assert len(rows) == min(quota, len(here)) and set(rows) <= here
            masks = drawn.sources[query][place : place + quota][: len(rows)]
            assert masks.tolist() == [left.pop(row) for row in rows]
            place += quota
    told = published.facts["by_source"]
    assert {name: one["quota"] for name, one in told.items()} == quotas
    assert all(one["drawn"] + one["short"] >= 20 * one["quota"] - one["short"] * one["quota"] for one in told.values())
    assert told["ann"]["candidates"] == 20 * DEPTH and 0 < told["ann"]["drawn_score_mean"] <= 1


def test_the_same_again_gives_the_same_set_and_encodes_nothing(bench: Bench) -> None:
    task = bench.with_config(sources=("ann", "generation:-1"))
    bench.generation(0, seed=0)
    newest = bench.generation(100, seed=1)
    one = bench.publish(newest, task, seed=1)
    assert bench.opened == [0]
    two = bench.publish(newest, task, seed=1)
    assert one.manifest["files"] == two.manifest["files"] and bench.opened == [0], "its candidates are kept"


def test_the_first_sets_have_no_earlier_generation_and_say_so_of_the_quota(bench: Bench) -> None:
    task = bench.with_config(
        sources=("ann", "generation:-1"), quotas={"generation:-1": 2, "ann": 2}, fill="ann", relative_margin=None
    )
    published = bench.publish(bench.generation(), task)
    assert published.parents == {"generation": 0, "checkpoint": 0, "corpus": 0}
    assert published.facts["by_source"]["generation:-1"] == {
        "candidates": 0,
        "verdicts": {},
        "score_mean": None,
        "quota": 2,
        "drawn": 0,
        "drawn_score_mean": None,
        "short": 20,
    }
    (said,) = bench.said
    assert said == (
        "source generation:-1: 20 of 20 queries have fewer than its quota of 2 negatives; "
        "ann fills them where it has more"
    )
    pool = open_negative_set(published.path)
    drawn = StoredPool(pool, 0, task.config.sampler, task.config.wanted(4), 13, 5).draw(pool.queries, 0)
    assert drawn.mask.all()


def test_counting_back_meets_what_a_run_met_before(store: Store) -> None:
    """After a return to step 100 the steps from there on are published again: the last one of a step counts."""
    generations = steps_of(store, 0, 100, 200, 300, 200, 300)
    assert [one.number for one in earlier(store.generations, generations[5], 3)] == [4, 1, 0]
    assert [one.number for one in earlier(store.generations, generations[3], 2)] == [2, 1]
    assert [one.number for one in earlier(store.generations, generations[0], 2)] == []


def test_candidates_go_by_how_a_generation_is_searched_and_damage_is_told(bench: Bench, tmp_path: Path) -> None:
    first = bench.generation()
    said: list[str] = []
    deeper = {**first.manifest, "facts": {**first.facts, "search": {"nprobe": 3}}}
    for one in (first, Artifact("generations", first.number, first.path, deeper)):
        generation_source(one, bench.encoder_of, ["ba", "be"], 3, tmp_path / "cache", said.append)
    (folder,) = (tmp_path / "cache").iterdir()
    candidates = [*folder.glob("candidates-*")]
    assert len(candidates) == 2 and said == []
    for path in candidates:
        shutil.rmtree(path)
    (shard,) = folder.glob("*.npy")
    shard.write_bytes(b"torn")
    generation_source(first, bench.encoder_of, ["ba", "be"], 3, tmp_path / "cache", said.append)
    assert len(said) == 1 and str(shard) in said[0]


def test_a_rebuild_stands_beside_the_generation_of_its_checkpoint(store: Store) -> None:
    """Of three generations the second was built again, as `hone index` builds what is served, before the fourth."""
    for checkpoint in (0, 1, 2, 1, 3):
        with store.generations.stage({"checkpoint": checkpoint, "corpus": 0}) as draft:
            draft.facts.update(step=100 * checkpoint)
    newest = store.generations.at(4)
    assert [one.number for one in earlier(store.generations, newest, 1)] == [2]
    assert [one.number for one in earlier(store.generations, newest, 3)] == [2, 3, 0]
    store.generations.remove(1)
    assert [one.number for one in earlier(store.generations, newest, 2)] == [2, 3]
    with pytest.raises(StoreError, match="generation 1 was removed"):
        earlier(store.generations, newest, 3)


def test_a_generation_that_cannot_be_searched_is_passed_over(store: Store) -> None:
    steps_of(store, 0)
    steps_of(store, 100, partial={"method": "rescore"})
    (newest,) = steps_of(store, 200)
    assert [one.number for one in earlier(store.generations, newest, 1)] == [0]


def test_one_that_was_removed_is_an_error(bench: Bench) -> None:
    generations = [bench.generation(step) for step in (0, 100, 200)]
    bench.store.generations.remove(0)
    with pytest.raises(StoreError, match=r'"generation:-2" counts 2 back .*, but generation 0 was removed'):
        bench.publish(generations[2], bench.with_config(sources=("ann", "generation:-2")))
    assert bench.store.negatives.numbers() == []


def test_a_torn_one_and_one_of_another_encoder_are_errors(bench: Bench) -> None:
    first, second = bench.generation(0, seed=0), bench.generation(100, seed=1)
    task = bench.with_config(sources=("ann", "generation:-1"))
    bench.encoder_of = lambda generation: HashEncoder(seed=5)  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="open the encoder from the generation's own model"):
        bench.publish(second, task, seed=1)
    (first.path / "index.faiss").write_bytes(b"torn")
    with pytest.raises(CorruptError, match=r"index\.faiss"):
        bench.publish(second, task, seed=1)


def test_a_name_that_nobody_has_set_is_refused_at_once(store: Store) -> None:
    check_pinned(store, ["ann", "generation:-3", "generation:BASELINE", "generation:CURRENT"])
    with pytest.raises(InputError, match=r"run `hone pin generations N WARMUP`"):
        check_pinned(store, ["ann", "generation:WARMUP"])


def test_a_name_that_hone_sets_is_left_out_until_it_is_set(store: Store) -> None:
    """Where the gate refuses the first generations, as those of an untrained ranker, nothing is served yet."""
    (newest,) = steps_of(store, 0)
    sources = ["ann", "generation:SERVED", "generation:PREVIOUS", "generation:JUDGED"]
    check_pinned(store, sources)
    assert named_generations(store.generations, newest, sources) == {}
    store.generations.point("SERVED", newest.number)
    assert [*named_generations(store.generations, newest, sources)] == ["generation:SERVED"]


def test_one_of_another_corpus_is_refused(bench: Bench) -> None:
    newest = bench.generation()
    with bench.store.generations.stage({"checkpoint": 0, "corpus": 7}) as draft:
        draft.facts.update(step=0)
    bench.store.generations.point("WARMUP", draft.number)
    with pytest.raises(InputError, match="generation:WARMUP is generation 1 of corpus 7, mined is corpus 0"):
        bench.publish(newest, bench.with_config(sources=("ann", "generation:WARMUP")))


def test_a_name_of_one_that_is_gone_or_cannot_be_searched_is_refused(store: Store) -> None:
    steps_of(store, 0)
    steps_of(store, 100, partial={"method": "rescore"})
    (newest,) = steps_of(store, 200)
    for number, name in enumerate(("GONE", "RESCORED")):
        store.generations.point(name, number)
    store.generations.remove(0)
    with pytest.raises(StoreError, match="generation:GONE is generation 0, which was removed"):
        named_generations(store.generations, newest, ["ann", "generation:GONE"])
    with pytest.raises(InputError, match=r"generation:RESCORED is generation 1, .* cannot be searched"):
        named_generations(store.generations, newest, ["ann", "generation:RESCORED"])


def test_what_the_sources_reach_back_to_is_kept(store: Store) -> None:
    for step in range(0, 600, 100):
        mark(store, step, refresh=True, final=step == 500)
    keep = Retention(generations=1, negatives=1, grace_seconds=0, reach=furthest_back(["ann", "generation:-3"]))
    Refresher(store, retention=keep).run()
    assert store.generations.numbers() == [2, 3, 4, 5]


def test_what_a_named_set_was_mined_from_is_kept(bench: Bench) -> None:
    bench.generation(0, seed=0)
    published = bench.publish(
        bench.generation(100, seed=1), bench.with_config(sources=("ann", "generation:-1")), seed=1
    )
    bench.generation(200, seed=2)
    bench.store.negatives.point("KEPT", published.number)
    assert bench.store.retain("generations", 1, grace_seconds=0) == []
