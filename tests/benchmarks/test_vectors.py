from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import vectors
from benchmarks.vectors import passage_vectors, perturbed, query_vectors, questions, sentences
from retriever.data import BLOCK_ROWS
from retriever.protocols import FloatArray, Progress, silent
from tests.indexer.planted import QuickEncoder, write_corpus
from tests.stand_ins import write_tiny_data


@pytest.fixture(autouse=True)
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_BENCH", str(tmp_path / "bench"))


def test_sentences_are_distinct_whole_and_in_the_order_of_the_folders(tmp_path: Path) -> None:
    one = write_corpus(tmp_path / "one", ["One two three four. Five six! Seven eight nine ten?", "One two three four."])
    other = write_corpus(tmp_path / "other", ["So many words here\nand here are more"])
    assert sentences([one, other], 3) == ["One two three four.", "Seven eight nine ten?", "So many words here"]
    with pytest.raises(ValueError, match="5 sentences asked for, but the data have 4; name more with --more"):
        sentences([one, other], 5)


def test_questions_are_drawn_once_and_for_all(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    drawn = questions(data, 6)
    assert questions(data, 6) == drawn and len({*drawn}) == 6


class Interrupted(Exception):
    pass


class Failing(QuickEncoder):
    """Encodes one block, and no other."""

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        if self.seen:
            raise Interrupted
        return super().encode_passages(texts, progress)


def test_encoding_goes_on_where_it_was_left() -> None:
    texts = [f"word{i}" for i in range(BLOCK_ROWS + 5)]
    with pytest.raises(Interrupted):
        passage_vectors(Failing(), texts, print)
    second, third = QuickEncoder(), QuickEncoder()
    encoded = passage_vectors(second, texts, print)
    assert second.seen == texts[BLOCK_ROWS:] and len(encoded) == len(texts)
    np.testing.assert_allclose(
        encoded.gather(np.array([3, BLOCK_ROWS + 1])), third.encode_passages(["word3", "word4097"])
    )
    np.testing.assert_array_equal(query_vectors(second, ["a b"]), second.encode_queries(["a b"]))


def test_perturbed_vectors_are_near_the_real_ones_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 16)
    real = passage_vectors(QuickEncoder(256), [f"w{i}" for i in range(40)], print)
    many = perturbed(real, 100, print)
    matrix, source = many.gather(np.arange(100)), real.gather(np.arange(100) % 40)
    cosines = (matrix * source).sum(axis=1)
    assert cosines.min() > 0.8 and cosines.max() < 0.95 and len({row.tobytes() for row in matrix}) == 100
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, rtol=1e-6)
    before = [path.read_bytes() for path in many.paths]
    assert [path.read_bytes() for path in perturbed(real, 100, print).paths] == before
