"""The composition root: from a run's configuration to the trainer, the refresher's steps and their parts.

Does not know processes, terminals or HTTP.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np

from app.config import RunConfig, data_folder, read_config
from app.progress import Report
from app.rankers import teacher_of_ranker, teaching_ranker, telling_cuts
from indexer.shards import open_vectors
from indexer.slices import check_slices
from miner.audit import plant
from miner.batch_plans import ClusterPlan, RandomPlan, StoredPlan
from miner.generations import check_pinned
from miner.live_search import LiveSearch
from miner.mining import MiningTask
from miner.mixing import MixedPlan
from miner.per_query import PerQueryPool
from miner.publish import open_checked_scores, open_checked_set, open_to_vectors
from miner.stored_pool import StoredPool
from miner.verdicts import StoredVerdicts, corrected, read_verdicts, verdicts_of_then
from retriever.adoption import Refresher
from retriever.artifacts import Artifact
from retriever.batch_step import Gather
from retriever.counting import counted
from retriever.data import Corpus, QuerySet
from retriever.device import pick_device
from retriever.durable import sha256_json
from retriever.encoder import DualEncoder, ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.examples import Examples
from retriever.inference import ModelEncoder
from retriever.ingest import ingest_corpus, load_query_set
from retriever.joining import dataset_of
from retriever.negatives import open_batches
from retriever.pair_memory import PairMemory
from retriever.protocols import BatchPlanner, IntArray, NegativeSource
from retriever.ranker import start_ranker
from retriever.ranker_learner import RankerParts
from retriever.retriever_learner import EncodeQueries, RetrieverParts
from retriever.scoring import TorchRanker
from retriever.store import Store
from retriever.teacher import ANCHOR, OWN, Anchor, Teacher, asking_encoder, asking_ranker
from retriever.teacher_scores import TeacherScores
from retriever.trainer import Trainer, Training


@dataclass(frozen=True)
class Run:
    """A configuration with its store and data, open."""

    config: RunConfig
    store: Store
    corpus: Corpus
    train: QuerySet
    dev: QuerySet | None
    judged: StoredVerdicts | None = None


def open_run(path: Path, store_root: Path, *, skip_missing: bool, warn: Callable[[str], None]) -> Run:
    """Read the run.toml at ``path``, open or make the store, ingest the corpus and load train and dev queries.

    Raises InputError for what does not fit; a corpus is published only if the queries and stored verdicts fit it.
    """
    config = read_config(path)
    folder = data_folder(config, path)
    loaded: list[tuple[QuerySet, QuerySet | None, StoredVerdicts | None]] = []

    def load(corpus: Corpus) -> None:
        try:
            check_depth(config, corpus)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        load_split = partial(load_query_set, folder, corpus=corpus, skip_missing=skip_missing, warn=warn)
        train_split, dev_split = splits(config)
        train = with_positives(load_split(train_split), warn)
        dev = None if dev_split is None else load_split(dev_split)
        train, judged = with_verdicts(config, path.parent, corpus, train, warn)
        loaded.append((train, dev, judged))
        try:
            check_queries(config, train, dev)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    store = Store(store_root, config.sha256, create=True)
    check_pinned(store, config.negatives.sources)
    corpus = Corpus(ingest_corpus(store, folder, load, warn if skip_missing else None))
    return Run(config, store, corpus, *loaded[-1])


def check_depth(config: RunConfig, corpus: Corpus) -> None:
    """Raise InputError for pools that are deeper than ``corpus``."""
    if config.negatives.depth > len(corpus):
        raise InputError(
            f"negatives.depth = {config.negatives.depth}, but the corpus has {len(corpus)} passages; write no more"
        )


def check_queries(config: RunConfig, train: QuerySet, dev: QuerySet | None) -> None:
    """Raise InputError where a run cannot be made of the queries ``train`` and ``dev``.

    Whether they fill a batch is for ``first_planner``: mining needs none.
    """
    check_slices(config.index.slices, dev)
    config.batches.check(len(train), config.train.batch_size, in_batch=config.loss.in_batch)
    if config.ranker is not None:
        RandomPlan(len(train), config.ranker.batch_size, config.seed, "ranker")


def splits(config: RunConfig) -> tuple[str, str | None]:
    """Return the splits to train on and to evaluate on: where dev is carved, no query of it is trained on.

    Off train, that leaves what remains of it; off another split, train without the queries that they share.
    """
    train, dev = config.data.train, config.data.dev
    if dev is not None and ":" in dev:
        train = f"{train}:-{dev.removeprefix(f'{train}:')}"
    return train, dev


def with_positives(queries: QuerySet, warn: Callable[[str], None]) -> QuerySet:
    """Return the queries that have a positive to learn from; the others are counted through ``warn``."""
    kept = [row for row in range(len(queries)) if len(queries.positives(row))]
    if len(kept) < len(queries):
        without = counted(
            len(queries) - len(kept), "query has no relevant passage and is", "queries have no relevant passage and are"
        )
        warn(f"split {queries.split}: {without} not trained on")
    return queries.subset(kept)


def with_verdicts(
    config: RunConfig,
    folder: Path,
    corpus: Corpus,
    train: QuerySet,
    warn: Callable[[str], None],
    mined: Artifact | None = None,
) -> tuple[QuerySet, StoredVerdicts | None]:
    """Return the training queries as the run's stored verdicts correct them, and these; paths start from ``folder``.

    ``mined``: by the verdicts that this negative set was mined with. Where those are gone it is by those of now, and
    whoever opens the set is told if its queries are others.
    """
    if config.negatives.verdicts is None:
        return train, None
    path = folder / config.negatives.verdicts
    if mined is not None:
        sha256 = mined.facts.get("verdicts_sha256")
        if sha256 is None:
            return train, None
        path = verdicts_of_then(path, sha256)
    return corrected(train, read_verdicts(path, corpus, train, warn, config.negatives.on_relevant), warn)


def planner_opener(run: Run) -> Callable[[Artifact | None], BatchPlanner]:
    """Return what gives the batch plan of ``run`` while a negative set is in use, or before the first (None).

    All its plans have equally many batches.
    """
    config, queries = run.config, len(run.train)
    size = config.train.batch_size

    def open_planner(artifact: Artifact | None) -> BatchPlanner:
        first = first_planner(config, run.train)
        if config.batches.name != "b3" or artifact is None:
            return first
        batches = open_batches(artifact.path)
        if batches is None or batches.shape != first.plan(0).shape:
            raise InputError(
                f"{artifact.path}: holds no batches of {size} for {queries} queries, as a run with another [batches] "
                "left it; begin anew with --new, or go on with the [batches] and batch_size that it had"
            )
        return StoredPlan(batches, artifact.number, config.seed)

    return open_planner


def first_planner(config: RunConfig, train: QuerySet) -> BatchPlanner:
    """Return what plans batches before the first negative set. Raises InputError where ``train`` does not fill one."""
    queries, size, seed = len(train), config.train.batch_size, config.seed
    if config.batches.name == "ngame":
        return ClusterPlan(queries, size, seed=seed, **config.batches.knobs)
    if config.mix is not None:
        return MixedPlan([dataset_of(name) for name in train.ids], config.mix, size, seed)
    return RandomPlan(queries, size, seed)


def mining_task(run: Run) -> MiningTask:
    """Return what ``run`` mines for."""
    config = run.config
    return MiningTask(
        run.corpus,
        run.train,
        config.negatives,
        config.seed,
        config.refresh.query_fraction,
        run.judged,
        config.batches.b3(config.train.batch_size),
    )


def make_trainer(run: Run, refresher: Refresher, report: Report, stop: Event) -> Trainer:
    """Return the trainer of ``run``."""
    config = run.config

    def open_source(artifact: Artifact, batches_per_turn: int, encode_queries: EncodeQueries) -> NegativeSource:
        pool = open_checked_set(artifact, run.corpus, run.train)
        sampler, count = config.negatives.sampler, config.train.drawn_negatives or config.train.num_negatives
        if config.negatives.live:
            generation = run.store.generations.at(artifact.parents["generation"])
            return LiveSearch(open_to_vectors(generation), mining_task(run), encode_queries, count)
        if config.negatives.per_query is not None:
            return PerQueryPool(pool, config.negatives.per_query, count)
        wanted = config.negatives.wanted(count, artifact.facts["sources"])
        return StoredPool(pool, artifact.number, sampler, wanted, config.seed, batches_per_turn)

    def open_generation_vectors(artifact: Artifact) -> Gather:
        return open_vectors(run.store.generations.at(artifact.parents["generation"]).path / "vectors").gather

    examples = _examples(run, in_batch=config.loss.in_batch)
    guide, teacher, ranker_teacher = _guide(config), _teacher(run, report), _ranker_teacher(config)
    frozen = {
        "[loss] guide": None if guide is None else _identity(guide),
        "[teacher] name": teacher.fingerprint,
        "[ranker] teacher": None if ranker_teacher is None else ranker_teacher.fingerprint,
    }
    retriever = RetrieverParts(
        _learner(config),
        examples,
        planner_opener(run),
        open_source,
        open_generation_vectors,
        config.loss,
        guide,
        teacher,
        keep_bank=config.batches.name == "ngame",
        memory=None if config.audit is None else pair_memory(run, examples),
        repeats=config.mix is not None,
    )
    parts = Training(
        store=run.store,
        retriever=retriever,
        refresher=refresher,
        report=report,
        train=config.train,
        refresh=config.refresh,
        seed=config.seed,
        ranker=_ranker_parts(run, report, ranker_teacher),
        phases=config.turns,
        frozen={key: fingerprint for key, fingerprint in frozen.items() if fingerprint is not None},
    )
    return Trainer(parts, stop)


def _ranker_teacher(config: RunConfig) -> TorchRanker | None:
    """Return the frozen ranker of [ranker] teacher."""
    if config.ranker is None or config.ranker.teacher is None:
        return None
    return teacher_of_ranker(config.ranker, config.train.precision, config.train.device)


def _ranker_parts(run: Run, report: Report, teacher: TorchRanker | None) -> RankerParts | None:
    """Return what trains the ranker of ``run``: in shuffled batches, on draws that are not the retriever's."""
    config, settings = run.config, run.config.ranker
    if settings is None:
        return None

    def open_source(artifact: Artifact, batches_per_turn: int) -> NegativeSource:
        pool, sampler = open_checked_set(artifact, run.corpus, run.train), config.negatives.sampler
        wanted = config.negatives.wanted(settings.num_negatives, artifact.facts["sources"])
        return StoredPool(pool, artifact.number, sampler, wanted, config.seed + 1, batches_per_turn)

    def open_planner(artifact: Artifact | None) -> BatchPlanner:
        return RandomPlan(len(run.train), settings.batch_size, config.seed + 1, "ranker")

    model = start_ranker(settings.model, config.seed, settings.dropout)
    if settings.lora is not None:
        model.adapt(settings.lora, config.seed)
    report("ranker", name=settings.name, head="fresh" if model.has_fresh_head else "its own")
    score = None if teacher is None else telling_cuts(teacher, "[ranker] teacher_max_length", report)
    return RankerParts(model, settings, _examples(run, in_batch=True), open_planner, open_source, score)


