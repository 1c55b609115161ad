"""The training loop: let each model that learns take its steps in turn; mark checkpoints, adopt negatives in between.

Does not know what a model learns, who encodes the corpus, mines negatives or shows progress.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch

from retriever.adoption import Adoption, Refresher, Report
from retriever.artifacts import BEST, CURRENT, Artifact
from retriever.checkpoint import TrainingState, publish_checkpoint, read_state
from retriever.errors import CorruptError
from retriever.learner import Learner, TrainConfig, open_workplace
from retriever.phases import RETRIEVER_ALONE, LearnerName, PhasesConfig
from retriever.ranker_learner import RankerLearner, RankerParts
from retriever.refresh_policy import RefreshConfig, parse_trigger, staleness_limit
from retriever.retriever_learner import RetrieverLearner, RetrieverParts
from retriever.staleness import Present, StalenessWatch
from retriever.store import Store

DEV_METRIC = "nDCG@10"
"""What a generation measured on dev must raise, else ``patience`` runs out."""


@dataclass(frozen=True)
class Training:
    """Everything that one run of the trainer is made of; without ``ranker`` the retriever learns alone.

    ``frozen``: the key of each model that is asked and not trained, and what identifies its scores.
    """

    store: Store
    retriever: RetrieverParts
    refresher: Refresher
    report: Report
    train: TrainConfig
    refresh: RefreshConfig
    seed: int
    ranker: RankerParts | None = None
    phases: PhasesConfig = RETRIEVER_ALONE
    frozen: Mapping[str, str] = field(default_factory=dict)


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
        place = open_workplace(parts.train)
        self._ranks, self._precision = place.ranks, place.precision
        self._device = str(place.accelerator.device)
        phases, most = parts.phases, parts.train.max_steps
        self._learners: dict[LearnerName, Learner] = {}
        score = None
        if parts.ranker is not None:
            steps = phases.taken("ranker", most)
            ranker = RankerLearner(parts.ranker, parts.train, steps, place, self._warn)
            self._learners["ranker"], score = ranker, ranker.score
        steps = phases.taken("retriever", most)
        retriever = RetrieverLearner(parts.retriever, parts.train, steps, place, self._warn, score)
        self._learners["retriever"] = retriever
        vectors = retriever.batch_step
        present = Present(
            vectors.query_vectors,
            vectors.passage_vectors,
            lambda: vectors.objective.temperature_at(phases.taken("retriever", self._state.step)),
        )
        self._watch = StalenessWatch(parts.refresh, parts.seed, present)
        self._adoption = Adoption(parts.store, parts.refresh, self._due, parts.refresher, self._report, stop)
        self._state = TrainingState(parts.seed)
        self._marked: set[int] = set()
        self._marked_step = -1
        self._checkpoint = self._saved = -1

    def run(self) -> Outcome:
        """Train until max_steps, early stopping or ``stop``. Raises StaleError as [refresh] on_stale asks."""
        with self._ranks.first_only(self._parts.store.checkpoints.writer()):
            self._report("device", device=self._device, precision=self._precision, ranks=self._ranks.count)
            self._start()
            reason = self._steps()
            if reason != "interrupted" or self._saved != self._state.step:
                self._save(refresh=reason != "interrupted", final=reason != "interrupted")
        return Outcome(reason, self._state.step, self._checkpoint, self._adoption.count, self._adoption.max_staleness)

    def _start(self) -> None:
        checkpoints = self._parts.store.checkpoints
        found = checkpoints.intact(CURRENT, self._warn) if self._ranks.is_first else None
        number = self._ranks.broadcast(-1 if found is None else found.number)
        if number < 0:
            self._save(refresh=self._due(0))
        else:
            self._resume(checkpoints.at(number))

    def _resume(self, checkpoint: Artifact) -> None:
        store = self._parts.store
        self._state, states = read_state(checkpoint)
        self._checkpoint, self._saved = checkpoint.number, self._state.step
        if self._state.seed != self._parts.seed:
            self._warn(f"{checkpoint.path}: trained with seed {self._state.seed}, and goes on with {self._parts.seed}")
            self._state.seed = self._parts.seed
        self._adoption.resume(self._state.step)
        adopted = self._adoption.adopted
        for name, learner in self._learners.items():
            saved = states.pop(name, {})
            missing = learner.restore(checkpoint, saved, adopted)
            if missing is not None:
                self._warn(f"{checkpoint.path}: trained without {missing}; that begins anew")
            if not saved and (begun := self._parts.phases.taken(name, self._state.step)):
                of = f"step {begun} of its schedule, which is dealt out over the whole run"
                self._warn(f"the first step of the {name} is {of}: its warm-up may be over; --new starts both together")
        for other in states:
            self._warn(f"{checkpoint.path}: holds a {other} that this run does not train; later checkpoints do not")
        for key, before in checkpoint.facts.get("frozen", {}).items():
            if self._parts.frozen.get(key, before) != before:
                self._warn(
                    f"{checkpoint.path}: learned from another {key} than this run's: other weights, or computed "
                    "otherwise; what it learned stays, --new begins with today's"
                )
        self._report("resumed", step=self._state.step, checkpoint=checkpoint.number)
        if self._ranks.is_first:
            # Those above it are torn or not yet named, and are refreshed by nobody; this run makes them again.
            reached = [n for n in store.checkpoints.numbers() if n <= checkpoint.number]
            self._marked = {n for n in reached if self._wants_refresh(n)}
            if adopted is not None and not self._found_stale(adopted):
                self._watch.adopt(adopted)
            mined = store.negatives.get()
            told = -1 if mined is None else mined.parents.get("checkpoint", -1)
            if checkpoint.facts["refresh"] and told < checkpoint.number:
                self._parts.refresher.marked(checkpoint)  # a kill may have come before the first telling
            self._marked_step = self._last_marked_step(mined)
        if self._is_overdue():
            self._save(refresh=True)

    def _wants_refresh(self, number: int) -> bool:
        try:
            return bool(self._parts.store.checkpoints.at(number).facts.get("refresh"))
        except CorruptError as error:
            self._warn(f"{error}; it is passed over")
            return False

    def _found_stale(self, negatives: Artifact) -> bool:
        """Tell whether a checkpoint that waits for its refresh was marked because ``negatives`` were measured stale."""
        if staleness_limit(self._parts.refresh.trigger) is None:
            return False
        checkpoints = self._parts.store.checkpoints
        return any(checkpoints.at(number).parents.get("negatives") == negatives.number for number in self._marked)

    def _last_marked_step(self, mined: Artifact | None) -> int:
        """Return the step of the newest checkpoint that was marked, which may be gone once its generation is built."""
        made = [self._parts.store.checkpoints.at(number) for number in self._marked]
        later = [one for one in (mined, self._parts.store.generations.get()) if one is not None]
        return max((int(one.facts["step"]) for one in [*made, *later]), default=-1)

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
            name, loss = self._step()
            self._state.step += 1
            self._report_step(name, loss, (self._state.step - first) / (time.monotonic() - started))
            marked = self._is_stale() or self._due(self._state.step) or self._is_overdue()
            if self._state.step < config.max_steps and (marked or self._state.step % config.save_every == 0):
                self._save(refresh=marked)
        return "finished"

    def _adopt(self) -> None:
        found = self._adoption.at(self._state.step) if self._ranks.is_first else None
        number = self._ranks.broadcast(-1 if found is None else found.number)
        if number < 0:
            return
        adopted = self._parts.store.negatives.at(number)
        for learner in self._learners.values():
            learner.adopt(adopted)
        if self._ranks.is_first:
            self._watch.adopt(adopted)
        self._report(
            "adopted",
            step=self._state.step,
            negatives=number,
            generation=adopted.parents["generation"],
            staleness=self._state.step - adopted.facts["step"],
        )

    def _is_stale(self) -> bool:
        """Measure how stale the negatives are, when that is due; True marks a checkpoint, once a set."""
        step = self._state.step
        if not self._watch.is_due(step):
            return False
        return self._ranks.any(self._ranks.is_first and self._watch.is_stale(step, self._report))

    def _is_overdue(self) -> bool:
        """Tell whether the next boundary would wait for negatives that no marked checkpoint brings."""
        if self._parts.refresh.on_stale != "wait":
            return False
        overdue = self._ranks.is_first and self._adoption.overdue(self._state.step, self._marked_step)
        return self._ranks.any(overdue)

    def _judge_generation(self) -> bool:
        """Count the generation behind the negatives (so that it depends on the step alone); True ends the run."""
        adopted = self._adoption.adopted
        stopping = False
        if adopted is not None and adopted.parents["generation"] > self._state.judged:
            self._state.judged = adopted.parents["generation"]
            value = (adopted.facts.get("dev") or {}).get(DEV_METRIC)
            if value is not None:
                better = self._state.best is None or value > self._state.best
                self._state.best = value if better else self._state.best
                self._state.bad_generations = 0 if better else self._state.bad_generations + 1
            patience = self._parts.train.patience
            stopping = patience is not None and self._state.bad_generations >= patience
        return self._ranks.any(stopping)

    def _step(self) -> tuple[LearnerName, float]:
        """Let the model whose turn it is take a step; return its name and loss."""
        step, phases = self._state.step, self._parts.phases
        torch.manual_seed(hash((self._parts.seed, step, self._ranks.index)) % 2**63)
        name = phases.learner_at(step)
        return name, self._learners[name].step(phases.taken(name, step))

    def _save(self, *, refresh: bool, final: bool = False) -> None:
        if self._ranks.is_first:
            self._publish(refresh, final)
        self._saved = self._state.step
        self._ranks.wait()

    def _publish(self, refresh: bool, final: bool) -> None:
        store = self._parts.store
        parents = {"corpus": self._parts.retriever.examples.corpus.number}
        if self._adoption.adopted is not None:
            parents["negatives"] = self._adoption.adopted.number
        facts: dict[str, Any] = {"refresh": refresh, "final": final, "precision": self._precision}
        lineage = {"frozen": dict(self._parts.frozen)} if self._parts.frozen else {}
        saved = publish_checkpoint(store, self._learners, self._state, parents, {**facts, **lineage})
        self._checkpoint = saved.number
        self._report("checkpoint", step=self._state.step, number=saved.number, **facts)
        if refresh:
            self._marked.add(saved.number)
            self._marked_step = self._state.step
            self._parts.refresher.marked(saved)
        newest = store.generations.get()
        built = -1 if newest is None else newest.parents["checkpoint"]
        self._marked = {number for number in self._marked if number > built}
        store.retain("checkpoints", self._parts.train.keep_checkpoints, grace_seconds=60, also=self._marked)

    def _warn(self, message: str) -> None:
        self._report("warning", message=message)

    def _report(self, event: str, **fields: object) -> None:
        if self._ranks.is_first:
            self._parts.report(event, **fields)

    def _report_step(self, name: LearnerName, loss: float, rate: float) -> None:
        step, config, learner = self._state.step, self._parts.train, self._learners[name]
        if step % config.log_every and step != config.max_steps:
            return
        adopted = self._adoption.adopted
        self._report(
            "step",
            step=step,
            of=config.max_steps,
            phase=name,
            loss=round(loss, 4),
            learning_rate=learner.schedule.rate(self._parts.phases.taken(name, step) - 1),
            **_rounded(learner.facts),
            steps_per_second=round(rate, 3),
            eta_seconds=round((config.max_steps - step) / rate, 1),
            negatives=None if adopted is None else adopted.number,
            generation=None if adopted is None else adopted.parents["generation"],
            staleness=self._adoption.staleness(step),
        )


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers with four digits behind the point, those of inner tables too."""
    return {
        name: _rounded(value) if isinstance(value, dict) else None if value is None else round(value, 4)
        for name, value in facts.items()
    }


def mark_best(store: Store) -> int | None:
    """Point BEST of the checkpoints to the one behind BEST of the generations; return its number."""
    best = store.generations.get(BEST)
    if best is None:
        return None
    store.checkpoints.point(BEST, best.parents["checkpoint"])
    return best.parents["checkpoint"]
