"""A teacher's scores of a negative set's pairs on disk: of its candidates and of its positives.

Does not know who the teacher is, nor how scores become a loss.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retriever.errors import CorruptError
from retriever.negatives import NegativeSet, write_filled
from retriever.protocols import FloatArray, IntArray

FILES = ("teacher.npy", "teacher_positives.npy")


@dataclass(frozen=True)
class TeacherScores:
    """``candidates`` float32 [Q, D] and ``positives`` float32 [Q, P] of the set ``pool``, nan where there is none."""

    pool: NegativeSet
    candidates: FloatArray
    positives: FloatArray

    def flush(self) -> None:
        """Write what is still in memory to the files."""
        for array in (self.candidates, self.positives):
            if isinstance(array, np.memmap):
                array.flush()

    def of_batch(self, query_rows: IntArray, passage_rows: IntArray) -> FloatArray:
        """Return float32 [b, n]: the scores of passages for queries, whichever query brought them; nan elsewhere."""
        pool = self.pool
        rows = np.concatenate([pool.passages[query_rows], pool.positives[query_rows]], axis=1)
        scores = np.concatenate([self.candidates[query_rows], self.positives[query_rows]], axis=1)
        found = np.full((len(query_rows), len(passage_rows)), np.nan, np.float32)
        order = np.argsort(passage_rows)
        for line, (of_query, given) in enumerate(zip(rows, scores, strict=True)):
            scored = (of_query >= 0) & ~np.isnan(given)
            places = np.searchsorted(passage_rows, of_query[scored], sorter=order)
            columns = order[np.minimum(places, len(order) - 1)]
            here = passage_rows[columns] == of_query[scored]
            found[line, columns[here]] = given[scored][here]
        return found


def create_teacher_scores(folder: Path, pool: NegativeSet) -> TeacherScores:
    """Create the files of the set in ``folder``, all nan, and return them writable, mapped to disk."""
    arrays = []
    for name, rows in zip(FILES, (pool.passages, pool.positives), strict=True):
        write_filled(folder / name, np.dtype(np.float32), rows.shape, np.nan)
        arrays.append(np.load(folder / name, mmap_mode="r+", allow_pickle=False))
    return TeacherScores(pool, *arrays)


def open_teacher_scores(folder: Path, pool: NegativeSet) -> TeacherScores | None:
    """Map the scores of the set ``pool`` in ``folder`` read-only; None if it has none.

    Raises CorruptError for a torn file.
    """
    if not (folder / FILES[0]).exists():
        return None
    arrays = []
    for name, rows in zip(FILES, (pool.passages, pool.positives), strict=True):
        path = folder / name
        try:
            array: FloatArray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise CorruptError(f"{path}: unreadable ({error})") from error
        if array.shape != rows.shape or array.dtype != np.float32:
            raise CorruptError(f"{path}: {array.dtype} {array.shape} where float32 {rows.shape} belongs")
        arrays.append(array)
    return TeacherScores(pool, *arrays)
