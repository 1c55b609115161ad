from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import reranking
from app.evaluating import evaluate_vectors
from app.reranked_run import MEASURES, RankerChoice, measure_reranking, measured_reranking, wanted
from app.reranking import Candidates, rerank
from app.run_curve import measure_curve
from indexer.encode import encode_corpus
from retriever.artifacts import BEST, CURRENT
from retriever.metrics import mean, per_query
from retriever.protocols import TokenRanker, silent
from retriever.ranker import RankerConfig, load_ranker
from tests.app.comparison_stand_ins import STEPS, Bed, Stop
from tests.stand_ins import OverlapRanker
from tests.tiny_ranker import write_tiny_ranker

GIVEN = RankerChoice(20, OverlapRanker())


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    """A run that was measured: of its five checkpoints the fourth is best and the fifth the last."""
    bed = Bed(tmp_path)
    measure_curve(bed.folder, bed.store, 2, bed.measuring(), [])
    bed.opened.clear()
    return bed


def reranked(bed: Bed, number: int, split: str, ranker: TokenRanker, depth: int) -> tuple[float, float]:
    """Return nDCG@10 of a checkpoint before and after reranking, computed step by step."""
    queries = getattr(bed.judged, split)
    encoder = bed.open_encoder(bed.store.checkpoints.at(number))
    vectors = encode_corpus(encoder, bed.corpus, bed.store.embeddings, silent, bed.never)
    found = evaluate_vectors(encoder, vectors, queries)
    again = rerank(ranker, Candidates(queries.ids, queries.texts, bed.corpus, found.hits), depth)
    return found.metrics["nDCG@10"], mean(per_query(again.hits, queries.judgements, ["nDCG@10"]))["nDCG@10"]


def test_dev_chooses_between_the_best_and_the_last_checkpoint_once_reranked(bed: Bed) -> None:
    assert wanted(bed.store, GIVEN) and measured_reranking(bed.folder, bed.store, bed.judged, GIVEN) is None
    measure_reranking(bed.folder, bed.store, bed.measuring(), GIVEN)
    assert [*bed.folder.glob("rerank-*")] == [] and [*bed.store.embeddings.iterdir()] == []
    found = measured_reranking(bed.folder, bed.store, bed.judged, GIVEN)
    assert found is not None and (found.depth, found.pairs, found.cut_pairs) == (20, 200, 0)
    ranker = OverlapRanker()
    dev = {number: reranked(bed, number, "dev", ranker, 20)[1] for number in (3, 4)}
    assert found.after.checkpoint == found.before.checkpoint == max(dev, key=lambda number: (dev[number], -number))
    assert found.after.dev["nDCG@10"] == pytest.approx(max(dev.values()), abs=1e-6)
    before, after = reranked(bed, found.after.checkpoint, "test", ranker, 20)
    assert (found.before.test or {})["nDCG@10"] == pytest.approx(before, abs=1e-6)
    assert (found.after.test or {})["nDCG@10"] == pytest.approx(after, abs=1e-6) and after > before
    for point in (found.before, found.after):
        assert point.test is not None and tuple(point.test) == MEASURES
        assert point.per_query["RR@10"].mean() == pytest.approx(point.test["RR@10"], abs=1e-5)


def test_one_checkpoint_needs_no_dev(bed: Bed) -> None:
    bed.store.checkpoints.point(BEST, 4)
    measure_reranking(bed.folder, bed.store, bed.measuring(), GIVEN)
    found = measured_reranking(bed.folder, bed.store, bed.judged, GIVEN)
    assert found is not None and found.after.checkpoint == 4 and found.after.dev == {} and bed.opened == [11]


def test_figures_of_another_depth_ranker_or_data_are_not_taken_for_these(bed: Bed) -> None:
    measure_reranking(bed.folder, bed.store, bed.measuring(), GIVEN)
    other = OverlapRanker()
    other.fingerprint = "other"
    choices = [RankerChoice(19, GIVEN.given), RankerChoice(20, other), RankerChoice(20)]
    assert [measured_reranking(bed.folder, bed.store, bed.judged, one) for one in choices] == [None] * 3
    judged = replace(bed.judged, settings={"engine": "another"})
    assert measured_reranking(bed.folder, bed.store, judged, GIVEN) is None
    assert measured_reranking(bed.folder, bed.store, bed.judged, GIVEN) is not None


def test_a_run_without_a_ranker_is_not_reranked(bed: Bed) -> None:
    assert not wanted(bed.store, RankerChoice()) and not wanted(Bed(bed.folder / "new").store, RankerChoice())


def test_a_checkpoint_brings_its_own_ranker(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    folder = write_tiny_ranker(tmp_path / "ranker")
    model = load_ranker(RankerConfig(str(folder)))
    bed.publish(12, 3, ranker=model.facts())
    number = bed.store.checkpoints.pointed(CURRENT)
    assert number == len(STEPS)
    folder.rename(bed.store.checkpoints.path(number) / "ranker")
    bed.store.checkpoints.point(BEST, 0)
    choice = RankerChoice(10)
    assert [one.number for one in choice.checkpoints(bed.store)] == [number], "the best has none"
    measure_reranking(bed.folder, bed.store, bed.measuring(), choice)
    found = measured_reranking(bed.folder, bed.store, bed.judged, choice)
    assert found is not None and found.after.checkpoint == number and found.pairs == 100
    own = choice.open(bed.store.checkpoints.at(number))
    assert (found.after.test or {})["nDCG@10"] == pytest.approx(reranked(bed, number, "test", own, 10)[1], abs=1e-6)


def test_a_kill_costs_one_chunk(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "CHUNK_PAIRS", 40)
    said: list[tuple[str, int, int]] = []

    def progress(phase: str, done: int, total: int) -> None:
        said.append((phase, done, total))
        if (phase, done) == ("rerank test", 80) and total == 200:
            raise Stop

    with pytest.raises(Stop):
        measure_reranking(bed.folder, bed.store, bed.measuring(progress), GIVEN)
    assert measured_reranking(bed.folder, bed.store, bed.judged, GIVEN) is None
    said.clear()
    measure_reranking(bed.folder, bed.store, bed.measuring(progress), GIVEN)
    assert [one for one in said if one[0].startswith("rerank")] == [("rerank test", n, 120) for n in (0, 40, 80, 120)]
    again = measured_reranking(bed.folder, bed.store, bed.judged, GIVEN)
    whole = Bed(bed.folder / "whole")
    measure_curve(whole.folder, whole.store, 2, whole.measuring(), [])
    measure_reranking(whole.folder, whole.store, whole.measuring(), GIVEN)
    other = measured_reranking(whole.folder, whole.store, whole.judged, GIVEN)
    assert again is not None and other is not None
    np.testing.assert_array_equal(again.after.per_query["nDCG@10"], other.after.per_query["nDCG@10"])
