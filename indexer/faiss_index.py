"""The bare FAISS work: build an inner-product index from a factory string, store it, search it, tell its size.

Does not know artifacts, recall or how a factory and its parameters are chosen.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from indexer.faiss_gpu import assigning_on_gpu, clustering_on_gpu, clusters_on_gpu, flat_on_gpu, searches_on_gpu
from indexer.shards import Vectors
from retriever.errors import CorruptError, InputError, StoreError
from retriever.protocols import FloatArray, IntArray, Progress, silent

if TYPE_CHECKING:
    from faiss import Index as Index
    from faiss import SearchParameters

TUNABLE = {"IndexIVF": "nprobe", "IndexHNSW": "efSearch", "IndexRefine": "k_factor"}
"""The search parameter that each kind of layer takes."""
NESTED = {"IndexRefine": "base_index", "IndexPreTransform": "index", "IndexIDMap": "index"}
"""Where each kind of wrapping layer keeps the next one."""
TRAINING_ROWS = 65_536
TRAINING_ROWS_PER_LIST = 64
QUERY_CHUNK = 1024
CANDIDATE_BUDGET = 1 << 22
"""Candidates that one call to FAISS may hold: 4 million are 48 MiB."""


def load_faiss() -> ModuleType:
    """Import FAISS when it is first needed. Raises InputError naming the two extras that install it."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            f"FAISS is not installed ({error}): pip install -e '.[cpu]' in the checkout, or '.[gpu]' where CUDA is"
        ) from error
    return faiss


def _reason(error: RuntimeError) -> str:
    """Return what FAISS complains of, without the C++ signature and source line that it puts in front."""
    return re.sub(r"^Error in .*?\.(?:cpp|h):\d+: ", "", str(error), flags=re.DOTALL).strip()


def layers(index: "Index") -> "Iterator[Index]":
    """Yield the index and what it wraps, outermost first; valid while ``index`` lives."""
    faiss = load_faiss()
    layer: Index | None = index
    while layer is not None:
        yield layer
        inner = [name for kind, name in NESTED.items() if isinstance(layer, getattr(faiss, kind))]
        layer = faiss.downcast_index(getattr(layer, inner[0])) if inner else None


def empty_index(factory: str, dimensions: int, rows: int) -> "Index":
    """Return an untrained inner-product index; also a quick check of ``factory`` before costly work.

    Raises InputError if FAISS does not understand ``factory``, if it does not fit ``dimensions``, or if ``rows``
    passages are too few to train it.
    """
    index = _parsed(factory, dimensions)
    needed = _training_need(index)
    if rows < needed:
        raise InputError(
            f"[index] factory = {factory!r} needs at least {needed} passages to train and there are {rows}; "
            'choose fewer lists or codes, or "Flat"'
        )
    return index


def _parsed(factory: str, dimensions: int) -> "Index":
    faiss = load_faiss()
    try:
        index: Index = faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"[index] factory = {factory!r} makes no inner-product index of {dimensions} dimensions: {_reason(error)}"
        ) from error
    return index


def least_rows(factory: str, dimensions: int) -> int:
    """Return how many passages are needed to train ``factory``. Raises InputError if FAISS does not understand it."""
    return _training_need(_parsed(factory, dimensions))


def _training_need(index: "Index") -> int:
    return max(max(getattr(layer, "nlist", 0), _codewords(layer)) for layer in layers(index))


def _codewords(layer: "Index") -> int:
    return layer.pq.ksub if hasattr(layer, "pq") else 0


def expected_bytes(factory: str, dimensions: int, rows: int) -> int:
    """Return about how many bytes an index of ``rows`` will take, before anything is encoded or trained.

    Right within a few percent for Flat, IVF, PQ, scalar quantizers, HNSW and refinement of these. Raises InputError
    like ``empty_index``.
    """
    index = empty_index(factory, dimensions, rows)
    return int(sum(_row_bytes(layer) * rows + _trained_bytes(layer) for layer in layers(index)))


