"""The negative set on disk: a pool of labelled candidates for every training query.

Does not know how candidates are found, judged or drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.errors import CorruptError
from retriever.protocols import BoolArray, Negatives


class Verdict(IntEnum):
    """Whether a candidate may be a negative, and why not."""

    ELIGIBLE = 0
    POSITIVE = 1
    DUPLICATE = 2
    FILTERED = 3
    JUDGED_RELEVANT = 4
    JUDGED_IRRELEVANT = 5


MAY_BE_DRAWN = (Verdict.ELIGIBLE, Verdict.JUDGED_IRRELEVANT)
"""The verdicts of candidates that may be negatives."""


@dataclass(frozen=True)
class NegativeSet:
    """Arrays over Q queries, D candidates and at most P positives a query, memory-mapped.

    queries int32 [Q] · passages int32 [Q, D] best first, −1 pads · scores float32 [Q, D], similarities not divided
    by the temperature · sources uint8 [Q, D], a bit mask over facts.sources · verdicts uint8 [Q, D] (Verdict) ·
    positives int32 [Q, P], −1 pads · positive_scores float32 [Q, P] · dropped bool [Q] · mined_from int32 [Q], the
    generation that a row was mined from.
    """

    queries: NDArray[np.int32]
    passages: NDArray[np.int32]
    scores: NDArray[np.float32]
    sources: NDArray[np.uint8]
    verdicts: NDArray[np.uint8]
    positives: NDArray[np.int32]
    positive_scores: NDArray[np.float32]
    dropped: NDArray[np.bool_]
    mined_from: NDArray[np.int32]

    def lines(self, rows: "slice | NDArray[np.int32]") -> "NegativeSet":
        """Return the set of the queries ``rows`` alone."""
        return NegativeSet(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @property
    def may_be_drawn(self) -> BoolArray:
        """Which candidates are no pads and may be negatives, bool [Q, D]."""
        return np.isin(self.verdicts, MAY_BE_DRAWN) & (self.passages >= 0)

    def picked(self, columns: NDArray[np.int64], mask: BoolArray) -> Negatives:
        """Return the candidates in ``columns`` [Q, n]; an empty place, where ``mask`` is False: row −1, score 0."""
        return Negatives(
            rows=np.where(mask, np.take_along_axis(self.passages, columns, axis=1), np.int32(-1)),
            scores=np.where(mask, np.take_along_axis(self.scores, columns, axis=1), np.float32(0)),
            mask=mask,
            sources=np.where(mask, np.take_along_axis(self.sources, columns, axis=1), np.uint8(0)),
        )

    def flush(self) -> None:
        """Write what is still in memory to the files."""
        for field in fields(self):
            array = getattr(self, field.name)
            if isinstance(array, np.memmap):
                array.flush()


def _layout(queries: int, depth: int, positives: int) -> Mapping[str, tuple[type, tuple[int, ...], Any]]:
    pool, known = (queries, depth), (queries, positives)
    return {
        "queries": (np.int32, (queries,), 0),
        "passages": (np.int32, pool, -1),
        "scores": (np.float32, pool, 0),
        "sources": (np.uint8, pool, 0),
        "verdicts": (np.uint8, pool, Verdict.FILTERED),
        "positives": (np.int32, known, -1),
        "positive_scores": (np.float32, known, 0),
        "dropped": (np.bool_, (queries,), False),
        "mined_from": (np.int32, (queries,), -1),
    }


def create_negative_set(folder: Path, queries: int, depth: int, positives: int) -> NegativeSet:
    """Create the files of an empty negative set in ``folder`` and return it writable, mapped to disk."""
    arrays: dict[str, Any] = {}
    for name, (dtype, shape, fill) in _layout(queries, depth, positives).items():
        path = folder / f"{name}.npy"
        write_filled(path, np.dtype(dtype), shape, fill)
        arrays[name] = np.load(path, mmap_mode="r+", allow_pickle=False)
    arrays["queries"][:] = np.arange(queries, dtype=np.int32)
    return NegativeSet(**arrays)


def write_filled(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], fill: Any) -> None:
    """Write every byte before the file is mapped: a full disk is then an error, where the map would end the process."""
    line = np.full(shape[1:], fill, dtype).tobytes()
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(shape[0]):
            file.write(line)


def open_negative_set(folder: Path) -> NegativeSet:
    """Map the negative set in ``folder`` read-only. Raises CorruptError for an absent or torn file."""
    arrays: dict[str, Any] = {}
    for field in fields(NegativeSet):
        path = folder / f"{field.name}.npy"
        try:
            arrays[field.name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise CorruptError(f"{path}: unreadable ({error})") from error
    for name in ("passages", "positives"):
        if arrays[name].ndim != 2:
            raise CorruptError(f"{folder / name}.npy: {arrays[name].ndim} dimensions where 2 belong")
    shape = (*arrays["passages"].shape, arrays["positives"].shape[-1])
    for name, (dtype, expected, _) in _layout(*shape).items():
        if arrays[name].shape != expected or arrays[name].dtype != dtype:
            raise CorruptError(
                f"{folder / name}.npy: {arrays[name].dtype} {arrays[name].shape} where {expected} belongs"
            )
    return NegativeSet(**arrays)


def write_batches(folder: Path, batches: NDArray[np.int32]) -> None:
    """Add a batch plan to the set in ``folder``: query rows int32 [batches, batch size]."""
    np.save(folder / "batches.npy", batches, allow_pickle=False)


def open_batches(folder: Path) -> NDArray[np.int32] | None:
    """Map the batch plan of the set in ``folder``, None if it has none. Raises CorruptError for a torn file."""
    path = folder / "batches.npy"
    if not path.exists():
        return None
    try:
        batches: NDArray[np.int32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise CorruptError(f"{path}: unreadable ({error})") from error
    if batches.dtype != np.int32 or batches.ndim != 2:
        raise CorruptError(f"{path}: {batches.dtype} {batches.shape} where int32 [batches, batch size] belongs")
    return batches
