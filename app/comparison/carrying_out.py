"""Carrying out a comparison: each run trained and measured once, resumed where it was interrupted, told as results.

Does not know how one run is trained or measured, nor how results are shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

from app.comparison.compared_run import RunFolder, distinct, is_trained, train, train_command
from app.comparison.findings import RunResult, as_json, find
from app.comparison.pace import Pace
from app.comparison.plan import TEST, Comparison, PlannedRun, run_table
from app.comparison.reranked_run import RankerChoice, RerankedRun, measure_reranking, measured_reranking, wanted
from app.comparison.run_curve import (
    EVALUATIONS,
    METRIC,
    Judged,
    Measuring,
    Point,
    keep_measured,
    measure_curve,
    measured_curve,
)
from app.comparison.run_history import Clock, aged, costs, refreshes, seconds_of_checkpoints
from app.composition import check_depth, check_queries, first_planner, splits, with_positives, with_verdicts
from app.config import RunConfig
from app.opening import encoder_opener
from app.options import warn
from app.progress import Report
from app.rankers import named_ranker
from app.toml_text import toml_text
from app.training import STOPPING
from indexer.factory import IndexConfig
from miner.generations import check_pinned
from retriever.artifacts import CURRENT, Artifact
from retriever.beir import find_file
from retriever.counting import counted
from retriever.data import Corpus, QuerySet
from retriever.durable import sha256_file, sha256_json, write_atomic
from retriever.errors import HoneError, InputError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.protocols import Encoder
from retriever.store import Store

RUNS, REFERENCE = "runs", "reference"
DIGEST_CHARACTERS = 8
UNREFRESHED = (
    "no negative set was adopted, so it trained on random batches and in-batch negatives alone: "
    "the refresher was too slow or gone"
)
GOES_ON = "the same command goes on from there"

Train = Callable[[RunFolder, PlannedRun, Report, Event], str]
"""Trains a planned run in its folder: "final", "minutes" or "interrupted"; raises HoneError if it fails."""


class Interrupted(HoneError):
    """Somebody asked to stop; the same command goes on from there."""


@dataclass(frozen=True)
class Bench:
    """A comparison with the data and the encoders that it is measured by, and the folder that it is carried out in.

    ``inputs`` tells by system the digests of the queries, the verdicts and the models that its runs read.
    """

    comparison: Comparison
    folder: Path
    judged: Judged
    test_is_dev: bool
    inputs: Mapping[str, list[Any]]
    open_encoder: Callable[[Artifact], Encoder]
    rankers: RankerChoice

    def run_folder(self, run: PlannedRun) -> RunFolder:
        """Return where ``run`` lies: under a digest of all that it depends on, so that a changed run is another."""
        depends = [_without_path(run.table), *self.inputs[run.system], self.judged.sha256]
        digest = sha256_json([*depends, self.comparison.budget.minutes])[:DIGEST_CHARACTERS]
        return RunFolder(self.folder / RUNS / f"{run.system}-{run.seed}-{digest}")

    def earlier(self, run: PlannedRun) -> list[Path]:
        """Return the folders of the same system and seed under another configuration."""
        own = self.run_folder(run).root
        digest = "[0-9a-f]" * DIGEST_CHARACTERS
        return sorted(one for one in own.parent.glob(f"{run.system}-{run.seed}-{digest}") if one != own)

    def evaluations(self) -> list[Path]:
        """Return the files of figures of all runs."""
        return sorted((self.folder / RUNS).glob(f"*/{EVALUATIONS}"))


def open_bench(comparison: Comparison, folder: Path, *, skip_missing: bool) -> Bench:
    """Read the data of ``comparison`` and check that every run fits it, before anything runs.

    Raises InputError for what does not fit.
    """
    reference = Store(folder / REFERENCE, create=True)
    corpus = Corpus(ingest_corpus(reference, comparison.data, skipping=warn if skip_missing else None))

    def load(split: str) -> QuerySet:
        return load_query_set(comparison.data, split, corpus, skip_missing=skip_missing, warn=warn)

    dev_split = splits(comparison.base)[1]
    if dev_split is None:
        raise InputError(f'{comparison.path}: dev queries choose the checkpoints; write data.dev = "train:0.1"')
    dev = load(dev_split)
    test_split = comparison.test or (TEST if _has_split(comparison.data, TEST) else dev_split)
    test = dev if test_split == dev_split else load(test_split)
    if test is not dev and (both := _shared(dev, test)):
        share = dev_split.removeprefix(f"{test_split}:")
        other = "name another test" if share == dev_split else f'write test = "{test_split}:-{share}"'
        raise InputError(
            f"{comparison.path}: {both} of dev {dev_split!r} belong to test {test_split!r}, too, and would choose what "
            f"they judge; {other}, or another data.dev"
        )
    inputs: dict[str, list[Any]] = {}
    for run in comparison.runs:
        if run.system in inputs:
            continue
        train_set = with_positives(load(splits(run.config)[0]), lambda _: None)
        try:
            check_depth(run.config, corpus)
            check_pinned(reference, run.config.negatives.sources)  # a run's own store is as new
            train_set, _ = with_verdicts(run.config, comparison.origin, corpus, train_set, warn)
            check_queries(run.config, train_set, dev)
            if both := _shared(train_set, dev) or _shared(train_set, test):
                raise InputError(f"{both} of data.train = {run.config.data.train!r} measure it, too; leave them out")
            first_planner(run.config, train_set)
        except InputError as error:
            raise InputError(f"{comparison.path}: systems.{run.system}: {error}") from error
        inputs[run.system] = [train_set.sha256, *_files(comparison, run.config)]
    index = _evaluation(comparison)
    rankers = RankerChoice(comparison.rerank, None if comparison.ranker is None else named_ranker(comparison.ranker))
    judged = Judged(corpus, dev, test, asdict(index))
    return Bench(comparison, folder, judged, test_split == dev_split, inputs, encoder_opener(index, corpus), rankers)


def _shared(queries: QuerySet, others: QuerySet) -> str:
    """Return how many relevant pairs of ``queries`` are those of ``others``, "" for none."""

    def pairs(of: QuerySet) -> set[tuple[str, int]]:
        return {(name, passage) for row, name in enumerate(of.ids) for passage in of.positives(row).tolist()}

    shared = pairs(queries) & pairs(others)
    return counted(len(shared), "relevant pair", "relevant pairs") if shared else ""


def _files(comparison: Comparison, config: RunConfig) -> list[Any]:
    """Return the digests of the verdicts and of each folder with a model that a run reads.

    What lies there may change under its name.
    """
    teacher, ranker = config.teacher, config.ranker
    names = [config.model.name, config.loss.guide, teacher and teacher.name, ranker and ranker.name]
    names.append(ranker and ranker.teacher)
    models = {name: _sha256_folder(Path(name)) for name in names if isinstance(name, str) and Path(name).is_dir()}
    verdicts = config.negatives.verdicts
    return [None if verdicts is None else sha256_file(comparison.origin / verdicts), models]


def _sha256_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_json([[str(path.relative_to(folder)), sha256_file(path)] for path in files])


def _has_split(data: Path, split: str) -> bool:
    try:
        find_file(data, f"qrels/{split}.tsv")
    except InputError:
        return False
    return True


def _evaluation(comparison: Comparison) -> IndexConfig:
    """Return how all runs' checkpoints are encoded to be measured: as the run indexes, but never in int8."""
    index = comparison.base.index
    return IndexConfig(engine=index.engine, precision="auto" if index.precision == "int8" else index.precision)