def _examples(run: Run, *, in_batch: bool) -> Examples:
    """Return what ``run`` learns from: its training queries, with the wrong positives that [audit] plants.

    The true positives of a query with a wrong one are no negatives either.
    """
    config = run.config
    planted = 0.0 if config.audit is None else config.audit.planted
    train = plant(run.train, run.corpus, planted, config.seed, joined=config.mix is not None)

    def relevant(query_row: int) -> IntArray:
        judged = np.empty(0, np.int32) if run.judged is None else run.judged.relevant_to(query_row)
        return np.append(run.train.known(query_row), judged) if planted else judged

    known = relevant if planted or run.judged is not None else None
    return Examples(run.corpus, train, in_batch=in_batch, seed=config.seed, judged_relevant=known)


def pair_memory(run: Run, examples: Examples) -> PairMemory:
    """Return the empty memory of the pairs that ``examples`` hold, as [audit] asks for."""
    config = run.config
    assert config.audit is not None
    return PairMemory(examples.queries, len(run.corpus), config.audit, config.seed, examples.positive_of)


def _learner(config: RunConfig) -> DualEncoder:
    """Return the model that is trained: whole, or by the adapters of [model.lora]."""
    model = create_encoder(config.model)
    if not model.passage.normalize_output and (config.loss.name == "ccl" or config.loss.debias is not None):
        what = 'name = "ccl"' if config.loss.name == "ccl" else "debias"
        raise InputError(
            f"[loss] {what} needs vectors of length 1, and {config.model.name} gives others; write [model] normalize = "
            "true, or choose another loss"
        )
    if config.model.lora is not None:
        model.adapt(config.model.lora, config.seed)
    return model


