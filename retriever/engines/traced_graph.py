"""A tower's forward pass and pooling as one module of plain operations, which other engines trace.

Does not know those engines.
"""

import numpy as np
import torch
from torch import Tensor, nn

from retriever.engines.fast_forward import Forward, fast_forward
from retriever.errors import InputError
from retriever.tower import Tower

EXAMPLE = np.array([[1, 2, 3, 4], [1, 2, 0, 0]])
"""Token ids to trace by; one text is shorter, so that the way of padded batches is taken."""


class TracedGraph(nn.Module):
    """Token ids and mask, int64 [n, length] → vectors float32 [n, dim]."""

    def __init__(self, tower: Tower, forward: Forward) -> None:
        super().__init__()
        self._tower = tower
        self._forward = forward

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors."""
        return self._tower.pool(self._forward(input_ids, attention_mask), attention_mask)


def traced_graph(tower: Tower, asked: str, instead: str) -> tuple[TracedGraph, tuple[Tensor, Tensor]]:
    """Return what is traced of ``tower``, on the CPU in float32, and example inputs.

    Raises InputError, naming the setting ``asked`` and what to do ``instead``, for a model of a family that has no such
    forward pass here.
    """
    forward = fast_forward(tower.transformer, torch.float32, first_only=tower.pooling == "cls", packed=False)
    if forward is None:
        kind = tower.transformer.config.model_type
        raise InputError(f"[index] {asked} cannot take a model of type {kind!r}; {instead}")
    ids = torch.from_numpy(EXAMPLE)
    graph = TracedGraph(tower.to("cpu"), forward).eval()  # an exporter puts all of it back into the mode of the whole
    return graph, (ids, ids.clip(0, 1))
