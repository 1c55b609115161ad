from pathlib import Path

import pytest

from retriever.data import Corpus
from retriever.errors import InputError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.joining import dataset_of, join_datasets
from retriever.store import Store
from tests.stand_ins import write_json_lines

QRELS = "query-id\tcorpus-id\tscore\n"


def dataset(folder: Path, text: str, splits: tuple[str, ...]) -> Path:
    """A passage and a query of the same ids as every other data set."""
    (folder / "qrels").mkdir(parents=True)
    write_json_lines(folder / "corpus.jsonl", [{"_id": "1", "title": "T", "text": text, "metadata": {"of": text}}])
    write_json_lines(folder / "queries.jsonl", [{"_id": "q", "text": f"what is {text}?", "metadata": {"of": text}}])
    for split in splits:
        (folder / f"qrels/{split}.tsv").write_text(f"{QRELS}q\t1\t2\n")
    return folder


def test_ids_and_splits_of_all_stand_in_one(tmp_path: Path) -> None:
    folders = {
        "a": dataset(tmp_path / "a", "hens", ("train", "dev")),
        "b": dataset(tmp_path / "b", "oaks", ("train",)),
    }
    summary = join_datasets(folders, tmp_path / "out")
    assert (summary.passages, summary.queries, summary.judgements) == (2, 2, {"dev": 1, "train": 2})
    corpus = Corpus(ingest_corpus(Store(tmp_path / "store", create=True), tmp_path / "out"))
    assert corpus.ids([0, 1]) == ["a/1", "b/1"] and corpus.texts([1]) == ["T oaks"]
    assert list(corpus.metadata()) == [{"of": "hens"}, {"of": "oaks"}]
    train = load_query_set(tmp_path / "out", "train", corpus, warn=pytest.fail)
    assert list(zip(train.ids, train.texts, train.judgements, strict=True)) == [
        ("a/q", "what is hens?", {0: 2}),
        ("b/q", "what is oaks?", {1: 2}),
    ]
    assert [dataset_of(name) for name in train.ids] == ["a", "b"]
    assert list(train.metadata) == ['{"of": "hens"}', '{"of": "oaks"}']


def test_what_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    one = dataset(tmp_path / "a", "hens", ("train",))
    with pytest.raises(InputError, match="at least two"):
        join_datasets({"a": one}, tmp_path / "out")
    with pytest.raises(InputError, match="white space"):
        join_datasets({"a": one, "b/c": one}, tmp_path / "out")
    with pytest.raises(InputError, match=r"corpus\.jsonl"):
        join_datasets({"a": one, "b": tmp_path / "none"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="hone dataset join"):
        dataset_of("plain")
