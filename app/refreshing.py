"""Refreshing one run: the two halves of a refresh, following the trainer, or working inside its process.

Does not know processes, nor how a generation is built or negatives mined.
"""

from contextlib import suppress
from threading import Event

from app.composition import Run, mining_task
from app.opening import encoder_opener, warn_of_cuts
from app.progress import Meter, Report
from app.rankers import held_ranker, teaching_ranker
from indexer.builder import BuildInputs, build_generation
from indexer.partial import Partial
from miner.generations import BASELINE, furthest_back
from miner.loop import Retention, refresh
from miner.publish import passages_of, publish_negative_set, set_before
from miner.teacher import PoolTeacher
from retriever.artifacts import CURRENT, Artifact
from retriever.errors import BusyError, CorruptError, StoreError
from retriever.negatives import open_negative_set
from retriever.protocols import Encoder
from retriever.refresh_policy import partial_turn
from retriever.scoring import TorchRanker

FOLLOW_SECONDS = 1.0


class RefreshSteps:
    """The two halves of a refresh over one run: build a checkpoint's generation, mine a generation's negatives."""

    def __init__(self, run: Run, report: Report) -> None:
        """``report`` hears progress, warnings and results."""
        self._run = run
        self._report = report
        self._meter = Meter(report)
        self._open_encoder = encoder_opener(run.config.index, run.corpus, report)
        self._said: set[str] = set()
        self._task = mining_task(run)
        self._ranker: TorchRanker | None = None

    def build(self, checkpoint: Artifact) -> Artifact:
        """Publish the generation of ``checkpoint``."""
        self._report("build_started", checkpoint=checkpoint.number, step=checkpoint.facts["step"])
        run = self._run
        inputs = BuildInputs(
            self._open_encoder,
            run.corpus,
            run.dev,
            run.config.index,
            mining_depth=run.config.negatives.depth,
            partial=self._partial(checkpoint),
            open_ranker=held_ranker,
        )
        generation = build_generation(run.store, checkpoint, inputs, self._meter, self._warn)
        warn_of_cuts(self._open_encoder(checkpoint), self._warn_once)
        return generation

    def _partial(self, checkpoint: Artifact) -> Partial | None:
        """Return how most vectors of ``checkpoint`` follow from the generation before, None if all are encoded."""
        config = self._run.config
        earlier = None if config.refresh.method == "full" else self._earlier(checkpoint)
        turn = partial_turn(config.refresh, checkpoint.facts, None if earlier is None else earlier.facts)
        if earlier is None or turn is None:
            return None
        if config.refresh.method == "partial":
            return Partial(earlier, turn, config.refresh.share, config.seed)
        step = checkpoint.facts["step"]
        pools = set_before(self._run.store, step, self._task, self._warn, "all passages are encoded")
        if pools is None:
            return None
        held = passages_of(open_negative_set(pools.path), len(self._run.corpus))
        return Partial(earlier, turn, config.refresh.share, config.seed, (pools, held))

    def _earlier(self, checkpoint: Artifact) -> Artifact | None:
        """Return this configuration's newest generation of a step before that of ``checkpoint``, None if it is torn."""
        generations = self._run.store.generations
        for number in reversed(generations.numbers()):
            try:
                found = generations.at(number)
                if found.facts["step"] >= checkpoint.facts["step"]:
                    continue
                found.verify()
            except CorruptError as error:
                self._warn(f"{error}; nothing follows from it, all passages are encoded")
                return None
            same_run = found.manifest["config_sha256"] == self._run.config.sha256
            return found if same_run and found.parents["corpus"] == self._run.corpus.number else None
        return None

    def mine(self, generation: Artifact) -> Artifact:
        """Publish the negative set mined from ``generation``."""
        run = self._run
        if generation.facts["step"] == 0:
            run.store.generations.point(BASELINE, generation.number)
        encoder = self._open_encoder(generation)
        progress = self._meter.phase("mine")

        def own(artifact: Artifact) -> Encoder:
            return encoder if artifact.number == generation.number else self._open_encoder(artifact)

        negatives = publish_negative_set(
            run.store, generation, own, self._task, progress, self._warn, self._pool_teacher()
        )
        warn_of_cuts(encoder, self._warn_once)
        self._warn_of_cut_pairs()
        return negatives

    def _pool_teacher(self) -> PoolTeacher | None:
        """Return who scores the pairs of each set, None where [teacher] names nobody who does."""
        config = self._run.config.teacher
        if config is None or not config.is_stored:
            return None
        if self._ranker is None:
            self._ranker = teaching_ranker(config, self._run.config.index.precision)
            self._warn_of_another(self._ranker, config.name)
        return PoolTeacher(self._ranker, config.settings, config.depth, self._meter.phase("teach"))

    def _warn_of_another(self, ranker: TorchRanker, name: str) -> None:
        with suppress(StoreError):  # its reader reports it
            newest = self._run.store.negatives.get()
            before = None if newest is None else (newest.facts.get("teacher") or {}).get("fingerprint")
            if before not in (None, ranker.fingerprint):
                self._warn(f"{name} is another ranker, or in another precision, than what scored the sets before")

    def _warn_of_cut_pairs(self) -> None:
        if self._ranker is not None and self._ranker.cut_pairs:
            self._warn_once("the teacher reads some pairs of query and passage cut to [teacher] max_length")

    def _warn(self, message: str) -> None:
        self._report("warning", message=message)

    def _warn_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._warn(message)


