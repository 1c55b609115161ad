"""The choice of what a GPU does is held by a FAISS whose GPU is the CPU; the tests marked gpu need a real one."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import indexer.searcher
from indexer import faiss_gpu, faiss_index
from indexer.builder import build_generation
from indexer.exact import exact_search
from indexer.factory import IndexConfig
from indexer.faiss_auto import make_probe
from indexer.faiss_gpu import assigns_on_gpu, clusters_on_gpu, has_gpu, searches_on_gpu
from indexer.faiss_index import build_index, built_on, empty_index, layers, search_index, write_index
from indexer.quality import recall_at
from indexer.searcher import exact_searcher, open_batch_searcher, search_exactly
from indexer.shards import Vectors
from retriever.artifacts import Artifact
from retriever.data import Corpus
from retriever.errors import InputError, StoreError
from retriever.store import Store
from tests.indexer.planted import build_inputs, plant_checkpoint, plant_vectors, unit_rows

QUERIES = unit_rows(40, 16, seed=1)
WHERE = {
    "Flat": (False, False),
    "PQ8x4fs,RFlat": (False, False),
    "HNSW8": (False, False),
    "IVF16_HNSW8,Flat": (False, False),
    "IVF16,Flat": (True, True),
    "IVF16,PQ8x4fs,Refine(SQfp16)": (True, True),
    "PCA12,IVF16,Flat": (True, True),
    "IDMap,IVF16,Flat": (True, True),
    "IVF16,PQ8x4fsr": (True, False),
    "IVF16,SQ8": (True, False),
    "IVF16,PQ8x4": (True, False),
}
"""Whether a GPU clusters, and whether it assigns, for an index of this factory."""


class GpuFaiss:
    """FAISS with the names of the GPU wheel. Its ``gpus`` compute in main memory; it remembers what they were given."""

    def __init__(self, gpus: int = 1) -> None:
        self._gpus = gpus
        self.copies: list[Any] = []
        self.scratch: list[int] = []
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(faiss, name)

    def get_num_gpus(self) -> int:
        return self._gpus

    def StandardGpuResources(self) -> "GpuFaiss":
        return self

    def setTempMemory(self, size: int) -> None:
        self.scratch.append(size)

    def index_cpu_to_gpu(self, resources: "GpuFaiss", device: int, index: Any) -> Any:
        assert resources is self and device == 0
        if self.full:
            raise RuntimeError("alloc fail: out of memory")
        self.copies.append(faiss.clone_index(index))
        return self.copies[-1]


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> GpuFaiss:
    """Let the code under test meet a FAISS with one GPU."""
    stand_in = GpuFaiss()
    monkeypatch.setattr(faiss_index, "load_faiss", lambda: stand_in)
    return stand_in


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return plant_vectors(tmp_path_factory.mktemp("vectors"), unit_rows(2000, 16), block_rows=600)


def test_a_gpu_needs_the_wheel_and_the_device() -> None:
    class CpuFaiss:
        """The wheel faiss-cpu has no resources, whatever it counts."""

        def get_num_gpus(self) -> int:
            return 1

    assert not has_gpu(CpuFaiss())  # type: ignore[arg-type]
    assert [has_gpu(GpuFaiss(gpus)) for gpus in (0, 1, 2)] == [False, True, True]  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", WHERE)
def test_what_a_gpu_does_follows_from_the_kind(factory: str) -> None:
    index = empty_index(factory, 16, 2000)
    kinds = [*layers(index)]
    for gpus in (0, 1):
        stand_in: Any = GpuFaiss(gpus)
        chosen = clusters_on_gpu(stand_in, kinds), assigns_on_gpu(stand_in, kinds)
        assert chosen == (WHERE[factory] if gpus else (False, False))


def test_exact_search_goes_to_a_gpu_as_long_as_the_vectors_fit() -> None:
    stand_in: Any = GpuFaiss()
    assert searches_on_gpu(stand_in, 1 << 20, 1024) and not searches_on_gpu(stand_in, (1 << 20) + 1, 1024)
    assert not searches_on_gpu(GpuFaiss(0), 10, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", WHERE)
def test_an_index_that_a_gpu_helped_to_build_is_an_ordinary_one(
    vectors: Vectors, factory: str, with_gpu: GpuFaiss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(factory, vectors, seed=13)
    assert len(with_gpu.copies) == sum(WHERE[factory])
    assert built_on(index) == ("gpu" if WHERE[factory][0] else "cpu")
    assert all(copy.thisown for copy in with_gpu.copies), "who lent the GPU's memory gives it back"
    if WHERE[factory][0]:
        clustered, *assigned = with_gpu.copies
        assert clustered.ntotal == 16, "k-means left its centroids in the copy"
        assert all(copy.ntotal == 16 for copy in assigned), "the second copy is that of the trained quantizer"
    write_index(index, tmp_path / "helped")
    monkeypatch.undo()
    assert built_on(index) == "cpu"
    write_index(build_index(factory, vectors, seed=13), tmp_path / "alone")
    assert (tmp_path / "helped").read_bytes() == (tmp_path / "alone").read_bytes()


def test_a_failed_build_takes_nothing_of_the_gpu_along(vectors: Vectors, with_gpu: GpuFaiss) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index("IVF16,Flat", vectors, 13, cancel)
    assert [copy.thisown for copy in with_gpu.copies] == [True, True]
    assert with_gpu.scratch == [faiss_gpu.SCRATCH_BYTES] * 2


def test_a_gpu_without_room_is_said(vectors: Vectors, with_gpu: GpuFaiss) -> None:
    with_gpu.full = True
    with pytest.raises(
        StoreError, match=r"no room on the GPU for 1 MB of vectors .*out of memory.*pip install -e .\.\[cpu\]"
    ):
        exact_searcher(16, [np.zeros((20_000, 16), np.float32)])


def test_deep_searches_ask_the_gpu_up_to_its_depth(with_gpu: GpuFaiss) -> None:
    passages = unit_rows(3000, 16)
    searcher = exact_searcher(16, [passages])
    assert searcher.on_gpu
    (copy,) = with_gpu.copies
    copy.reset()
    copy.add(-passages)  # so that an answer tells which of the two was asked
    products = QUERIES @ passages.T
    nearest, furthest = products.argmax(axis=1), products.argmin(axis=1)
    for depth, first in ((1, furthest), (2048, furthest), (2049, nearest)):
        np.testing.assert_array_equal(searcher.search(QUERIES, depth)[0][:, 0], first)


@pytest.mark.parametrize("room", [10, 4 * 200 * 8])
def test_many_passages_are_mined_exactly_where_a_gpu_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_gpu: GpuFaiss, room: int
) -> None:
    shards = plant_vectors(tmp_path / "vectors", unit_rows(200, 8))
    write_index(build_index("IVF4,SQ8", shards, seed=1), tmp_path / "index.faiss")
    generation = Artifact("generations", 0, tmp_path, {"facts": {"rows": 200, "dim": 8, "search": {"nprobe": 1}}})
    monkeypatch.setattr(indexer.searcher, "EXACT_ROWS", 199)
    monkeypatch.setattr(faiss_gpu, "MOST_VECTOR_BYTES", room)
    assert open_batch_searcher(generation).exact == (room > 10)


def test_exact_checks_ask_a_gpu_that_holds_the_vectors_as_deep_as_it_goes(
    vectors: Vectors, with_gpu: GpuFaiss, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, scores = exact_search(QUERIES, vectors, 50)
    with pytest.raises(InputError, match="a query's vector is not finite"):
        search_exactly(QUERIES * np.float32(np.nan), vectors, 50)
    found, of_found = search_exactly(QUERIES, vectors, 50)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(of_found, scores, atol=1e-6)
    assert [copy.ntotal for copy in with_gpu.copies] == [2000]
    np.testing.assert_array_equal(make_probe(vectors, QUERIES).exact.rows, expected[:, :11])
    assert len(with_gpu.copies) == 2, "so does the choice of search parameters"
    monkeypatch.setattr(indexer.searcher, "MOST_DEPTH", 49)
    np.testing.assert_array_equal(search_exactly(QUERIES, vectors, 50)[0], expected)
    assert len(with_gpu.copies) == 2, "too deep for it"


def test_without_room_or_a_gpu_exact_checks_stay_on_the_cpu(
    vectors: Vectors, with_gpu: GpuFaiss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_gpu, "MOST_VECTOR_BYTES", 4 * 2000 * 16 - 1)
    np.testing.assert_array_equal(search_exactly(QUERIES, vectors, 10)[0], exact_search(QUERIES, vectors, 10)[0])
    assert with_gpu.copies == []


@pytest.mark.parametrize(("factory", "copies"), [("Flat", [3, 2]), ("IVF4,SQ8", [3, 3])])
def test_a_build_is_checked_and_measured_on_dev_on_the_gpu(
    tiny: tuple[Store, Corpus], tiny_data: Path, with_gpu: GpuFaiss, factory: str, copies: list[int]
) -> None:
    """The vectors go there once for recall and once for each tuned depth (of Flat in the first build alone), and so
    does an index that compares them all; one of lists answers dev from where it is served.
    """
    store, corpus = tiny
    inputs = build_inputs(tiny_data, corpus, IndexConfig(factory=factory, target_recall=0.1))
    for step, expected in enumerate(copies):
        with_gpu.copies.clear()
        made = build_generation(store, plant_checkpoint(store, step, step), inputs, lambda *_: None, lambda _: None)
        assert [copy.ntotal for copy in with_gpu.copies].count(60) == expected
        assert factory != "Flat" or (made.facts["recall_at_10"], made.facts["recall_at_100"]) == (1, 1)


@pytest.fixture(scope="module")
def real_gpu() -> None:
    """Skip where there is none."""
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("needs the wheel faiss-gpu: pip install -e '.[gpu]'")
    if not has_gpu(faiss):
        pytest.skip("needs a GPU that FAISS can use")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """20,000 vectors in 64 loose clusters."""
    centres, noise = unit_rows(64, 64, seed=2), unit_rows(20_000, 64, seed=3)
    rows = centres[np.random.default_rng(4).integers(64, size=20_000)] + noise
    return plant_vectors(tmp_path_factory.mktemp("many"), rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.gpu
@pytest.mark.usefixtures("real_gpu")
@pytest.mark.parametrize("factory", ["IVF64,Flat", "IVF64,SQ8", "IVF64,PQ16x4fs,Refine(SQfp16)"])
def test_a_real_gpu_builds_an_index_as_good_as_that_of_the_cpu(
    many: Vectors, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, parameters = many.gather(np.arange(0, 20_000, 20)), {"nprobe": 16, "k_factor": 16}
    exact, _ = exact_search(queries, many, 10)
    helped = build_index(factory, many, seed=13)
    assert built_on(helped) == "gpu"
    write_index(helped, tmp_path / "index")
    found, _ = search_index(faiss_index.read_index(tmp_path / "index"), queries, 10, parameters)
    monkeypatch.setattr("indexer.faiss_gpu.has_gpu", lambda _: False)
    alone, _ = search_index(build_index(factory, many, seed=13), queries, 10, parameters)
    assert recall_at(found, exact, 10) == pytest.approx(recall_at(alone, exact, 10), abs=0.01)


@pytest.mark.gpu
@pytest.mark.usefixtures("real_gpu")
def test_a_real_gpu_finds_the_same_rows(many: Vectors) -> None:
    queries = many.gather(np.arange(0, 20_000, 40))
    exact, scores = exact_search(queries, many, 201)
    searcher = exact_searcher(64, (block for _, block in many.blocks()))
    assert searcher.on_gpu
    rows, found = searcher.search(queries, 200)
    np.testing.assert_allclose(found, scores[:, :200], atol=1e-5)
    apart = np.diff(scores, axis=1, prepend=np.inf) < -2e-5  # nearer ones may change places
    clear = apart[:, :200] & apart[:, 1:]
    np.testing.assert_array_equal(rows[clear], exact[:, :200][clear])
    assert recall_at(rows, exact, 200) > 0.999
    checked, _ = search_exactly(queries, many, 200)
    np.testing.assert_array_equal(checked[clear], exact[:, :200][clear])
    deep, _ = searcher.search(queries[:3], 3000)
    assert recall_at(deep, exact_search(queries[:3], many, 3000)[0], 3000) > 0.999
