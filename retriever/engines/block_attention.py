"""Attention in bf16 on a CPU: two products and a softmax over whole registers, in blocks that stay in the cache.

Does not know models; docs/encoding-speed.md tells what it gave beside torch's fused attention.
"""

import torch
from torch import Tensor

from retriever.device import has_fast_bf16

LANES = 32
"""Numbers in bf16 that a register of 512 bits holds; torch's softmax takes what is left of a row one by one."""
BLOCK = 2**20
"""Numbers of a block, scores or keys, that are computed at a time; one text may have more."""
FEWEST, LONGEST = 96, 512
"""Places of a batch, and of a text, between which this is faster than torch's fused attention."""


def is_faster(query: Tensor, key: Tensor) -> bool:
    """Tell whether ``attend_in_blocks`` is for these, [texts, heads, places, size]; queries may be the first alone."""
    texts, _, places, _ = key.shape
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not has_fast_bf16(query.device):
        return False
    return texts * places >= FEWEST and places <= LONGEST


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Return attended values [texts, places of queries, heads, size] for three of [texts, heads, places, size].

    ``bias`` is added to scores, [texts or 1, heads or 1, places of queries or 1, places of keys].
    """
    texts, heads, places, size = query.shape
    spare = -key.shape[2] % LANES
    attended = torch.empty(texts, places, heads, size, dtype=query.dtype)
    block = max(1, BLOCK // (heads * max(places, size) * (key.shape[2] + spare)))
    for start in range(0, texts, block):
        own = slice(start, start + block)
        queries, keys, values = (_rows(x[own], more) for x, more in ((query, 0), (key, spare), (value, spare)))
        queries *= size**-0.5
        scores = torch.bmm(queries, keys.transpose(1, 2)).view(-1, heads, places, keys.shape[1])
        if bias is not None:
            scores[..., : key.shape[2]] += bias if len(bias) == 1 else bias[own]
        scores[..., key.shape[2] :] = -torch.inf
        shares = torch.softmax(scores, -1).flatten(0, 1)
        attended[own] = torch.bmm(shares, values).view(-1, heads, places, size).transpose(1, 2)
    return attended


def _rows(x: Tensor, spare: int) -> Tensor:
    """[texts, heads, places, size] → a copy [texts · heads, places + spare, size], 0 where it is spare."""
    texts, heads, places, size = x.shape
    copy = torch.empty(texts, heads, places + spare, size, dtype=x.dtype)
    copy[:, :, :places] = x
    copy[:, :, places:] = 0
    return copy.flatten(0, 1)
