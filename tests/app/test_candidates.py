from pathlib import Path

import pytest

from app.candidates import (
    candidates_of_generation,
    candidates_of_run,
    check_same_corpus,
    hits_of_run,
    temporary_corpus,
)
from app.opening import ENCODER_ALONE
from app.snapshot import load_snapshot
from retriever.errors import InputError
from retriever.ingest import load_query_set
from retriever.store import Store
from tests.app.command_line import never
from tests.stand_ins import write_tiny_data


def test_a_run_keeps_its_queries_judged_or_not_and_all_their_hits(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q1 Q0 p3 1 0.5 x\nq1 Q0 p4 2 0.9 x\nq39 Q0 p5 1 7 x\n")
    with temporary_corpus(tiny / "data") as corpus:
        found = candidates_of_run(tmp_path / "run", tiny / "data", corpus)
        assert found.ids == ["q1", "q39"] and found.hits.tolist() == [[4, 3], [5, -1]]
        assert found.texts[0] and found.texts[0] != found.texts[1]
        _, scores = hits_of_run({"q1": [("p4", 0.9), ("p3", 0.5)]}, ["q1", "q2"], corpus, 1, "run")
        assert scores[0] == pytest.approx([0.9]) and scores[1, 0] == float("-inf")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no hits to rerank"),
        ("q1 Q0 nix 1 1 x\n", "query 'q1' has passage 'nix', which the corpus does not hold"),
        ("q1 Q0 p1 1 1 x\nnobody Q0 p1 1 1 x\n", r"1 query is not in .*queries\.jsonl: nobody"),
    ],
)
def test_a_run_that_does_not_fit_the_data(tiny: Path, tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "run").write_text(text)
    with temporary_corpus(tiny / "data") as corpus, pytest.raises(InputError, match=problem):
        candidates_of_run(tmp_path / "run", tiny / "data", corpus)


def test_a_generation_gives_what_it_finds_first(tiny: Path, indexed: Path, tmp_path: Path) -> None:
    snapshot = load_snapshot(Store(indexed), ENCODER_ALONE, never)
    queries = load_query_set(tiny / "data", "test", snapshot.corpus, warn=never)
    found = candidates_of_generation(snapshot, queries, 7)
    rows, _ = snapshot.searcher.search(snapshot.encoder.encode_queries(queries.texts), 7)
    assert found.hits.tolist() == rows.tolist() and found.ids == queries.ids
    assert candidates_of_generation(snapshot, queries, 1000).hits.shape == (10, 60)
    check_same_corpus(Store(indexed), snapshot, tiny / "data")
    with pytest.raises(InputError, match="not the corpus that generation 0 holds"):
        check_same_corpus(Store(indexed), snapshot, write_tiny_data(tmp_path / "other", seed=8))
