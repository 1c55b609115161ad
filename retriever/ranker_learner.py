"""The ranker as a learner: its own batches and negatives, a loss over each query's group, step by step.

Does not know the retriever, checkpoints' other parts, or when negatives are adopted.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retriever.artifacts import Artifact
from retriever.batch_order import BatchOrder, OpenPlanner
from retriever.checkpoint import ranker_folder, resuming
from retriever.errors import InputError, require
from retriever.examples import Examples
from retriever.inference import TOKEN_BUDGETS
from retriever.learner import Saved, TrainConfig, Warn, Workplace, missing
from retriever.lora import LoraConfig, load_adapter, save_adapter
from retriever.losses.coupled import coupled
from retriever.losses.ranking import RANKING_LOSSES, Groups, RankingLossConfig
from retriever.optimiser import MOMENTS, Optimiser, Schedule
from retriever.protocols import FloatArray, NegativeSource, Progress, silent
from retriever.ranker import PairClassifier, RankerConfig, load_ranker
from retriever.ranker_files import save_ranker
from retriever.ranker_step import GroupLoss, RankerStep, Watch
from retriever.selection_head import add_selection
from retriever.source_tally import SourceTally, brought, several_sources
from retriever.teacher import Score
from retriever.trained_ranker import TrainedRanker

OPTIMIZER, ADAPTER = "ranker_optimizer.safetensors", "ranker_adapter"


@dataclass(frozen=True)
class RankerTrainConfig:
    """[ranker] of a run: which classifier, as RankerConfig has it, and how it learns.

    An encoder without a head, such as "minilm", gets a fresh one. ``teacher`` names a frozen ranker whose scores the
    loss reads, ``teacher_max_length`` and ``teacher_label`` how it reads pairs. ``batch_size`` counts queries, each
    with its positive and ``num_negatives``.
    """

    name: str
    max_length: int | None = None
    prompt: str | None = None
    activation: str | None = None
    label: int | str | None = None
    dropout: float | None = None
    loss: RankingLossConfig = field(default_factory=RankingLossConfig)
    teacher: str | None = None
    teacher_max_length: int | None = None
    teacher_label: int | str | None = None
    batch_size: int = 16
    num_negatives: int = 7
    learning_rate: float = 5e-5
    warmup_steps: int = 20
    accumulation: int = 1
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range, and for a teacher that the loss does not read or lacks."""
        taught = self.loss.name == "margin_mse"
        rules = {
            "max_length and teacher_max_length must be at least 1": all(
                length is None or length >= 1 for length in (self.max_length, self.teacher_max_length)
            ),
            "dropout must lie in [0, 1)": self.dropout is None or 0 <= self.dropout < 1,
            "batch_size, num_negatives and accumulation must be at least 1": min(
                self.batch_size, self.num_negatives, self.accumulation
            )
            >= 1,
            "learning_rate must be above 0": self.learning_rate > 0,
            "warmup_steps must not be negative": self.warmup_steps >= 0,
            'loss = { name = "margin_mse" } learns a teacher\'s margins: name one as teacher': not taught
            or self.teacher is not None,
            f'teacher: loss = {{ name = "{self.loss.name}" }} does not read its scores; take it out': taught
            or self.teacher is None,
            "teacher_max_length and teacher_label are of a teacher: name one, or take them out": self.teacher
            is not None
            or (self.teacher_max_length is None and self.teacher_label is None),
            'loss = { name = "cet" } grows a second head, which lora would not train: take one of the two out': (
                self.lora is None or self.loss.name != "cet"
            ),
        }
        require(rules, "[ranker] ")

    @property
    def model(self) -> RankerConfig:
        """Which classifier."""
        return RankerConfig(self.name, self.max_length, self.prompt, self.activation, self.label)


@dataclass(frozen=True)
class RankerParts:
    """Everything that training a ranker is made of.

    ``open_source`` takes an adopted set and the batches of an epoch. ``teacher`` scores pairs where the loss reads
    that.
    """

    model: PairClassifier
    config: RankerTrainConfig
    examples: Examples
    open_planner: OpenPlanner
    open_source: Callable[[Artifact, int], NegativeSource]
    teacher: Score | None = None


