"""Batches of similar length under a token budget, so that little is spent on padding, and the padding itself.

Does not know torch: positions and lengths in, positions out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.tokens import TokenIds


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


def shared_budget(tokens: int, streams: int, least: int, most: int) -> int:
    """Return the tokens of a batch where ``tokens`` in all are spread over ``streams``: ``most``, or fewer.

    So few texts leave no stream without work: each gets two batches, since they take unequal times. None is made
    smaller than ``least``.
    """
    return most if streams == 1 else min(most, max(least, tokens // (2 * streams)))


def bucketed(lengths: NDArray[np.int64], budget: int, parts: int) -> list[list[NDArray[np.int64]]]:
    """Split positions 0…n−1 into micro-batches of about ``budget`` tokens, longest first, each into buckets.

    Texts of a bucket differ by at most an eighth in length. The number of micro-batches is a multiple of ``parts`` and
    all have about as many tokens, so that as many threads end together; with few texts there are fewer.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    count = parts * max(1, -(-int(ends[-1]) // (parts * budget)))
    cuts = np.unique(np.searchsorted(ends, np.arange(1, count) * ends[-1] / count, side="right"))
    return [_buckets(batch, lengths) for batch in np.split(order, cuts) if len(batch)]


def _buckets(batch: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split a batch that is sorted by length."""
    starts, longest = [], -1
    for place, length in enumerate(lengths[batch].tolist()):
        if longest < 0 or length * 8 < longest * 7:
            starts.append(place)
            longest = length
    return np.split(batch, starts[1:])


def pad(token_ids: Sequence[TokenIds], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids and mask, int64 [n, longest], padded on the right by ``pad_id`` and 0."""
    lengths = np.array([len(ids) for ids in token_ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = np.concatenate(token_ids)
    return ids, mask.astype(np.int64)


def mixed(batches: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Return the longest batch, then the others in a fixed mixed order, so that rate and ETA hold from the start."""
    if len(batches) < 3:
        return batches  # nothing to mix, and a single query waits
    order = np.random.default_rng(0).permutation(len(batches) - 1) + 1
    return [*batches[:1], *(batches[i] for i in order)]