def _guide(config: RunConfig) -> ModelEncoder | None:
    """Return the frozen model of [loss] guide: the one that training starts from, or another by its name."""
    guide = config.loss.guide
    return None if guide is None else _frozen(config, None if guide == "start" else guide)


def _frozen(config: RunConfig, name: str | None) -> ModelEncoder:
    """Return a model that stays as it is: that of ``name``, None: the one that training starts from."""
    model = config.model
    if name is not None:
        lengths = (model.query_max_length, model.passage_max_length)
        model = ModelConfig(name, query_max_length=lengths[0], passage_max_length=lengths[1])
    index = config.index  # int8 would need passages to be calibrated on
    engine, precision = ("torch", "auto") if index.precision == "int8" else (index.engine, index.precision)
    return ModelEncoder(create_encoder(model), precision, engine=engine)


def _identity(encoder: ModelEncoder) -> str:
    """Return what identifies the vectors of both sides: weights, tokens, and how they are computed."""
    return sha256_json([encoder.fingerprints.query, encoder.fingerprints.passage])


def _teacher(run: Run, report: Report) -> Teacher:
    """Return whom [teacher] of ``run`` names."""
    config, teacher = run.config, run.config.teacher
    if teacher is None or teacher.name == OWN:  # the trainer has that ranker in its hands
        return Teacher(teacher)
    if teacher.momentum is not None:
        anchor = Anchor(create_encoder(config.model), teacher.momentum, pick_device(config.train.device))
        return Teacher(teacher, asking_encoder(anchor), anchor=anchor)
    if teacher.gives_vectors:
        encoder = _frozen(config, None if teacher.name == ANCHOR else teacher.name)
        own = create_encoder(config.model).dimensions
        if teacher.loss == "embedding" and encoder.dimensions != own:
            raise InputError(
                f'[teacher] loss = "embedding": vectors of {teacher.name} have {encoder.dimensions} numbers, '
                f"those of {config.model.name} {own}; choose another loss"
            )
        return Teacher(teacher, asking_encoder(encoder), fingerprint=_identity(encoder))
    if teacher.live:
        ranker = teaching_ranker(teacher, config.index.precision)
        score = telling_cuts(ranker, "[teacher] max_length", report)
        return Teacher(teacher, asking_ranker(score), fingerprint=ranker.fingerprint)

    def open_scores(artifact: Artifact) -> TeacherScores:
        return open_checked_scores(artifact, open_checked_set(artifact, run.corpus, run.train), teacher.settings)

    return Teacher(teacher, open_scores=open_scores)
