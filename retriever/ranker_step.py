"""One batch through the ranker: each query's positive and its own negatives as pairs, their loss, and its gradient.

Does not know steps of the optimiser, checkpoints, or where negatives come from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from retriever.examples import Batch, Examples
from retriever.gradcache import cached_backward, in_order
from retriever.inference import TOKEN_BUDGETS
from retriever.protocols import BoolArray, FloatArray
from retriever.ranker import Pair
from retriever.ranks import Ranks
from retriever.source_tally import Bits, SourceTally
from retriever.teacher import Score
from retriever.token_batches import token_batches
from retriever.trained_ranker import TrainedRanker

GroupLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(raw logits float32 [q, 1 + k, labels], the positive first; mask bool [q, 1 + k]; a teacher's scores [q, 1 + k], nan
where it has none, or None) → the loss of each query, float32 [q]. It must not look across queries."""


def groups_of(batch: Batch, most: int) -> tuple[NDArray[np.int64], BoolArray]:
    """Return columns int64 [b, 1 + k] of each query's group, its positive first, and mask bool [b, 1 + k].

    The others are the negatives that were drawn for it. In a batch without any, as before the first negative set, they
    are up to ``most`` of the passages behind its own that it may be compared with: other queries' positives.
    """
    others = batch.hard.copy()
    others[np.arange(len(others)), batch.positive] = False
    rows = [np.flatnonzero(row) for row in others]
    if not others.any():
        width = batch.allowed.shape[1]
        turned = [np.roll(np.arange(width), -own - 1)[:-1] for own in batch.positive]
        rows = [order[batch.allowed[query, order]][:most] for query, order in enumerate(turned)]
    counts = np.array([len(row) for row in rows])
    mask = np.arange(1 + counts.max()) <= counts[:, None]
    columns = np.zeros(mask.shape, np.int64)
    columns[:, 0] = batch.positive
    columns[:, 1:][mask[:, 1:]] = np.concatenate(rows)
    return columns, mask


@dataclass(frozen=True)
class Watch:
    """Who wants to know what the drawn negatives of a batch pull: ``bits`` uint8 [b, n] tell who brought each."""

    tally: SourceTally
    bits: Bits

    def of_groups(self, columns: NDArray[np.int64], mask: BoolArray, mine: slice) -> Bits:
        """Return the bits [share, 1 + k] of this rank's groups, 0 for what was not drawn."""
        return np.where(mask, np.take_along_axis(self.bits, columns, axis=1), np.uint8(0))[mine]

    def listen(self, groups: Tensor, bits: Bits) -> None:
        """Take the gradient of ``groups`` float [q · (1 + k), labels], once it is known, with ``bits`` [q, 1 + k]."""
        drawn = bits.ravel() > 0

        def take(gradient: Tensor) -> None:
            self.tally.add(bits.ravel()[drawn], gradient.abs().sum(dim=1).float().cpu().numpy()[drawn])

        groups.register_hook(take)  # type: ignore[no-untyped-call]  # torch does not annotate it


