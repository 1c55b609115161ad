from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner import publish
from miner.communities import B3
from miner.lexical import drop_unused_candidates
from miner.mining import MiningConfig, MiningTask
from miner.publish import open_checked_set, publish_negative_set, summary
from miner.sources import OpenGeneration
from miner.verdicts import StoredVerdicts
from retriever.data import Corpus, QuerySet
from retriever.errors import BusyError, InputError, StoreError
from retriever.ingest import ingest_corpus
from retriever.negatives import Verdict, create_negative_set, open_batches, open_negative_set
from retriever.protocols import FloatArray, Progress, silent
from retriever.store import Store
from tests.miner.bench import DEPTH, Bench
from tests.stand_ins import HashEncoder, write_tiny_data


def test_a_published_set_tells_what_it_is(bench: Bench) -> None:
    bench.generation()
    generation = bench.generation(step=100, final=True)
    published = bench.publish(generation)
    published.verify()
    assert published.parents == {"generation": 1, "checkpoint": 1, "corpus": 0}
    facts = published.facts
    assert (facts["step"], facts["final"], facts["depth"], facts["sources"]) == (100, True, DEPTH, {"ann": 1})
    assert (facts["corpus_sha256"], facts["queries_sha256"]) == (bench.corpus.sha256, bench.task.queries.sha256)
    assert (facts["queries"], facts["mined"], facts["carried"], facts["dropped"], facts["pads"]) == (20, 20, 0, 0, 0)
    assert facts["verdicts"]["positive"] <= 20 and sum(facts["verdicts"].values()) == 20 * DEPTH
    assert facts["eligible_mean"] == facts["verdicts"]["eligible"] / 20
    assert 0 < facts["top_negative_score_mean"] < facts["positive_score_mean"] <= 1
    assert facts["seconds"]["mine"] > 0
    assert bench.said == []


def test_the_means_of_a_set_are_those_of_its_arrays(bench: Bench) -> None:
    published = bench.publish(bench.generation())
    found = open_negative_set(published.path)
    top = [
        scores[verdicts == Verdict.ELIGIBLE][0] for scores, verdicts in zip(found.scores, found.verdicts, strict=True)
    ]
    assert published.facts["top_negative_score_mean"] == pytest.approx(np.mean(top), rel=1e-6)
    assert published.facts["positive_score_mean"] == pytest.approx(found.positive_scores.mean(), rel=1e-6)


def test_a_mean_over_nothing_is_none_and_pads_are_no_candidates(tmp_path: Path) -> None:
    empty = create_negative_set(tmp_path, 3, 4, 1)
    empty.dropped[:] = True
    facts = summary(empty, 1)
    assert (facts["dropped"], facts["pads"], sum(facts["verdicts"].values())) == (3, 12, 0)
    assert facts["top_negative_score_mean"] is facts["positive_score_mean"] is None


def test_the_same_generation_gives_the_same_set(bench: Bench) -> None:
    generation = bench.generation()
    one, two = bench.publish(generation), bench.publish(generation)
    assert one.manifest["files"] == two.manifest["files"]


def test_a_set_is_opened_for_its_own_corpus_and_queries_alone(bench: Bench, tmp_path: Path) -> None:
    published = bench.publish(bench.generation())
    queries = bench.task.queries
    assert len(open_checked_set(published, bench.corpus, queries).queries) == len(queries)
    with pytest.raises(InputError, match=r"mined for another query set .*queries_sha256"):
        open_checked_set(published, bench.corpus, queries.subset(range(19)))
    other = Corpus(ingest_corpus(bench.store, write_tiny_data(tmp_path / "other", seed=8)))
    with pytest.raises(InputError, match=r"mined for another corpus .*corpus_sha256"):
        open_checked_set(published, other, queries)


def test_a_generation_of_another_corpus_is_refused(bench: Bench, tmp_path: Path) -> None:
    generation = bench.generation()
    other = Corpus(ingest_corpus(bench.store, write_tiny_data(tmp_path / "other", seed=8)))
    with pytest.raises(InputError, match=r"holds corpus 0, the run reads another \(corpus 1\)"):
        bench.publish(generation, replace(bench.task, corpus=other))
    assert bench.store.negatives.numbers() == []


def test_another_models_encoder_is_refused(bench: Bench) -> None:
    with pytest.raises(StoreError, match="open the encoder from the generation's own model"):
        bench.publish(bench.generation(seed=0), seed=1)


