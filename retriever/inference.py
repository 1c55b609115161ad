"""Encoding with torch behind the numpy protocol: sorted token-budget batches, bf16 or fp32, no gradient.

Does not know training, nor what the vectors are for.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch

from retriever.device import DTYPES, pick_device, resolve_precision
from retriever.encoder import DualEncoder, Side
from retriever.protocols import Fingerprints, FloatArray, Progress, silent
from retriever.token_batches import mixed, token_batches

TOKEN_BUDGETS = {"cpu": 2048, "cuda": 65536, "mps": 16384}
"""Tokens of one forward pass. On a CPU larger batches leave its caches and are slower."""


class TorchEncoder:
    """Implements retriever.protocols.Encoder over a DualEncoder; counts the texts that it had to cut."""

    def __init__(self, model: DualEncoder, precision: str = "fp32", device: str = "auto") -> None:
        """``precision`` is "auto" or a key of DTYPES. Raises InputError for another."""
        self._device = pick_device(device)
        precision = resolve_precision(precision, self._device)
        self.fingerprints: Fingerprints = model.fingerprints(precision)
        self._dtype = DTYPES[precision]
        self._model = model.to(self._device).eval()
        self.cut_texts = 0

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._model.dimensions

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [len(texts), dimensions] from the query tower."""
        return self._encode("query", texts, progress)

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [len(texts), dimensions] from the passage tower."""
        return self._encode("passage", texts, progress)

    def _encode(self, side: Side, texts: Sequence[str], progress: Progress) -> FloatArray:
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        if not texts:
            return vectors
        tower = self._model.query if side == "query" else self._model.passage
        token_ids, cut = self._model.tokenize(side, texts)
        self.cut_texts += cut
        lengths = np.array([len(ids) for ids in token_ids])
        done = 0
        cast = torch.autocast(self._device.type, self._dtype) if self._dtype != torch.float32 else nullcontext()
        with torch.inference_mode(), cast:
            for batch in mixed(token_batches(lengths, TOKEN_BUDGETS[self._device.type])):
                ids, mask = tower.pad([token_ids[i] for i in batch])
                vectors[batch] = tower(ids.to(self._device), mask.to(self._device)).cpu().numpy()
                done += len(batch)
                progress(done, len(texts))
        return vectors
