"""Scoring pairs behind the numpy protocol: sorted token-budget batches, spread over streams of one thread each.

Does not know training, nor where the pairs come from.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retriever.device import DTYPES, on_device, pick_device, resolve_precision
from retriever.engines.fast_ranker import fast_logits
from retriever.errors import InputError
from retriever.inference import TOKEN_BUDGETS
from retriever.protocols import FloatArray, Progress, silent
from retriever.ranker import Pair, PairClassifier
from retriever.streams import Map, most_streams, streams
from retriever.token_batches import mixed, shared_budget, token_batches

BLOCK_PAIRS = 4096
"""Pairs whose tokens are held at once."""
LEAST_BUDGET = 256
"""Tokens below which a batch is not made smaller to give every stream its share."""


class TorchRanker:
    """Implements retriever.protocols.TokenRanker over a PairClassifier; counts the pairs that it had to cut."""

    def __init__(self, model: PairClassifier, precision: str = "fp32", device: str = "auto") -> None:
        """``precision`` is "auto" or a key of DTYPES; ``model`` must not be trained further.

        Raises InputError for another precision.
        """
        self._device = pick_device(device)
        precision = resolve_precision(precision, self._device)
        self.fingerprint: str = model.fingerprint(precision)
        self._dtype = DTYPES[precision]
        self._model = model.to(self._device).eval()
        with torch.inference_mode():
            self._fast = fast_logits(model.classifier, self._dtype) if model.pads_on_the_right else None
        self._streams = most_streams(self._device)
        self.cut_pairs = 0
        self.probable = model.config.activation == "sigmoid"

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n], higher is more relevant: of ``passages[i]`` for ``queries[i]``.

        Raises ValueError if there are not as many of both, InputError for what is no text or has no token.
        """
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries but {len(passages)} passages: pair i is one of each")
        _refuse_other_than_text(queries, passages)
        scores = np.empty(len(queries), np.float32)
        with streams(self._streams, self._device) as run:
            done = 0
            for start in range(0, len(queries), BLOCK_PAIRS):
                block = slice(start, start + BLOCK_PAIRS)
                pairs, lengths, cut = self.tokenize(queries[block], passages[block])
                self.cut_pairs += cut
                for finished in self._score_block(pairs, lengths, scores[block], run):
                    done += finished
                    progress(done, len(queries))
        return scores

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> tuple[list[Pair], list[int], int]:
        """Return each pair's tokens, how many they are, and how many pairs were cut.

        Raises InputError for a pair without a token.
        """
        pairs, cut = self._model.tokenize(queries, passages)
        lengths = [len(pair["input_ids"]) for pair in pairs]
        if not all(lengths):
            raise InputError("a query and its passage are both empty: this model cannot read that; leave the pair out")
        return pairs, lengths, cut

    def score_tokens(self, pairs: Sequence[Pair]) -> FloatArray:
        """Return float32 [len(pairs)] of pairs that ``tokenize`` returned."""
        scores = np.empty(len(pairs), np.float32)
        lengths = [len(pair["input_ids"]) for pair in pairs]
        with streams(self._streams if sum(lengths) > LEAST_BUDGET else 1, self._device) as run:
            for _ in self._score_block(pairs, lengths, scores, run):
                pass
        return scores

    def _score_block(
        self, pairs: Sequence[Pair], lengths: Sequence[int], scores: FloatArray, run: Map
    ) -> Iterator[int]:
        """Fill ``scores``; yield the number of pairs of each batch that is done."""

        def score(batch: NDArray[np.int64]) -> int:
            scores[batch] = self._scores(self._model.pad([pairs[i] for i in batch]))
            return len(batch)

        most = TOKEN_BUDGETS[self._device.type]
        budget = shared_budget(sum(lengths), self._streams, LEAST_BUDGET, most)
        yield from run(score, mixed(token_batches(np.array(lengths), budget)))

    def _scores(self, inputs: Mapping[str, Tensor]) -> FloatArray:
        with torch.inference_mode():
            scores: FloatArray = self._model.scores(self._logits(inputs)).cpu().numpy()
        return scores

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if self._fast is not None:
            return self._fast(inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids"))
        inputs = {name: on_device(values, self._device) for name, values in inputs.items()}
        cast = torch.autocast(self._device.type, self._dtype) if self._dtype != torch.float32 else nullcontext()
        with cast:
            logits: Tensor = self._model.classifier(**inputs).logits
        return logits


def _refuse_other_than_text(queries: Sequence[str], passages: Sequence[str]) -> None:
    for number, pair in enumerate(zip(queries, passages, strict=True)):
        for part, text in zip(("query", "passage"), pair, strict=True):
            if not isinstance(text, str):
                raise InputError(f"pair {number}: the {part} must be a string, not {type(text).__name__}")
