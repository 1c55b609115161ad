import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.audit_findings import Audited, as_json, suggestions
from app.audited_runs import find_runs
from app.auditing import audit
from miner.audit import plant
from retriever.data import Corpus, QuerySet
from retriever.errors import InputError
from retriever.joining import join_datasets
from tests.app.audit_stand_ins import mined_set, trained_store, write_comparison, write_run_file
from tests.stand_ins import OverlapRanker, write_tiny_data

MARGINS = np.linspace(0, 1.9, 20, dtype=np.float32).astype(np.float64).tolist()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny_data(tmp_path / "data")


def fail(message: str) -> None:
    raise AssertionError(message)


def audited(places: list[Path], store: Path, comparisons: list[Path] | None = None, **more: Any) -> Audited:
    runs, corpus = find_runs(places, store, None, fail)
    return audit(runs, corpus, comparisons or [], more.pop("limit", 50), more.pop("warn", fail), **more)


def test_margins_of_the_newest_checkpoint_are_ranked(data: Path, tmp_path: Path) -> None:
    trained_store(tmp_path / "store", data, margins=MARGINS)
    found = audited([write_run_file(tmp_path, data)], tmp_path / "store")
    assert found.labels is not None and found.labels.threshold is None
    assert [item.query for item in found.items][:3] == ["q0", "q1", "q2"]
    (aum, loss) = found.items[0].findings
    assert (aum.audit, aum.passages, aum.flagged) == ("AUM", ("p0",), False)
    assert "number 1 of 20 from below" in aum.reason and loss.audit == "bad pair"
    assert found.voters == [] and len(found.election.votes) == 0


def test_planted_mislabels_give_the_threshold_and_are_no_suspects(data: Path, tmp_path: Path) -> None:
    corpus: list[Corpus] = []

    def planted(queries: QuerySet) -> QuerySet:
        return plant(queries, corpus[0], 0.2, seed=5)

    first, _ = trained_store(tmp_path / "first", data)
    corpus.append(Corpus(first.corpora.at(0)))
    trained_store(tmp_path / "store", data, margins=MARGINS, planted=planted)
    more = "[audit]\nplanted = 0.2\npercentile = 50\n"
    found = audited([write_run_file(tmp_path, data, more=more)], tmp_path / "store")
    _, queries = trained_store(tmp_path / "again", data)
    wrong = [row for row in range(20) if planted(queries).judgements[row] != queries.judgements[row]]
    assert found.labels is not None and len(wrong) == 4 and len(found.labels.margins) == 16
    threshold = float(np.percentile([MARGINS[row] for row in wrong], 50))
    assert found.labels.threshold == pytest.approx(threshold)
    flagged = {item.query for item in found.items for one in item.findings if one.audit == "AUM" and one.flagged}
    assert flagged == {f"q{n}" for n in range(20) if n not in wrong and MARGINS[n] <= threshold}


def test_generations_vote_once_and_only_on_what_they_ranked(data: Path, tmp_path: Path) -> None:
    store, queries = trained_store(tmp_path / "store", data)
    mined_set(store, queries, {0: [30], 1: [31, 32], 2: [33]})
    carried = np.array([0] * 2 + [1] * 18, np.int32)  # queries 0 and 1 stand there as generation 0 ranked them
    mined_set(store, queries, {0: [30], 1: [31, 32], 3: [34]}, mined_from=carried)
    found = audited([write_run_file(tmp_path, data)], tmp_path / "store")
    election = found.election
    pairs = zip(election.queries.tolist(), election.passages.tolist(), strict=True)
    votes = dict(zip(pairs, zip(election.votes.tolist(), election.opinions.tolist(), strict=True), strict=True))
    assert votes == {(0, 30): (1, 1), (1, 31): (1, 1), (1, 32): (1, 1), (2, 33): (1, 2), (3, 34): (1, 2)}
    assert found.voters == ["generation 1 of run", "generation 0 of run"]
    assert [item.query for item in found.items] == ["q0", "q1"], "half of the voters are no majority"
    assert [line["passage"] for line in suggestions(found)] == ["p30", "p31", "p32"]


def test_a_query_with_many_rivals_doubts_its_positive_and_suggests_nothing(data: Path, tmp_path: Path) -> None:
    store, queries = trained_store(tmp_path / "store", data)
    mined_set(store, queries, {0: [30, 31, 32, 33], 1: [34]})
    found = audited([write_run_file(tmp_path, data)], tmp_path / "store")
    shown = {item.query: item.findings for item in found.items}
    assert len(shown["q0"]) == 3 and "4 such passages: rather the positive is wrong" in shown["q0"][0].reason
    assert [line["query"] for line in suggestions(found)] == ["q1"]


def test_a_set_of_other_queries_is_said_and_does_not_vote(data: Path, tmp_path: Path) -> None:
    store, queries = trained_store(tmp_path / "store", data)
    mined_set(store, queries.subset(range(3)), {0: [30]})
    said: list[str] = []
    found = audited([write_run_file(tmp_path, data)], tmp_path / "store", warn=said.append)
    assert found.voters == [] and len(said) == 1 and "does not vote" in said[0]


def test_words_and_a_ranker_vote_too(data: Path, tmp_path: Path) -> None:
    store, queries = trained_store(tmp_path / "store", data)
    mined_set(store, queries, {0: [30], 1: [31]})
    found = audited([write_run_file(tmp_path, data)], tmp_path / "store", lexical=True, ranker=OverlapRanker())
    assert found.voters[1:] == ["BM25", "ranker"]
    assert found.election.opinions.tolist() == [3, 3]
    assert found.election.votes.tolist() == [1, 1], "query i was made of words of passage i"
    assert not found.election.likely.any() and found.items == []


