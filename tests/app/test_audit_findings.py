from pathlib import Path

import numpy as np

from app.audit_findings import loss_findings, margin_findings
from miner.audit import LabelAudit
from retriever.data import Corpus, QuerySet
from retriever.ingest import load_query_set
from tests.stand_ins import tiny_store, write_tiny_data


def labels(threshold: float | None) -> LabelAudit:
    rows = np.arange(4, dtype=np.int32)
    margins, losses = np.array([0.3, -0.2, 0.1, np.nan]), np.array([0.5, 9.0, 0.6, np.nan])
    distances = np.array([-0.1, 3.0, 2.5, np.nan])
    return LabelAudit(rows, rows, margins, losses, distances, np.zeros(4, np.bool_), threshold, 2.0)


def opened(folder: Path) -> tuple[QuerySet, Corpus]:
    data = write_tiny_data(folder / "data")
    _, corpus = tiny_store(folder / "store", data)
    return load_query_set(data, "train", corpus, skip_missing=False, warn=lambda _: None), corpus


def test_the_lowest_margins_come_first_and_are_suspected_below_a_threshold(tmp_path: Path) -> None:
    queries, corpus = opened(tmp_path)
    found = margin_findings(labels(0.0), queries, corpus, 2)
    assert [(one.query, one.passages, one.flagged) for one in found] == [("q1", ("p1",), True), ("q2", ("p2",), False)]
    assert "number 1 of 3 from below, below the threshold +0.000" in found[0].reason
    assert "above the threshold" in found[1].reason
    alone = margin_findings(labels(None), queries, corpus, 9)
    assert len(alone) == 3 and not any(one.flagged for one in alone) and "threshold" not in alone[0].reason


def test_only_bad_pairs_are_told_the_farthest_first(tmp_path: Path) -> None:
    queries, corpus = opened(tmp_path)
    found = loss_findings(labels(None), queries, corpus, 9)
    assert [one.query for one in found] == ["q1", "q2"]
    assert "mean loss 9.00; in its batches 3.0 standard deviations above" in found[0].reason
    assert len(loss_findings(labels(None), queries, corpus, 1)) == 1
