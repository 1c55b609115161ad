"""Threads that compute one batch each, instead of sharing every product of one batch.

Does not know what is computed.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Like the built-in ``map`` over one iterable."""

FEEDING = {"cuda": 3}
"""Threads that keep a GPU busy: it computes for one while the others tokenize, pad, copy or fetch."""


def most_streams(device: torch.device) -> int:
    """Return how many threads may compute at once on ``device``: torch's number on a CPU, one elsewhere.

    On a GPU they take turns, and some prepare and fetch while it computes for another.
    """
    return torch.get_num_threads() if device.type == "cpu" else FEEDING.get(device.type, 1)


@contextmanager
def streams(count: int, device: torch.device) -> Iterator[Map]:
    """Give a ``map``, in order, over ``count`` threads that compute with a single thread of torch's each.

    They never wait for each other, so they are faster than threads that share each product, and a result's bits do
    not depend on their number. What the block raises cancels what has not begun.
    """
    if device.type != "cpu" and count == 1:
        yield map
        return
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        if count == 1:
            yield map
            return
        with ThreadPoolExecutor(count, "stream", lambda: torch.set_num_threads(1)) as pool:
            try:
                yield pool.map
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)
