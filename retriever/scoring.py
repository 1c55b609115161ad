"""Scoring pairs with torch behind the numpy protocol: sorted token-budget batches, bf16 or fp32, no gradient.

Does not know training, nor where the pairs come from.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch

from retriever.device import DTYPES, pick_device, resolve_precision
from retriever.errors import InputError
from retriever.inference import TOKEN_BUDGETS
from retriever.protocols import FloatArray, Progress, silent
from retriever.ranker import PairClassifier
from retriever.token_batches import mixed, token_batches


class TorchRanker:
    """Implements retriever.protocols.Ranker over a PairClassifier; counts the pairs that it had to cut."""

    def __init__(self, model: PairClassifier, precision: str = "fp32", device: str = "auto") -> None:
        """``precision`` is "auto" or a key of DTYPES. Raises InputError for another."""
        self._device = pick_device(device)
        precision = resolve_precision(precision, self._device)
        self.fingerprint: str = model.fingerprint(precision)
        self._dtype = DTYPES[precision]
        self._model = model.to(self._device).eval()
        self.cut_pairs = 0

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n], higher is more relevant. Raises ValueError if there are not as many of both."""
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries but {len(passages)} passages: pair i is one of each")
        _refuse_other_than_text(queries, passages)
        scores = np.empty(len(queries), np.float32)
        pairs, cut = self._model.tokenize(queries, passages)
        self.cut_pairs += cut
        lengths = np.array([len(pair["input_ids"]) for pair in pairs], np.int64)
        done = 0
        cast = torch.autocast(self._device.type, self._dtype) if self._dtype != torch.float32 else nullcontext()
        with torch.inference_mode(), cast:
            for batch in mixed(token_batches(lengths, TOKEN_BUDGETS[self._device.type])):
                inputs = self._model.pad([pairs[i] for i in batch])
                inputs = {name: values.to(self._device) for name, values in inputs.items()}
                scores[batch] = self._model(inputs).cpu().numpy()
                done += len(batch)
                progress(done, len(queries))
        return scores


def _refuse_other_than_text(queries: Sequence[str], passages: Sequence[str]) -> None:
    for number, pair in enumerate(zip(queries, passages, strict=True)):
        for part, text in zip(("query", "passage"), pair, strict=True):
            if not isinstance(text, str):
                raise InputError(f"pair {number}: the {part} must be a string, not {type(text).__name__}")
