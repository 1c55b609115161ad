"""The training loop: draw a batch, compare, step; mark checkpoints for a refresh, adopt negative sets between steps.

Does not know who encodes the corpus, mines negatives or shows progress.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from retriever.adoption import Adoption, Refresher, Report
from retriever.artifacts import BEST, CURRENT, Artifact
from retriever.batch_order import BatchOrder, OpenPlanner
from retriever.batch_step import BatchStep, Gather
from retriever.checkpoint import TrainingState, publish_checkpoint, restore_training
from retriever.device import DTYPES, Precision, pick_device, resolve_precision
from retriever.encoder import DualEncoder
from retriever.errors import CorruptError, InputError
from retriever.examples import Batch, Examples
from retriever.losses.contrastive import LossConfig
from retriever.negatives import open_negative_set
from retriever.objective import Objective
from retriever.optimiser import adamw, learning_rate
from retriever.protocols import Encoder, FloatArray, IntArray, NegativeSource, WatchingSource
from retriever.ranks import Ranks
from retriever.refresh_policy import RefreshConfig, parse_trigger, staleness_limit
from retriever.staleness import Probe, measure, take_probe
from retriever.store import Store


@dataclass(frozen=True)
class TrainConfig:
    """[train]: budget, optimiser and bookkeeping.

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
    device: Literal["auto", "cpu"] = "auto"
    save_every: int = 50
    keep_checkpoints: int = 2
    log_every: int = 1
    patience: int | None = None


EncodeQueries = Callable[[IntArray], FloatArray]
"""Training query rows int32 [n] → their vectors float32 [n, dim] by the weights of this moment."""


