"""What the trainer asks of a model that learns, and what all of them share: [train], devices and processes.

Does not know which models there are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from retriever.artifacts import Artifact
from retriever.device import DTYPES, Precision, pick_device, resolve_precision
from retriever.optimiser import Schedule
from retriever.ranks import TIMEOUT, Ranks

Warn = Callable[[str], None]


@dataclass(frozen=True)
class TrainConfig:
    """[train]: budget, optimiser and bookkeeping; the ranker's own are in [ranker].

    ``towers`` "query" trains the query tower alone, against passage vectors that stay (ADORE). Of ``drawn_negatives``
    a query, where given, the ``num_negatives`` that score highest by the present weights are learned from (max loss).
    ``grad_cache`` bounds memory by a micro-batch instead of the batch, ``gradient_checkpointing`` by a layer instead of
    all: each computes every forward pass twice. ``patience`` counts generations without a better dev metric.
    """

    max_steps: int = 600
    batch_size: int = 32
    num_negatives: int = 1
    drawn_negatives: int | None = None
    towers: Literal["both", "query"] = "both"
    learning_rate: float = 5e-5
    warmup_steps: int = 60
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    accumulation: int = 1
    grad_cache: bool = False
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = 50
    keep_checkpoints: int = 2
    log_every: int = 1
    patience: int | None = None


class Learner(Protocol):
    """One model with its optimiser, batches and loss. Its steps count from 0, whatever others learn in between."""

    @property
    def schedule(self) -> Schedule:
        """The rate of each of its steps."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What to tell of its last step beside the loss: numbers, and tables of numbers."""
        ...

    def step(self, step: int) -> float:
        """Take optimiser step ``step`` and return its loss, alike on all ranks.

        Raises InputError if that is no number.
        """
        ...

    def adopt(self, negatives: Artifact) -> None:
        """Draw negatives from this set from the next step on."""
        ...

    def save(self, folder: Path) -> "Saved":
        """Write the model and what resuming needs into a checkpoint's ``folder``, where training/ is there already."""
        ...

    def restore(self, checkpoint: Artifact, state: dict[str, Any], negatives: Artifact | None) -> str | None:
        """Take up what ``save`` wrote, while ``negatives`` are in use; return what begins anew, None if nothing does.

        Raises CorruptError if something does not fit.
        """
        ...


def missing(found: Mapping[str, bool]) -> str | None:
    """Return the names of what was not ``found`` in a checkpoint, as ``Learner.restore`` does."""
    return " and ".join(name for name, was_found in found.items() if not was_found) or None


@dataclass(frozen=True)
class Saved:
    """Of a learner in a checkpoint: the ``facts`` for its manifest, and its ``state`` for training/state.json."""

    facts: dict[str, Any]
    state: dict[str, Any]


@dataclass(frozen=True)
class Workplace:
    """Where a run's models learn: device and processes, and the number format."""

    accelerator: Accelerator
    ranks: Ranks
    precision: str
    checkpointing: bool

    @property
    def is_cpu(self) -> bool:
        """Whether models learn on a CPU, where there are faster paths."""
        return bool(self.accelerator.device.type == "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return DTYPES[self.precision]


def open_workplace(train: TrainConfig) -> Workplace:
    """Return the workplace that ``train`` asks for."""
    device = pick_device(train.device)
    precision = resolve_precision(train.precision, device)
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=train.device == "cpu",
        # Buffers are constants, and ranks may forward a different number of micro-batches: none is broadcast.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
    )
    return Workplace(accelerator, Ranks(accelerator), precision, train.gradient_checkpointing)
