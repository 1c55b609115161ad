"""A second head on a ranker while it is trained: beside relevance, whether a passage was ever judged (CET).

Does not know the loss that fits both, nor pairs of texts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retriever.errors import InputError

SELECTION = "selection.safetensors"


class TwoHeads(nn.Module):
    """Stands in a classifier's last layer: in training logits [n, 2] of relevance and selection, else relevance's."""

    def __init__(self, relevance: nn.Linear) -> None:
        """Selection begins at 0, where every passage is as likely to have been judged."""
        super().__init__()
        self.relevance = relevance
        self.selection = nn.Linear(relevance.in_features, 1)
        nn.init.zeros_(self.selection.weight)
        nn.init.zeros_(self.selection.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return float [n, 2], or [n, 1] where nothing is trained, of what the last layer reads, [n, dim]."""
        relevance: Tensor = self.relevance(states)
        return torch.cat([relevance, self.selection(states)], dim=-1) if self.training else relevance


@dataclass(frozen=True)
class SelectionHead:
    """Where ``heads`` were put: in ``parent`` under ``name``, in place of the head of relevance."""

    parent: nn.Module
    name: str
    heads: TwoHeads

    @contextmanager
    def taken_off(self) -> Iterator[None]:
        """Let the classifier be what it was in the block: what is saved then holds relevance alone."""
        setattr(self.parent, self.name, self.heads.relevance)
        try:
            yield
        finally:
            setattr(self.parent, self.name, self.heads)

    def save(self, folder: Path) -> None:
        """Write the weights of selection into ``folder``."""
        save_file(dict(self.heads.selection.state_dict()), folder / SELECTION)

    def restore(self, folder: Path) -> bool:
        """Take up what ``save`` wrote; False if it is missing: selection stays what it begins as."""
        if not (folder / SELECTION).exists():
            return False
        self.heads.selection.load_state_dict(load_file(folder / SELECTION))
        return True


def add_selection(classifier: Any) -> SelectionHead:
    """Put a second head beside the one of ``classifier``, a sequence classifier of one label.

    Raises InputError for one of several labels, or without a linear layer that gives the label.
    """
    labels = classifier.config.num_labels
    if labels != 1:
        raise InputError(f'[ranker] loss = {{ name = "cet" }} needs a ranker of one label, this one has {labels}')
    linear = [(name, module) for name, module in classifier.named_modules() if isinstance(module, nn.Linear)]
    path, last = next(((name, one) for name, one in reversed(linear) if one.out_features == 1), ("", None))
    if last is None:
        kind = type(classifier).__name__
        raise InputError(f'[ranker] loss = {{ name = "cet" }}: {kind} has no linear layer that gives its label')
    above, _, name = path.rpartition(".")
    parent = classifier.get_submodule(above)
    head = SelectionHead(parent, name, TwoHeads(last).train(classifier.training))
    setattr(parent, name, head.heads)
    return head