@dataclass(frozen=True)
class Training:
    """Everything that one run of the trainer is made of.

    ``open_source`` takes an adopted set, the batches of an epoch and the query tower as it is. ``open_vectors`` gives
    the passage vectors behind an adopted set, for ``towers`` "query". ``guide`` is the frozen model that [loss] names.
    ``keep_bank``: the planner reads the embeddings that training makes of the queries.
    """

    store: Store
    model: DualEncoder
    examples: Examples
    open_planner: OpenPlanner
    open_source: Callable[[Artifact, int, EncodeQueries], NegativeSource]
    open_vectors: Callable[[Artifact], Gather]
    refresher: Refresher
    report: Report
    train: TrainConfig
    loss: LossConfig
    refresh: RefreshConfig
    seed: int
    guide: Encoder | None = None
    keep_bank: bool = False
    dev_metric: str = "nDCG@10"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "finished", "stopped early" or "interrupted", and what it had done by then."""

    reason: str
    step: int
    checkpoint: int
    negative_sets_adopted: int
    max_staleness_steps: int


class Trainer:
    """Runs one training from the store's newest checkpoint, or from checkpoint 0, to its end."""

    def __init__(self, parts: Training, stop: Event) -> None:
        """Setting ``stop`` ends the run at the next step boundary with a checkpoint to resume from."""
        self._parts = parts
        self._stop = stop
        self._due = parse_trigger(parts.refresh.trigger, parts.train.save_every)
        device = torch.device("cpu") if parts.train.device == "cpu" else pick_device("auto")
        self._precision = resolve_precision(parts.train.precision, device)
        self._accelerator = Accelerator(
            mixed_precision="bf16" if self._precision == "bf16" else "no",
            cpu=parts.train.device == "cpu",
            # Buffers are constants, and ranks may forward a different number of micro-batches: none is broadcast.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
        )
        self._ranks = Ranks(self._accelerator)
        if self._accelerator.device.type == "cpu":
            parts.model.attend("eager")
            checkpointing = parts.train.gradient_checkpointing
            for reason in parts.model.train_fast(DTYPES[self._precision], checkpointing=checkpointing):
                self._warn(f"training goes through transformers' forward pass, slower than the fast one: {reason}")
        if parts.train.gradient_checkpointing:
            parts.model.checkpoint_gradients()
        if parts.train.batch_size < self._ranks.count:
            raise InputError(f"[train] batch_size = {parts.train.batch_size}: fewer than the {self._ranks.count} ranks")
        _freeze(parts.model, parts.train)
        objective = Objective(parts.loss, parts.guide).to(self._accelerator.device)
        self._optimizer = adamw([parts.model, objective], parts.train.weight_decay)
        self._model, self._wrapped = self._accelerator.prepare(parts.model, self._optimizer)
        self._batch_step = BatchStep(
            parts.model,
            self._model,
            parts.examples,
            objective,
            self._accelerator,
            self._ranks,
            parts.train.grad_cache,
            parts.train.accumulation,
        )
        self._adoption = Adoption(parts.store, parts.refresh, self._due, parts.refresher, self._report, stop)
        self._state = TrainingState(parts.seed)
        self._source: NegativeSource | None = None
        self._probe: Probe | None = None
        self._marked: set[int] = set()
        self._checkpoint = self._saved = -1
        dimensions = parts.model.dimensions if parts.keep_bank else None
        self._order = BatchOrder(parts.open_planner, len(parts.examples), dimensions)

    def run(self) -> Outcome:
        """Train until max_steps, early stopping or ``stop``. Raises StaleError as [refresh] on_stale asks."""
        with self._ranks.first_only(self._parts.store.checkpoints.writer()):
            self._start()
            reason = self._steps()
            if reason != "interrupted" or self._saved != self._state.step:
                self._save(refresh=reason != "interrupted", final=reason != "interrupted")
        return Outcome(reason, self._state.step, self._checkpoint, self._adoption.count, self._adoption.max_staleness)

    def _start(self) -> None:
        self._model.train()
        checkpoints = self._parts.store.checkpoints
        found = checkpoints.intact(CURRENT, self._warn) if self._ranks.is_first else None
        number = self._ranks.broadcast(-1 if found is None else found.number)
        if number < 0:
            self._save(refresh=self._due(0))
        else:
            self._resume(checkpoints.at(number))

    def _resume(self, checkpoint: Artifact) -> None:
        store = self._parts.store
        model = self._accelerator.unwrap_model(self._model)
        self._state = restore_training(checkpoint, model, self._optimizer)
        self._batch_step.objective.restore(self._state.temperature)
        self._checkpoint, self._saved = checkpoint.number, self._state.step
        self._adoption.resume(self._state.step)
        if self._adoption.adopted is not None:
            self._use(self._adoption.adopted)
        found = self._order.restore(checkpoint.path / "training", self._adoption.adopted)
        if isinstance(self._source, WatchingSource):
            found &= self._source.restore(checkpoint.path / "training")
        if not found:
            self._warn(f"{checkpoint.path}: trained without what [batches] or per_query keep; they begin anew")
        self._report("resumed", step=self._state.step, checkpoint=checkpoint.number)
        if self._ranks.is_first:
            self._marked = {n for n in store.checkpoints.numbers() if self._wants_refresh(n)}
            mined = store.negatives.get()
            told = -1 if mined is None else mined.parents.get("checkpoint", -1)
            if checkpoint.facts["refresh"] and told < checkpoint.number:
                self._parts.refresher.marked(checkpoint)  # a kill may have come before the first telling

    def _wants_refresh(self, number: int) -> bool:
        try:
            return bool(self._parts.store.checkpoints.at(number).facts.get("refresh"))
        except CorruptError as error:
            self._warn(f"{error}; it is passed over")
            return False

    def _steps(self) -> str:
        config = self._parts.train
        started, first = time.monotonic(), self._state.step
        while self._state.step < config.max_steps:
            if self._ranks.any(self._stop.is_set()):
                return "interrupted"
            self._adopt()
            if self._judge_generation():
                return "stopped early"
            if self._ranks.any(self._stop.is_set()):
                return "interrupted"
            loss = self._step()
            self._state.step += 1
            self._report_step(loss, (self._state.step - first) / (time.monotonic() - started))
            marked = self._is_stale() or self._due(self._state.step)
            if self._state.step < config.max_steps and (marked or self._state.step % config.save_every == 0):
                self._save(refresh=marked)
        return "finished"

    def _adopt(self) -> None:
        found = self._adoption.at(self._state.step) if self._ranks.is_first else None
        number = self._ranks.broadcast(-1 if found is None else found.number)
        if number < 0:
            return
        adopted = self._parts.store.negatives.at(number)
        self._use(adopted)
        self._order.adopt(adopted)
        self._report(
            "adopted",
            step=self._state.step,
            negatives=number,
            generation=adopted.parents["generation"],
            staleness=self._state.step - adopted.facts["step"],
        )

    def _use(self, adopted: Artifact) -> None:
        parts, config = self._parts, self._parts.refresh
        self._source = parts.open_source(adopted, self._order.batches_per_epoch, self._batch_step.query_vectors)
        if parts.train.towers == "query":
            self._batch_step.frozen = parts.open_vectors(adopted)
        if config.probe_every and self._ranks.is_first:
            pool = open_negative_set(adopted.path)
            self._probe = take_probe(pool, config.probe_queries, config.probe_depth, parts.seed)

    def _is_stale(self) -> bool:
        """Measure how stale the negatives are, when that is due; True marks a checkpoint, once a set."""
        config, step = self._parts.refresh, self._state.step
        if not config.probe_every or step % config.probe_every:
            return False
        stale = False
        if self._probe is not None:
            vectors = self._batch_step
            found = measure(
                self._probe,
                vectors.query_vectors(self._probe.queries),
                vectors.passage_vectors(self._probe.rows),
                vectors.objective.temperature_at(step),
            )
            told = {name: round(value, 4) for name, value in asdict(found).items()}
            self._report("staleness", step=step, **told)
            limit = staleness_limit(config.trigger)
            stale = limit is not None and 1 - found.overlap > limit
        if stale:
            self._probe = None  # until the next set is adopted
        return self._ranks.any(stale)

    def _judge_generation(self) -> bool:
        """Count the generation behind the negatives (so that it depends on the step alone); True ends the run."""
        adopted = self._adoption.adopted
        stopping = False
        if adopted is not None and adopted.parents["generation"] > self._state.judged:
            self._state.judged = adopted.parents["generation"]
            value = (adopted.facts.get("dev") or {}).get(self._parts.dev_metric)
            if value is not None:
                better = self._state.best is None or value > self._state.best
                self._state.best = value if better else self._state.best
                self._state.bad_generations = 0 if better else self._state.bad_generations + 1
            patience = self._parts.train.patience
            stopping = patience is not None and self._state.bad_generations >= patience
        return self._ranks.any(stopping)

    def _step(self) -> float:
        config = self._parts.train
        rate = learning_rate(self._state.step, config.learning_rate, config.warmup_steps, config.max_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(hash((self._parts.seed, self._state.step, self._ranks.index)) % 2**63)
        total = 0.0
        for part in range(config.accumulation):
            batch = self._batch(self._state.step * config.accumulation + part)
            loss = self._batch_step.backward(batch, self._state.step, last=part == config.accumulation - 1)
            if isinstance(self._source, WatchingSource):
                self._source.observe(batch.query_rows, self._batch_step.objective.hard_scores(batch))
            if self._order.keeps_bank:
                self._order.note(batch.query_rows, self._batch_step.objective.query_vectors())
            total += loss.item() / config.accumulation
        if not math.isfinite(total):
            raise InputError(f"[train] the loss is {total} at step {self._state.step}; lower [train] learning_rate")
        self._batch_step.objective.average(self._ranks.count)
        self._accelerator.clip_grad_norm_(self._model.parameters(), config.max_grad_norm)
        self._wrapped.step()
        self._batch_step.objective.bound()
        self._wrapped.zero_grad()
        return total

    def _batch(self, position: int) -> Batch:
        rows, epoch = self._order.at(position)
        drawn = None if self._source is None else self._source.draw(rows, position)
        if drawn is not None and self._parts.train.drawn_negatives is not None:
            drawn = self._batch_step.hardest(rows, drawn, self._parts.train.num_negatives)
        return self._parts.examples.batch(rows, epoch, drawn)

    def _save(self, *, refresh: bool, final: bool = False) -> None:
        if self._ranks.is_first:
            self._publish(refresh, final)
        self._saved = self._state.step
        self._ranks.wait()

    def _publish(self, refresh: bool, final: bool) -> None:
        store = self._parts.store
        parents = {"corpus": self._parts.examples.corpus.number}
        if self._adoption.adopted is not None:
            parents["negatives"] = self._adoption.adopted.number
        model = self._accelerator.unwrap_model(self._model)
        facts = {"refresh": refresh, "final": final, "precision": self._precision}
        self._state.temperature = self._batch_step.objective.state()
        saved = publish_checkpoint(store, model, self._optimizer, self._state, self._save_order, parents, facts)
        self._checkpoint = saved.number
        self._report("checkpoint", step=self._state.step, number=saved.number, **facts)
        if refresh:
            self._marked.add(saved.number)
            self._parts.refresher.marked(saved)
        newest = store.generations.get()
        built = -1 if newest is None else newest.parents["checkpoint"]
        self._marked = {number for number in self._marked if number > built}
        store.retain("checkpoints", self._parts.train.keep_checkpoints, grace_seconds=60, also=self._marked)

    def _save_order(self, folder: Path) -> None:
        """Write what decides the next batches, where that follows from those before."""
        self._order.save(folder)
        if isinstance(self._source, WatchingSource):
            self._source.save(folder)

    def _warn(self, message: str) -> None:
        self._report("warning", message=message)

    def _report(self, event: str, **fields: object) -> None:
        if self._ranks.is_first:
            self._parts.report(event, **fields)

    def _report_step(self, loss: float, rate: float) -> None:
        step, config = self._state.step, self._parts.train
        if step % config.log_every and step != config.max_steps:
            return
        adopted = self._adoption.adopted
        self._report(
            "step",
            step=step,
            of=config.max_steps,
            loss=round(loss, 4),
            learning_rate=learning_rate(step - 1, config.learning_rate, config.warmup_steps, config.max_steps),
            **{name: round(value, 4) for name, value in self._batch_step.objective.facts.items()},
            steps_per_second=round(rate, 3),
            eta_seconds=round((config.max_steps - step) / rate, 1),
            negatives=None if adopted is None else adopted.number,
            generation=None if adopted is None else adopted.parents["generation"],
            staleness=self._adoption.staleness(step),
        )


def mark_best(store: Store) -> int | None:
    """Point BEST of the checkpoints to the one behind BEST of the generations; return its number."""
    best = store.generations.get(BEST)
    if best is None:
        return None
    store.checkpoints.point(BEST, best.parents["checkpoint"])
    return best.parents["checkpoint"]


def _freeze(model: DualEncoder, config: TrainConfig) -> None:
    if config.towers == "query":
        if model.query is model.passage:
            raise InputError('[train] towers = "query" needs [model] tied = false: one tower cannot stay and move')
        model.passage.requires_grad_(False)
