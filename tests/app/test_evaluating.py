import json
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval

from app.evaluating import METRICS, Evaluated, evaluate_split, first_hits, indexed_model, scored_run
from indexer.factory import IndexConfig
from retriever.data import Corpus
from retriever.errors import CorruptError, InputError, StoreError
from retriever.ingest import load_query_set
from retriever.store import Store
from tests.app.command_line import never, silent
from tests.app.served import damage
from tests.stand_ins import write_tiny_data

TREC_NAMES = {"nDCG@10": "ndcg_cut_10", "RR@10": "recip_rank", "R@100": "recall_100"}


@pytest.fixture
def done(tiny: Path, indexed: Path) -> Evaluated:
    return evaluate_split(Store(indexed), tiny / "data", "test", exact=False)


def graded(folder: Path) -> Path:
    """A data set whose test queries have several judgements of different grades."""
    data = write_tiny_data(folder)
    with (data / "qrels/test.tsv").open("a") as file:
        file.writelines(f"q{n}\tp{(n + 7) % 60}\t{n % 3}\nq{n}\tp{n - 5}\t2\n" for n in range(30, 40))
    return data


def test_figures_are_those_that_trec_eval_gives_the_run(tiny: Path, tmp_path: Path) -> None:
    data = graded(tmp_path / "data")
    with indexed_model(data, "test", str(tiny / "model"), IndexConfig(precision="fp32"), silent) as store:
        done = evaluate_split(store, data, "test", exact=True)
        done.write_run(tmp_path / "out.trec")
        qrels: dict[str, dict[str, int]] = {}
        for line in (data / "qrels/test.tsv").read_text().splitlines()[1:]:
            query, passage, grade = line.split("\t")
            qrels.setdefault(query, {})[passage] = int(grade)
        run: dict[str, dict[str, float]] = {}
        for line in (tmp_path / "out.trec").read_text().splitlines():
            query, _, passage, _, score, _ = line.split()
            run.setdefault(query, {})[passage] = float(score)
    assert {len(hits) for hits in run.values()} == {60}, "all passages, since there are fewer than 100"
    wanted = {"ndcg_cut.10", "recip_rank", "recall.100"}
    scored = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run)
    for ours, theirs in TREC_NAMES.items():
        if ours == "RR@10":  # trec_eval's has no cutoff
            values = [one[theirs] if one[theirs] >= 0.1 else 0.0 for one in scored.values()]
        else:
            values = [one[theirs] for one in scored.values()]
        assert done.evaluation.metrics[ours] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert 0.3 < done.evaluation.metrics["nDCG@10"] < 1


def test_the_report_of_each_query_averages_to_the_figures(done: Evaluated, tmp_path: Path) -> None:
    done.write_report(tmp_path / "report.jsonl")
    lines: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == [f"q{n}" for n in range(30, 40)]
    for name in METRICS:
        assert sum(line[name] for line in lines) / 10 == pytest.approx(done.evaluation.metrics[name], abs=1e-6)
    for line in lines:
        (passage,) = line["relevant"]
        rank = line["relevant"][passage]
        assert passage == line["query"].replace("q", "p") and line["text"]
        assert line["RR@10"] == pytest.approx(1 / rank if rank <= 10 else 0, abs=1e-6)
        assert (line["hits"][rank - 1] == passage) if rank <= 10 else (passage not in line["hits"])
        assert len(line["hits"]) == 10


def test_a_relevant_passage_beyond_the_depth_has_no_rank(done: Evaluated, tmp_path: Path) -> None:
    done.evaluation.hits[0][:] = -1
    done.write_report(tmp_path / "report.jsonl")
    done.write_run(tmp_path / "out.trec")
    first = json.loads((tmp_path / "report.jsonl").read_text().splitlines()[0])
    assert first["relevant"] == {"p30": None} and first["hits"] == []
    assert "q30 " not in (tmp_path / "out.trec").read_text()


def test_the_index_and_exact_search_agree_where_the_index_is_exact(tiny: Path, indexed: Path, done: Evaluated) -> None:
    exact = evaluate_split(Store(indexed), tiny / "data", "test", exact=True)
    assert exact.evaluation.metrics == pytest.approx(done.evaluation.metrics)
    assert {*exact.evaluation.metrics} == {*METRICS, "AUC", "separation"}


def test_dev_figures_are_those_of_the_manifest(tiny: Path, indexed: Path) -> None:
    done = evaluate_split(Store(indexed), tiny / "data", "dev", exact=True)
    dev = Store(indexed).generations.at(0).facts["dev"]
    assert {name: done.evaluation.metrics[name] for name in dev} == pytest.approx(dev, abs=1e-6)


def test_a_generation_by_its_number_and_the_served_one_by_default(tiny: Path, trained: Path) -> None:
    store = Store(trained)
    store.generations.point("SERVED", 1)
    assert evaluate_split(store, tiny / "data", "test", exact=False).generation == 1
    assert evaluate_split(store, tiny / "data", "test", exact=False, number=2).generation == 2
    with pytest.raises(StoreError, match="000009"):
        evaluate_split(store, tiny / "data", "test", exact=False, number=9)
    damage(trained / "generations/000002/index.faiss")
    with pytest.raises(CorruptError, match=r"000002/index\.faiss"):
        evaluate_split(store, tiny / "data", "test", exact=False, number=2)


def test_another_corpus_than_the_generation_holds(indexed: Path, tmp_path: Path) -> None:
    other = write_tiny_data(tmp_path / "other", seed=9)
    with pytest.raises(InputError, match=r"other: not the corpus that generation 0 holds"):
        evaluate_split(Store(indexed), other, "test", exact=False)


def test_a_model_measured_without_a_store_leaves_none(tiny: Path) -> None:
    with indexed_model(tiny / "data", "test", str(tiny / "model"), IndexConfig(precision="fp32"), silent) as store:
        root = store.root
        assert load_query_set(tiny / "data", "test", Corpus(store.corpora.at(0)), warn=never).ids[0] == "q30"
    assert not root.exists()


def test_first_hits_are_texts_by_falling_score(indexed: Path) -> None:
    hits = first_hits(Store(indexed), "baka beki bodu", 4)
    scores = [score for _, score, _ in hits]
    assert len(hits) == 4 and scores == sorted(scores, reverse=True)
    corpus = Corpus(Store(indexed).corpora.at(0))
    for name, _, text in hits:
        row = corpus.row_of(name)
        assert row is not None and corpus.text(row) == text


def test_a_run_that_was_written_scores_the_same_when_it_is_read(tiny: Path, done: Evaluated, tmp_path: Path) -> None:
    done.write_run(tmp_path / "run.trec")
    with scored_run(tiny / "data", "test", tmp_path / "run.trec") as scored:
        expected = {name: value for name, value in done.evaluation.metrics.items() if name not in ("AUC", "separation")}
        assert scored.evaluation.metrics == pytest.approx(expected)


def test_a_run_with_an_unknown_passage_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q30 Q0 nobody 1 0.5 x\n")
    with pytest.raises(InputError, match="nobody"), scored_run(tiny / "data", "test", tmp_path / "run.trec"):
        pass
