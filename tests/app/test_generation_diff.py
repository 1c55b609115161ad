"""The comparison of two models by query, against a loop over their hits."""

from pathlib import Path

import numpy as np
import pytest

from app.found_model import FoundModel, find_model
from app.generation_diff import figures_diff, generation_diff, measured_diff
from retriever.data import Corpus
from retriever.ingest import load_query_set
from retriever.store import Store
from tests.app.command_line import silent
from tests.tiny_model import write_tiny_model


def hits(model: FoundModel, corpus: Corpus, texts: list[str], depth: int) -> list[list[int]]:
    encoder = model.open()
    scores = encoder.encode_queries(texts) @ encoder.encode_passages(corpus.texts(range(len(corpus)))).T
    return [sorted(range(len(corpus)), key=lambda row: -line[row])[:depth] for line in scores]


@pytest.mark.parametrize(("measure", "depth"), [("RR@1", 1), ("RR@10", 10), ("R@3", 3)])
def test_flips_of_any_two_models_equal_brute_force(
    tiny: Path, trained: Path, tmp_path: Path, measure: str, depth: int
) -> None:
    new = find_model(trained, str(write_tiny_model(tmp_path / "other", seed=5)))
    old = find_model(trained, "checkpoints/2")
    store = Store(trained)
    corpus = Corpus(store.corpora.at(0))
    queries = load_query_set(tiny / "data", "dev", corpus, skip_missing=False, warn=print)
    right = [
        [any(row in queries.positives(place) for row in found) for place, found in enumerate(ranked)]
        for ranked in (hits(one, corpus, list(queries.texts), depth) for one in (new, old))
    ]
    expected = {name for name, now, before in zip(queries.ids, *right, strict=True) if before and not now}
    compared = measured_diff(new, old, tiny / "data", "dev", measure, silent)
    assert {line["id"] for line in compared["results"] if line["flipped"]} == expected
    assert compared["flips"] == len(expected) == round(compared["flip_rate"] * len(queries))
    assert (compared["new"], compared["old"], compared["measure"]) == (new.name, "checkpoints/2", measure)


def test_measured_now_is_what_was_recorded(tiny: Path, trained: Path) -> None:
    """The tiny store's vectors are float32 and its index is exact."""
    recorded = generation_diff(Store(trained), 2, 0)
    models = find_model(trained, "2"), find_model(trained, "0")
    measured = measured_diff(*models, tiny / "data", "dev", "nDCG@10", silent)
    for key in ("queries", "gained", "lost", "flips", "measure", "split"):
        assert recorded[key] == measured[key]
    assert measured["mean"] == pytest.approx(recorded["mean"], abs=1e-6)


def test_no_shared_query_is_no_change() -> None:
    nothing = figures_diff([], [], np.empty(0, np.float32), np.empty(0, np.float32))
    assert (nothing["queries"], nothing["mean"], nothing["flip_rate"], nothing["results"]) == (0, 0.0, 0.0, [])
