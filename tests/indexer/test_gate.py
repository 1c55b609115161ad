from itertools import product
from typing import Any

import numpy as np
import pytest

from indexer.gate import Check, Pairs, Reranked, is_partial, judge, probability_of_count, probability_of_fall
from indexer.slices import Slice


def facts(ndcg: float | None, **others: Any) -> dict[str, Any]:
    dev = {} if ndcg is None else {"nDCG@10": ndcg}
    return {"dev": dev, "dev_sha256": "d0", "corpus_sha256": "c0", **others}


def test_the_first_generation_is_served_and_the_best() -> None:
    verdict = judge(facts(0.1), None, None)
    assert verdict.served and verdict.best


@pytest.mark.parametrize(
    ("now", "served", "passes"),
    [(0.50, 0.50, True), (0.60, 0.50, True), (0.495, 0.50, True), (0.489, 0.50, False), (0.0, 0.50, False)],
)
def test_served_moves_unless_the_dev_metric_fell_by_more_than_a_hundredth(
    now: float, served: float, passes: bool
) -> None:
    verdict = judge(facts(now), facts(served), facts(0.9))
    assert verdict.served == passes and not verdict.best
    assert f"{now:.4f}" in verdict.reason and f"{served:.4f}" in verdict.reason


def test_best_moves_only_when_strictly_better() -> None:
    assert not judge(facts(0.5), facts(0.5), facts(0.5)).best
    assert judge(facts(0.5001), facts(0.5), facts(0.5)).best


def test_without_a_dev_metric_the_newest_is_served_and_none_is_best() -> None:
    for old in (None, facts(None), facts(0.9)):
        verdict = judge(facts(None), old, old)
        assert verdict.served and not verdict.best
    assert judge(facts(0.1), facts(None), facts(None)).served


@pytest.mark.parametrize("other", [{"dev_sha256": "d1"}, {"corpus_sha256": "c1"}])
def test_figures_over_other_queries_or_corpora_are_not_compared(other: dict[str, Any]) -> None:
    verdict = judge(facts(0.1), facts(0.9, **other), facts(0.9, **other))
    assert verdict.served and verdict.best


@pytest.mark.parametrize("old", [None, facts(0.1), facts(None)])
def test_a_partial_generation_is_neither_served_nor_best_whatever_its_figures(old: dict[str, Any] | None) -> None:
    for ndcg in (None, 0.9):
        new = facts(ndcg, partial={"parent": 3, "turn": 0})
        verdict = judge(new, old, old)
        assert is_partial(new) and not verdict.served and not verdict.best and "partial" in verdict.reason
    assert not is_partial(facts(0.9))


def refused(*pairs: Any, **others: Any) -> list[str]:
    """Names of the checks that refuse a generation, given the figures of its queries and of the served one's."""
    arrays = tuple(np.asarray(figures, np.float32) for figures in pairs)
    verdict = judge(facts(None, **others), facts(None), None, Pairs(arrays[0], arrays[1]) if arrays else None)
    assert verdict.served == all(check.passed for check in verdict.checks)
    return [check.name for check in verdict.checks if not check.passed]


def test_a_fall_is_refused_if_it_is_beyond_margin_and_chance() -> None:
    before = np.tile([0.2, 0.5, 0.8, 1.0], 50)
    assert refused(before - 0.009, before) == []  # within the margin, though certain
    assert refused(before - 0.03, before) == ["dev"]
    noise = np.random.default_rng(0).permutation(np.repeat([0.19, -0.19], 100))
    assert refused(before + noise - 0.011, before) == []  # beyond the margin, yet chance alone may do that


def test_a_few_queries_prove_little() -> None:
    assert refused([0.0, 0.5, 0.5], [0.1, 0.6, 0.6]) == []
    assert refused(np.zeros(10), np.ones(10)) == ["dev", "flips"]


def test_lost_answers_are_refused_though_the_mean_rises() -> None:
    before, now = np.full(100, 0.5), np.full(100, 0.9)
    now[:10] = 0
    assert refused(now, before) == []
    now[:25] = 0
    assert refused(now, before) == ["flips"]


@pytest.mark.parametrize(("recall", "error", "passes"), [(0.95, 0.0, True), (0.94, 0.005, True), (0.93, 0.005, False)])
def test_recall_below_the_target_is_refused_even_where_nothing_was_served(
    recall: float, error: float, passes: bool
) -> None:
    new = facts(0.9, recall_at_10=recall, recall_at_10_error=error, index_config={"target_recall": 0.95})
    verdict = judge(new, None, None)
    assert verdict.served == passes and ("target 0.95" in verdict.reason) != passes


@pytest.mark.parametrize(("rows", "step", "names"), [(990, 7, []), (989, 8, ["rows"]), (1000, 6, ["step"])])
def test_a_smaller_corpus_and_an_older_checkpoint_are_refused(rows: int, step: int, names: list[str]) -> None:
    served = facts(0.5, rows=1000, step=7)
    verdict = judge(facts(0.9, rows=rows, step=step), served, None)
    assert [check.name for check in verdict.checks if not check.passed] == names and verdict.served != bool(names)


def test_the_probability_of_a_fall_is_that_of_all_signs() -> None:
    differences = np.array([-3, -2, 1, 0, -1, -0.5], np.float32)
    moved = differences[differences != 0]
    sums = [sum(s * d for s, d in zip(signs, moved, strict=True)) for signs in product((-1, 1), repeat=5)]
    exactly = np.mean([total <= moved.sum() + 1e-6 for total in sums])
    assert probability_of_fall(differences) == pytest.approx(exactly, abs=0.02)
    assert probability_of_fall(np.zeros(5, np.float32)) == 1


