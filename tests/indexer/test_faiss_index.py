import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from faiss import IndexIVF, SearchParameters
from numpy.typing import NDArray

from indexer import faiss_index
from indexer.exact import exact_search
from indexer.faiss_index import (
    build_index,
    bytes_in_memory,
    check_parameters,
    empty_index,
    expected_bytes,
    is_exact,
    layers,
    read_index,
    search_index,
    tunable,
    write_index,
)
from indexer.quality import recall_at
from indexer.shards import Vectors
from retriever.errors import CorruptError, InputError, StoreError
from retriever.protocols import FloatArray, IntArray
from tests.indexer.planted import plant_vectors, unit_rows

LAYERED = {
    "Flat": (),
    "PQ8x4fs,RFlat": ("k_factor",),
    "IVF16,Flat": ("nprobe",),
    "IDMap,IVF16,Flat": ("nprobe",),
    "PCA12,IVF16,Flat": ("nprobe",),
    "IVF16,PQ8x4fs,Refine(SQfp16)": ("k_factor", "nprobe"),
    "L2norm,IVF16,PQ8x4fs,RFlat": ("k_factor", "nprobe"),
    "HNSW8": ("efSearch",),
}
LOW = {"nprobe": 1, "k_factor": 1, "efSearch": 1}
HIGH = {"nprobe": 16, "k_factor": 100, "efSearch": 300}
QUERIES = unit_rows(40, 16, seed=1)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return plant_vectors(tmp_path_factory.mktemp("vectors"), unit_rows(2000, 16), block_rows=600)


@pytest.mark.parametrize("factory", LAYERED)
def test_each_layer_obeys_the_parameters_of_the_call(vectors: Vectors, factory: str) -> None:
    index = build_index(factory, vectors, seed=13)
    assert index.ntotal == 2000 and tunable(index) == LAYERED[factory]
    assert is_exact(index) == (factory == "Flat")
    exact, scores = exact_search(QUERIES, vectors, 10)
    recalls = {}
    for name in HIGH:
        rows, _ = search_index(index, QUERIES, 10, {**HIGH, name: LOW[name]})
        recalls[name] = recall_at(rows, exact, 10)
    rows, found = search_index(index, QUERIES, 10, HIGH)
    best = recall_at(rows, exact, 10)
    if not factory.startswith("PCA"):
        assert best > 0.99
        np.testing.assert_allclose(found, scores, atol=2e-3)
    for name, recall in recalls.items():
        assert recall < best - 0.1 if name in LAYERED[factory] else recall == best


SIZED = "Flat|SQ8|IVF16,Flat|IVF16,SQ8|PQ4x4fs,RFlat|IVF16,PQ4x4fs,Refine(SQfp16)|IVF16,PQ4x4fs,Refine(SQ8)|HNSW16,SQ8"


@pytest.mark.parametrize("factory", SIZED.split("|"))
def test_the_size_is_known_before_anything_is_built(factory: str, tmp_path: Path) -> None:
    vectors = plant_vectors(tmp_path / "vectors", unit_rows(2000, 8))
    size = bytes_in_memory(build_index(factory, vectors, 13))
    assert expected_bytes(factory, 8, 2000) == pytest.approx(size, rel=0.05)


def test_flat_is_exact_search(vectors: Vectors) -> None:
    rows, scores = search_index(build_index("Flat", vectors, seed=13), QUERIES, 100, {})
    exact, exact_scores = exact_search(QUERIES, vectors, 100)
    np.testing.assert_array_equal(rows, exact)
    np.testing.assert_allclose(scores, exact_scores, atol=1e-6)


