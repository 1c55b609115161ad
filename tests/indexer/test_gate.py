from typing import Any

import pytest

from indexer.gate import is_partial, judge


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
