import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from retriever.beir import read_passages, read_queries
from retriever.data import Corpus, QuerySet, hash64
from retriever.errors import InputError
from retriever.imports import Splits, import_pairs, import_trec
from retriever.ingest import ingest_corpus, load_query_set
from retriever.pair_rows import Columns
from retriever.store import Store
from tests.stand_ins import write_json_lines

TRIPLETS = [
    {"anchor": "why?", "positive": "because", "negative": "never"},
    {"anchor": "when?", "positive": "now", "negative": "because"},
    {"anchor": "why?", "positive": "for good", "negative": "never"},
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    write_json_lines(path, [dict(row) for row in rows])
    return str(path)


def texts(out: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return id → text of passages and queries."""
    return {name: text for _, name, _, text in read_passages(out)}, {name: text for _, name, text in read_queries(out)}


def pairs(out: Path, split: str = "train") -> dict[str, dict[str, int]]:
    """Return query text → passage text → relevance."""
    passages, queries = texts(out)
    header, *lines = (out / "qrels" / f"{split}.tsv").read_text().splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    found: dict[str, dict[str, int]] = {}
    for query, passage, relevance in (line.split("\t") for line in lines):
        assert passages[passage] not in found.get(queries[query], {}), "a pair comes once"
        found.setdefault(queries[query], {})[passages[passage]] = int(relevance)
    return found


def load(tmp_path: Path, out: Path, split: str) -> tuple[Corpus, QuerySet]:
    corpus = Corpus(ingest_corpus(Store(tmp_path / "store", create=True), out))
    return corpus, load_query_set(out, split, corpus, warn=pytest.fail)


def test_triplets_become_a_folder_that_hone_reads(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = import_pairs(write(tmp_path / "t.jsonl", TRIPLETS), out)
    assert [text for _, _, _, text in read_passages(out)] == ["because", "never", "now", "for good"]
    assert pairs(out) == {"why?": {"because": 1, "never": 0, "for good": 1}, "when?": {"now": 1, "because": 0}}
    assert (summary.passages, summary.queries) == (4, {"train": 2})
    assert summary.dropped == {"pair that is there already": 1}
    corpus, queries = load(tmp_path, out, "train")
    assert corpus.texts(queries.positives(0)) == ["because", "for good"]


def test_every_format_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", TRIPLETS)
    (tmp_path / "b.json").write_text(json.dumps(TRIPLETS))
    (tmp_path / "c.csv").write_text(
        "".join(",".join(row) + "\n" for row in [TRIPLETS[0], *(r.values() for r in TRIPLETS)])
    )
    pq.write_table(pa.Table.from_pylist(TRIPLETS), tmp_path / "d.parquet")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    seen = set()
    for source in sorted(tmp_path.glob("?.*")):
        out = tmp_path / f"out-{source.name}"
        import_pairs(str(source), out)
        seen.add(tuple((out / name).read_bytes() for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv")))
    assert len(seen) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], "pos_scores": [1, 2]},
        {"query": "q", "positive": ["a", "b"], "negative_1": "c", "negative_2": "d"},
        {"anchor": "q", "positive": ["a", "b"], "negative": ["c", "d"]},
    ],
)
def test_known_layouts_need_no_column_names(tmp_path: Path, row: dict[str, object]) -> None:
    import_pairs(write(tmp_path / "t.jsonl", [row]), tmp_path / "out")
    assert pairs(tmp_path / "out") == {"q": {"a": 1, "b": 1, "c": 0, "d": 0}}


def test_pairs_without_negatives_are_enough(tmp_path: Path) -> None:
    import_pairs(write(tmp_path / "t.jsonl", [{"anchor": "q", "positive": "a", "score": 0.5}]), tmp_path / "out")
    assert pairs(tmp_path / "out") == {"q": {"a": 1}}


def test_named_columns_give_ids_and_titles(tmp_path: Path) -> None:
    rows = [
        {"n": 7, "question": "q", "answer": ["a", "b"], "doc": ["d1", 2], "head": ["A", None]},
        {"n": 8, "question": "r", "answer": ["a"], "doc": ["d1"], "head": ["A"]},
    ]
    columns = Columns("question", "answer", None, "n", "doc", "head")
    import_pairs(write(tmp_path / "t.jsonl", rows), tmp_path / "out", columns)
    assert list(read_passages(tmp_path / "out")) == [(1, "d1", "A", "a"), (2, "2", "", "b")]
    assert list(read_queries(tmp_path / "out")) == [(1, "7", "q"), (2, "8", "r")]


def test_ids_without_a_column_are_hashes_and_do_not_depend_on_the_order(tmp_path: Path) -> None:
    for name, rows in (("a", TRIPLETS), ("b", TRIPLETS[::-1])):
        import_pairs(write(tmp_path / f"{name}.jsonl", rows), tmp_path / name)
    assert texts(tmp_path / "a") == texts(tmp_path / "b")
    assert texts(tmp_path / "a")[0][f"{hash64('now'):016x}"] == "now"


def test_a_text_with_several_ids_keeps_the_first_and_says_so(tmp_path: Path) -> None:
    rows = [{"anchor": f"q{i}", "positive": "a", "id": f"d{i}"} for i in range(3)]
    columns = Columns(negative=None, passage_id="id")
    summary = import_pairs(write(tmp_path / "t.jsonl", rows), tmp_path / "out", columns)
    assert texts(tmp_path / "out")[0] == {"d0": "a"}
    assert summary.dropped == {"passage id of a text that has another": 2}


def test_documents_that_no_pair_names_are_passages_too(tmp_path: Path) -> None:
    documents = [
        {"_id": "d1", "title": "Time", "text": "now "},
        {"_id": "d2", "text": "later"},
        {"_id": "d3", "title": "Here", "text": ""},
        {"_id": "d4", "title": "There", "text": ""},
        {"_id": "d5", "title": "", "text": " "},
        {"_id": "d6", "text": "later"},
    ]
    write_json_lines(tmp_path / "d.jsonl", documents)
    out = tmp_path / "out"
    summary = import_pairs(write(tmp_path / "t.jsonl", TRIPLETS), out, documents=tmp_path / "d.jsonl")
    assert list(read_passages(out))[:4] == [
        (1, "d1", "Time", "now"),
        (2, "d2", "", "later"),
        (3, "d3", "", "Here"),
        (4, "d4", "", "There"),
    ]
    assert pairs(out)["when?"] == {"now": 1, "because": 0}, "a pair's text is the document's"
    assert summary.passages == 4 + 3
    assert summary.dropped["document without a text"] == summary.dropped["passage id of a text that has another"] == 1


def test_what_cannot_be_used_is_dropped_by_reason(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query": " q ", "pos": ["a ", ""], "neg": ["c", "a", " "]},
        {"query": "", "pos": ["a"], "neg": []},
        {"query": None, "pos": ["a"], "neg": []},
        {"query": "r", "pos": [], "neg": ["c"]},
        {"query": "r", "pos": None, "neg": ["c"]},
        {"query": "q", "pos": ["a"]},
    ]
    summary = import_pairs(write(tmp_path / "t.jsonl", rows), tmp_path / "out")
    assert pairs(tmp_path / "out") == {"q": {"a": 1, "c": 0}}
    assert texts(tmp_path / "out")[1].keys() == {f"{hash64('q'):016x}"}
    assert summary.dropped == {
        "empty text in a list": 2,
        "row without a query": 2,
        "row without a positive": 2,
        "negative that is a positive of its query": 1,
        "pair that is there already": 1,
    }


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"question": "q", "answer": "a"}, None, "name the columns of query and positive; there are question, answer"),
        ({"anchor": "q", "positive": "a"}, Columns(), "no column 'negative'; there are anchor, positive"),
        (
            {"anchor": "q", "positive": "a"},
            Columns("query", "pos", None, title="head"),
            "no column 'query', 'pos', 'head'; there are anchor, positive",
        ),
        ({"anchor": 3, "positive": "a"}, None, "t.jsonl:1: column 'anchor' holds a value of type int"),
        ({"anchor": ["q"], "positive": "a"}, None, "t.jsonl:1: column 'anchor' holds a value of type list"),
        ({"anchor": "q", "positive": {"text": "a"}}, None, "t.jsonl:1: column 'positive' holds a value of type dict"),
        ({"anchor": "q", "positive": ["a", 1.5]}, None, "t.jsonl:1: column 'positive' holds a value of type float"),
        ({"anchor": "\ud800", "positive": "a"}, None, "t.jsonl:1: column 'anchor' is not valid Unicode"),
        ({"anchor": "", "positive": "a"}, None, "no pair for the split 'train' (row without a query: 1)"),
        (
            {"anchor": "q", "positive": ["a", "b"], "id": ["d"]},
            Columns(negative=None, passage_id="id"),
            "t.jsonl:1: column 'id' has 1 values for 2 positives",
        ),
        *(
            ({"anchor": "q", "positive": "a", "id": bad}, Columns(negative=None, query_id="id"), "'id' holds")
            for bad in (None, "", "a\tb", "a\nb", True, 1.5)
        ),
    ],
)
def test_a_bad_column_is_named_and_nothing_is_left(
    tmp_path: Path, row: dict[str, Any], columns: Columns | None, message: str
) -> None:
    source = write(tmp_path / "t.jsonl", [row])
    with pytest.raises(InputError) as caught:
        import_pairs(source, tmp_path / "out", columns)
    assert str(caught.value).startswith(source) and message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_one_id_for_two_texts_is_named(tmp_path: Path) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"a{i}", "id": "same"} for i in range(2)]
    for columns, what in (
        (Columns(negative=None, query_id="id"), "query"),
        (Columns(negative=None, passage_id="id"), "passage"),
    ):
        with pytest.raises(InputError, match=rf"t\.jsonl:2: {what} id 'same' stands for another text"):
            import_pairs(write(tmp_path / "t.jsonl", rows), tmp_path / "out", columns)


def test_the_splits_of_the_source_are_taken_by_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "train.jsonl", TRIPLETS)
    write(tmp_path / "in" / "validation.jsonl", [{"anchor": "who?", "positive": "now", "negative": "me"}])
    summary = import_pairs(str(tmp_path / "in"), tmp_path / "out", splits=Splits(dev="validation"))
    assert summary.queries == {"train": 2, "dev": 1} and summary.passages == 5
    assert pairs(tmp_path / "out", "dev") == {"who?": {"now": 1, "me": 0}}
    assert "who?" not in pairs(tmp_path / "out")


@settings(max_examples=25, deadline=None)
@given(
    links=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), min_size=60, max_size=120),
    dev=st.sampled_from([0.1, 0.3]),
    test=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_carved_splits_partition_the_queries_and_share_no_positive(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[int, int]], dev: float, test: float
) -> None:
    folder = tmp_path_factory.mktemp("carved")
    rows = [{"anchor": f"q{query}", "positive": f"p{passage}"} for query, passage in links]
    source, out = write(folder / "t.jsonl", rows), folder / "out"
    try:
        summary = import_pairs(source, out, splits=Splits(dev=dev, test=test))
    except InputError:
        reject()  # all queries fell on one side
    found = {split: pairs(out, split) for split in summary.queries}
    assert set(found) == {"train", "dev", *(["test"] if test else [])}
    whole: dict[str, dict[str, int]] = {}
    for query, passage in links:
        whole.setdefault(f"q{query}", {})[f"p{passage}"] = 1
    assert {query: judged for split in found.values() for query, judged in split.items()} == whole
    assert sum(map(len, found.values())) == len(whole)
    positives = [{passage for judged in split.values() for passage in judged} for split in found.values()]
    assert sum(map(len, positives)) == len(set().union(*positives))


def test_carved_splits_have_about_their_size(tmp_path: Path) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(2000)]
    summary = import_pairs(write(tmp_path / "t.jsonl", rows), tmp_path / "out", splits=Splits(dev=0.1, test=0.2))
    assert 150 < summary.queries["dev"] < 250 and 330 < summary.queries["test"] < 470
    assert sum(summary.queries.values()) == 2000


@pytest.mark.parametrize(
    "parts", [{"dev": -0.1}, {"dev": 1.0}, {"dev": 0.6, "test": 0.4}, {"test": 5}, {"dev": float("nan")}]
)
def test_fractions_that_cannot_be_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="fractions must be 0 or more and below 1"):
        Splits(**parts)


def test_nothing_is_replaced(tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", TRIPLETS)
    import_pairs(source, tmp_path / "out")
    before = (tmp_path / "out" / "corpus.jsonl").stat()
    with pytest.raises(InputError, match="out: exists already"):
        import_pairs(source, tmp_path / "out")
    assert (tmp_path / "out" / "corpus.jsonl").stat() == before


def trec(tmp_path: Path) -> tuple[Path, Path, dict[str, Path]]:
    (tmp_path / "corpus.tsv").write_text('\ufeffd1\tfirst passage\nd2\tsecond, “quoted"\nd3\t\n\n')
    (tmp_path / "queries.tsv.gz").write_bytes(gzip.compress(b"1\twhy\r\n2\twhen\r\n3\twho\r\n"))
    (tmp_path / "train.txt").write_text("1 0 d1 2\n2 0 d2 1\n2 0 d1 0\n")
    (tmp_path / "dev.txt").write_text("3 0 d2 1\n")
    return (
        tmp_path / "corpus.tsv",
        tmp_path / "queries.tsv.gz",
        {split: tmp_path / f"{split}.txt" for split in ("train", "dev")},
    )


def test_trec_files_become_a_folder_that_hone_reads(tmp_path: Path) -> None:
    summary = import_trec(*trec(tmp_path), tmp_path / "out")
    assert (summary.passages, summary.queries) == (2, {"train": 2, "dev": 1})
    assert summary.dropped == {"passage without a text": 1}
    corpus, queries = load(tmp_path, tmp_path / "out", "train")
    assert corpus.texts(range(2)) == ["first passage", 'second, “quoted"']
    assert list(queries.texts) == ["why", "when"] and list(queries.judgements) == [{0: 2}, {1: 1, 0: 0}]


@pytest.mark.parametrize("line", ["d4", "\ttext", "d4\ttext\tmore", "d4 text"])
def test_a_bad_line_of_trec_is_named(tmp_path: Path, line: str) -> None:
    corpus, queries, qrels = trec(tmp_path)
    corpus.write_text(f"d1\tfirst\n{line}\n")
    with pytest.raises(InputError, match=r"corpus\.tsv:2: expected an id, a tab and a text"):
        import_trec(corpus, queries, qrels, tmp_path / "out")
    corpus.write_bytes(b"d1\tcaf\xe9\n")
    with pytest.raises(InputError, match=r"corpus\.tsv:1: not UTF-8"):
        import_trec(corpus, queries, qrels, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_judgements_of_trec_are_named(tmp_path: Path) -> None:
    corpus, queries, qrels = trec(tmp_path)
    qrels["dev"].write_text("3 0 d2\n")
    with pytest.raises(InputError, match=r"dev\.txt:1"):
        import_trec(corpus, queries, qrels, tmp_path / "out")
    with pytest.raises(InputError, match=r"absent\.txt"):
        import_trec(corpus, queries, {"train": tmp_path / "absent.txt"}, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))