def test_a_depth_beyond_the_corpus_leaves_the_store_as_it_was(bench: Bench) -> None:
    generation = bench.generation()
    with pytest.raises(InputError, match="depth = 61 is larger than the corpus"):
        bench.publish(generation, replace(bench.task, config=MiningConfig(depth=61)))
    assert list(bench.store.negatives.folder.iterdir()) == []


def test_two_miners_of_one_store_are_refused(bench: Bench) -> None:
    generation = bench.generation()
    with Store(bench.store.root).negatives.writer(), pytest.raises(BusyError, match="already writing negatives"):
        bench.publish(generation)


def test_a_fraction_of_the_queries_is_mined_and_the_others_carried_over(bench: Bench) -> None:
    part = replace(bench.task, query_fraction=0.3)
    first = bench.publish(bench.generation(), part)
    assert (first.facts["mined"], first.facts["carried"]) == (20, 0)
    second = bench.publish(bench.generation(100, seed=1), part, seed=1)
    assert (second.facts["mined"], second.facts["carried"]) == (6, 14)
    before, after = open_negative_set(first.path), open_negative_set(second.path)
    carried = after.mined_from == 0
    np.testing.assert_array_equal(after.passages[carried], before.passages[carried])
    assert (after.scores[~carried] != before.scores[~carried]).any()
    assert bench.said == []


def changed_queries(bench: Bench) -> MiningTask:
    queries = bench.task.queries
    texts = [f"{text} also" for text in queries.texts]
    return replace(bench.task, queries=QuerySet("train", queries.ids, texts, queries.judgements))


@pytest.mark.parametrize("changed", ["queries_sha256", "depth", "filters", "verdicts_sha256"])
def test_nothing_is_carried_over_from_a_set_of_another_kind(bench: Bench, changed: str) -> None:
    tasks = {
        "queries_sha256": changed_queries(bench),
        "depth": replace(bench.task, config=MiningConfig(depth=DEPTH - 1)),
        "filters": replace(bench.task, config=MiningConfig(depth=DEPTH, max_score=0.9)),
        "verdicts_sha256": replace(
            bench.task, judged=StoredVerdicts(np.empty(0, np.int64), np.empty(0, bool), 60, "d")
        ),
    }
    bench.publish(bench.generation())
    second = bench.publish(bench.generation(100), replace(tasks[changed], query_fraction=0.5))
    assert (second.facts["mined"], second.facts["carried"]) == (20, 0)
    (said,) = bench.said
    assert f"differs in {changed}" in said and "all queries are mined" in said


def test_a_corrupt_set_is_said_and_not_carried_over(bench: Bench) -> None:
    first = bench.publish(bench.generation())
    (first.path / "scores.npy").write_bytes(b"torn")
    second = bench.publish(bench.generation(100), replace(bench.task, query_fraction=0.5))
    assert second.facts["carried"] == 0
    assert "scores.npy" in bench.said[0] and "all queries are mined" in bench.said[-1]


def test_a_sampler_of_another_name_does_not_stop_the_carrying_over(bench: Bench) -> None:
    bench.publish(bench.generation())
    config = replace(bench.task.config, sampler=replace(bench.task.config.sampler, name="top"))
    second = bench.publish(bench.generation(100), replace(bench.task, config=config, query_fraction=0.5))
    assert second.facts["carried"] == 10


def test_the_same_queries_are_not_encoded_twice(bench: Bench) -> None:
    generation = bench.generation()
    bench.publish(generation)

    class Idle(HashEncoder):
        def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
            raise AssertionError("encoded again")

    deeper = replace(bench.task, config=replace(bench.task.config, depth=DEPTH + 5))
    published = publish_negative_set(bench.store, generation, lambda _: Idle(), deeper, silent, bench.said.append)
    assert published.facts["depth"] == DEPTH + 5 and bench.said == []


