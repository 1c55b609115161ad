"""hone index, mine, pin: publish a generation or a negative set by hand, and name artifacts.

Does not know how indexes are built or negatives mined.
"""

import sys
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from app.composition import open_run
from app.indexing import index_data, rebuild
from app.job_kinds import REBUILD, run_job
from app.job_processes import following_jobs
from app.jobs import Jobs
from app.live import progress_view
from app.options import (
    ConfigArgument,
    EngineName,
    JsonOption,
    Precision,
    QueryPrecision,
    SkipMissing,
    StoreOption,
    is_given,
    print_json,
    store_path,
    warn,
)
from app.priority import Priority
from app.rankers import saved_ranker
from app.refreshing import RefreshSteps
from app.reports import json_lines
from app.settings import database_url
from app.training import stopping_at_signals
from indexer.gate import is_partial
from indexer.promotion import pin_served
from retriever.artifacts import BEST, CURRENT, SERVED, Artifact
from retriever.errors import InputError
from retriever.store import Store

PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="fp32 (exact), bf16, int8, or auto: bf16 where the hardware has it."),
]
QueryPrecisionOption = Annotated[
    QueryPrecision,
    typer.Option("--query-precision", help="auto: as passages, never int8; int8: quicker one by one, on a CPU alone."),
]
EngineOption = Annotated[
    EngineName,
    typer.Option("--engine", help="What computes the encoder: torch, openvino or auto."),
]
Factory = Annotated[str, typer.Option("--factory", help="auto, or any FAISS factory string.")]


def index(
    context: typer.Context,
    data: Annotated[Path | None, typer.Argument(help="A data set in BEIR layout, for a new index.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="minilm (default), a folder or a hub id; after a training: the model served."),
    ] = None,
    store: StoreOption = None,
    factory: Factory = "auto",
    engine: EngineOption = EngineName.AUTO,
    precision: PrecisionOption = Precision.AUTO,
    query_precision: QueryPrecisionOption = QueryPrecision.AUTO,
    job: Annotated[str | None, typer.Option("--job", hidden=True)] = None,
    job_priority: Annotated[Priority, typer.Option("--job-priority", hidden=True)] = Priority.LOW,
    skip_missing: SkipMissing = False,
    target_recall: Annotated[
        float, typer.Option("--target-recall", help="Recall@10 against exact search that the gate asks for.")
    ] = 0.95,
    ranker: Annotated[
        str | None, typer.Option("--ranker", help="A ranker to put into it: folder or hub id. Default: as it was.")
    ] = None,
    rerank_depth: Annotated[
        int, typer.Option("--rerank-depth", help="Hits of dev queries that the gate has its ranker rerank; 0: none.")
    ] = 20,
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="A field of the dev queries' metadata: the gate looks at each value by itself."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Work on the rebuilds and promotions that others queue, until a signal.")
    ] = False,
    queue: Annotated[bool, typer.Option("--queue", help="Queue a rebuild for whoever works on the store.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Index DATA with a model as it is; without DATA, rebuild what the store serves, as it was made but for flags."""
    root = store_path(store)
    if job is not None:
        run_job(root, job, job_priority)
        return
    _check_given(context)
    if follow or queue:
        _follow(root) if follow else _queue(root, as_json=json_output)
        return
    with progress_view() as report, saved_ranker(ranker) as files:
        choices: dict[str, Any] = {
            "factory": factory,
            "target_recall": target_recall,
            "engine": engine.value,
            "precision": precision.value,
            "query_precision": query_precision.value,
            "rerank_depth": rerank_depth,
            "slices": tuple(slices or ()),
        }
        changes = {name: value for name, value in choices.items() if is_given(context, name)}
        if data is None:
            generation = rebuild(Store(root), changes, report, ranker=files)
        else:
            generation = index_data(root, data, model, changes, report, ranker=files, skip_missing=skip_missing)
    _show(generation, json_output, _following(root, generation))


def _following(root: Path, generation: Artifact) -> str:
    """Return what to do next with ``generation`` of the store ``root``."""
    verdict = generation.facts["gate"]
    if verdict["served"]:
        return f'Next: hone search --store {root} "…", or hone serve --store {root}'
    forced = f"hone promote {generation.number} --force --store {root}"
    return f"Not served: {verdict['reason']}. {forced} serves it all the same"


def _check_given(context: typer.Context) -> None:
    """Raise InputError for what was given to ``index`` and would change nothing."""
    given = {name for name in context.params if is_given(context, name)}
    if given & {"follow", "queue"} and len(given - {"store", "json_output"}) > 1:
        raise InputError("--follow and --queue go alone: they rebuild what the store serves, as it was made")
    if "data" not in given and given & {"model", "skip_missing"}:
        raise InputError("--model and --skip-missing go with DATA; without it the model that is served stays")


def _follow(root: Path) -> None:
    """Work on the queued jobs of a store until a signal ends it."""
    stop = Event()
    with stopping_at_signals(stop, json_lines(sys.stderr)), following_jobs(root, stop):
        stop.wait()


def _queue(root: Path, *, as_json: bool) -> None:
    """Ask for a rebuild, as POST /v1/index/rebuild does."""
    Store(root)
    jobs = Jobs(database_url(root))
    job, new = jobs.create(REBUILD)
    jobs.close()
    if as_json:
        print_json({"job": job.id, "new": new})
        return
    print(f"job {job.id} is {'queued' if new else job.state}; GET /v1/jobs/{job.id} shows how far it is")


def mine(
    config: ConfigArgument,
    store: StoreOption = None,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Mine the training queries' hard negatives from the newest generation and publish them."""
    run = open_run(config, store_path(store), skip_missing=skip_missing, warn=warn)
    generation = run.store.generations.intact(CURRENT, warn)
    if generation is None:
        raise InputError(f"{run.store.root}: no generation to mine from; build one with `hone index` or `hone train`")
    with progress_view() as report:
        negatives = RefreshSteps(run, report).mine(generation)
    _show(negatives, json_output, f"Next: hone export negatives {config} OUT --store {run.store.root}")


def pin(
    kind: Annotated[str, typer.Argument(help="corpora, checkpoints, generations or negatives.")],
    number: Annotated[int | None, typer.Argument(help="The artifact to name; left out: list the names.")] = None,
    name: Annotated[str | None, typer.Argument(help="The pointer, e.g. WARMUP; SERVED rolls a server back.")] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Give an artifact a name; what has a name is never removed. Without a number: list the names."""
    opened = Store(store_path(store))
    series = opened.series(kind)
    if number is not None:
        if name is None:
            raise InputError("give a name after the number, e.g. hone pin generations 3 WARMUP")
        if name in (SERVED, BEST) and is_partial(series.at(number).facts):
            raise InputError(f"{kind} {number} is partial, to be mined from alone; name a full one {name}")
        if kind == "generations" and name == SERVED:
            pin_served(opened, number)
        else:
            series.point(name, number)
    if json_output:
        print_json(series.pointers())
        return
    for pointer, pointed in series.pointers().items():
        print(f"{pointer:12} {kind} {pointed}")


def _show(artifact: Artifact, as_json: bool, following: str) -> None:
    if as_json:
        print_json({"kind": artifact.kind, "number": artifact.number, "path": str(artifact.path), **artifact.facts})
        return
    print(f"{artifact.kind} {artifact.number}: {artifact.path}")
    for name, value in artifact.facts.items():
        if isinstance(value, int | float | str) and len(str(value)) < 40:
            print(f"  {name:20} {value}")
    print(following)