def _without_path(table: Mapping[str, Any]) -> dict[str, Any]:
    return {**table, "data": {key: value for key, value in table["data"].items() if key != "path"}}


def carry_out(
    bench: Bench, train_run: Train, report: Report, stop: Event, publish: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train and measure the runs of ``bench`` that are not done; return the results, as ``publish`` has them last.

    ``publish`` is called after each run. A run that fails is reported, and the others go on. Raises Interrupted once
    ``stop`` is set; what is done stays.
    """
    planned = bench.comparison.runs
    done: list[RunResult] = []
    failed: list[dict[str, Any]] = []
    todo: list[PlannedRun] = []
    for run in planned:
        found = _found(bench, run)
        if found is None:
            todo.append(run)
            _tell_of_change(bench, run, report)
        else:
            done.append(found)
            keep_measured(Store(bench.run_folder(run).store))  # a kill may have come before
    report("comparison", runs=len(planned), done=len(done), folder=str(bench.folder))
    pace = Pace(len(todo), bench.comparison.budget.steps or 0, report)
    for number, run in enumerate(todo, 1):
        pace.begins(f"{run.name} ({number} of {len(todo)})")
        try:
            done.append(_trained_and_measured(bench, run, train_run, pace, stop))
        except Interrupted as error:
            raise Interrupted(f"{error}: {len(done)} of {len(planned)} runs are done, {GOES_ON}") from error
        except HoneError as error:
            failed.append({"system": run.system, "seed": run.seed, "problem": str(error)})
            report("warning", message=f"{run.name} failed: {error}")
        pace.ends()
        publish(results(bench, done, failed))
    told = results(bench, done, failed)
    publish(told)
    return told


def _tell_of_change(bench: Bench, run: PlannedRun, report: Report) -> None:
    earlier = bench.earlier(run)
    if earlier and not bench.run_folder(run).root.exists():
        names = ", ".join(path.name for path in earlier)
        report("warning", message=f"{run.name}: its configuration or data changed, it runs anew; before: {names}")


def _trained_and_measured(bench: Bench, run: PlannedRun, train_run: Train, pace: Pace, stop: Event) -> RunResult:
    folder = bench.run_folder(run)
    folder.root.mkdir(parents=True, exist_ok=True)
    text = toml_text(run_table(run, bench.comparison, folder.root))
    write_atomic(folder.config, text.encode())
    reason = is_trained(folder)
    if reason is None:
        _check_unchanged(bench, run)  # it reads them when it starts
        reason = train_run(folder, run, pace.report, stop)
    if reason == "interrupted":
        raise Interrupted(f"interrupted in {run.name}")

    def progress(phase: str, done: int, total: int) -> None:
        if stop.is_set():
            raise Interrupted(f"interrupted while {run.name} was measured")
        pace.measures(phase, done, total)

    measuring = Measuring(bench.judged, bench.open_encoder, progress, warn)
    store = Store(folder.store)
    if measured_curve(folder.root, bench.judged) is None:
        measure_curve(folder.root, store, run.config.train.save_every, measuring, bench.evaluations())
    else:
        keep_measured(store)
    if wanted(store, bench.rankers):
        measure_reranking(folder.root, store, measuring, bench.rankers)
    found = _found(bench, run)
    assert found is not None  # it was written just now
    best = found.points[found.chosen(found.steps[-1], found.steps)]
    pace.report("run_done", run=run.name, steps=found.steps[-1], seconds=round(found.seconds[-1]), dev=best.dev[METRIC])
    return found


def _check_unchanged(bench: Bench, run: PlannedRun) -> None:
    try:
        unchanged = _files(bench.comparison, run.config) == bench.inputs[run.system][1:]
    except OSError:
        unchanged = False
    if not unchanged:
        raise HoneError(
            "its verdicts or a model that it reads have changed since this comparison began; the same command takes up "
            "what is there now"
        )


def _found(bench: Bench, run: PlannedRun) -> RunResult | None:
    """Return the result of ``run`` if it was trained and measured to the end, None if there is more to do."""
    folder = bench.run_folder(run)
    reason = is_trained(folder)
    points = None if reason is None else measured_curve(folder.root, bench.judged)
    if points is None:
        return None
    store = Store(folder.store)
    reranked = measured_reranking(folder.root, store, bench.judged, bench.rankers)
    if reranked is None and wanted(store, bench.rankers):
        return None
    events, starts = folder.events(), folder.starts()
    clock = Clock(events, starts)
    passed = seconds_of_checkpoints(events, clock)
    early = reason == "final" and points[-1].step < run.config.train.max_steps
    newest = store.checkpoints.get(CURRENT)
    adopted = refreshes(events, clock)
    said = [event["message"] for event in events if event["event"] == "warning" and event["message"] != STOPPING]
    if not adopted and (run.config.train.num_negatives > 0 or run.config.batches.name == "b3"):
        said.append(UNREFRESHED)
    return RunResult(
        system=run.system,
        seed=run.seed,
        folder=folder.root.name,
        ended="early" if early else "steps" if reason == "final" else "minutes",
        points=points,
        # A kill may have come between the publication of one and the report of it.
        seconds=[round(passed.get(point.checkpoint, clock.total), 3) for point in points],
        refreshes=adopted,
        costs=costs(events, starts),
        peak=folder.peak(),
        cpu=folder.cpu(),
        machines=folder.machines(),
        sessions=len(starts),
        warnings=list(dict.fromkeys(said)),
        code_version="" if newest is None else newest.manifest["code_version"],
        reranked=reranked,
        aged=aged(events),
    )


def results(bench: Bench, done: list[RunResult], failed: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all that the report shows, as JSON values, runs in the order of the plan."""
    comparison, judged = bench.comparison, bench.judged
    order = {(run.system, run.seed): place for place, run in enumerate(comparison.runs)}
    runs = sorted(done, key=lambda run: order[run.system, run.seed])
    return {
        "format": 1,
        "title": comparison.path.stem,
        "data": {
            "path": comparison.data.name,
            "passages": len(judged.corpus),
            "train": comparison.base.data.train,
            "dev": {"split": judged.dev.split, "queries": len(judged.dev)},
            "test": {"split": judged.test.split, "queries": len(judged.test), "is_dev": bench.test_is_dev},
        },
        "baseline": comparison.baseline,
        "seeds": list(comparison.seeds),
        "budget": asdict(comparison.budget),
        "every": comparison.base.train.save_every,
        "ranker": None if comparison.ranker is None else Path(comparison.ranker).name,
        "computed_by": sorted({point.computed_by for run in runs for point in run.points}),
        "machines": distinct(machine for run in runs for machine in run.machines),
        "systems": {name: dict(changes) for name, changes in comparison.changes.items()},
        "runs": [run_json(run) for run in runs],
        "failed": failed,
        "findings": as_json(find(runs, list(comparison.changes), comparison.baseline)),
    }


def run_json(run: RunResult) -> dict[str, Any]:
    """Return one run as JSON values."""
    best = run.chosen(run.steps[-1], run.steps)
    return {
        "system": run.system,
        "seed": run.seed,
        "folder": f"{RUNS}/{run.folder}",
        "ended": run.ended,
        "curve": [
            {"step": point.step, "seconds": seconds, "dev": dict(point.dev)}
            for point, seconds in zip(run.points, run.seconds, strict=True)
        ],
        "best": _chosen_json(run.points[best]),
        "last": _chosen_json(run.points[-1]),
        "reranked": None if run.reranked is None else _reranked_json(run.reranked),
        "refreshes": [_rounded(asdict(refresh)) for refresh in run.refreshes],
        "aged": [asdict(one) for one in run.aged],
        "costs": _rounded(asdict(run.costs)),
        "peak": dict(run.peak),
        "cpu": dict(run.cpu),
        "machines": list(run.machines),
        "sessions": run.sessions,
        "warnings": list(run.warnings),
        "code_version": run.code_version,
    }


def _chosen_json(point: Point) -> dict[str, Any]:
    return {"step": point.step, "checkpoint": point.checkpoint, "test": point.test}


def _reranked_json(reranked: RerankedRun) -> dict[str, Any]:
    cost = {name: getattr(reranked, name) for name in ("depth", "pairs", "cut_pairs", "seconds")}
    return {**_chosen_json(reranked.after), "before": reranked.before.test, "dev": dict(reranked.after.dev), **cost}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


def child_trainer(comparison: Comparison, *, skip_missing: bool) -> Train:
    """Return what trains a run by `hone train` in a process of its own."""

    def train_run(folder: RunFolder, run: PlannedRun, report: Report, stop: Event) -> str:
        return train(folder, train_command(folder, skip_missing=skip_missing), comparison.budget.minutes, report, stop)

    return train_run
