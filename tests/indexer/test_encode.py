from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from indexer.encode import encode_corpus, remembering_queries
from indexer.shards import Vectors
from retriever.data import BLOCK_ROWS, Corpus
from retriever.errors import StoreError
from retriever.ingest import ingest_corpus
from retriever.protocols import FloatArray, Progress, silent
from retriever.store import Store
from tests.indexer.planted import Cancelled, FaultyEncoder, QuickEncoder
from tests.stand_ins import WORDS


def no_warning(message: str) -> None:
    raise AssertionError(message)


def whole(vectors: Vectors) -> list[bytes]:
    return [path.read_bytes() for path in vectors.paths]


def test_row_i_is_the_vector_of_passage_i(wide: tuple[Store, Corpus]) -> None:
    store, corpus = wide
    steps: list[tuple[int, int]] = []
    vectors = encode_corpus(QuickEncoder(), corpus, store.embeddings, lambda *step: steps.append(step), no_warning)
    assert len(vectors) == len(corpus) == 9000
    rows = np.array([8999, 0, BLOCK_ROWS, BLOCK_ROWS - 1, 2 * BLOCK_ROWS])
    np.testing.assert_array_equal(vectors.gather(rows), QuickEncoder().encode_passages(corpus.texts(rows)))
    assert steps[0] == (0, 9000) and steps[-1] == (9000, 9000)
    assert steps == sorted(steps)


def test_an_unchanged_encoder_encodes_nothing(tiny: tuple[Store, Corpus]) -> None:
    store, corpus = tiny
    first = encode_corpus(QuickEncoder(), corpus, store.embeddings, silent, no_warning)
    again, steps = QuickEncoder(), list[tuple[int, int]]()
    second = encode_corpus(again, corpus, store.embeddings, lambda *step: steps.append(step), no_warning)
    assert again.encoded_passages == 0 and steps == [(60, 60)]
    assert second.paths == first.paths


def test_of_a_corpus_that_grew_the_blocks_that_changed_are_encoded(
    wide: tuple[Store, Corpus], wide_data: Path, tmp_path: Path
) -> None:
    store, corpus = wide
    before = encode_corpus(QuickEncoder(), corpus, store.embeddings, silent, no_warning)
    lines = (wide_data / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "corpus.jsonl").write_text("".join([*lines, '{"_id": "new", "text": "ka ke"}\n']))
    more = Corpus(ingest_corpus(store, tmp_path / "more"))
    encoder, steps = QuickEncoder(), list[tuple[int, int]]()
    vectors = encode_corpus(encoder, more, store.embeddings, lambda *step: steps.append(step), no_warning)
    assert steps[0] == (2 * BLOCK_ROWS, 9001)
    assert encoder.seen == more.texts(range(2 * BLOCK_ROWS, 9001))
    assert whole(vectors)[:2] == whole(before)[:2]
    np.testing.assert_array_equal(
        vectors.gather(np.arange(9001)), QuickEncoder().encode_passages(more.texts(range(9001)))
    )


def test_other_weights_share_no_shard(tiny: tuple[Store, Corpus]) -> None:
    store, corpus = tiny
    first = encode_corpus(QuickEncoder(seed=0), corpus, store.embeddings, silent, no_warning)
    other = QuickEncoder(seed=1)
    second = encode_corpus(other, corpus, store.embeddings, silent, no_warning)
    assert other.encoded_passages == 60
    assert whole(first) != whole(second)


def test_a_cancelled_encoding_resumes_with_the_missing_blocks(wide: tuple[Store, Corpus], tmp_path: Path) -> None:
    store, corpus = wide
    undisturbed = encode_corpus(QuickEncoder(), corpus, tmp_path / "undisturbed", silent, no_warning)

    def cancel(done: int, total: int) -> None:
        if done > BLOCK_ROWS:
            raise Cancelled

    with pytest.raises(Cancelled):
        encode_corpus(QuickEncoder(), corpus, store.embeddings, cancel, no_warning)
    resumed, steps = QuickEncoder(), list[int]()
    vectors = encode_corpus(resumed, corpus, store.embeddings, lambda done, _: steps.append(done), no_warning)
    assert steps[0] == BLOCK_ROWS
    assert resumed.seen == corpus.texts(range(BLOCK_ROWS, 9000))
    assert whole(vectors) == whole(undisturbed)


