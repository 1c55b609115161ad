"""What a GPU does for an index, where FAISS was built for one and one is there: clustering, assignment, exact search.

Does not know artifacts, factories or who searches. What is built is an ordinary index in main memory. Each function is
handed the module ``faiss``, which has the names of a GPU only in the wheel faiss-gpu.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from retriever.errors import StoreError

if TYPE_CHECKING:
    from faiss import Index

DEVICE = 0
"""The first GPU that the process sees; CUDA_VISIBLE_DEVICES chooses another, or none."""
MOST_DEPTH = 2048
"""FAISS's GPU kernels select no more candidates a query."""
MOST_VECTOR_BYTES = 4 << 30
"""What vectors may take of a GPU that a trainer shares: 2.8 million of 384 dimensions."""
SCRATCH_BYTES = 512 << 20
"""FAISS would keep three times as much for intermediate results."""

Role = Literal["clustering_index", "quantizer"]


def has_gpu(faiss: ModuleType) -> bool:
    """Tell whether this FAISS can compute on a GPU, and one is there."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def clusters_on_gpu(faiss: ModuleType, layers: "Sequence[Index]") -> bool:
    """Tell whether k-means of an index with these ``layers`` runs on a GPU: that of lists with a flat quantizer.

    Without lists nothing is clustered that is worth the way there; an HNSW over the centroids has none on a GPU.
    """
    return has_gpu(faiss) and _lists(faiss, layers) is not None


def assigns_on_gpu(faiss: ModuleType, layers: "Sequence[Index]") -> bool:
    """Tell whether the vectors that are added get their lists from a GPU: where ``clusters_on_gpu``, if none is coded
    as its residual.

    Those coders ask the quantizer for one residual at a time, from many threads, which FAISS forbids on a GPU.
    """
    lists: Any = _lists(faiss, layers)
    plain = faiss.IndexIVFFlat | faiss.IndexIVFFastScan
    return clusters_on_gpu(faiss, layers) and isinstance(lists, plain) and not lists.by_residual


def searches_on_gpu(faiss: ModuleType, rows: int, dimensions: int) -> bool:
    """Tell whether so many float32 vectors are compared on a GPU, one by one."""
    return has_gpu(faiss) and 4 * rows * dimensions <= MOST_VECTOR_BYTES


def _lists(faiss: ModuleType, layers: "Sequence[Index]") -> "Index | None":
    """Return the layer of lists with a flat quantizer, None if there is none."""
    for layer in layers:
        if isinstance(layer, faiss.IndexIVF):
            return layer if isinstance(faiss.downcast_index(layer.quantizer), faiss.IndexFlat) else None
    return None


@contextmanager
def clustering_on_gpu(faiss: ModuleType, layers: "Sequence[Index]") -> Iterator[None]:
    """Have a GPU assign points to centroids while the index is trained in the block, if ``clusters_on_gpu``."""
    if clusters_on_gpu(faiss, layers):
        with _quantizer_on_gpu(faiss, _lists(faiss, layers), "clustering_index"):
            yield
    else:
        yield


@contextmanager
def assigning_on_gpu(faiss: ModuleType, layers: "Sequence[Index]") -> Iterator[None]:
    """Have a GPU find the lists of what is added to the trained index in the block, if ``assigns_on_gpu``."""
    if assigns_on_gpu(faiss, layers):
        with _quantizer_on_gpu(faiss, _lists(faiss, layers), "quantizer"):
            yield
    else:
        yield


@contextmanager
def _quantizer_on_gpu(faiss: ModuleType, lists: Any, role: Role) -> Iterator[None]:
    """Let a copy of the flat quantizer on the GPU play ``role`` in the block; afterwards ``lists`` are as before."""
    kept, copy = getattr(lists, role), flat_on_gpu(faiss, faiss.downcast_index(lists.quantizer))
    setattr(lists, role, copy)
    try:
        yield
    finally:
        setattr(lists, role, kept)
        copy.thisown = True  # the binding takes what is assigned for given away


def flat_on_gpu(faiss: ModuleType, flat: "Index") -> Any:
    """Return a copy of a flat index on the GPU, which one thread at a time may use.

    Raises StoreError if the GPU has no room for it.
    """
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(SCRATCH_BYTES)
    try:
        return faiss.index_cpu_to_gpu(resources, DEVICE, flat)
    except RuntimeError as error:
        size = 4 * flat.ntotal * flat.d / 1e6
        raise StoreError(
            f"no room on the GPU for {size:.0f} MB of vectors ({error}); train with smaller batches, or hide the GPU "
            "from FAISS: pip uninstall faiss-gpu, then pip install -e '.[cpu]' in the checkout"
        ) from error