def test_calls_do_not_change_the_index_and_may_run_at_once(vectors: Vectors) -> None:
    index = build_index("IVF16,PQ8x4fs,RFlat", vectors, seed=13)
    settings = [{"nprobe": n, "k_factor": k} for n in (1, 4, 16) for k in (1, 20)]
    alone = [search_index(index, QUERIES, 10, parameters)[0] for parameters in settings]
    assert len({rows.tobytes() for rows in alone}) == len(settings)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = pool.map(lambda parameters: search_index(index, QUERIES, 10, parameters)[0], settings)
            for rows, expected in zip(together, alone, strict=True):
                np.testing.assert_array_equal(rows, expected)
    *_, innermost = layers(index)
    assert isinstance(innermost, IndexIVF) and innermost.nprobe == 1


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "PQ8x4fs,RFlat", "IVF16,PQ8x4fs,Refine(SQfp16)"])
def test_an_index_built_twice_has_the_same_bytes(vectors: Vectors, factory: str, tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        write_index(build_index(factory, vectors, seed=13), tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert bytes_in_memory(build_index(factory, vectors, seed=13)) == len(written[0])


def test_the_seed_is_that_of_the_clustering(vectors: Vectors, tmp_path: Path) -> None:
    for seed in (13, 14):
        write_index(build_index("IVF16,Flat", vectors, seed), tmp_path / str(seed))
    assert (tmp_path / "13").read_bytes() != (tmp_path / "14").read_bytes()


def test_training_takes_a_bounded_sample(vectors: Vectors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faiss_index, "TRAINING_ROWS", 900)
    monkeypatch.setattr(faiss_index, "TRAINING_ROWS_PER_LIST", 1)
    sampled: list[int] = []
    gather = Vectors.gather

    def counted(self: Vectors, rows: IntArray) -> FloatArray:
        sampled.append(len(rows))
        return gather(self, rows)

    monkeypatch.setattr(Vectors, "gather", counted)
    index = build_index("IVF16,Flat", vectors, seed=13)
    rows, _ = search_index(index, QUERIES, 10, {"nprobe": 16})
    assert sampled == [900]
    assert recall_at(rows, exact_search(QUERIES, vectors, 10)[0], 10) == 1


def test_progress_counts_rows_and_may_cancel(vectors: Vectors) -> None:
    steps: list[tuple[int, int]] = []
    build_index("Flat", vectors, seed=13, progress=lambda *step: steps.append(step))
    assert steps == [(600, 2000), (1200, 2000), (1800, 2000), (2000, 2000)]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Flatt", "could not parse index string Flatt"),
        ("PQ7x4fs", "multiple of the number of subquantizers"),
        ("LSH", "METRIC_L2"),
        ("IVF4000,Flat", "at least 4000 passages to train and there are 2000"),
        ("PQ8x12", "at least 4096 passages"),
        ("L2norm,IVF4000,Flat", "at least 4000 passages"),
    ],
)
def test_a_factory_that_cannot_be_built_is_named(vectors: Vectors, factory: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"factory = '{factory}'.*{message}") as raised:
        empty_index(factory, vectors.dimensions, len(vectors))
    assert ".cpp" not in str(raised.value)
    with pytest.raises(InputError, match=message):
        build_index(factory, vectors, seed=13)


def test_what_faiss_refuses_while_it_trains_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'RQ2x8' cannot be trained: .*100") as raised:
        build_index("RQ2x8", plant_vectors(tmp_path, unit_rows(100, 16)), seed=13)
    assert ".cpp" not in str(raised.value)


def test_pads_where_there_are_fewer_rows_than_asked_for(tmp_path: Path) -> None:
    vectors = plant_vectors(tmp_path, unit_rows(200, 16))
    for factory, parameters in (("Flat", {}), ("PQ8x4fs,RFlat", {"k_factor": 50.0})):
        rows, scores = search_index(build_index(factory, vectors, seed=13), QUERIES, 230, parameters)
        assert (np.sort(rows[:, :200]) == np.arange(200)).all()
        assert (rows[:, 200:] == -1).all() and np.isneginf(scores[:, 200:]).all()
        assert (np.diff(scores[:, :200]) <= 0).all()
    one_list = build_index("IVF16,Flat", vectors, seed=13)
    rows, scores = search_index(one_list, QUERIES, 100, {"nprobe": 1})
    assert (rows[:, -1] == -1).all()
    np.testing.assert_array_equal(rows == -1, np.isneginf(scores))


