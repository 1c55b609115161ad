"""The retriever as a learner: its batches, hard negatives and objective, step by step.

Does not know checkpoints' other parts, other learners, or when negatives are adopted.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from retriever.artifacts import Artifact
from retriever.batch_order import BatchOrder, OpenPlanner
from retriever.batch_step import BatchStep, Gather
from retriever.checkpoint import model_folder, resuming
from retriever.encoder import DualEncoder, load_encoder
from retriever.errors import InputError
from retriever.examples import Batch, Examples
from retriever.learner import Saved, TrainConfig, Warn, Workplace, missing
from retriever.losses.contrastive import LossConfig
from retriever.objective import Objective
from retriever.optimiser import MOMENTS, Optimiser, Schedule
from retriever.pair_memory import PairMemory
from retriever.protocols import Encoder, FloatArray, IntArray, Negatives, NegativeSource, WatchingSource
from retriever.source_tally import SourceTally, brought, several_sources
from retriever.teacher import Score, Teacher, asking_encoder

EncodeQueries = Callable[[IntArray], FloatArray]
"""Training query rows int32 [n] → their vectors float32 [n, dim] by the weights of this moment."""
OPTIMIZER, ADAPTER, HEAD = "optimizer.safetensors", "adapter", "teacher_head.safetensors"


@dataclass(frozen=True)
class RetrieverParts:
    """Everything that training a retriever is made of.

    ``open_source`` takes an adopted set, the batches of a turn and the query tower as it is. ``open_vectors`` gives
    the passage vectors behind an adopted set, for ``towers`` "query". ``guide`` is the frozen model that [loss] names,
    ``teacher`` whom [teacher] names. ``keep_bank``: the planner reads the embeddings that training makes of queries.
    ``memory`` keeps what is seen of each pair. ``repeats``: the planner may give a query several times an epoch.
    """

    model: DualEncoder
    examples: Examples
    open_planner: OpenPlanner
    open_source: Callable[[Artifact, int, EncodeQueries], NegativeSource]
    open_vectors: Callable[[Artifact], Gather]
    loss: LossConfig
    guide: Encoder | None = None
    teacher: Teacher = field(default_factory=Teacher)
    keep_bank: bool = False
    memory: PairMemory | None = None
    repeats: bool = False


class RetrieverLearner:
    """Implements retriever.learner.Learner."""

    def __init__(
        self,
        parts: RetrieverParts,
        train: TrainConfig,
        steps: int,
        place: Workplace,
        warn: Warn,
        ranker: Score | None = None,
    ) -> None:
        """``steps`` are those that the retriever takes in the whole run; ``ranker`` scores by the run's own ranker."""
        self._parts, self._train, self._ranks, self._warn = parts, train, place.ranks, warn
        self._said_waiting = False
        model = parts.model
        if place.is_cpu:
            model.attend("eager")
            for reason in model.train_fast(place.dtype, checkpointing=place.checkpointing):
                warn(f"training goes through transformers' forward pass, slower than the fast one: {reason}")
        if place.checkpointing:
            model.checkpoint_gradients()
        _check_shares(train.batch_size, parts.memory, self._ranks.count)
        _freeze(model, train)
        self._teacher = parts.teacher.of_run(ranker)
        objective = Objective(parts.loss, parts.teacher.config, model.dimensions)
        objective.to(place.accelerator.device)
        self.schedule = Schedule("train", train.learning_rate, train.warmup_steps, steps, train.max_grad_norm)
        scales = {} if objective.learned is None else {objective.learned.log: parts.loss.temperature_rate}
        self._optimiser = Optimiser(place.accelerator, model, [objective], train.weight_decay, self.schedule, scales)
        self.batch_step = BatchStep(
            model,
            self._optimiser.model,
            parts.examples,
            objective,
            place.accelerator,
            self._ranks,
            train.grad_cache,
            train.accumulation,
            self._teacher,
            None if parts.guide is None else asking_encoder(parts.guide),
        )
        if train.towers == "query":  # until an index holds its vectors, the tower that stays is asked for them
            self.batch_step.frozen = self.batch_step.shared_passage_vectors
        self._source: NegativeSource | None = None
        self._sources: dict[str, int] = {}
        self._tally: SourceTally | None = None
        dimensions = model.dimensions if parts.keep_bank else None
        self._order = BatchOrder(
            parts.open_planner, len(parts.examples), dimensions, parts.memory, repeats=parts.repeats
        )
        self._optimiser.model.train()

    @property
    def facts(self) -> dict[str, Any]:
        """What the objective tells of the last batch, and with several sources what each gave to the last step."""
        facts: dict[str, Any] = dict(self.batch_step.objective.facts)
        return {**facts, "by_source": self._tally.facts()} if self._tally is not None else facts

    def step(self, step: int) -> float:
        """Take optimiser step ``step`` and return its loss. Raises InputError if it is no number."""
        self._optimiser.begin(step)
        self._warn_of_waiting()
        objective, parts, total = self.batch_step.objective, self._train.accumulation, 0.0
        self._tally = SourceTally(self._sources) if self._sources else None
        for part in range(parts):
            batch, drawn = self._batch(step * parts + part)
            loss = self.batch_step.backward(batch, step, last=part == parts - 1)
            if self._tally is not None and drawn is not None:
                hard, bits = batch.hard, brought(batch, drawn)
                self._tally.add(bits[hard], objective.score_gradient()[hard], objective.scores()[hard])
            if isinstance(self._source, WatchingSource):
                self._source.observe(batch.query_rows, objective.hard_scores(batch))
            if self._order.keeps_bank:
                self._order.note(batch.query_rows, objective.query_vectors())
            if self._parts.memory is not None:
                self._parts.memory.observe(batch, objective.scores(), objective.facts["temperature"])
            total += loss.item() / parts
        objective.average(self._ranks.count)
        self._optimiser.end(step, total)
        self.batch_step.stepped()
        return total

    def _warn_of_waiting(self) -> None:
        """Say once that steps before the first negative set teach nothing, where that is so."""
        teaching = self._parts.teacher.config
        if self._source is None and teaching is not None and teaching.waits and not self._said_waiting:
            self._warn(
                "[teacher] contrastive = 0: nothing is taught until the first negative set is adopted; "
                "above 0 the retriever would learn from in-batch negatives meanwhile"
            )
            self._said_waiting = True

    def _batch(self, position: int) -> tuple[Batch, Negatives | None]:
        rows, turn = self._order.at(position)
        drawn = None if self._source is None else self._source.draw(rows, position)
        if drawn is not None and self._train.drawn_negatives is not None:
            drawn = self.batch_step.hardest(rows, drawn, self._train.num_negatives)
        return self._parts.examples.batch(rows, turn, drawn), drawn

    def adopt(self, negatives: Artifact) -> None:
        """Draw negatives from this set, in the plan that belongs to it, from the next step on."""
        self._use(negatives)
        self._order.adopt(negatives)

    def _use(self, negatives: Artifact) -> None:
        parts = self._parts
        self._source = None  # live search holds a generation's vectors: first let go of those of the set before
        self._source = parts.open_source(negatives, self._order.batches_per_turn, self.batch_step.shared_query_vectors)
        self._sources = several_sources(negatives.facts)
        self.batch_step.objective.keeps_gradient = bool(self._sources)
        if self._train.towers == "query":
            self.batch_step.frozen = parts.open_vectors(negatives)
        self._teacher.adopt(negatives)

    def save(self, folder: Path) -> Saved:
        """Write model/, and into training/ the optimiser and what decides the next batches."""
        model, training = self._parts.model, folder / "training"
        model.save(folder / "model")
        self._order.save(training)
        self._teacher.save(training)
        if (head := self.batch_step.objective.head) is not None:
            save_file(head.state_dict(), training / HEAD)
        if isinstance(self._source, WatchingSource):
            self._source.save(training)
        state = {
            "groups": self._optimiser.save(training / OPTIMIZER),
            "temperature": self.batch_step.objective.state(),
        }
        facts: dict[str, Any] = {"weights_sha256": model.weights_sha256(), "model": asdict(model.config)}
        if model.adapted is not None:
            model.save_adapters(training / ADAPTER)
            facts["lora"] = asdict(model.adapted)
        return Saved(facts, state)

    def restore(self, checkpoint: Artifact, state: dict[str, Any], negatives: Artifact | None) -> str | None:
        """Take up what ``save`` wrote, of an adapted model the adapters alone.

        Raises CorruptError if it does not fit, InputError if adapters are not those of before or the model beneath
        them is not, or if it had another number of towers.
        """
        training, model = checkpoint.path / "training", self._parts.model
        if (tied := checkpoint.facts["model"]["tied"]) != model.config.tied:
            raise InputError(
                f"{checkpoint.path}: trained with [model] tied = {str(tied).lower()}; put that back, or start afresh "
                "with --new"
            )
        if model.adapted is not None:
            model.adapted.check(checkpoint.facts.get("lora"), checkpoint.path, "model.lora")
        with resuming(checkpoint):
            if model.adapted is None:
                model.load_state_dict(load_encoder(model_folder(checkpoint)).state_dict())
            else:
                model.load_adapters(training / ADAPTER)
            moments = self._optimiser.restore(training / OPTIMIZER, state["groups"])
            self.batch_step.objective.restore(state["temperature"])
            head = self.batch_step.objective.head
            headed = head is None or (training / HEAD).exists()
            if head is not None and headed:
                head.load_state_dict(load_file(training / HEAD))
        if negatives is not None:
            self._use(negatives)
        found = self._order.restore(training, negatives)
        if isinstance(self._source, WatchingSource):
            found &= self._source.restore(training)
        found &= self._teacher.restore(training) & headed
        return missing({"what [batches], [audit], per_query or [teacher] keep": found, MOMENTS: moments})


def _check_shares(batch_size: int, memory: PairMemory | None, ranks: int) -> None:
    """Raise InputError if a batch may have fewer queries than there are ``ranks``."""
    if batch_size < ranks:
        raise InputError(f"[train] batch_size = {batch_size}: fewer than the {ranks} ranks")
    least = batch_size if memory is None else memory.least_kept(batch_size)
    if least < ranks:
        raise InputError(
            f"[train] batch_size = {batch_size}: [audit] exclude may leave {least} queries of a batch, fewer than the "
            f"{ranks} ranks; write {2 * ranks} or more"
        )


def _freeze(model: DualEncoder, config: TrainConfig) -> None:
    if config.towers == "query":
        if model.query is model.passage:
            raise InputError('[train] towers = "query" needs [model] tied = false: one tower cannot stay and move')
        model.passage.requires_grad_(False)