def _row_bytes(layer: "Index") -> float:
    """Return the bytes that a layer keeps of each row: code, number in an IVF list, links of HNSW."""
    faiss = load_faiss()
    if isinstance(layer, faiss.IndexRefine):
        return float(faiss.downcast_index(layer.refine_index).code_size)
    if isinstance(layer, faiss.IndexHNSW):
        links = 4 * layer.hnsw.cum_nb_neighbors(1)
        return float(faiss.downcast_index(layer.storage).code_size + links + 12)  # an offset and a level
    number = 8 if isinstance(layer, faiss.IndexIVF | faiss.IndexIDMap) else 0
    return float(getattr(layer, "code_size", 0) + number)


def _trained_bytes(layer: "Index") -> int:
    """Return the bytes of centroids and codebooks, and of the rotations of a pre-transform."""
    lists = getattr(layer, "nlist", 0) * layer.d * 4
    rotations = layer.chain.size() * layer.d**2 * 4 if hasattr(layer, "chain") else 0
    return int(lists + _codewords(layer) * layer.d * 4 + rotations)


def build_index(factory: str, vectors: Vectors, seed: int, progress: Progress = silent) -> "Index":
    """Train on a bounded sample and add all vectors block by block, each row under its number.

    The bytes depend on ``factory``, vectors, ``seed``, FAISS's number of threads (HNSW: with one thread) and
    ``built_on`` alone. Progress counts rows added. Raises InputError like ``empty_index``.
    """
    faiss = load_faiss()
    index = empty_index(factory, vectors.dimensions, len(vectors))
    for layer in layers(index):
        for clustered in (layer, getattr(layer, "pq", layer)):
            if hasattr(clustered, "cp"):
                clustered.cp.seed = seed
    if not index.is_trained:
        lists = max(getattr(layer, "nlist", 0) for layer in layers(index))
        sample = _training_sample(vectors, max(TRAINING_ROWS, TRAINING_ROWS_PER_LIST * lists), seed)
        try:
            with clustering_on_gpu(faiss, [*layers(index)]):
                index.train(sample)
        except RuntimeError as error:
            raise InputError(f"[index] factory = {factory!r} cannot be trained: {_reason(error)}") from error
    mapped = isinstance(index, faiss.IndexIDMap)
    with assigning_on_gpu(faiss, [*layers(index)]):
        for first, block in vectors.blocks():
            if mapped:
                index.add_with_ids(block, np.arange(first, first + len(block)))
            else:
                index.add(block)
            progress(first + len(block), len(vectors))
    return index


def built_on(index: "Index") -> str:
    """Return "gpu" where ``build_index`` has the lists of such an index clustered by one, else "cpu"."""
    return "gpu" if clusters_on_gpu(load_faiss(), [*layers(index)]) else "cpu"


def _training_sample(vectors: Vectors, size: int, seed: int) -> FloatArray:
    if size >= len(vectors):
        return np.concatenate([block for _, block in vectors.blocks()])
    chosen = np.random.default_rng(seed).choice(len(vectors), size, replace=False)
    return vectors.gather(np.sort(chosen))


def write_index(index: "Index", path: Path) -> None:
    """Write the index to ``path``. Raises StoreError if the disk does not take it."""
    try:
        load_faiss().write_index(index, str(path))
    except RuntimeError as error:
        raise StoreError(f"{path}: cannot be written: {_reason(error)}") from error


def read_index(path: Path) -> "Index":
    """Map the index at ``path`` into memory, which its pages enter as they are used.

    Raises CorruptError if FAISS cannot read it. An altered byte goes unnoticed here: verify the artifact first.
    """
    faiss = load_faiss()
    try:
        index: Index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise CorruptError(f"{path}: not a FAISS index: {_reason(error)}; build it again") from error
    return index


def bytes_in_memory(index: "Index") -> int:
    """Return the size of the index in bytes, as it would be written; nothing is kept while it is counted."""
    counted = 0

    def count(chunk: bytes) -> None:
        nonlocal counted
        counted += len(chunk)

    faiss = load_faiss()
    faiss.write_index(index, faiss.PyCallbackIOWriter(count))
    return counted