def test_the_probability_of_a_count_is_binomial() -> None:
    assert probability_of_count(2, 3, 0.5) == pytest.approx(0.5)
    assert probability_of_count(0, 50, 0.1) == pytest.approx(1)
    assert probability_of_count(10, 10, 0.1) == pytest.approx(1e-10)


def judged_by_slice(fall: float, sizes: dict[str, int]) -> dict[str, Check]:
    """Return the checks by name where the first 60 of 1,000 queries fell, all others rose a little.

    Slices of ``sizes`` follow each other.
    """
    generator = np.random.default_rng(0)
    before = generator.uniform(0.3, 0.9, 1000).astype(np.float32)
    now = before + np.float32(0.005)
    now[:60] = before[:60] - np.float32(fall) + generator.normal(0, 0.05, 60).astype(np.float32)
    ends = np.cumsum([*sizes.values()]).tolist()
    slices = [Slice(name, np.arange(end - sizes[name], end)) for name, end in zip(sizes, ends, strict=True)]
    verdict = judge(facts(None), facts(None), None, Pairs(now, before, slices))
    return {check.name: check for check in verdict.checks}


def test_a_slice_that_fell_is_refused_where_the_whole_hides_it() -> None:
    checks = judged_by_slice(0.1, {"small": 60, "large": 940})
    assert [name for name, check in checks.items() if not check.passed] == ["slices"]
    small, large = checks["slices"].slices
    assert (small.name, small.queries, small.passed) == ("small", 60, False)
    assert small.before - small.now == pytest.approx(0.1, abs=0.02) and small.probability == pytest.approx(2 / 10_001)
    assert (large.name, large.queries, large.passed, large.probability) == ("large", 940, True, None)
    assert checks["slices"].as_facts()["slices"][1]["now"] == large.now and "slices" not in checks["dev"].as_facts()
    assert judged_by_slice(0.0, {"small": 60, "large": 940})["slices"].passed
    assert "slices" not in judged_by_slice(0.1, {}) and "slices" not in judged_by_slice(0.1, {"all": 1000})


def test_a_fall_must_be_improbable_among_all_slices() -> None:
    few = judged_by_slice(0.0145, {"fell": 60, "rest": 940})["slices"]
    many = judged_by_slice(0.0145, {"fell": 60, **{f"more{number}": 20 for number in range(47)}})["slices"]
    probable = few.slices[0].probability, many.slices[0].probability
    assert probable[0] is not None and probable[1] == pytest.approx(min(1, probable[0] * 24))
    assert not few.passed and many.passed


def test_a_slice_of_few_queries_is_counted_and_named_and_not_looked_at() -> None:
    check = judged_by_slice(0.1, {**{f"tiny{number}": 19 for number in range(3)}, "large": 943})["slices"]
    assert check.passed and [one.name for one in check.slices] == ["large"]
    assert check.reason.endswith("since they have fewer: 3 ('tiny0', 'tiny1', 'tiny2')")
    each = judged_by_slice(0.1, {f"q{number}": 1 for number in range(1000)})["slices"]
    assert each.reason.startswith("of 0 slices") and ": 1000 ('q0', " in each.reason and "'q19', …)" in each.reason


def refused_ranker(own: float, served: float | None, nothing_served: bool = False) -> list[str]:
    """Return the checks that refuse a ranker which changes each of 100 figures by ``own``, and against the served's."""
    before = np.tile(np.array([0.2, 0.5, 0.8, 0.9], np.float32), 25)
    now = before + np.float32(own)
    against = None if served is None else Pairs(now, now - np.float32(served))
    old = None if nothing_served else facts(None)
    verdict = judge(facts(None), old, None, None, Reranked(Pairs(now, before), against))
    assert verdict.served == all(check.passed for check in verdict.checks)
    asked = {"ranker"} if nothing_served or served is None else {"ranker", "reranked"}
    assert {check.name for check in verdict.checks} == asked
    return [check.name for check in verdict.checks if not check.passed]


def test_a_ranker_is_refused_that_makes_hits_worse_or_is_worse_than_the_one_before() -> None:
    assert refused_ranker(0.05, 0.02) == []
    assert refused_ranker(-0.009, -0.009) == []
    assert refused_ranker(-0.05, 0.02) == ["ranker"]
    assert refused_ranker(0.05, -0.02) == ["reranked"]
    assert refused_ranker(-0.05, None) == ["ranker"]
    assert refused_ranker(-0.05, -0.05, nothing_served=True) == ["ranker"]


def test_the_reason_names_both_figures_of_a_refused_ranker() -> None:
    now, before = np.full(100, 0.25, np.float32), np.full(100, 0.5, np.float32)
    verdict = judge(facts(None), None, None, None, Reranked(Pairs(now, before)))
    assert verdict.reason.startswith(
        "dev nDCG@10 reranked 0.2500, without its ranker 0.5000 over 100 queries, at most 0.01 below allowed"
    )


def test_a_ranker_without_shared_queries_is_not_compared() -> None:
    none = np.empty(0, np.float32)
    assert judge(facts(None), facts(None), None, None, Reranked(Pairs(none, none), Pairs(none, none))).checks == ()
