import math
from collections.abc import Sequence

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retriever import metrics
from retriever.errors import InputError
from retriever.metrics import PooledAuc, mean, per_query

Judged = list[dict[int, int]]
REFERENCE = {"nDCG": "ndcg_cut", "RR": "recip_rank", "R": "recall", "P": "P", "AP": "map_cut"}


def hit_rows(*rows: Sequence[int]) -> NDArray[np.int32]:
    return np.array(rows, dtype=np.int32)


def trec_eval(hits: NDArray[np.int32], judged: Judged, name: str, cutoff: int) -> list[float]:
    """Score by pytrec_eval, falling whole scores: no ties; it leaves out queries without judgements."""
    measure = REFERENCE[name]
    qrel = {str(q): {str(row): grade for row, grade in rows.items()} for q, rows in enumerate(judged) if rows}
    run = {str(q): {str(r): float(-at) for at, r in enumerate(row[:cutoff]) if r >= 0} for q, row in enumerate(hits)}
    asked = measure if measure == "recip_rank" else f"{measure}.{cutoff}"
    found = pytrec_eval.RelevanceEvaluator(qrel, {asked}).evaluate(run)
    return [found.get(str(q), {}).get(asked.replace(".", "_"), 0.0) for q in range(len(hits))]


@st.composite
def searches(draw: st.DrawFn) -> tuple[NDArray[np.int32], Judged]:
    width = draw(st.integers(1, 12))
    rankings = draw(st.lists(st.lists(st.integers(0, 19), unique=True, max_size=width), min_size=1, max_size=5))
    hits = np.full((len(rankings), width), -1, dtype=np.int32)
    for row, ranking in zip(hits, rankings, strict=True):
        row[: len(ranking)] = ranking
    grades = st.dictionaries(st.integers(0, 24), st.integers(-1, 4), max_size=12)
    return hits, draw(st.lists(grades, min_size=len(rankings), max_size=len(rankings)))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(search=searches(), name=st.sampled_from(sorted(REFERENCE)), data=st.data())
def test_measures_equal_trec_evals(search: tuple[NDArray[np.int32], Judged], name: str, data: st.DataObject) -> None:
    hits, judged = search
    cutoff = data.draw(st.integers(1, hits.shape[1]))
    figure = f"{name}@{cutoff}"
    np.testing.assert_allclose(
        per_query(hits, judged, [figure])[figure], trec_eval(hits, judged, name, cutoff), rtol=1e-12, atol=0
    )


@settings(deadline=None, derandomize=True, max_examples=30)
@given(search=searches())
def test_several_names_and_queries_score_as_each_alone(search: tuple[NDArray[np.int32], Judged]) -> None:
    hits, judged = search
    names = ["nDCG@1", "RR@1", "R@1", "P@1", "AP@1", "AP"]
    together = per_query(hits, judged, names)
    assert list(together) == names
    for name in names:
        alone = [per_query(hits[q : q + 1], judged[q : q + 1], [name])[name][0] for q in range(len(hits))]
        np.testing.assert_array_equal(together[name], alone)


def test_default_names_and_a_case_computed_by_hand() -> None:
    hits = np.full((1, 100), -1, dtype=np.int32)
    hits[0, :3] = [7, 4, 9]
    scores = per_query(hits, [{4: 1, 9: 3, 5: 2, 7: 0}])
    assert list(scores) == ["nDCG@10", "RR@10", "R@100"]
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert scores["nDCG@10"][0] == pytest.approx((1 / math.log2(3) + 3 / 2) / ideal, rel=1e-14)
    assert (scores["RR@10"][0], scores["R@100"][0]) == (0.5, pytest.approx(2 / 3))
    assert all(score.dtype == np.float64 and score.shape == (1,) for score in scores.values())


def test_ap_without_cutoff_reads_every_hit() -> None:
    hits = hit_rows([1, 2, 3, 4])
    assert per_query(hits, [{1: 1, 4: 1}], ["AP", "AP@3"])["AP"].tolist() == [0.75]
    assert per_query(hits, [{1: 1, 4: 1}], ["AP", "AP@3"])["AP@3"].tolist() == [0.5]


def test_ideal_ranking_scores_exactly_one() -> None:
    rng = np.random.default_rng(3)
    judged = [{row: int(grade) for row, grade in enumerate(rng.integers(1, 5, 60))} for _ in range(20)]
    hits = hit_rows(*[sorted(rows, key=lambda row: -rows[row])[:37] for rows in judged])
    assert (per_query(hits, judged, ["nDCG@37"])["nDCG@37"] == 1.0).all()


def test_queries_without_a_relevant_passage_score_zero_and_count_in_the_mean() -> None:
    names = ["nDCG@2", "RR@2", "R@2", "P@2", "AP@2"]
    scores = per_query(hit_rows([1, 2], [1, 2], [1, 2]), [{}, {1: 0, 2: -1}, {1: 1, 2: 1}], names)
    assert all(score.tolist() == [0.0, 0.0, 1.0] for score in scores.values())
    assert mean(scores) == {name: pytest.approx(1 / 3) for name in names}


def test_judged_rows_beyond_the_corpus_count_as_missed_and_match_nothing_else() -> None:
    judged = [{1: 1, 2**32 - 1: 1, 2**32 + 1: 1}, {2: 1, 2**31: 1}]
    assert per_query(hit_rows([1, -1], [1, -1]), judged, ["R@2"])["R@2"].tolist() == [
        pytest.approx(1 / 3),
        0.0,
    ]


