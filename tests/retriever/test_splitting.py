import gzip
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retriever.beir import read_passages, read_query_lines
from retriever.data import Corpus
from retriever.errors import InputError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.splitting import split_documents, split_text
from retriever.store import Store
from tests.stand_ins import write_json_lines, write_tiny_data

WORD = st.text("abcé", min_size=1, max_size=3)
TEXT = st.lists(st.tuples(WORD, st.sampled_from(["", "", "", ".", "?", '."']), st.sampled_from([" ", "\n", "  "])))


@given(parts=TEXT, words=st.integers(1, 12), overlap=st.integers(0, 11))
def test_slices_cover_the_text_in_bounds_and_in_order(
    parts: list[tuple[str, str, str]], words: int, overlap: int
) -> None:
    assume(overlap < words)
    # Numbered, so that each word is told from every other.
    text = "".join(f"{word}{number}{end}{space}" for number, (word, end, space) in enumerate(parts))
    slices = list(split_text(text, words, overlap))
    all_words = text.split()
    at = 0
    for piece in slices:
        found = piece.split()
        assert piece in text and 1 <= len(found) <= words
        start = all_words.index(found[0])
        assert max(0, at - overlap) <= start <= at and found == all_words[start : start + len(found)]
        assert start + len(found) > at, "every slice brings something new"
        at = start + len(found)
    assert at == len(all_words)


def test_slices_end_and_begin_with_sentences_where_they_can() -> None:
    text = "One two three four five. Six seven. Eight nine ten eleven twelve thirteen. Fourteen fifteen."
    assert list(split_text(text, words=8, overlap=3)) == [
        "One two three four five. Six seven.",
        "Six seven. Eight nine ten eleven twelve thirteen.",
        "eleven twelve thirteen. Fourteen fifteen.",
    ]


def test_a_sentence_that_is_too_long_is_cut_after_the_words() -> None:
    text = " ".join(map(str, range(10)))
    assert list(split_text(text, words=4, overlap=1)) == ["0 1 2 3", "3 4 5 6", "6 7 8 9"]
    assert list(split_text(text, words=5, overlap=0)) == ["0 1 2 3 4", "5 6 7 8 9"]


def test_an_early_end_of_a_sentence_does_not_make_a_scrap() -> None:
    text = "No. " + " ".join(map(str, range(1, 10)))
    assert [len(piece.split()) for piece in split_text(text, words=8, overlap=0)] == [8, 2]


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_nothing_gives_no_slice(text: str) -> None:
    assert list(split_text(text, words=3, overlap=0)) == []


def write_documents(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    long = " ".join(f"Sentence {number} has five words." for number in range(20))
    documents: list[dict[str, object]] = [
        {"_id": "long", "title": "The long one", "text": long, "metadata": {"lang": "en"}},
        {"_id": "short", "text": "A short one."},
        {"_id": "bare", "title": "Only a title", "text": ""},
    ]
    write_json_lines(folder / "corpus.jsonl", documents)
    write_json_lines(
        folder / "queries.jsonl", [{"_id": "q1", "text": "what?"}, {"_id": "q2", "text": "who?", "metadata": {"n": 2}}]
    )
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tlong\t2\nq2\tshort\t1\nq2\tlong\t0\n")
    (folder / "qrels" / "dev.tsv.gz").write_bytes(gzip.compress(b"q2 0 bare 1\n"))
    return folder


def test_documents_become_passages_with_their_judgements(tmp_path: Path) -> None:
    data, out = write_documents(tmp_path / "data"), tmp_path / "out"
    summary = split_documents(data, out, words=30, overlap=5)
    passages = {name: (title, text) for _, name, title, text in read_passages(out)}
    pieces = [name for name in passages if name.startswith("long#")]
    assert list(passages) == [*(f"long#{number}" for number in range(len(pieces))), "short#0", "bare#0"]
    assert len(pieces) == 4 and all(passages[name][0] == "The long one" for name in pieces)
    for name in pieces:
        assert re.fullmatch(r"(Sentence \d+ has five words\. ?){3,6}", passages[name][1])
    assert passages["short#0"] == ("", "A short one.") and passages["bare#0"] == ("Only a title", "")
    assert list(read_query_lines(out)) == list(read_query_lines(data))
    assert (summary.documents, summary.passages, summary.queries) == (3, 6, 2)
    assert summary.judgements == {"dev": 1, "train": 9}
    corpus = Corpus(ingest_corpus(Store(tmp_path / "store", create=True), out))
    assert list(corpus.metadata()) == [{"lang": "en"}] * 4 + [{}] * 2
    train = load_query_set(out, "train", corpus, warn=pytest.fail)
    assert list(train.judgements) == [{0: 2, 1: 2, 2: 2, 3: 2}, {4: 1, 0: 0, 1: 0, 2: 0, 3: 0}]
    assert list(load_query_set(out, "dev", corpus, warn=pytest.fail).judgements) == [{5: 1}]


def test_short_documents_are_kept_word_for_word(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data", passages=10, queries=8)
    split_documents(data, tmp_path / "out")
    kept = [(f"{name}#0", title, text) for _, name, title, text in read_passages(data)]
    assert [row[1:] for row in read_passages(tmp_path / "out")] == kept


def test_an_unknown_document_is_left_for_the_reader_to_report(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data", passages=10, queries=8)
    with (data / "qrels" / "train.tsv").open("a") as file:
        file.write("q0\tnowhere\t1\n")
    split_documents(data, tmp_path / "out")
    corpus = Corpus(ingest_corpus(Store(tmp_path / "store", create=True), tmp_path / "out"))
    with pytest.raises(InputError, match="1 judgement names an unknown passage: nowhere"):
        load_query_set(tmp_path / "out", "train", corpus, warn=pytest.fail)


@pytest.mark.parametrize(("words", "overlap"), [(0, 0), (5, 5), (5, 6), (5, -1), (-1, -2)])
def test_lengths_that_cannot_be_are_refused(tmp_path: Path, words: int, overlap: int) -> None:
    data = write_tiny_data(tmp_path / "data", passages=10, queries=8)
    with pytest.raises(InputError, match="must be 0 or more and below words"):
        split_documents(data, tmp_path / "out", words, overlap)


def test_bad_documents_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data", passages=10, queries=8)
    whole = (data / "corpus.jsonl").read_text()
    for line, message in (('{"_id": "p3", "text": "x"}', "line 11 .*duplicate id 'p3'"), ("{", r"corpus\.jsonl:11")):
        (data / "corpus.jsonl").write_text(whole + line + "\n")
        with pytest.raises(InputError, match=message):
            split_documents(data, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