def test_runs_are_joined_by_query_and_must_share_the_corpus(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        store, queries = trained_store(tmp_path / name, data, margins=MARGINS if name == "a" else MARGINS[::-1])
        mined_set(store, queries, {0: [30]})  # of the untrained model, which both runs begin from: one word, not two
        own = {"a": {0: [30], 1: [31]}, "b": {0: [30], 2: [32]}}
        mined_set(store, queries, own[name], shift=0.01 if name == "a" else 0.02)
    runs, corpus = find_runs([tmp_path / "a", tmp_path / "b"], tmp_path, write_run_file(tmp_path, data), fail)
    found = audit(runs, corpus, [], 50, fail)
    assert (found.election.votes.tolist(), found.election.opinions.tolist()) == ([3, 1, 1], [3, 3, 3])
    assert len(found.voters) == 3 and found.labels is not None
    assert found.labels.margins.tolist() == pytest.approx([0.95] * 20)
    other = write_tiny_data(tmp_path / "other", seed=8)
    trained_store(tmp_path / "c", other)
    with pytest.raises(InputError, match="its corpus is another"):
        find_runs([tmp_path / "a", tmp_path / "c"], tmp_path, write_run_file(tmp_path, data), fail)


def test_queries_are_those_that_verdicts_leave_to_training(data: Path, tmp_path: Path) -> None:
    lines = [
        {"query": "q0", "passage": "p30", "relevant": True, "action": "relabel"},
        {"query": "q1", "passage": "p31", "relevant": True, "action": "drop_example"},
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = write_run_file(tmp_path, data, more='[negatives]\nverdicts = "judged.jsonl"\n')
    trained_store(tmp_path / "store", data)
    (run,), corpus = find_runs([config], tmp_path / "store", None, lambda message: None)
    assert len(run.queries) == 19 and "q1" not in run.queries.ids
    assert corpus.ids(run.queries.positives(0)) == ["p0", "p30"]


def test_a_store_trained_on_more_queries_is_refused(data: Path, tmp_path: Path) -> None:
    trained_store(tmp_path / "store", data, margins=MARGINS)
    config = write_run_file(tmp_path, data)
    (data / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tp0\t1\n")
    with pytest.raises(InputError, match="other queries"):
        audited([config], tmp_path / "store")
    pairs = "".join(f"q{n}\tp{n + 1}\t1\n" for n in range(20))
    (data / "qrels/train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{pairs}")
    with pytest.raises(InputError, match="other queries, positives"):
        audited([config], tmp_path / "store")


# ---- comparisons


def compared(tmp_path: Path) -> tuple[Path, Path]:
    """Two joined data sets; "without-a" trains on b alone and is better on b's test queries with every seed."""
    for name, seed in (("a", 1), ("b", 2)):
        write_tiny_data(tmp_path / name, seed=seed)
    join_datasets({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "data")
    lines = (tmp_path / "data/qrels/train.tsv").read_text().splitlines()
    kept = [lines[0], *(line for line in lines if line.startswith("b/"))]
    (tmp_path / "data/qrels/rest.tsv").write_text("\n".join(kept) + "\n")
    runs = {}
    generator = np.random.default_rng(0)
    for seed in (1, 2, 3):
        for system, train in (("all", "train"), ("without-a", "rest"), ("without-a-7", "rest")):
            root = tmp_path / f"compare/runs/{system}-{seed}-0123abcd"
            write_run_file(root, tmp_path / "data", train=train)
            store, queries = trained_store(root / "store", tmp_path / "data", train)
            mined_set(store, queries, {})
            figures = generator.uniform(0.3, 0.4, 20) + {"without-a": 0.2, "without-a-7": 0.4}.get(system, 0.0)
            figures[:10] = 0.9 if system == "all" else 0.1  # a's own test queries need a
            figures[19] = seed % 2
            runs[system, seed] = (root, figures.tolist())
    changes: dict[str, dict[str, Any]] = {
        "without-a": {"data.train": "rest"},
        "without-a-7": {"data.train": "rest", "train.num_negatives": 7},
    }
    return write_comparison(tmp_path / "compare", runs, changes=changes), tmp_path / "store"


def test_leaving_a_data_set_out_is_read_on_the_queries_of_the_others(tmp_path: Path) -> None:
    folder, store = compared(tmp_path)
    found = audited([folder], store, [folder])
    first = found.datasets[0]
    assert first.name == "a" and first.without is not None
    assert (first.without["system"], first.without["verdict"], first.without["seeds"]) == ("without-a", "better", 3)
    assert first.without["gap"] == pytest.approx(0.2 * 9 / 10, abs=0.03)
    assert [one.without for one in found.datasets[1:]] == [None]


def test_seeds_tell_which_queries_flip(tmp_path: Path) -> None:
    folder, store = compared(tmp_path)
    found = audited([folder], store, [folder])
    assert found.seeds is not None and [one.flipping for one in found.seeds.systems] == [1, 1, 1]
    assert found.items[0].query == "b/q39" and found.items[0].findings[0].flagged
    assert "all 1.00, 0.00, 1.00" in found.items[0].findings[0].reason
    shown = as_json(found)["items"][0]
    assert (shown["split"], shown["positives"][0]["id"]) == ("test", "b/p39")


def test_figures_of_other_queries_are_refused(tmp_path: Path) -> None:
    folder, store = compared(tmp_path)
    (tmp_path / "data/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nb/q39\tb/p39\t1\n")
    with pytest.raises(InputError, match="figures of 20 queries where the test split has 1"):
        audited([folder], store, [folder])
