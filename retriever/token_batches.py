"""Batches of similar length under a token budget, so that little is spent on padding, and the padding itself.

Does not know torch: positions and lengths in, positions out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def token_batches(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Split positions 0…n−1 into batches, longest texts first.

    The longest text of a batch times its number of texts stays within ``budget`` tokens (a single text may exceed
    it). Longest first: a batch that does not fit into memory fails at once, not after hours. The batches depend on
    ``lengths`` alone.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def pad(token_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids and mask, int64 [n, longest], padded on the right by ``pad_id`` and 0."""
    lengths = np.array([len(ids) for ids in token_ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = np.concatenate(token_ids)
    return ids, mask.astype(np.int64)


def mixed(batches: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Return the longest batch, then the others in a fixed mixed order, so that rate and ETA hold from the start."""
    order = np.random.default_rng(0).permutation(max(0, len(batches) - 1)) + 1
    return [*batches[:1], *(batches[i] for i in order)]
