"""One batch through the model: its vectors, its loss, and the gradient added to the weights.

Does not know steps of the optimiser, checkpoints, or where negatives come from.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from retriever.encoder import DualEncoder
from retriever.examples import Batch, Examples
from retriever.gradcache import cached_backward, chunks_of, sides_in_order
from retriever.inference import TOKEN_BUDGETS
from retriever.objective import Objective
from retriever.protocols import FloatArray, IntArray, Negatives
from retriever.ranks import Ranks
from retriever.teacher import Ask, Teacher

Gather = Callable[[IntArray], FloatArray]
"""Corpus rows int32 [n] → their vectors float32 [n, dim]."""


@dataclass
class BatchStep:
    """The model as it is trained, with what turns a batch into a loss.

    ``model`` is ``encoder`` as the accelerator wrapped it. ``frozen`` gives passage vectors that do not move, where the
    query tower alone is trained. ``teacher`` and ``guide`` are asked before the gradient is taken, once a batch.
    """

    encoder: DualEncoder
    model: Any
    examples: Examples
    objective: Objective
    accelerator: Accelerator
    ranks: Ranks
    grad_cache: bool
    accumulation: int
    teacher: Teacher = field(default_factory=Teacher)
    guide: Ask | None = None
    frozen: Gather | None = None

    @property
    def _budget(self) -> int:
        return TOKEN_BUDGETS[self.accelerator.device.type]

    def backward(self, batch: Batch, step: int, *, last: bool) -> Tensor:
        """Return the loss of the whole batch, its gradient added to the weights; each rank encodes its share.

        Ranks average their gradients in the ``last`` batch of an optimiser step.
        """
        queries, passages = texts = self.examples.texts(batch)
        guide = None if self.guide is None else self.guide(batch, texts, self.ranks).scores
        taught = self.teacher.teach(batch, texts, self.ranks)
        token_ids = (self._share("query", queries), [] if self.frozen else self._share("passage", passages))
        fixed = None
        if self.frozen is not None:
            fixed = torch.from_numpy(self.frozen(batch.passage_rows)).to(self.accelerator.device)

        def loss_of(mine: Tensor, others: Tensor) -> Tensor:
            gathered = self.ranks.gather(mine, len(batch.query_rows))
            opposite = self.ranks.gather(others, len(batch.passage_rows)) if fixed is None else fixed
            loss: Tensor = self.objective(gathered, opposite, batch, step, guide, taught)
            return loss

        if self.grad_cache:
            chunks = chunks_of(token_ids, self.encoder.chunk(self._budget))
            return cached_backward(
                chunks,
                lambda chunk: self.model(*chunk.token_ids, self._budget)[chunk.side],
                lambda vectors: loss_of(*sides_in_order(chunks, vectors, self.encoder.dimensions)),
                self._scaled_backward,
                lambda last_chunk: self.ranks.sync_gradients(self.model, last and last_chunk),
            )
        with self.ranks.sync_gradients(self.model, last):
            loss = loss_of(*self.model(*token_ids, self._budget))
            self._scaled_backward(loss)
        return loss.detach()

    def stepped(self) -> None:
        """Take note of a step of the optimiser: a learned temperature stays in its range, a moving anchor follows."""
        self.objective.bound()
        self.teacher.follow(self.encoder)

    def _scaled_backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss * self.ranks.count / self.accumulation)

    def _share(self, side: Any, texts: list[str]) -> list[list[int]]:
        """Return the token ids of this rank's share of ``texts``."""
        return self.encoder.tokenize(side, texts[self.ranks.share(len(texts))])[0]

    def query_vectors(self, rows: IntArray) -> FloatArray:
        """Return float32 [n, dim] of training queries by the present weights, without dropout or gradient."""
        texts = [self.examples.queries.texts[row] for row in rows]
        with self._at_rest():
            ids = self.encoder.tokenize("query", texts)[0]
            return _as_numpy(self.encoder(ids, [], self._budget)[0])

    def passage_vectors(self, rows: IntArray) -> FloatArray:
        """Return float32 [n, dim] of corpus rows by the present weights, without dropout or gradient."""
        with self._at_rest():
            ids = self.encoder.tokenize("passage", self.examples.corpus.texts(rows))[0]
            return _as_numpy(self.encoder([], ids, self._budget)[1])

    def shared_query_vectors(self, rows: IntArray) -> FloatArray:
        """Return what ``query_vectors`` does, of which each rank has encoded a share; all ranks must ask at once."""
        return _as_numpy(self.ranks.together(lambda share: self.query_vectors(rows[share]), len(rows)))

    def shared_passage_vectors(self, rows: IntArray) -> FloatArray:
        """Return what ``passage_vectors`` does, likewise."""
        return _as_numpy(self.ranks.together(lambda share: self.passage_vectors(rows[share]), len(rows)))

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        self.encoder.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield
        finally:
            self.encoder.train()

    def hardest(self, query_rows: IntArray, drawn: Negatives, count: int) -> Negatives:
        """Return of each query's ``drawn`` negatives the ``count`` that score highest by the present weights.

        Max-loss selection: of many candidates that are forwarded without gradient, those that cost most are learned
        from. Empty places stay last. Each rank forwards a share, so all choose by the same bits.
        """
        rows = np.unique(drawn.rows[drawn.mask])
        if not len(rows):
            return Negatives(drawn.rows[:, :count], drawn.scores[:, :count], drawn.mask[:, :count])
        vectors = (self.frozen or self.shared_passage_vectors)(rows)
        places = np.searchsorted(rows, np.where(drawn.mask, drawn.rows, rows[0]))
        scores = np.einsum("bd,bkd->bk", self.shared_query_vectors(query_rows), vectors[places])
        best = np.argsort(-np.where(drawn.mask, scores, -np.inf), axis=1, kind="stable")[:, :count]

        def chosen(array: Any) -> Any:
            return np.take_along_axis(array, best, axis=1)

        sources = None if drawn.sources is None else chosen(drawn.sources)
        return Negatives(chosen(drawn.rows), chosen(drawn.scores), chosen(drawn.mask), sources)


def _as_numpy(vectors: Tensor) -> FloatArray:
    found: FloatArray = vectors.float().cpu().numpy()
    return found
