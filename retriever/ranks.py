"""Several processes that train one model: shares, exact gathering, and decisions that all take alike.

Does not know what is trained.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from retriever.protocols import FloatArray

TIMEOUT = timedelta(days=7)
"""How long ranks wait for the first, which may wait for a whole refresh; one that has died ends the others anyway."""


class Ranks:
    """The processes of one run; with a single one everything here is the identity."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Take number and index of the ranks from ``accelerator``."""
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index
        self.is_first = self.index == 0

    def first_only(self, context: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
        """Return ``context`` on the first rank, an empty one elsewhere."""
        return context if self.is_first else nullcontext()

    def share(self, length: int) -> slice:
        """Return this rank's part of ``length`` items; parts differ by at most one item."""
        return slice(length * self.index // self.count, length * (self.index + 1) // self.count)

    def gather(self, mine: Tensor, length: int) -> Tensor:
        """Return all ranks' shares [length, dim] in order; gradients flow into ``mine`` alone.

        The loss over the result is the same on each rank, and the sum of the ranks' gradients is its gradient.
        """
        if self.count == 1:
            return mine
        bounds = [length * rank // self.count for rank in range(self.count + 1)]
        sizes = [end - start for start, end in pairwise(bounds)]
        padded = torch.zeros((max(sizes), mine.shape[1]), dtype=mine.dtype, device=mine.device)
        padded[: len(mine)] = mine.detach()
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        kept: list[Tensor] = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        kept[self.index] = mine
        return torch.cat(kept)

    def together(self, compute: Callable[[slice], FloatArray], length: int) -> Tensor:
        """Return float32 [length, dim] on the device, alike on all ranks: each has its share of it computed."""
        mine = torch.from_numpy(compute(self.share(length))).to(self._accelerator.device)
        return self.gather(mine, length)

    def sync_gradients(self, model: Any, last: bool) -> AbstractContextManager[Any]:
        """Average gradients over the ranks only in the ``last`` backward pass of a step."""
        return nullcontext() if last or self.count == 1 else self._accelerator.no_sync(model)

    def broadcast(self, number: int) -> int:
        """Return the first rank's ``number`` on every rank."""
        if self.count == 1:
            return number
        holder = torch.tensor([number], dtype=torch.int64, device=self._accelerator.device)
        dist.broadcast(holder, src=0)
        return int(holder.item())

    def any(self, flag: bool) -> bool:
        """Return whether any rank's ``flag`` is set, alike on all."""
        if self.count == 1:
            return flag
        holder = torch.tensor([int(flag)], device=self._accelerator.device)
        dist.all_reduce(holder)
        return bool(holder.item())

    def sum(self, number: float) -> float:
        """Return the sum of the ranks' numbers, alike on all."""
        if self.count == 1:
            return number
        holder = torch.tensor([number], dtype=torch.float32, device=self._accelerator.device)
        dist.all_reduce(holder)
        return float(holder.item())

    def wait(self) -> None:
        """Return when every rank has come here."""
        self._accelerator.wait_for_everyone()