def test_a_set_tells_how_many_candidates_each_source_brought(bench: Bench) -> None:
    task = replace(bench.task, config=replace(bench.task.config, sources=("ann", "lookahead", "momentum", "bm25")))
    first, second = (bench.publish(bench.generation(step, seed=step), task, seed=step) for step in (0, 1))
    assert first.facts["sources"] == {"ann": 1, "lookahead": 2, "momentum": 4, "bm25": 8}
    assert first.facts["candidates"]["momentum"] == 0
    found, before = open_negative_set(second.path), open_negative_set(first.path)
    assert found.passages.shape == (20, 4 * DEPTH)
    assert second.facts["candidates"] == {
        name: int((found.sources & bit > 0).sum()) for name, bit in second.facts["sources"].items()
    }
    assert second.facts["candidates"]["ann"] == second.facts["candidates"]["lookahead"] == 20 * DEPTH
    for query in range(20):
        remembered = found.passages[query][found.sources[query] & 4 > 0]
        assert set(remembered.tolist()) == set(
            before.passages[query][before.verdicts[query] == Verdict.ELIGIBLE][:DEPTH].tolist()
        )
    assert len([*bench.store.lexical.rglob("*.npy")]) == 1, "bm25's candidates are found once"
    assert bench.said == []


def test_momentum_passes_over_sets_of_later_steps(bench: Bench) -> None:
    """A trainer that went back to an earlier checkpoint must meet what it met before."""
    task = replace(bench.task, config=replace(bench.task.config, sources=("ann", "momentum")))
    for step in (0, 3, 6):
        bench.publish(bench.generation(step, seed=step), task, seed=step)
    again = bench.publish(bench.generation(3, seed=3), task, seed=3)
    names = ["passages.npy", "scores.npy", "sources.npy", "verdicts.npy"]
    assert [again.sha256(name) for name in names] == [bench.store.negatives.at(1).sha256(name) for name in names]


def test_momentum_needs_the_same_queries_and_says_so(bench: Bench) -> None:
    bench.publish(bench.generation())
    task = replace(changed_queries(bench), config=replace(bench.task.config, sources=("ann", "momentum")))
    second = bench.publish(bench.generation(1), task)
    assert second.facts["candidates"]["momentum"] == 0
    (said,) = bench.said
    assert "differs in queries_sha256; momentum has no candidates" in said


def test_bm25_s_candidates_go_with_the_last_set_that_was_mined_with_them(bench: Bench) -> None:
    for depth in (DEPTH, DEPTH - 1):
        bench.publish(bench.generation(), bench.with_config(sources=("ann", "bm25"), depth=depth))
    assert drop_unused_candidates(bench.store) == [] and len([*bench.store.lexical.iterdir()]) == 2
    bench.store.negatives.remove(0)
    assert len(drop_unused_candidates(bench.store)) == 1
    assert [path.name for path in bench.store.lexical.iterdir()] == [bench.store.negatives.at(1).facts["lexical"]]


def test_b3_searches_anew_where_pools_were_only_rescored(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such pools are in today's order, but what lies among them was found long ago."""
    brought: list[int] = []

    def planned(*arguments: Any) -> tuple[np.ndarray, float]:
        brought.append(int(arguments[4].sources.max()))
        return np.zeros((1, 4), np.int32), 0.0

    monkeypatch.setattr(publish, "b3_batches", planned)
    found = bench.publish(bench.generation())
    pool, b3 = open_negative_set(found.path), B3(first_rank=2, ranks=4, community=2, batch_size=4)
    for pools in (None, pool):
        opened = OpenGeneration(0, None, None, None, pools=pools)  # type: ignore[arg-type]  # nothing is asked
        publish._plan(bench.store.root, b3, pool, opened, bench.task)
    assert brought == [1, 0]


def test_batches_are_planned_with_each_set(bench: Bench) -> None:
    task = replace(bench.task, b3=B3(first_rank=2, ranks=4, community=2, batch_size=4))
    first, second = (bench.publish(bench.generation(step, seed=step), task, seed=step) for step in (0, 1))
    plans = [open_batches(one.path) for one in (first, second)]
    for plan in plans:
        assert plan is not None and sorted(plan.ravel().tolist()) == list(range(20)) and plan.shape == (5, 4)
    assert not np.array_equal(*plans)  # type: ignore[arg-type]  # neither is None
    assert first.facts["batches"].items() >= {"name": "b3", "first_rank": 2, "batch_size": 4}.items()
    assert 0 <= first.facts["batches"]["edges_inside"] <= 1 and first.facts["seconds"]["batches"] > 0
    first.verify()
    assert "batches.npy" in first.manifest["files"]
    without = bench.publish(bench.generation(2))
    assert open_batches(without.path) is None and "batches" not in without.facts