def test_no_query_has_no_mean() -> None:
    scores = per_query(np.empty((0, 10), dtype=np.int32), [], ["RR@10"])
    assert scores["RR@10"].shape == (0,)
    with pytest.raises(InputError, match="RR@10: no query to average over"):
        mean(scores)


@pytest.mark.parametrize("name", ["MRR@10", "ndcg@10", "nDCG", "R", "P@0", "RR@-1", "AP@", "R@1.5", "nDCG@05", ""])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=f"{name!r} is no known measure; known are nDCG@k, RR@k, R@k, P@k, AP@k, AP "):
        per_query(hit_rows([1]), [{}], [name])


@pytest.mark.parametrize(
    ("hits", "judged", "message"),
    [
        (hit_rows([1, 2]), [{}], "nDCG@3: only 2 hits a query were retrieved; search deeper"),
        (hit_rows([1, 2, 3]), [{}, {}], "judgements: 2 for 1 queries; an unjudged query takes"),
        (hit_rows([1, 2, 3]), [{-1: 1}], "judgements: query 0 names row -1"),
        (hit_rows([1, 2, 3], [4, 5, 4]), [{}, {}], "hits: query 1 holds passage 4 twice"),
        (hit_rows([1, 2, 3], [4, -1, 5]), [{}, {}], "hits: query 1 has a pad before a passage"),
    ],
)
def test_bad_input_is_named(hits: NDArray[np.int32], judged: Judged, message: str) -> None:
    with pytest.raises(InputError, match=message):
        per_query(hits, judged, ["nDCG@3"])


# Few distinct values, so that positives and negatives tie often, among themselves and with each other.
coarse = st.lists(st.sampled_from([-1.5, -0.25, 0.0, 0.125, 0.3, 2.0]), max_size=20)


def auc_of(positives: Sequence[float], chunks: Sequence[Sequence[float]]) -> PooledAuc:
    auc = PooledAuc(np.array(positives, dtype=np.float32))
    for chunk in chunks:
        auc.add_negatives(np.array(chunk, dtype=np.float32))
    return auc


@settings(deadline=None, derandomize=True)
@given(positives=coarse, negatives=coarse)
def test_auc_equals_a_loop_over_all_pairs(positives: list[float], negatives: list[float]) -> None:
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    value = auc_of(positives, [negatives]).value()
    if positives and negatives:
        assert value == pytest.approx(wins / (len(positives) * len(negatives)), rel=1e-14)
    else:
        assert math.isnan(value)


@settings(deadline=None, derandomize=True)
@given(positives=coarse, chunks=st.lists(coarse, max_size=5), data=st.data())
def test_auc_does_not_depend_on_chunks_or_their_order(
    positives: list[float], chunks: list[list[float]], data: st.DataObject
) -> None:
    whole = auc_of(positives, [[score for chunk in chunks for score in chunk]])
    parts = auc_of(data.draw(st.permutations(positives)), data.draw(st.permutations(chunks)))
    np.testing.assert_array_equal(parts.value(), whole.value())
    assert parts.separation() == pytest.approx(whole.separation(), rel=1e-9, abs=1e-12, nan_ok=True)


def test_auc_takes_any_shape_and_splits_large_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    positives = rng.normal(1.0, 1.0, 50).astype(np.float32)
    negatives = rng.normal(0.0, 1.0, (7, 11)).astype(np.float32)
    whole, parts = PooledAuc(positives), PooledAuc(positives.reshape(5, 10))
    whole.add_negatives(negatives.ravel())
    monkeypatch.setattr(metrics, "CHUNK_SCORES", 10)
    parts.add_negatives(negatives)
    assert parts.value() == whole.value() == (positives[:, None, None] > negatives).mean()
    assert parts.separation() == pytest.approx(whole.separation(), rel=1e-12)


def test_separation_is_cohens_d_also_far_from_zero() -> None:
    rng = np.random.default_rng(7)
    positives = rng.normal(100_002, 1.0, 40).astype(np.float32)
    negatives = rng.normal(100_000, 1.5, 300).astype(np.float32)
    exact_positives, exact_negatives = positives.astype(np.float64), negatives.astype(np.float64)
    variance = (39 * exact_positives.var(ddof=1) + 299 * exact_negatives.var(ddof=1)) / 338
    expected = (exact_positives.mean() - exact_negatives.mean()) / math.sqrt(variance)
    auc = PooledAuc(positives)
    for chunk in np.array_split(negatives, 7):
        auc.add_negatives(chunk)
    assert auc.separation() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("positives", "negatives"), [([], [0.1]), ([0.1], []), ([0.3, 0.3], [0.1, 0.1, 0.1]), ([0.3], [0.1])]
)
def test_separation_without_spread_or_pairs_is_nan(positives: list[float], negatives: list[float]) -> None:
    assert math.isnan(auc_of(positives, [[score] for score in negatives]).separation())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_and_change_nothing(wrong: float) -> None:
    with pytest.raises(InputError, match="scores: 1 of 2 are not finite"):
        auc_of([0.5, wrong], [])
    auc = auc_of([0.5], [[0.1]])
    with pytest.raises(InputError, match="scores: 1 of 3 are not finite"):
        auc.add_negatives(np.array([0.9, wrong, 0.9], dtype=np.float32))
    assert auc.value() == 1.0