def follow_checkpoints(run: Run, report: Report, stop: Event) -> None:
    """Be the refresher of ``run`` until its final checkpoint is done or ``stop`` is set."""
    steps = RefreshSteps(run, report)
    refresh(run.store, steps.build, steps.mine, stop, run.config.refresh.adopt, report, retention(run))


def follow_when_free(run: Run, report: Report, stop: Event) -> None:
    """Do as ``follow_checkpoints``; while another process builds or mines in the store, such as a rebuild, wait."""
    said = ""
    while not stop.is_set():
        try:
            follow_checkpoints(run, report, stop)
            return
        except BusyError as error:
            if str(error) != said:
                report("warning", message=f"{error}; waiting")
                said = str(error)
        stop.wait(FOLLOW_SECONDS)


def retention(run: Run) -> Retention:
    """Return what the refresher of ``run`` keeps: also the generations that its sources and its training read."""
    config = run.config
    return Retention(reach=furthest_back(config.negatives.sources), behind_sets=config.train.towers == "query")


def follow_runs(run: Run, report: Report, stop: Event) -> None:
    """Be the refresher of ``run`` until ``stop`` is set: after a final checkpoint, wait for a training that goes on.

    While it waits others may write to the store; where one does, it comes later.
    """
    done: int | None = None
    while not stop.is_set():
        newest = run.store.checkpoints.pointed(CURRENT)
        if newest != done:
            follow_when_free(run, report, stop)
            done = newest
        stop.wait(FOLLOW_SECONDS)


class _Done(Event):
    """Ends a loop that would wait: the trainer, in this same process, brings nothing before the loop has ended."""

    def wait(self, timeout: float | None = None) -> bool:
        """Be set at once."""
        self.set()
        return True


class InlineRefresher:
    """Refreshes within the trainer's process, each marked checkpoint at once: slow, simple, deterministic."""

    def __init__(self, run: Run, report: Report) -> None:
        """Do the work of ``follow_checkpoints`` for ``run``, one checkpoint a call."""
        self._run = run
        self._report = report
        self._steps = RefreshSteps(run, report)

    def marked(self, checkpoint: Artifact) -> None:
        """Build, mine and publish before returning, unless that was done before an interruption."""
        newest = self._run.store.negatives.get()
        if newest is not None and newest.parents["checkpoint"] >= checkpoint.number:
            return
        steps, adopt, keep = self._steps, self._run.config.refresh.adopt, retention(self._run)
        refresh(self._run.store, steps.build, steps.mine, _Done(), adopt, self._report, keep)

    def trouble(self) -> str | None:
        """Return None: whatever goes wrong is raised in ``marked``."""
        return None
