"""A ranker as it is trained: tokenised pairs in, logits with a graph behind them out.

Does not know losses, batches of queries, or what its logits are compared with.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from retriever.checkpointed_layers import checkpoint_layers
from retriever.device import on_device
from retriever.engines.fast_ranker import HEADS, head_logits
from retriever.engines.fast_training import CHUNK, TOKENS, FastTraining, micro_batches, portions, why_not_fast
from retriever.gradcache import in_order
from retriever.ranker import Pair, PairClassifier
from retriever.token_batches import token_batches


class TrainedRanker(nn.Module):
    """A PairClassifier whose forward pass takes any number of pairs."""

    def __init__(self, ranker: PairClassifier) -> None:
        """``ranker`` keeps its weights in float32."""
        super().__init__()
        self.ranker = ranker
        self._fast: FastTraining | None = None

    def train_fast(self, dtype: torch.dtype, *, checkpointing: bool) -> str | None:
        """Train on the CPU by the fast path from now on, products in ``dtype``; return why that cannot be.

        ``checkpointing`` keeps each layer's input alone.
        """
        classifier = self.ranker.classifier
        kind = type(classifier).__name__
        if kind not in HEADS:
            return f"{kind} is not of a class that is known there"
        if not self.ranker.pads_on_the_right:
            return "its tokenizer pads on the left"
        reason = why_not_fast(classifier.base_model)
        if reason is None:
            pad_id: int = self.ranker.tokenizer.pad_token_id
            self._fast = FastTraining(classifier.base_model, dtype, pad_id, checkpointing=checkpointing)
        return reason

    def checkpoint_gradients(self) -> None:
        """Keep each layer's input alone on the slower path, too, and compute the layer again on the way back.

        Raises InputError for a model that transformers cannot train so.
        """
        checkpoint_layers(self.ranker.classifier, "[train] gradient_checkpointing with [ranker]")

    def chunk(self, budget: int) -> int:
        """Return how many tokens are forwarded together where a batch is ``budget`` tokens."""
        return budget if self._fast is None else CHUNK * min(budget, TOKENS)

    def forward(self, pairs: Sequence[Pair], budget: int) -> Tensor:
        """Return raw logits float32 [n, labels] of n > 0 ``pairs``, forwarded in batches of about ``budget`` tokens."""
        lengths = np.array([len(pair["input_ids"]) for pair in pairs], np.int64)
        if self._fast is None:
            places = token_batches(lengths, budget)
            device = next(self.parameters()).device
            parts = []
            for batch in places:
                inputs = self.ranker.pad([pairs[i] for i in batch])
                inputs = {name: on_device(values, device) for name, values in inputs.items()}
                parts.append(self.ranker.classifier(**inputs).logits.float())
        else:
            batches = micro_batches(lengths, self.chunk(budget), min(budget, TOKENS))
            places = [bucket for batch in batches for bucket in batch]
            parts = []
            for some in portions(len(batches)):
                laid_out = {
                    name: [[[pairs[i][name] for i in bucket] for bucket in batch] for batch in batches[some]]
                    for name in pairs[0]
                }
                states = self._fast(laid_out["input_ids"], laid_out.get("token_type_ids"))
                with torch.autocast("cpu", enabled=False):  # the head is small, and margins of logits are smaller
                    parts += [head_logits(self.ranker.classifier, *one) for one in states]
        return in_order(parts, places)