def test_an_altered_block_alone_is_encoded_anew(wide: tuple[Store, Corpus]) -> None:
    store, corpus = wide
    sound = encode_corpus(QuickEncoder(), corpus, store.embeddings, silent, no_warning)
    before = whole(sound)
    altered = bytearray(before[1])
    altered[-1] ^= 0xFF
    sound.paths[1].write_bytes(altered)
    encoder, said = QuickEncoder(), list[str]()
    vectors = encode_corpus(encoder, corpus, store.embeddings, silent, said.append)
    assert encoder.seen == corpus.texts(range(BLOCK_ROWS, 2 * BLOCK_ROWS))
    assert len(said) == 1 and str(sound.paths[1]) in said[0]
    assert whole(vectors) == before


@pytest.mark.parametrize(("fault", "kind"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "zero")])
def test_an_unusable_vector_is_refused_by_name(tiny: tuple[Store, Corpus], fault: float, kind: str) -> None:
    store, corpus = tiny
    word = WORDS[0]
    wrong = [row for row in range(60) if word in corpus.text(row).split()]
    assert 0 < len(wrong) < 60
    expected = f"'p{wrong[0]}' .*is {kind} .{len(wrong)} of 60"
    with pytest.raises(StoreError, match=expected):
        encode_corpus(FaultyEncoder(word, fault), corpus, store.embeddings, silent, no_warning)
    assert list(store.embeddings.glob("*/*")) == []


def test_an_encoder_that_drops_a_passage_is_refused(tiny: tuple[Store, Corpus]) -> None:
    store, corpus = tiny
    encoder = QuickEncoder()
    encode = encoder.encode_passages
    encoder.encode_passages = lambda texts, progress=silent: encode(texts, progress)[1:]  # type: ignore[method-assign]  # a fault
    with pytest.raises(StoreError, match=r"\(59, 8\) where \(60, 8\)"):
        encode_corpus(encoder, corpus, store.embeddings, silent, no_warning)


class CountingEncoder(QuickEncoder):
    """Counts the queries that it encodes."""

    encoded_queries = 0

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        self.encoded_queries += len(texts)
        return super().encode_queries(texts, progress)


def test_a_list_of_queries_is_encoded_once(tmp_path: Path) -> None:
    encoder, texts = CountingEncoder(), ["b a", "a", "c"]
    first = remembering_queries(encoder, tmp_path, no_warning)(texts)
    again = remembering_queries(CountingEncoder(), tmp_path, no_warning)
    np.testing.assert_array_equal(again(texts), first)
    np.testing.assert_array_equal(again(texts[::-1]), first[::-1])
    np.testing.assert_array_equal(first, encoder.encode_queries(texts))
    assert encoder.encoded_queries == 3 + 3


def test_remembered_queries_are_another_encoder_s_nothing(tmp_path: Path) -> None:
    texts = ["a", "b"]
    first = remembering_queries(QuickEncoder(seed=0), tmp_path, no_warning)(texts)
    second = remembering_queries(QuickEncoder(seed=1), tmp_path, no_warning)(texts)
    assert np.abs(first - second).max() > 0.1


def test_altered_query_vectors_are_said_and_encoded_anew(tmp_path: Path) -> None:
    said: list[str] = []
    remember = remembering_queries(QuickEncoder(), tmp_path, said.append)
    first = remember(["a", "b"])
    (path,) = tmp_path.glob("*/*.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    np.testing.assert_array_equal(remember(["a", "b"]), first)
    assert len(said) == 1 and str(path) in said[0]


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_a_query_without_a_vector_is_refused_by_name_and_not_remembered(tmp_path: Path, fault: float) -> None:
    class Diverged(QuickEncoder):
        def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
            vectors = super().encode_queries(texts, progress)
            vectors[[text == "b" for text in texts], 0] = fault
            return vectors

    with pytest.raises(StoreError, match=r"query 'b': its vector is not finite \(1 of 3"):
        remembering_queries(Diverged(), tmp_path, no_warning)(["a", "b", "c"])
    assert list(tmp_path.glob("*/*.npy")) == []
