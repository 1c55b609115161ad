from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.exact import Search, exact_search
from indexer.quality import Truth, check_complete, check_self_retrieval, recall_at
from indexer.shards import Vectors, open_vectors
from retriever.data import Corpus
from retriever.errors import StoreError
from retriever.protocols import FloatArray, IntArray
from tests.indexer.planted import plant_vectors, unit_rows, write_corpus
from tests.stand_ins import tiny_store

PLACES = st.lists(st.integers(0, 20), min_size=6, max_size=6, unique=True)


@given(
    found=st.lists(PLACES, min_size=3, max_size=3), exact=st.lists(PLACES, min_size=3, max_size=3), k=st.integers(1, 9)
)
def test_recall_is_the_share_of_exact_hits_found(found: list[list[int]], exact: list[list[int]], k: int) -> None:
    pairs = [(set(f[:k]), set(e[:k])) for f, e in zip(found, exact, strict=True)]
    expected = sum(len(f & e) for f, e in pairs) / sum(len(e) for _, e in pairs)
    assert recall_at(np.array(found, np.int32), np.array(exact, np.int32), k) == pytest.approx(expected)


def test_pads_neither_count_nor_match() -> None:
    exact = np.array([[3, 1, -1], [2, -1, -1]], np.int32)
    assert recall_at(np.array([[1, 3, -1], [-1, -1, -1]], np.int32), exact, 3) == pytest.approx(2 / 3)
    assert recall_at(np.array([[2, 2, 2], [3, 1, 0]], np.int32), exact, 3) == 0
    assert recall_at(np.full((2, 3), -1, np.int32), np.full((2, 3), -1, np.int32), 3) == 1


@given(found=st.lists(PLACES, min_size=3, max_size=3), k=st.integers(1, 6))
def test_rows_that_score_alike_count_as_much_as_one_another(found: list[list[int]], k: int) -> None:
    with TemporaryDirectory() as folder:
        scores = np.float32(0.9) ** (np.arange(21, dtype=np.float32) % 7)  # three rows of each
        vectors = plant_vectors(Path(folder), np.stack([scores, scores], axis=1))
        nearest = np.argsort(-scores, kind="stable").astype(np.int32)[:6]
        queries = np.array([[1, 0]] * 3, np.float32)
        truth = Truth(queries, vectors, np.tile(nearest, (3, 1)), np.tile(scores[nearest], (3, 1)))
        expected = np.mean([[scores[row] >= scores[nearest[k - 1]] for row in line[:k]] for line in found])
        assert truth.recall(np.array(found, np.int32), k)[0] == pytest.approx(expected)


def test_a_row_more_than_is_counted_spares_reading_vectors_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(3)
    stored = generator.normal(size=(60, 8)).astype(np.float32)
    stored[40:] = stored[20:40]  # ties
    vectors = plant_vectors(tmp_path, stored)
    queries = generator.normal(size=(30, 8)).astype(np.float32)
    found = np.stack([generator.permutation(60)[:5] for _ in queries]).astype(np.int32)
    found[:10] = exact_search(queries[:10], vectors, 5)[0] + [0, 0, 0, 0, 1]
    found %= 60
    found[-1, 3:] = -1
    read: list[int] = []
    gather = Vectors.gather

    def counted(self: Vectors, rows: IntArray) -> FloatArray:
        read.append(len(rows))
        return gather(self, rows)

    monkeypatch.setattr(Vectors, "gather", counted)
    plain, more = (Truth(queries, vectors, *exact_search(queries, vectors, depth)) for depth in (5, 6))
    assert plain.recall(found, 5) == more.recall(found, 5)
    assert 0 < read[1] < read[0]


def test_the_recall_of_pads_and_of_nothing(tmp_path: Path) -> None:
    vectors, query = plant_vectors(tmp_path, unit_rows(2, 4)), unit_rows(1, 4, seed=1)
    truth = Truth(query, vectors, *exact_search(query, vectors, 3))
    assert truth.recall(np.array([[1, -1, -1]], np.int32), 3)[0] == 0.5
    assert truth.recall(np.array([[0, 1]], np.int32), 10) == (1.0, 0.0)
    nobody = Truth(query[:0], vectors, truth.rows[:0], truth.scores[:0])
    assert nobody.recall(np.empty((0, 3), np.int32), 3) == (1.0, 0.0)