class RankerLearner:
    """Implements retriever.learner.Learner, and retriever.protocols.Ranker with the weights of this moment."""

    def __init__(self, parts: RankerParts, train: TrainConfig, steps: int, place: Workplace, warn: Warn) -> None:
        """``steps`` are those that the ranker takes in the whole run."""
        config = parts.config
        self._parts, self._place, self._warn = parts, place, warn
        if config.batch_size < place.ranks.count:
            raise InputError(f"[ranker] batch_size = {config.batch_size}: fewer than the {place.ranks.count} ranks")
        self._selection = add_selection(parts.model.classifier) if config.loss.name == "cet" else None
        trained = TrainedRanker(parts.model)
        reason = trained.train_fast(place.dtype, checkpointing=place.checkpointing) if place.is_cpu else None
        if reason is not None:
            warn(f"the ranker learns by transformers' forward pass, slower than the fast one: {reason}")
        if place.checkpointing and (reason is not None or not place.is_cpu):
            trained.checkpoint_gradients()
        self.schedule = Schedule("ranker", config.learning_rate, config.warmup_steps, steps, train.max_grad_norm)
        self._optimiser = Optimiser(place.accelerator, trained, [], train.weight_decay, self.schedule)
        self._step = RankerStep(
            trained,
            self._optimiser.model,
            parts.examples,
            configured_loss(parts.model, config.loss),
            place.accelerator,
            place.ranks,
            config.num_negatives,
            config.accumulation,
            parts.teacher,
        )
        self._source: NegativeSource | None = None
        self._sources: dict[str, int] = {}
        self._tally: SourceTally | None = None
        self._order = BatchOrder(parts.open_planner, len(parts.examples))
        self._said_cuts = False
        self._optimiser.model.train()

    @property
    def facts(self) -> dict[str, Any]:
        """With several sources what each gave to the last step."""
        return {} if self._tally is None else {"by_source": self._tally.facts()}

    @property
    def fingerprint(self) -> str:
        """What identifies the scores of this moment."""
        return self._parts.model.fingerprint(self._place.precision)

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n], the log-odds of each pair by the present weights, without dropout or gradient.

        Raises ValueError if there are not as many of both.
        """
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries but {len(passages)} passages: pair i is one of each")
        if not queries:
            return np.empty(0, np.float32)
        trained, budget = self._step.trained, TOKEN_BUDGETS[self._place.accelerator.device.type]
        trained.eval()
        try:
            with torch.no_grad(), self._place.accelerator.autocast():
                logits = trained(self._parts.model.tokenize(queries, passages)[0], budget)
        finally:
            trained.train()
        scores: FloatArray = self._parts.model.log_odds(logits).cpu().numpy()
        progress(len(queries), len(queries))
        return scores

    def step(self, step: int) -> float:
        """Take optimiser step ``step`` and return its loss. Raises InputError if it is no number."""
        self._optimiser.begin(step)
        total, parts = 0.0, self._parts.config.accumulation
        self._tally = SourceTally(self._sources) if self._sources else None
        for part in range(parts):
            position = step * parts + part
            rows, turn = self._order.at(position)
            drawn = None if self._source is None else self._source.draw(rows, position)
            batch = self._parts.examples.batch(rows, turn, drawn)
            watch = None if self._tally is None or drawn is None else Watch(self._tally, brought(batch, drawn))
            total += self._step.backward(batch, last=part == parts - 1, watch=watch) / parts
        if self._tally is not None:
            self._tally.gather(self._place.ranks.sum)
        self._optimiser.end(step, total)
        self._warn_of_cuts()
        return total

    def _warn_of_cuts(self) -> None:
        if not self._said_cuts and self._place.ranks.any(self._step.cut_pairs > 0):
            most = self._parts.model.config.max_length
            self._warn(f"the ranker reads some pairs of query and passage cut to [ranker] max_length = {most} tokens")
            self._said_cuts = True

    def adopt(self, negatives: Artifact) -> None:
        """Draw negatives from this set from the next step on."""
        self._use(negatives)
        self._order.adopt(negatives)

    def _use(self, negatives: Artifact) -> None:
        self._source = self._parts.open_source(negatives, self._order.batches_per_turn)
        self._sources = several_sources(negatives.facts)

    def save(self, folder: Path) -> Saved:
        """Write ranker/ and its optimiser."""
        model = self._parts.model
        if self._selection is not None:
            self._selection.save(folder / "training")
        with self._relevance_alone():
            save_ranker(model, folder / "ranker")
            facts = model.facts()
        if (adapted := model.adapted) is not None:
            save_adapter(model.classifier, adapted.lora, adapted.name, folder / "training" / ADAPTER)
            facts["lora"] = asdict(adapted)
        return Saved({"ranker": facts}, {"groups": self._optimiser.save(folder / "training" / OPTIMIZER)})

    def _relevance_alone(self) -> AbstractContextManager[None]:
        return nullcontext() if self._selection is None else self._selection.taken_off()

    def restore(self, checkpoint: Artifact, state: dict[str, Any], negatives: Artifact | None) -> str | None:
        """Take up what ``save`` wrote; a checkpoint without a ranker leaves this one as it starts.

        Of an adapted one the adapters and the head are loaded. Raises CorruptError if something does not fit,
        InputError if adapters are not those of before, or the model beneath them is not.
        """
        if negatives is not None:
            self._use(negatives)
        self._order.restore(checkpoint.path / "training", negatives)
        if not state:
            return "the ranker"
        model, training = self._parts.model, checkpoint.path / "training"
        if model.adapted is not None:
            model.adapted.check(checkpoint.facts["ranker"].get("lora"), checkpoint.path, "ranker.lora")
        with resuming(checkpoint):
            if model.adapted is None:
                saved = load_ranker(RankerConfig(str(ranker_folder(checkpoint))))
                with self._relevance_alone():
                    model.classifier.load_state_dict(saved.classifier.state_dict())
            else:
                load_adapter(model.classifier, training / ADAPTER)
            found = {
                "the head of selection": self._selection is None or self._selection.restore(training),
                MOMENTS: self._optimiser.restore(training / OPTIMIZER, state["groups"]),
            }
        return missing(found)


def configured_loss(model: PairClassifier, config: RankingLossConfig) -> GroupLoss:
    """Return the loss of ``config`` over the log-odds of the relevant label, whatever activation is named.

    "cet" reads the two heads that it is trained with.
    """
    if config.name == "cet":
        return lambda logits, mask, teacher: coupled(logits, mask, config.temperature, config.clip)

    def loss(logits: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
        odds = model.log_odds(logits.flatten(0, 1)).view(mask.shape)
        return RANKING_LOSSES[config.name](Groups(odds, mask, teacher), config)

    return loss
