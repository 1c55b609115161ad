"""hone init, train, refresh, cycle: a run from its TOML to its end.

Does not know how training or refreshing works.
"""

import sys
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from app.composition import Run, open_run
from app.config import read_config
from app.live import duration
from app.options import ConfigArgument, JsonOption, SkipMissing, StoreOption, print_json, store_path, warn
from app.refresher_process import end_with_parent, stop_with_parent
from app.refreshing import follow_checkpoints, follow_runs, follow_when_free
from app.reports import all_of, event_log, json_lines
from app.run_file import write_run_file
from app.training import (
    TrainingResult,
    Where,
    first_rank_first,
    is_first_rank,
    prepare_store,
    put_back_on_error,
    run_training,
    stopping_at_signals,
)
from retriever.artifacts import CURRENT, SERVED
from retriever.counting import counted
from retriever.errors import HoneError, InputError
from retriever.store import Store

Resume = Annotated[bool, typer.Option("--resume", help="Go on in a store that another configuration trained in.")]
New = Annotated[bool, typer.Option("--new", help="Move the store aside and start afresh.")]


def init(
    data: Annotated[Path, typer.Argument(help="A data set in BEIR layout.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("run.toml"),
    model: Annotated[str, typer.Option("--model", help="minilm, a folder or a hub id.")] = "minilm",
    json_output: JsonOption = False,
) -> None:
    """Write a commented run.toml for DATA, with an estimate of time and disk."""
    estimate = write_run_file(data, out, model)
    if json_output:
        print_json({"run": str(out), **estimate})
        return
    print(f"{out}: {estimate['passages']} passages, {estimate['train_queries']} training queries.")
    print(f"On this machine about {duration(estimate['seconds'])} and {estimate['disk_mb']} MB of disk.")
    print(f"Next: hone train {out}")


def train(
    config: ConfigArgument,
    store: StoreOption = None,
    resume: Resume = False,
    new: New = False,
    refresher: Annotated[
        str, typer.Option("--refresher", help="child: start one. elsewhere: `hone refresh` runs on its own.")
    ] = "child",
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
    child: Annotated[bool, typer.Option("--child", hidden=True)] = False,
) -> None:
    """Train; the index and the negatives are rebuilt by a second process meanwhile. Run it again to resume."""
    if child:
        stop_with_parent()
    if refresher not in ("child", "elsewhere"):
        raise InputError(f"--refresher {refresher}: write child or elsewhere")
    where: Where = "child" if refresher == "child" else "elsewhere"
    _train(config, store, where, resume=resume, new=new, skip_missing=skip_missing, as_json=json_output)


def cycle(
    config: ConfigArgument,
    store: StoreOption = None,
    resume: Resume = False,
    new: New = False,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Train, rebuild and mine one after the other in one process: slower, simplest, the same weights each time."""
    _train(config, store, "inline", resume=resume, new=new, skip_missing=skip_missing, as_json=json_output)


def _train(
    config: Path, store: Path | None, where: Where, *, resume: bool, new: bool, skip_missing: bool, as_json: bool
) -> None:
    root = store_path(store)
    settings = read_config(config)
    with first_rank_first(settings.train.device):
        aside = prepare_store(root, settings.sha256, resume=resume, new=new) if is_first_rank() else None
        with put_back_on_error(root, aside):
            run = open_run(config, root, skip_missing=skip_missing, warn=warn)
    result = run_training(run, config, where, skip_missing=skip_missing)
    if not is_first_rank():
        return
    if as_json:
        print_json(result.as_json())
    if result.outcome.reason == "interrupted":
        raise HoneError(
            f"interrupted at step {result.outcome.step}; checkpoint {result.outcome.checkpoint} is saved, "
            "the same command goes on from there"
        )
    if not as_json:
        _print_result(run, result)


def _print_result(run: Run, result: TrainingResult) -> None:
    outcome = result.outcome
    print(f"{outcome.reason} after {counted(outcome.step, 'step', 'steps')} in {duration(result.seconds)}")
    print(
        f"{counted(outcome.negative_sets_adopted, 'negative set', 'negative sets')} adopted, "
        f"at most {counted(outcome.max_staleness_steps, 'step', 'steps')} stale; checkpoint {outcome.checkpoint}"
    )
    best = run.store.generations.get("BEST")
    if best is not None and best.facts.get("dev"):
        figures = ", ".join(f"{name} {value:.4f}" for name, value in best.facts["dev"].items())
        print(f"best on dev: generation {best.number} of step {best.facts['step']}: {figures}")
    if run.config.ranker is not None:
        folder = run.store.checkpoints.at(outcome.checkpoint).path / "ranker"
        print(f"the ranker, which these figures do not know: {folder}")
    print(f"store: {run.store.root}\n{_following(run.store)}")


def _following(store: Store) -> str:
    """Say what is next: to serve, or what the gate has against the newest generation where it let none pass."""
    newest = store.generations.get(CURRENT)
    if newest is None or store.generations.pointed(SERVED) is not None:
        return f"Next: hone serve --store {store.root}"
    reason = newest.facts["gate"]["reason"]
    return (
        f"Nothing is served: {reason}. hone promote {newest.number} --force --store {store.root} serves it all the same"
    )


def refresh(
    config: ConfigArgument,
    store: StoreOption = None,
    skip_missing: SkipMissing = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on after the final checkpoint, and work on queued jobs, too.")
    ] = False,
    child: Annotated[bool, typer.Option("--child", hidden=True)] = False,
) -> None:
    """Follow the trainer's checkpoints: build each marked one's generation and mine its negatives, until the last."""
    if child:
        end_with_parent()
    run = open_run(config, store_path(store), skip_missing=skip_missing, warn=warn)
    stop = Event()
    report = all_of(event_log(run.store, "refresher"), json_lines(sys.stderr))
    with stopping_at_signals(stop, report):
        if follow:
            from app.job_processes import following_jobs  # it loads SQLAlchemy, which training has no use for

            with following_jobs(run.store.root, stop):
                follow_runs(run, report, stop)
            return
        if child:
            follow_when_free(run, report, stop)
        else:
            follow_checkpoints(run, report, stop)
    if stop.is_set():
        raise HoneError("interrupted before the final checkpoint; the same command goes on from there")
