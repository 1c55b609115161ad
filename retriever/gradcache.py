"""GradCache: contrastive batches larger than memory, by computing each vector twice and keeping no graph in between.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". The gradients are those of
the whole batch at once. Does not know the loss, nor how many processes take part.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retriever.token_batches import token_batches

Sides = tuple[list[list[int]], list[list[int]]]
"""Token ids of queries and of passages."""
Encode = Callable[[Any], Tensor]
"""A chunk of the batch → its vectors [n, dim], each with a graph behind it where gradients are on."""
Backward = Callable[[Tensor], object]
Synced = Callable[[bool], AbstractContextManager[Any]]
"""(is this the last chunk) → a context in which several processes average their gradients or, before, do not."""


@dataclass(frozen=True)
class Chunk:
    """A micro-batch of ``side`` 0 (queries) or 1 (passages): ``token_ids`` of both, the other side's empty.

    ``places`` int64 [n] say where its vectors belong among the side's.
    """

    side: int
    places: NDArray[np.int64]
    token_ids: Sides


def chunks_of(sides: Sides, budget: int) -> list[Chunk]:
    """Split both sides into token-budget batches; a side without texts has none."""
    chunks = []
    for side, token_ids in enumerate(sides):
        for places in token_batches(np.array([len(ids) for ids in token_ids], np.int64), budget):
            mine = [token_ids[place] for place in places]
            chunks.append(Chunk(side, places, (mine, []) if side == 0 else ([], mine)))
    return chunks


def in_order(parts: Sequence[Tensor], places: Sequence[NDArray[np.int64]]) -> Tensor:
    """Return the rows of ``parts`` together, each where ``places`` say that it was before it was batched."""
    together = torch.cat([*parts])
    order = torch.from_numpy(np.argsort(np.concatenate([*places])))
    return together.index_select(0, order.to(together.device))


def sides_in_order(chunks: Sequence[Chunk], vectors: Sequence[Tensor], dimensions: int) -> tuple[Tensor, Tensor]:
    """Return the vectors of queries and of passages [n, dimensions] in the order before they were split."""
    sides = []
    for side in (0, 1):
        mine = [number for number, chunk in enumerate(chunks) if chunk.side == side]
        if not mine:
            sides.append(torch.empty((0, dimensions), device=vectors[0].device if vectors else None))
            continue
        sides.append(in_order([vectors[number] for number in mine], [chunks[number].places for number in mine]))
    return sides[0], sides[1]


@dataclass(frozen=True)
class RandomState:
    """Where the generators stood when a chunk was forwarded, so that its dropout can be drawn again."""

    cpu: Tensor
    accelerator: Tensor | None

    @classmethod
    def now(cls) -> "RandomState":
        """Take note of the generators of the CPU and of the current accelerator."""
        return cls(torch.get_rng_state(), _accelerator().get_rng_state() if torch.accelerator.is_available() else None)

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            _accelerator().set_rng_state(self.accelerator)


def _accelerator() -> Any:
    """Return torch.cuda, torch.mps or whatever is there."""
    return torch.get_device_module(torch.accelerator.current_accelerator())


def cached_backward(
    chunks: Sequence[Any],
    encode: Encode,
    loss_of: Callable[[list[Tensor]], Tensor],
    backward: Backward,
    synced: Synced,
) -> Tensor:
    """Return the loss of all ``chunks``' vectors, its gradient added to every weight behind ``encode``.

    Memory is one chunk's graph and all vectors. ``backward`` replaces ``Tensor.backward``: it may scale.
    """
    vectors, states = encode_without_graph(chunks, encode)
    loss, gradients = gradients_of_vectors(vectors, loss_of, backward)
    after = RandomState.now()
    backward_through(chunks, encode, states, gradients, synced)
    after.restore()
    return loss


def encode_without_graph(chunks: Sequence[Any], encode: Encode) -> tuple[list[Tensor], list[RandomState]]:
    """Return each chunk's vectors, leaves that ask for gradients, and the random state before it was forwarded."""
    vectors, states = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(RandomState.now())
            vectors.append(encode(chunk).detach().requires_grad_())
    return vectors, states


def gradients_of_vectors(
    vectors: list[Tensor], loss_of: Callable[[list[Tensor]], Tensor], backward: Backward
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, detached, and its gradient by each chunk's vectors; zeros where it does not depend on them."""
    loss = loss_of(vectors)
    backward(loss)
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in vectors]
    return loss.detach(), gradients


def backward_through(
    chunks: Sequence[Any], encode: Encode, states: list[RandomState], gradients: list[Tensor], synced: Synced
) -> None:
    """Forward each chunk again under its random state, and send its cached gradient on to the weights.

    The scalar product of vectors and cached gradient is a surrogate whose gradient by the weights is the loss's.
    """
    last = len(chunks) - 1
    for number, (chunk, state, gradient) in enumerate(zip(chunks, states, gradients, strict=True)):
        state.restore()
        with synced(number == last):
            torch.autograd.backward((encode(chunk) * gradient).sum())  # not `backward`: it is scaled already
