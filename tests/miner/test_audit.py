from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.audit import Finding, LabelAudit, audit_datasets, audit_labels, first_to_look_at, over_runs, plant
from retriever.data import Corpus, QuerySet
from retriever.errors import InputError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.joining import SEPARATOR
from retriever.pair_memory import PairTable
from retriever.store import Store
from tests.stand_ins import tiny_store, write_json_lines, write_tiny_data


@pytest.fixture
def data(tmp_path: Path) -> tuple[Corpus, QuerySet]:
    folder = write_tiny_data(tmp_path / "data", passages=200, queries=200)
    _, corpus = tiny_store(tmp_path / "store", folder)
    return corpus, load_query_set(folder, "train", corpus, skip_missing=True, warn=lambda _: None)


def table(
    queries: list[int],
    passages: list[int],
    margins: list[float],
    losses: list[float] | None = None,
    beside: list[float] | None = None,
) -> PairTable:
    values = np.array(margins)
    seen = (~np.isnan(values)).astype(np.int32) * 4
    rows = np.array(queries, np.int32), np.array(passages, np.int32)
    losses = margins if losses is None else losses
    return PairTable(*rows, seen, values, np.array(losses), np.array(losses if beside is None else beside))


def asked(count: int, name: str = "q{}") -> QuerySet:
    """Query i has passage i."""
    judged: list[Mapping[int, int]] = [{row: 1} for row in range(count)]
    return QuerySet("train", [name.format(row) for row in range(count)], ["text"] * count, judged)


def test_the_share_that_is_planted_has_one_wrong_positive_each(data: tuple[Corpus, QuerySet]) -> None:
    corpus, queries = data
    planted = plant(queries, corpus, 0.1, seed=1)
    changed = [row for row in range(len(queries)) if planted.judgements[row] != queries.judgements[row]]
    assert len(changed) == 10 and planted.ids == queries.ids and planted.texts == queries.texts
    of_others = {int(row) for query in range(len(queries)) for row in queries.positives(query)}
    for row in changed:
        (wrong,) = planted.judgements[row]
        assert wrong in of_others and wrong not in queries.judgements[row]
    assert plant(queries, corpus, 0.1, seed=1).judgements == planted.judgements
    assert plant(queries, corpus, 0.1, seed=2).judgements != planted.judgements
    assert plant(queries, corpus, 0.0, seed=1).judgements == queries.judgements


def test_a_duplicate_of_a_positive_is_no_wrong_one(tmp_path: Path) -> None:
    (tmp_path / "data/qrels").mkdir(parents=True)
    texts = ["same text", "Same  text", "another"]
    write_json_lines(tmp_path / "data/corpus.jsonl", [{"_id": f"p{n}", "text": text} for n, text in enumerate(texts)])
    corpus = Corpus(ingest_corpus(Store(tmp_path / "store", create=True), tmp_path / "data"))
    same = QuerySet("train", ["a", "b"], ["x", "y"], [{0: 1}, {1: 1}])
    with pytest.raises(InputError, match="planted"):
        plant(same, corpus, 0.5, seed=0)
    mixed = QuerySet("train", ["a", "b", "c"], ["x", "y", "z"], [{0: 1}, {1: 1}, {2: 1}])
    for seed in range(5):
        for row, judged in enumerate(plant(mixed, corpus, 0.4, seed).judgements):
            allowed = [mixed.judgements[row], *([{2: 1}] if row < 2 else [{0: 1}, {1: 1}])]
            assert judged in allowed


def test_of_joined_data_sets_the_wrong_positive_is_of_the_same_one(data: tuple[Corpus, QuerySet]) -> None:
    corpus, queries = data
    half = len(queries) // 2
    ids = [f"{'one' if row < half else 'two'}{SEPARATOR}{name}" for row, name in enumerate(queries.ids)]
    planted = plant(replace(queries, ids=ids), corpus, 0.5, seed=1, joined=True)
    halves = (range(half), range(half, len(queries)))
    of_set = [{int(row) for query in part for row in queries.positives(query)} for part in halves]
    for row in range(len(queries)):
        if planted.judgements[row] != queries.judgements[row]:
            assert {*planted.judgements[row]} <= of_set[row >= half]


def test_the_threshold_is_a_percentile_of_the_planted_and_they_are_not_suspected() -> None:
    margins = [0.5, -0.35, 0.1, -0.2, -0.4, float("nan"), -0.25]
    found = audit_labels(table([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 9, 9, 5, 6], margins), asked(7), 50.0, 2.0)
    assert found.planted.tolist() == [False, False, False, True, True, False, False]
    assert found.threshold == pytest.approx(-0.3)
    assert found.below.tolist() == [False, True, False, False, False, False, False]
    assert found.by_margin().tolist() == [1, 6, 2, 0], "neither the planted nor the one never seen"
    alone = audit_labels(table([0, 1], [0, 1], [0.5, -0.3]), asked(2), 50.0, 2.0)
    assert alone.threshold is None and not alone.below.any() and alone.by_margin().tolist() == [1, 0]