def fits_gpu(rows: int, dimensions: int) -> bool:
    """Tell whether there is a GPU that FAISS can use, with room for so many float32 vectors."""
    return searches_on_gpu(load_faiss(), rows, dimensions)


def gpu_copy(flat: "Index") -> "Index | None":
    """Return a copy of a flat index on the GPU, for depths up to MOST_DEPTH and one thread; None unless ``fits_gpu``.

    Raises StoreError if other processes have left the GPU no room for it.
    """
    copy: Index | None = flat_on_gpu(load_faiss(), flat) if fits_gpu(flat.ntotal, flat.d) else None
    return copy


def is_exact(index: "Index") -> bool:
    """Tell whether the index compares every stored float32 vector: Flat, without anything around it that alters it."""
    return isinstance(index, load_faiss().IndexFlat)


def tunable(index: "Index") -> tuple[str, ...]:
    """Return the names of the search parameters that the index takes, outermost layer first."""
    faiss = load_faiss()
    kinds = {getattr(faiss, kind): name for kind, name in TUNABLE.items()}
    return tuple(name for layer in layers(index) for kind, name in kinds.items() if isinstance(layer, kind))


def check_parameters(index: "Index", parameters: Mapping[str, float]) -> None:
    """Raise InputError for a parameter that the index does not take, and a value that it would not search with."""
    takes = tunable(index)
    for name, value in parameters.items():
        if name not in takes:
            raise InputError(f"[index] search: no parameter {name!r} here; it takes {', '.join(takes) or 'none'}")
        if not 1 <= value < math.inf:
            raise InputError(f"[index] search: {name} = {value}; write a number of 1 or more")
        if name != "k_factor" and value != int(value):
            raise InputError(f"[index] search: {name} = {value}; write a whole number")


def search_parameters(index: "Index", wanted: Mapping[str, float]) -> "SearchParameters | None":
    """Return FAISS's parameters for one call, nested like the index's layers; absent ones keep FAISS's default."""
    faiss = load_faiss()
    parameters: SearchParameters | None = None
    for layer in reversed(list(layers(index))):
        if isinstance(layer, faiss.IndexRefine):
            parameters = faiss.IndexRefineSearchParameters(
                k_factor=float(wanted.get("k_factor", 1)), base_index_params=parameters
            )
        elif isinstance(layer, faiss.IndexPreTransform):
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        elif isinstance(layer, faiss.IndexIVF):
            parameters = faiss.SearchParametersIVF(nprobe=int(wanted.get("nprobe", 1)))
        elif isinstance(layer, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW(efSearch=int(wanted.get("efSearch", 16)))
    return parameters


def search_index(
    index: "Index", queries: FloatArray, depth: int, parameters: Mapping[str, float]
) -> tuple[IntArray, FloatArray]:
    """Return rows int32 [q, depth], best first, −1 pads, and scores float32, −inf in pads, for float32 [q, dim].

    The parameters hold for this call alone, so calls with different ones may run at once. Raises InputError for
    queries of other dimensions and a depth below 1.
    """
    if queries.ndim != 2 or queries.shape[1] != index.d:
        raise InputError(f"queries {queries.shape} where [n, {index.d}] belongs; use the generation's own model")
    if depth < 1:
        raise InputError(f"depth {depth}: search for at least one passage")
    rows = np.full((len(queries), depth), -1, np.int32)
    scores = np.full((len(queries), depth), -np.inf, np.float32)
    k = min(depth, index.ntotal)
    k_factor = min(parameters.get("k_factor", 1), index.ntotal / k)
    settings = search_parameters(index, {**parameters, "k_factor": k_factor})
    chunk = max(1, min(QUERY_CHUNK, int(CANDIDATE_BUDGET / (k * k_factor))))
    for first in range(0, len(queries), chunk):
        here = slice(first, first + chunk)
        found_scores, found = index.search(np.ascontiguousarray(queries[here], np.float32), k, params=settings)
        rows[here, :k] = found
        scores[here, :k] = np.where(found < 0, -np.inf, found_scores)
    return rows, scores