def test_a_missing_block_is_refused(tmp_path: Path) -> None:
    plant_vectors(tmp_path, unit_rows(12, 4), block_rows=4)
    vectors = open_vectors(tmp_path)
    check_complete(vectors, 12, 12)
    (tmp_path / "00002.npy").unlink()
    with pytest.raises(StoreError, match="12 passages, 8 vectors"):
        check_complete(open_vectors(tmp_path), 12)
    with pytest.raises(StoreError, match="12 vectors, 11 index entries"):
        check_complete(vectors, 12, 11)


def planted(folder: Path, matrix: FloatArray, texts: list[str] | None = None) -> tuple[Corpus, Vectors]:
    texts = texts or [f"text {row}" for row in range(len(matrix))]
    _, corpus = tiny_store(folder / "store", write_corpus(folder / "data", texts))
    return corpus, plant_vectors(folder / "vectors", matrix)


def exact_over(vectors: Vectors) -> Search:
    return lambda queries, depth: exact_search(queries, vectors, depth)


def renamed(search: Search, new_row: IntArray) -> Search:
    """Return ``search`` with every row under another's id, as a faulty index would have it."""

    def faulty(queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        rows, scores = search(queries, depth)
        return np.where(rows >= 0, new_row[rows], -1).astype(np.int32), scores

    return faulty


@pytest.mark.parametrize("exact", [True, False])
def test_a_sound_index_passes_and_shifted_or_shuffled_ids_do_not(tmp_path: Path, exact: bool) -> None:
    corpus, vectors = planted(tmp_path, unit_rows(300, 16))
    search = exact_over(vectors)
    check_self_retrieval(search, vectors, corpus, exact=exact)
    ids = np.arange(300, dtype=np.int32)
    for faulty_ids in (np.roll(ids, 1), np.random.default_rng(0).permutation(ids)):
        with pytest.raises(StoreError, match=r"64 sampled passages do not find themselves .* rows \d+ \(p\d+\)"):
            check_self_retrieval(renamed(search, faulty_ids), vectors, corpus, exact=exact)


def test_a_single_swap_fails_flat_and_few_misses_are_an_approximate_index(tmp_path: Path) -> None:
    corpus, vectors = planted(tmp_path, unit_rows(64, 32))
    swapped = np.arange(64, dtype=np.int32)
    swapped[[5, 9]] = [9, 5]
    faulty = renamed(exact_over(vectors), swapped)
    with pytest.raises(StoreError, match=r"2 of 64 .* rows 5 \(p5\), 9 \(p9\); ids"):
        check_self_retrieval(faulty, vectors, corpus, exact=True)
    check_self_retrieval(faulty, vectors, corpus, exact=False)


def test_an_index_that_finds_nothing_fails(tmp_path: Path) -> None:
    corpus, vectors = planted(tmp_path, unit_rows(40, 8))

    def nothing(queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        return np.full((len(queries), depth), -1, np.int32), np.full((len(queries), depth), -np.inf, np.float32)

    for exact in (True, False):
        with pytest.raises(StoreError, match="40 of 40"):
            check_self_retrieval(nothing, vectors, corpus, exact=exact)


def test_equal_texts_and_equal_vectors_are_themselves(tmp_path: Path) -> None:
    matrix = unit_rows(20, 8)
    matrix[7] = matrix[3]  # another text with the same vector
    texts = [f"text {row}" for row in range(20)]
    texts[12] = "TEXT  11"  # the same text but for case and white space, with another vector
    corpus, vectors = planted(tmp_path, matrix, texts)
    mixed = np.arange(20, dtype=np.int32)
    mixed[[3, 7, 11, 12]] = [7, 3, 12, 11]
    check_self_retrieval(renamed(exact_over(vectors), mixed), vectors, corpus, exact=True)


def test_a_longer_vector_may_win_where_vectors_are_not_normalised(tmp_path: Path) -> None:
    matrix = unit_rows(30, 8)
    matrix[4] = matrix[2] * 5
    corpus, vectors = planted(tmp_path, matrix)
    check_self_retrieval(exact_over(vectors), vectors, corpus, exact=True)
