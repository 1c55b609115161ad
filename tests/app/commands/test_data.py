import json
from pathlib import Path

from tests.app.command_line import Hone
from tests.stand_ins import write_json_lines


def test_pairs_become_a_data_set_that_can_be_indexed(hone: Hone, tiny: Path, tmp_path: Path) -> None:
    pairs = [{"query": f"baka beki {n}", "positive": f"bodu dela {n}"} for n in range(60)]
    write_json_lines(tmp_path / "pairs.jsonl", pairs)
    made = hone("dataset", "pairs", "pairs.jsonl", "out", "--dev", "0.2", "--test", "0.2", "--json").json
    assert made["passages"] == 60 and sum(made["queries"].values()) == 60
    assert hone("index", "out", "--model", tiny / "model", "--json").json["rows"] == 60
    more = [{"_id": "d0", "text": "baka"}, {"_id": "d1", "text": "bodu dela 1"}]
    write_json_lines(tmp_path / "more.jsonl", more)
    with_more = hone("dataset", "pairs", "pairs.jsonl", "all", "--documents", "more.jsonl", "--json").json
    assert with_more["passages"] == 61, "one of the documents is a pair's"
    write_json_lines(tmp_path / "bad.jsonl", [*pairs, {"query": "baka", "positive": ""}])
    dropped = hone("dataset", "pairs", "bad.jsonl", "bad", "--json").json["dropped"]
    assert dropped == {"row without a positive": 1}
    told = hone("dataset", "pairs", "pairs.jsonl", "again", "--query", "query", "--positive", "positive")
    assert "again: 60 passages" in told.out and "Next: hone init again" in told.out


def test_one_column_without_the_other(hone: Hone, tmp_path: Path) -> None:
    for option in ("--query", "--positive", "--negative", "--query-id", "--passage-id", "--title"):
        refused = hone("dataset", "pairs", "x.jsonl", "out", option, "q").complaint
        assert "--query and --positive belong together" in refused
    assert not (tmp_path / "out").exists()


def test_pairs_keep_the_ids_and_titles_that_they_have(hone: Hone, tmp_path: Path) -> None:
    pairs = [{"q": f"baka {n}", "p": f"bodu {n}", "n": n, "d": f"d{n}", "t": f"T{n}"} for n in range(40)]
    write_json_lines(tmp_path / "pairs.jsonl", pairs)
    columns = ["--query", "q", "--positive", "p", "--query-id", "n", "--passage-id", "d", "--title", "t"]
    assert hone("dataset", "pairs", "pairs.jsonl", "out", *columns, "--json").json["passages"] == 40
    first = json.loads((tmp_path / "out/corpus.jsonl").read_text().splitlines()[0])
    assert first == {"_id": "d0", "title": "T0", "text": "bodu 0"}
    assert "\n3\td3\t1\n" in "".join(path.read_text() for path in (tmp_path / "out/qrels").iterdir())


def test_documents_alone_can_be_indexed_and_stand_beside_pairs(hone: Hone, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "docs.csv").write_text("docid,contents,year\na,baka beki,1999\nb, ,2000\nc,bodu dela,2001\n")
    made = hone("dataset", "documents", "docs.csv", "out", "--metadata", "year", "--json").json
    assert (made["passages"], made["dropped"]) == (2, {"document without a text": 1})
    assert hone("index", "out", "--model", tiny / "model", "--json").json["rows"] == 2
    write_json_lines(tmp_path / "pairs.jsonl", [{"query": f"baka {n}", "positive": "bodu dela"} for n in range(30)])
    options = ["--documents", "out/corpus.jsonl", "--dev", "0", "--test", "0", "--json"]
    assert hone("dataset", "pairs", "pairs.jsonl", "all", *options).json["passages"] == 2
    told = hone("dataset", "documents", "docs.csv", "again", "--text", "contents").out
    assert "again: 2 passages; queries: none" in told and "Next: hone index again --model minilm" in told


def test_trec_files(hone: Hone, tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("d1\tbaka beki\nd2\tbodu\n")
    (tmp_path / "q.tsv").write_text("1\tbaka\n")
    (tmp_path / "qrels").write_text("1 0 d1 1\n")
    made = hone("dataset", "trec", "c.tsv", "q.tsv", "out", "--qrels", "test=qrels", "--json").json
    assert (made["passages"], made["queries"]) == (2, {"test": 1})
    twice = ["--qrels", "test=qrels", "--qrels", "test=other"]
    assert "names a split twice" in hone("dataset", "trec", "c.tsv", "q.tsv", "o", *twice).complaint
    assert "write SPLIT=FILE" in hone("dataset", "trec", "c.tsv", "q.tsv", "o", "--qrels", "qrels").complaint


def test_long_documents_are_split(hone: Hone, tmp_path: Path) -> None:
    (tmp_path / "long/qrels").mkdir(parents=True)
    write_json_lines(tmp_path / "long/corpus.jsonl", [{"_id": "d", "text": "baka. " * 100}])
    write_json_lines(tmp_path / "long/queries.jsonl", [{"_id": "q", "text": "baka"}])
    (tmp_path / "long/qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    made = hone("dataset", "split", "long", "short", "--words", 30, "--overlap", 5, "--json").json
    lines = (tmp_path / "short/corpus.jsonl").read_text().splitlines()
    assert len(lines) == made["passages"] > 3
    assert all(len(json.loads(line)["text"].split()) <= 30 for line in lines)


def test_data_sets_are_joined(hone: Hone, tiny: Path, tmp_path: Path) -> None:
    made = hone("dataset", "join", "out", tiny / "data", f"more={tiny / 'data'}", "--json").json
    one = len((tiny / "data/corpus.jsonl").read_text().splitlines())
    assert made["passages"] == 2 * one
    assert '"more/' in (tmp_path / "out/corpus.jsonl").read_text().splitlines()[-1]
    assert "same name" in hone("dataset", "join", "o", tiny / "data", tiny / "data").complaint
