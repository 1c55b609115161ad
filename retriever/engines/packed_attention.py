"""Texts laid end to end for a GPU: no place is padding, and attention goes text by text in one kernel.

Does not know models; docs/encoding-speed.md tells what it gave.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from retriever.device import on_device

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
"""(query [q, heads, size], key and value [places, heads, size], ends of the texts among the queries and among the
places, int32 from 0 on [n + 1], most queries and most places of a text) → attended [q, heads, size]."""
AMPERE = (8, 0)


def packed_attention(device: torch.device, dtype: torch.dtype) -> Attention | None:
    """Return torch's attention over packed texts (FlashAttention-2, Dao 2023), None where it has none.

    It needs torch 2.10, an NVIDIA GPU of Ampere or newer, and half precision.
    """
    name = "torch.nn.attention.varlen"
    if device.type != "cuda" or dtype == torch.float32 or importlib.util.find_spec(name) is None:
        return None
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < AMPERE:
        return None
    attention: Attention = importlib.import_module(name).varlen_attn
    return attention


class PackedTexts:
    """Where the tokens of a padded batch are among the packed ones, and attention among them."""

    def __init__(self, mask: Tensor, device: torch.device, heads: int, attention: Attention) -> None:
        """``mask`` [n, length], padded on the right, lies on the CPU: nobody waits for ``device``. No text is empty."""
        lengths = mask.sum(1)
        self._shape, self._heads, self._attention = mask.shape, heads, attention
        self._longest = int(lengths.max())
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
        self._ends, self._places = on_device(ends, device), on_device(mask.flatten().nonzero()[:, 0], device)

    def enter(self, x: Tensor) -> Tensor:
        """[n, length, dim] → [1, places, dim]."""
        return x.flatten(0, 1).index_select(0, self._places)[None]

    def leave(self, x: Tensor) -> Tensor:
        """[1, places, dim] → [n, length, dim], 0 where padding is; [1, n, dim] of first tokens → [n, 1, dim]."""
        if x.shape[1] != len(self._places) or self._longest == 1:
            return x[0][:, None]
        n, length = self._shape
        return x.new_zeros(n * length, x.shape[2]).index_copy_(0, self._places, x[0]).view(n, length, -1)

    def first(self, x: Tensor) -> Tensor:
        """[1, places, dim] → [1, n, dim]: each text's first token."""
        return x.index_select(1, self._ends[:-1])

    def attend(self, qkv: Tensor, first: bool) -> Tensor:
        """[1, places, 3 · dim] → attended values [1, places, dim], or [1, n, dim] of first tokens alone."""
        query, key, value = qkv.view(qkv.shape[1], 3, self._heads, -1).unbind(1)
        ends, most = self._ends, self._longest
        if first:
            query, most = query.index_select(0, ends[:-1]), 1
            ends = torch.arange(len(ends), dtype=torch.int32, device=ends.device)
        return self._attention(query, key, value, ends, self._ends, most, self._longest).flatten(1)[None]
