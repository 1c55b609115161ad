"""The engine of every model and device: torch, by the fast forward pass where the family has one.

Does not know texts, nor which engine is chosen when.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from numpy.typing import NDArray

from retriever.device import DTYPES, on_device
from retriever.engines.fast_forward import fast_forward
from retriever.engines.packed_attention import packed_attention
from retriever.protocols import FloatArray
from retriever.tower import Tower


class TorchEngine:
    """Implements retriever.engines.choice.Engine; each call computes with the threads of its caller."""

    least_tokens = 64

    def __init__(self, tower: Tower, precision: str, device: torch.device) -> None:
        """``precision`` is a key of DTYPES; ``tower`` moves to ``device`` and must not be trained further."""
        self._tower = tower.to(device).eval()
        self._dtype = DTYPES[precision]
        self._device = device
        with torch.inference_mode():
            self._fast = fast_forward(
                tower.transformer,
                self._dtype,
                first_only=tower.pooling == "cls",
                attention=packed_attention(device, self._dtype),
            )

    def vectors(self, ids: NDArray[Any], mask: NDArray[Any], alone: bool = False) -> FloatArray:
        """Return float32 [n, dim] for token ids and mask, int64 [n, length], padded on the right.

        ``alone`` changes nothing: over few tokens, threads that share each product wait longer than they compute.
        """
        with torch.inference_mode():
            vectors: FloatArray = self._vectors(torch.from_numpy(ids), torch.from_numpy(mask)).cpu().numpy()
        return vectors

    def _vectors(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        there = on_device(mask, self._device)
        if self._fast is not None:
            return self._tower.pool(self._fast(ids, mask), there)
        with self._cast():
            vectors: torch.Tensor = self._tower(on_device(ids, self._device), there)
        return vectors

    def _cast(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)
