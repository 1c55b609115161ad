import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.data import BLOCK_ROWS, Corpus, QuerySet, duplicate_hash, hash64, passage_text
from retriever.errors import CorruptError
from retriever.ingest import ingest_corpus
from retriever.store import Store
from tests.stand_ins import tiny_store, write_json_lines, write_tiny_data

ROWS = 2 * BLOCK_ROWS + 3


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus over three blocks, the last one not full; each text names its row."""
    folder = tmp_path_factory.mktemp("long")
    records: list[dict[str, object]] = [
        {"_id": f"id-{row}", "title": f"T{row}" if row % 2 else "", "text": f"row {row}"} for row in range(ROWS)
    ]
    write_json_lines(folder / "corpus.jsonl", records)
    return Corpus(ingest_corpus(Store(folder / "store", create=True), folder))


def expected(row: int) -> str:
    return f"T{row} row {row}" if row % 2 else f"row {row}"


@pytest.mark.parametrize(
    ("title", "text", "read"), [("A", "b", "A b"), ("", "b", "b"), ("A", "", "A"), (" A ", " b\n", "A   b")]
)
def test_a_passage_is_title_space_text_stripped(title: str, text: str, read: str) -> None:
    assert passage_text(title, text) == read


def test_hash64_is_blake2b_of_eight_bytes() -> None:
    digest = hashlib.blake2b("Ångström".encode(), digest_size=8).digest()
    assert hash64("Ångström") == int.from_bytes(digest, "little") < 2**64


@given(st.lists(st.text(st.characters(categories=["L", "N", "P"]), min_size=1), min_size=1), st.data())
def test_duplicates_are_told_by_words_alone(words: list[str], data: st.DataObject) -> None:
    space = st.text(" \t\n\u00a0", min_size=1)
    spread = data.draw(space) + "".join(word + data.draw(space) for word in words)
    assert duplicate_hash(spread) == duplicate_hash(" ".join(words))
    assert duplicate_hash(" ".join(words)) == duplicate_hash(" ".join(words).lower())
    assert duplicate_hash(" ".join([*words, "more"])) != duplicate_hash(" ".join(words))


def test_metadata_comes_in_the_order_of_rows_and_may_be_absent(tmp_path: Path, long_corpus: Corpus) -> None:
    lines: list[dict[str, object]] = [{"_id": "a", "text": "x", "metadata": {"year": 1}}, {"_id": "b", "text": "y"}]
    write_json_lines(tmp_path / "corpus.jsonl", lines)
    assert [*Corpus(ingest_corpus(Store(tmp_path / "store", create=True), tmp_path)).metadata()] == [{"year": 1}, {}]
    assert sum(fields == {} for fields in long_corpus.metadata()) == ROWS


def test_a_corpus_of_before_fields_were_kept_has_none(tmp_path: Path) -> None:
    _, corpus = tiny_store(tmp_path / "store", write_tiny_data(tmp_path / "data"))
    path = tmp_path / "store/corpora/000000/passages.arrow"
    table = pa.ipc.open_file(path).read_all().drop_columns(["metadata"])
    path.unlink()  # the corpus above still reads it
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    older = Corpus(Store(tmp_path / "store").corpora.at(0))
    assert [*older.metadata()] == [{}] * 60 and older.text(0) == corpus.text(0)


def test_a_row_is_the_place_in_the_file(long_corpus: Corpus) -> None:
    rows = [0, 1, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS, ROWS - 1, 5, 5]
    assert len(long_corpus) == ROWS
    assert long_corpus.texts(rows) == [expected(row) for row in rows]
    assert long_corpus.ids(np.array(rows, np.int32)) == [f"id-{row}" for row in rows]
    assert long_corpus.texts(range(3)) == [expected(row) for row in range(3)]


def test_blocks_are_fixed_and_give_every_row_once(long_corpus: Corpus) -> None:
    blocks = list(long_corpus.blocks())
    assert [(start, len(texts)) for start, texts in blocks] == [
        (0, BLOCK_ROWS),
        (BLOCK_ROWS, BLOCK_ROWS),
        (2 * BLOCK_ROWS, 3),
    ]
    assert [text for _, texts in blocks for text in texts] == [expected(row) for row in range(ROWS)]


def test_ids_lead_back_to_rows(long_corpus: Corpus) -> None:
    for row in (0, 7, BLOCK_ROWS, ROWS - 1):
        assert long_corpus.row_of(f"id-{row}") == row
    for absent in (f"id-{ROWS}", "", "ID-0", "id-0 "):
        assert long_corpus.row_of(absent) is None


@pytest.mark.parametrize("row", [-1, ROWS, 3 * BLOCK_ROWS])
def test_a_row_beyond_the_corpus_is_an_error(long_corpus: Corpus, row: int) -> None:
    for read in (long_corpus.text, long_corpus.id):
        with pytest.raises((IndexError, ValueError), match="out of"):
            read(row)


def test_two_ids_with_one_hash_are_told_apart(tmp_path: Path) -> None:
    _, corpus = tiny_store(tmp_path / "store", write_tiny_data(tmp_path / "data", passages=6, queries=4))
    corpus._id_hash = np.full(6, hash64("p4"), np.uint64)
    assert corpus.row_of("p4") == 4
    corpus = Corpus(Store(tmp_path / "store").corpora.at(0))
    corpus._id_hash = np.full(6, hash64("p9"), np.uint64)
    assert corpus.row_of("p9") is None


def test_text_hashes_find_duplicates(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"_id": "a", "title": "The Cat", "text": "sat."},
        {"_id": "b", "text": "the  cat SAT."},
        {"_id": "c", "text": "the cat sat"},
    ]
    write_json_lines(tmp_path / "corpus.jsonl", records)
    corpus = Corpus(ingest_corpus(Store(tmp_path / "store", create=True), tmp_path))
    first, second, third = corpus.text_hash.tolist()
    assert first == second != third


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _fewer_arrow_rows(path: Path) -> None:
    table = pa.ipc.open_file(path.read_bytes()).read_all().slice(0, 5)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _smaller_blocks(path: Path) -> None:
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def _fewer_hashes(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("passages.arrow", _truncate),
        ("passages.arrow", _empty),
        ("passages.arrow", _fewer_arrow_rows),
        ("passages.arrow", _smaller_blocks),
        ("passages.arrow", Path.unlink),
        *((name, harm) for name in ("text_hash.npy", "id_hash.npy") for harm in (_truncate, _empty, _fewer_hashes)),
        ("text_hash.npy", Path.unlink),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    store, corpus = tiny_store(tmp_path / "store", write_tiny_data(tmp_path / "data", passages=6, queries=4))
    del corpus
    harm(store.corpora.path(0) / name)
    with pytest.raises(CorruptError, match="ingest the data again"):
        Corpus(store.corpora.at(0))


QUERIES = QuerySet("dev", ["a", "b", "c"], ["one", "two", "three"], [{5: 1, 2: 3, 9: 0}, {7: -1}, {}])


def test_positives_are_judged_above_zero_and_ascending() -> None:
    assert [QUERIES.positives(row).tolist() for row in range(3)] == [[2, 5], [], []]
    assert QUERIES.positives(2).dtype == np.int32
    assert len(QUERIES) == 3


def test_a_subset_keeps_the_order_asked_for() -> None:
    subset = QUERIES.subset(np.array([2, 0], np.int32))
    assert list(subset.metadata) == []
    assert list(replace(QUERIES, metadata=["x", "", "y"]).subset([2, 0]).metadata) == ["y", "x"]
    assert (subset.split, list(subset.ids), list(subset.texts)) == ("dev", ["c", "a"], ["three", "one"])
    assert list(subset.judgements) == [{}, {5: 1, 2: 3, 9: 0}]
    assert len(QUERIES.subset([])) == 0


def test_the_digest_tells_queries_texts_and_judgements_apart() -> None:
    same = QuerySet("other", QUERIES.ids, QUERIES.texts, [{2: 3, 9: 0, 5: 1}, {7: -1}, {}])
    assert same.sha256 == QUERIES.sha256
    changed = [
        QUERIES.subset([1, 0, 2]),
        QUERIES.subset([0, 1]),
        QuerySet("dev", ["a", "b", "d"], QUERIES.texts, QUERIES.judgements),
        QuerySet("dev", QUERIES.ids, ["one", "two", "four"], QUERIES.judgements),
        QuerySet("dev", QUERIES.ids, QUERIES.texts, [{5: 1, 2: 2, 9: 0}, {7: -1}, {}]),
        QuerySet("dev", QUERIES.ids, QUERIES.texts, [{5: 1, 2: 3, 9: 0}, {}, {7: -1}]),
    ]
    assert len({QUERIES.sha256, *(each.sha256 for each in changed)}) == 1 + len(changed)


def digests(folder: Path, passages: list[tuple[str, str]]) -> list[str]:
    records: list[dict[str, object]] = [
        {"_id": f"{folder.name}-{row}", "title": title, "text": text} for row, (title, text) in enumerate(passages)
    ]
    write_json_lines(folder / "corpus.jsonl", records)
    return Corpus(ingest_corpus(Store(folder / "store", create=True), folder)).block_sha256


def test_a_block_goes_by_its_titles_and_texts_alone(tmp_path: Path, long_corpus: Corpus) -> None:
    passages = [(f"T{row}" if row % 2 else "", f"row {row}") for row in range(BLOCK_ROWS + 1)]
    for name in ("grown", "moved", "another"):
        (tmp_path / name).mkdir()
    grown = digests(tmp_path / "grown", passages)
    assert len(long_corpus.block_sha256) == 3 and len({*long_corpus.block_sha256}) == 3
    assert grown[0] == long_corpus.block_sha256[0] and grown[1] != long_corpus.block_sha256[1]
    passages[7] = ("T", "7row 7")
    assert digests(tmp_path / "moved", passages)[0] != grown[0], "where a title ends counts"
    passages[7], passages[8] = ("T7", "row 7"), ("", "row 9")
    assert digests(tmp_path / "another", passages)[0] != grown[0]