def test_chunks_of_queries_answer_alike(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_index("IVF16,PQ8x4fs,RFlat", vectors, seed=13)
    whole = search_index(index, QUERIES, 10, {"nprobe": 4, "k_factor": 4})
    monkeypatch.setattr(faiss_index, "CANDIDATE_BUDGET", 10 * 4 * 7)
    calls: list[int] = []
    search = index.search

    def counted(x: FloatArray, k: int, params: SearchParameters) -> tuple[FloatArray, NDArray[np.int64]]:
        calls.append(len(x))
        scores, rows = search(x, k, params=params)
        return scores, rows

    monkeypatch.setattr(index, "search", counted)
    chunked = search_index(index, QUERIES, 10, {"nprobe": 4, "k_factor": 4})
    assert calls == [7, 7, 7, 7, 7, 5]
    np.testing.assert_array_equal(whole[0], chunked[0])


@pytest.mark.parametrize("factory", ["Flat", "IVF16,PQ8x4fs,Refine(SQfp16)", "HNSW8"])
def test_a_mapped_index_answers_like_the_one_in_memory(vectors: Vectors, factory: str, tmp_path: Path) -> None:
    index = build_index(factory, vectors, seed=13)
    write_index(index, tmp_path / "index.faiss")
    mapped = read_index(tmp_path / "index.faiss")
    (tmp_path / "index.faiss").unlink()  # a removed generation stays readable for those who have it open
    for rows, expected in zip(
        search_index(mapped, QUERIES, 10, HIGH), search_index(index, QUERIES, 10, HIGH), strict=True
    ):
        np.testing.assert_array_equal(rows, expected)


def test_a_truncated_or_absent_file_is_corrupt(vectors: Vectors, tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    write_index(build_index("IVF16,Flat", vectors, seed=13), path)
    data = path.read_bytes()
    for torn in (b"", data[:3], data[:1000], data[:-100], b"not an index" * 10):
        path.write_bytes(torn)
        with pytest.raises(CorruptError, match=r"index\.faiss: not a FAISS index"):
            read_index(path)
    with pytest.raises(CorruptError, match="absent"):
        read_index(tmp_path / "absent")


def test_a_disk_that_takes_nothing_is_said(vectors: Vectors, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        write_index(build_index("Flat", vectors, seed=13), tmp_path / "no folder" / "index.faiss")


def test_bad_calls_are_refused(vectors: Vectors) -> None:
    index = build_index("IVF16,Flat", vectors, seed=13)
    with pytest.raises(InputError, match=r"\(40, 8\) where \[n, 16\]"):
        search_index(index, QUERIES[:, :8], 10, {})
    with pytest.raises(InputError, match="depth 0"):
        search_index(index, QUERIES, 0, {})
    check_parameters(index, {"nprobe": 3})
    with pytest.raises(InputError, match="no parameter 'k_factor' here; it takes nprobe"):
        check_parameters(index, {"k_factor": 3})
    for value in (0, np.nan, np.inf):
        with pytest.raises(InputError, match=f"nprobe = {value}; write a number of 1 or more"):
            check_parameters(index, {"nprobe": value})
    with pytest.raises(InputError, match=r"nprobe = 2\.5; write a whole number"):
        check_parameters(index, {"nprobe": 2.5})
    check_parameters(build_index("PQ8x4fs,RFlat", vectors, seed=13), {"k_factor": 2.5})


def test_without_faiss_the_error_names_both_extras(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[cpu\]' in the checkout, or '\.\[gpu\]'"):
        build_index("Flat", vectors, seed=13)