@dataclass
class RankerStep:
    """The ranker as it is trained, with what turns a batch into a loss.

    ``model`` is ``trained`` as the accelerator wrapped it. ``teacher`` scores each pair where the loss reads that.
    ``cut_pairs`` counts those of this rank that were longer than the ranker reads.
    """

    trained: TrainedRanker
    model: Any
    examples: Examples
    loss: GroupLoss
    accelerator: Accelerator
    ranks: Ranks
    num_negatives: int
    accumulation: int = 1
    teacher: Score | None = None
    cut_pairs: int = 0

    @property
    def _budget(self) -> int:
        return TOKEN_BUDGETS[self.accelerator.device.type]

    def backward(self, batch: Batch, *, last: bool, watch: Watch | None = None) -> float:
        """Return the mean loss of all the batch's queries, its gradient added to the weights; each rank has a share.

        Queries are independent, so as many whole groups at a time are taken forward and back as a micro-batch has
        tokens for; a larger group goes through GradCache. Memory is one micro-batch's, the gradient the whole batch's.
        Ranks average their gradients in the ``last`` batch of an optimiser step. ``watch`` is told what this rank's
        negatives pull.
        """
        columns, mask = groups_of(batch, self.num_negatives)
        mine = self.ranks.share(len(columns))
        bits = None if watch is None else watch.of_groups(columns, mask, mine)
        pairs, teacher = self._pairs(batch, columns, mask, mine)
        parts = list(self._parts(pairs, mask[mine]))
        total = 0.0
        for number, (places, group) in enumerate(parts):
            taught = None if teacher is None else torch.from_numpy(teacher[group])
            listen = None if watch is None or bits is None else partial(watch.listen, bits=bits[group])
            loss_of = partial(self._loss, torch.from_numpy(mask[mine][group]), taught, len(columns), listen)
            total += self._backward([pairs[i] for i in places], loss_of, last and number == len(parts) - 1)
        return self.ranks.sum(total) / self.ranks.count * self.accumulation

    def _pairs(
        self, batch: Batch, columns: NDArray[np.int64], mask: BoolArray, mine: slice
    ) -> tuple[list[Pair], FloatArray | None]:
        """Return this rank's pairs, tokenised, group by group, and the teacher's scores float32 [share, 1 + k]."""
        queries, passages = self.examples.texts(batch)
        lines, places = np.nonzero(mask[mine])
        asked = [queries[mine.start + line] for line in lines]
        read = [passages[column] for column in columns[mine][lines, places]]
        pairs, cut = self.trained.ranker.tokenize(asked, read)
        self.cut_pairs += cut
        if self.teacher is None:
            return pairs, None
        scores = np.full(mask[mine].shape, np.nan, np.float32)
        scores[lines, places] = self.teacher(asked, read)
        return pairs, scores

    def _parts(self, pairs: list[Pair], mask: BoolArray) -> Iterator[tuple[range, slice]]:
        """Yield micro-batches: places of pairs, and the groups that they are."""
        ends = np.cumsum(mask.sum(axis=1))
        tokens = np.cumsum([len(pair["input_ids"]) for pair in pairs])[ends - 1]
        most, group = self.trained.chunk(self._budget), 0
        while group < len(ends):
            before = int(tokens[group - 1]) if group else 0
            after = max(group + 1, int(np.searchsorted(tokens, before + most, side="right")))
            yield range(int(ends[group - 1]) if group else 0, int(ends[after - 1])), slice(group, after)
            group = after

    def _backward(self, pairs: list[Pair], loss_of: Callable[[Tensor], Tensor], last: bool) -> float:
        lengths = np.array([len(pair["input_ids"]) for pair in pairs])
        most = self.trained.chunk(self._budget)
        if lengths.sum() <= most:
            with self.ranks.sync_gradients(self.model, last):
                loss = loss_of(self.model(pairs, self._budget))
                self.accelerator.backward(loss)
            return loss.item()
        chunks = token_batches(lengths, most)
        return cached_backward(
            chunks,
            lambda chunk: self.model([pairs[i] for i in chunk], self._budget),
            lambda logits: loss_of(in_order(logits, chunks)),
            self.accelerator.backward,
            lambda last_chunk: self.ranks.sync_gradients(self.model, last and last_chunk),
        ).item()

    def _loss(
        self,
        mask: Tensor,
        teacher: Tensor | None,
        queries: int,
        listen: Callable[[Tensor], None] | None,
        logits: Tensor,
    ) -> Tensor:
        """Return this micro-batch's part of the mean over ``queries``; ranks will average it, steps add it up."""
        mask = mask.to(logits.device)
        places = mask.flatten().nonzero()[:, 0]
        groups = logits.new_zeros((mask.numel(), logits.shape[1])).index_copy(0, places, logits)
        if listen is not None:
            listen(groups)
        taught = None if teacher is None else teacher.to(logits.device)
        losses = self.loss(groups.view(*mask.shape, -1), mask, taught)
        return losses.sum() * self.ranks.count / (queries * self.accumulation)
