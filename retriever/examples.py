"""Training examples: which passages a batch of queries meets, and which of them may count as negatives.

Does not know torch, losses or how hard negatives are found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.data import Corpus, QuerySet, duplicate_hash
from retriever.protocols import BoolArray, IntArray, Negatives


@dataclass(frozen=True)
class Batch:
    """One contrastive batch of b queries and n distinct passages.

    ``query_rows`` int32 [b] · ``passage_rows`` int32 [n] · ``positive`` int64 [b], a column of each query's positive ·
    ``allowed`` bool [b, n], the candidates of each query: its positive and everything that may be its negative ·
    ``hard`` bool [b, n], the negatives among them that were drawn for this query.
    """

    query_rows: IntArray
    passage_rows: IntArray
    positive: NDArray[np.int64]
    allowed: BoolArray
    hard: BoolArray


class Examples:
    """Assembles batches from the training queries, their positives and drawn negatives."""

    def __init__(
        self,
        corpus: Corpus,
        queries: QuerySet,
        *,
        in_batch: bool,
        seed: int,
        judged_relevant: Callable[[int], IntArray] | None = None,
    ) -> None:
        """``in_batch``: every passage of the batch is a candidate of every query, not its own negatives alone.

        ``judged_relevant``: a query's row → rows int32 that are no positives to learn from, and no negatives either.
        """
        self.corpus = corpus
        self.queries = queries
        self._in_batch = in_batch
        self._seed = seed
        self._judged_relevant = judged_relevant

    def __len__(self) -> int:
        return len(self.queries)

    def texts(self, batch: Batch) -> tuple[list[str], list[str]]:
        """Return the texts of the batch's queries and passages."""
        return [self.queries.texts[row] for row in batch.query_rows], self.corpus.texts(batch.passage_rows)

    def batch(self, query_rows: IntArray, turn: int, negatives: Negatives | None) -> Batch:
        """Return the batch of ``query_rows`` int32 [b] with one positive each and the drawn ``negatives``.

        Of several positives a turn takes one at random. A known positive, a text-duplicate of one and the query's
        own text never stand among a query's negatives, whichever query brought them. Without ``negatives``, before the
        first set, the batch's passages are all that can be told apart, so they are candidates of every query.
        """
        positives = np.array([self.positive_of(int(row), turn) for row in query_rows], np.int32)
        drawn = negatives.rows[negatives.mask] if negatives is not None else np.empty(0, np.int32)
        passage_rows, first = np.unique(np.concatenate([positives, drawn]), return_index=True)
        passage_rows = passage_rows[np.argsort(first)]
        columns = {int(row): column for column, row in enumerate(passage_rows)}
        positive = np.array([columns[int(row)] for row in positives], np.int64)
        own = (
            [] if negatives is None else [rows[kept] for rows, kept in zip(negatives.rows, negatives.mask, strict=True)]
        )
        hard = _drawn(len(query_rows), columns, own)
        every = np.arange(len(query_rows))
        hard[every, positive] = False  # a wrong positive that [audit] plants may be drawn as well
        shared = self._in_batch or negatives is None
        allowed = (hard | shared) & ~self._known(query_rows, passage_rows)
        allowed[every, positive] = True
        return Batch(query_rows, passage_rows, positive, allowed, hard & allowed)

    def positive_of(self, query_row: int, turn: int) -> int:
        """Return the corpus row of the positive that a query is learned with in ``turn``."""
        rows = self.queries.positives(query_row)
        if len(rows) == 1:
            return int(rows[0])
        return int(np.random.default_rng((self._seed, turn, query_row)).choice(rows))

    def _known(self, query_rows: IntArray, passage_rows: IntArray) -> BoolArray:
        hashes = self.corpus.text_hash
        found = hashes[passage_rows]
        known = np.empty((len(query_rows), len(passage_rows)), np.bool_)
        for query, row in enumerate(query_rows):
            own_text = np.uint64(duplicate_hash(self.queries.texts[row]))
            relevant = self.queries.known(int(row))
            if self._judged_relevant is not None:
                relevant = np.append(relevant, self._judged_relevant(int(row)))
            known[query] = np.isin(found, np.append(hashes[relevant], own_text))
        return known


def _drawn(queries: int, columns: dict[int, int], own: Sequence[IntArray]) -> BoolArray:
    hard = np.zeros((queries, len(columns)), np.bool_)
    for query, rows in enumerate(own):
        hard[query, [columns[int(row)] for row in rows]] = True
    return hard
