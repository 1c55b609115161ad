import json
from pathlib import Path

from miner.verdicts import read_verdicts
from retriever.data import Corpus
from retriever.ingest import load_query_set
from retriever.store import Store
from tests.app.audit_stand_ins import mined_set, trained_store, write_comparison, write_run_file
from tests.app.command_line import Hone, contents, never
from tests.app.test_comparison_report import parsed
from tests.stand_ins import write_tiny_data
from tests.tiny_ranker import write_tiny_ranker


def prepared() -> Path:
    """A store of which queries 0 and 1 have rivals, in the current folder, with data and run.toml."""
    data = write_tiny_data(Path("data"))
    store, queries = trained_store(Path("store"), data, margins=[0.1 * n for n in range(20)])
    mined_set(store, queries, {0: [30], 1: [31, 32, 33, 34]})
    return write_run_file(Path(), Path("data"))


def test_what_to_look_at_first_is_listed_and_written_as_a_page(hone: Hone) -> None:
    answer = hone("audit", prepared(), "--store", "store", "--limit", 3)
    assert answer.code == 0 and answer.err == ""
    shown = answer.out.splitlines()
    assert shown[0] == "20 training queries of run." and shown[-1] == "page: audit.html"
    listed = [line.split(":")[0].split() for line in shown if line[:4].strip().isdigit()]
    assert listed == [["1", "q0"], ["2", "q1"], ["3", "q2"]]
    assert any(
        "false negative: 1 of 1 voters put this unlabelled passage above the positive, by +0.400" in line
        and line.endswith("p30")
        for line in shown
    )
    page = Path("audit.html").read_text()
    assert parsed(page).seen.count("article") == 3 and parsed(page).fetched == []


def test_reading_changes_nothing_and_json_has_it_all(hone: Hone) -> None:
    config = prepared()
    before = contents(Path("store"))
    told = hone("audit", "store", "--config", config, "--json", "--out", "page.html").json
    assert contents(Path("store")) == before
    assert told["report"] == "page.html" and Path("page.html").exists() and not Path("audit.html").exists()
    assert told["labels"]["pairs"] == 20 and told["false_negatives"] == {
        "voters": ["generation 0 of store"],
        "pairs": 5,
        "queries": 2,
    }
    first = told["items"][0]
    assert first["query"] == "q0" and [one["id"] for one in first["positives"]] == ["p0"]
    assert [one["id"] for one in first["rivals"]] == ["p30"] and first["rivals"][0]["text"]


def test_suggestions_are_verdicts_that_mining_reads(hone: Hone) -> None:
    assert hone("audit", prepared(), "--store", "store", "--suggest", "judged.jsonl").code == 0
    lines = [json.loads(line) for line in Path("judged.jsonl").read_text().splitlines()]
    assert [(line["query"], line["passage"], line["relevant"]) for line in lines] == [("q0", "p30", True)]
    corpus = Corpus(Store(Path("store")).corpora.at(0))
    queries = load_query_set(Path("data"), "train", corpus, skip_missing=False, warn=never)
    read = read_verdicts(Path("judged.jsonl"), corpus, queries, never)
    assert read.relevant_to(0).tolist() == [30]


def test_words_and_a_ranker_are_asked_where_they_are_named(hone: Hone) -> None:
    ranker = write_tiny_ranker(Path("ranker"))
    told = hone("audit", prepared(), "--store", "store", "--lexical", "--ranker", ranker, "--json").json
    assert told["false_negatives"]["voters"] == ["generation 0 of run", "BM25", "ranker"]


def test_bad_input_is_one_line(hone: Hone) -> None:
    config = prepared()
    assert "--config" in hone("audit", "store").complaint
    assert "neither a run.toml" in hone("audit", "data").complaint
    assert hone("audit", config, "--store", "store", "--out", "no/page.html").complaint.startswith(
        "no/page.html: cannot"
    )
    assert not Path("audit.html").exists()
    for name in ("one", "two"):
        Path(name).mkdir()
        write_comparison(Path(name), {("x", 1): (Path(name), [])})
    assert "one comparison at a time" in hone("audit", "one", "two").complaint