def test_a_harder_data_set_is_not_bad_as_a_whole() -> None:
    """Its losses are higher, but within its own batches they are like any others."""
    rows, losses = [*range(20)], [0.1] * 18 + [5.0, 5.2]
    beside = [0.1, -0.1] * 9 + [-0.1, 4.0]
    found = audit_labels(table(rows, rows, losses, losses, beside), asked(20), percentile=99, beta=2)
    assert found.by_loss().tolist() == [19] and found.losses[19] == 5.2


def test_bad_pairs_are_outside_the_mean_of_those_that_are_not_planted() -> None:
    losses = [0.5] * 20 + [3.0, 99.0]
    pairs = table([*range(21), 21], [*range(21), 5], [0.0] * 22, losses)
    found = audit_labels(pairs, asked(22), 99.0, 2.0)
    own = np.array(losses[:21])
    assert found.distances[20] == pytest.approx((3.0 - own.mean()) / own.std())
    assert found.by_loss().tolist() == [20] and found.bad.sum() == 1, "the planted pair is none of them"


def test_pairs_are_averaged_over_the_runs_that_saw_them() -> None:
    first = audit_labels(table([0, 1, 2], [0, 1, 9], [0.2, 0.4, -0.5], [1.0, 2.0, 3.0]), asked(3), 50.0, 2.0)
    second = audit_labels(table([0, 1], [1, 2], [0.0, float("nan")], [4.0, float("nan")]), _shifted(), 50.0, 2.0)
    joined = over_runs([first, second], [np.array([0, 1, 2], np.int32), np.array([1, 2], np.int32)], 100)
    assert list(zip(joined.queries.tolist(), joined.passages.tolist(), strict=True)) == [(0, 0), (1, 1)]
    assert joined.margins.tolist() == pytest.approx([0.2, 0.2]) and joined.losses.tolist() == pytest.approx([1.0, 3.0])
    assert joined.threshold == pytest.approx(-0.5) and not joined.planted.any()


def _shifted() -> QuerySet:
    return QuerySet("train", ["q1", "q2"], ["text"] * 2, [{1: 1}, {2: 1}])


def test_what_two_audits_say_comes_before_what_one_puts_first() -> None:
    def said(audit: str, *names: str) -> list[Finding]:
        return [Finding(audit, name, (), "because") for name in names]

    items = first_to_look_at([said("a", "x", "y", "z", "y"), said("b", "z", "w"), []], limit=3)
    assert [item.query for item in items] == ["z", "x", "y"]
    assert items[0].score == pytest.approx(1 / 63 + 1 / 61)
    assert [finding.audit for finding in items[0].findings] == ["a", "b"]
    assert len(items[2].findings) == 2, "a second finding of one audit adds a reason, no score"
    assert items[2].score == pytest.approx(1 / 62)
    assert first_to_look_at([], 3) == []


def labels_of(queries: QuerySet, losses: list[float]) -> LabelAudit:
    rows = list(range(len(queries)))
    margins = [-one for one in losses]
    return audit_labels(table([*rows, 0], [*rows, 99], [*margins, -2.5], [*losses, 2.5]), queries, 100.0, 1.5)


def joined(*names: str) -> QuerySet:
    ids = [f"{name}/{number}" for number, name in enumerate(names)]
    return QuerySet("train", ids, ["text"] * len(ids), [{row: 1} for row in range(len(ids))])


def test_a_data_set_is_suspected_by_its_losses_labels_and_false_negatives() -> None:
    queries = joined("good", "good", "good", "bad", "bad")
    found = audit_datasets(queries, labels_of(queries, [0.1, 0.2, 0.3, 3.0, 2.0]), [3, 4, 0], {})
    assert [one.name for one in found] == ["bad", "good"]
    bad, good = found
    assert bad.pairs == 2 and bad.loss == pytest.approx(2.5) and bad.margin == pytest.approx(-2.5)
    assert (bad.below, good.below, good.pairs) == (0.5, 0.0, 3)
    assert bad.false_negatives == 1.0 and good.false_negatives == pytest.approx(1 / 3)
    assert bad.bad == 0.5 and bad.without is None


def test_leaving_one_out_decides_where_it_was_tried() -> None:
    queries = joined("a", "a", "b", "b")
    losses = [9.0, 9.0, 0.1, 0.1]
    hurts: dict[str, dict[str, Any]] = {"b": {"gap": 0.02, "verdict": "better"}}
    assert [one.name for one in audit_datasets(queries, labels_of(queries, losses), None, hurts)] == ["b", "a"]
    assert [one.name for one in audit_datasets(queries, labels_of(queries, losses), None, {})] == ["a", "b"]
    helps = {"a": {"gap": -0.02, "verdict": "worse"}}
    assert [one.name for one in audit_datasets(queries, labels_of(queries, losses), None, helps)] == ["b", "a"]


def test_without_a_join_there_is_no_report_of_data_sets() -> None:
    assert audit_datasets(asked(3), None, [0], {}) == []
    assert audit_datasets(joined("a", "a"), None, None, {}) == []
    found = audit_datasets(joined("a", "b"), None, [1], {})
    assert [(one.name, one.loss, one.below, one.false_negatives) for one in found] == [
        ("b", None, None, 1.0),
        ("a", None, None, 0.0),
    ]
