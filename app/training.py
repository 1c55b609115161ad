"""One training run from start to end: trainer here, refresher as a child, elsewhere or inline; reports and signals.

Does not know the command line's flags or how the outcome is printed.
"""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

from app.composition import Run, make_trainer
from app.live import training_view
from app.progress import Report
from app.refresher_process import RefresherProcess, refresher_command
from app.refreshing import InlineRefresher
from app.reports import all_of, event_log, forwarded, tensorboard
from retriever.adoption import Refresher
from retriever.artifacts import BEST, CURRENT, Artifact
from retriever.durable import exclusive
from retriever.errors import BusyError, HoneError, InputError
from retriever.store import Store, is_store
from retriever.trainer import Outcome, mark_best

Where = Literal["child", "elsewhere", "inline"]


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind; ``refresher_pid`` is None where the refresher was no child."""

    outcome: Outcome
    refresher_pid: int | None
    seconds: float
    best_generation: int | None

    def as_json(self) -> dict[str, Any]:
        """Return it flat, for one JSON line."""
        rest = {key: value for key, value in asdict(self).items() if key != "outcome"}
        return {**asdict(self.outcome), **rest}


class ElsewhereRefresher:
    """Implements retriever.adoption.Refresher for a `hone refresh` that somebody else runs on the same store."""

    def __init__(self, store: Store) -> None:
        """Watch the writer's lock of the generations of ``store``."""
        self._lock = store.root / "locks" / "generations.lock"

    def marked(self, checkpoint: Artifact) -> None:
        """Do nothing: whoever refreshes follows the store."""

    def trouble(self) -> str | None:
        """Return None: a refresher elsewhere may come back at any time; `nobody_there` tells whether one is there."""
        return None

    def nobody_there(self) -> bool:
        """Tell whether no process on this host holds the refresher's lock."""
        try:
            with exclusive(self._lock, "generations"):
                return True
        except BusyError:
            return False


def prepare_store(store_root: Path, config_sha256: str, *, resume: bool, new: bool) -> None:
    """Refuse a store that another configuration trained in, unless ``resume``; with ``new`` move it aside first.

    Raises InputError naming both ways out.
    """
    if not is_store(store_root):
        return
    if new:
        aside = store_root.with_name(f"{store_root.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        shutil.move(store_root, aside)
        return
    newest = Store(store_root).checkpoints.get()
    if newest is not None and newest.manifest["config_sha256"] != config_sha256 and not resume:
        raise InputError(
            f"{store_root}: its newest checkpoint ({newest.number}) comes from another configuration; "
            "--resume goes on from there with this one, --new moves the store aside and starts afresh"
        )


def run_training(run: Run, config_path: Path, where: Where, *, skip_missing: bool = False) -> TrainingResult:
    """Train to the end, or to an interruption, and wait for the generation of the final checkpoint.

    Raises HoneError where the refresher or the store fails for good; what was published stays.
    """
    started = time.monotonic()
    stop = Event()
    with ExitStack() as stack:
        board = stack.enter_context(tensorboard(run.store.root / "tensorboard"))
        seen = all_of(stack.enter_context(training_view()), board)
        report = all_of(seen, event_log(run.store, "trainer"))
        if where != "inline":
            stack.enter_context(forwarded(run.store, "trainer", seen))
        stack.enter_context(stopping_at_signals(stop, report))
        refresher = _refresher(run, config_path, where, report, skip_missing=skip_missing)
        pid = None
        if isinstance(refresher, RefresherProcess):
            stack.callback(refresher.close)
            refresher.start()
            pid = refresher.pid
        outcome = _train(run, refresher, report, stop)
        if outcome.reason != "interrupted":
            _wait_for_last_generation(run.store, refresher, stop)
            mark_best(run.store)
    best = run.store.generations.pointed(BEST)
    return TrainingResult(outcome, pid, round(time.monotonic() - started, 1), best)


def _refresher(run: Run, config_path: Path, where: Where, report: Report, *, skip_missing: bool) -> Refresher:
    if where == "inline":
        return InlineRefresher(run, report)
    if where == "elsewhere":
        elsewhere = ElsewhereRefresher(run.store)
        if elsewhere.nobody_there():
            report(
                "warning", message="no refresher works on this store yet; start `hone refresh` with the same run.toml"
            )
        return elsewhere
    command = refresher_command(config_path, run.store.root, skip_missing=skip_missing)
    return RefresherProcess(command, run.store.root, report)


def _train(run: Run, refresher: Refresher, report: Report, stop: Event) -> Outcome:
    newest = run.store.checkpoints.get(CURRENT)
    if newest is not None and newest.facts.get("final"):
        report("warning", message=f"checkpoint {newest.number} ended this run already; --new starts afresh")
        return Outcome("finished", newest.facts["step"], newest.number, len(run.store.adoptions()), 0)
    return make_trainer(run, refresher, report, stop).run()


def _wait_for_last_generation(store: Store, refresher: Refresher, stop: Event) -> None:
    """Return when the final checkpoint's generation and negatives are published."""
    final = store.checkpoints.pointed(CURRENT)
    while not stop.is_set():
        newest = store.negatives.get()
        if newest is not None and newest.parents["checkpoint"] == final:
            return
        trouble = refresher.trouble()
        if trouble is not None:
            raise HoneError(f"training is done, but the last generation is missing: {trouble}")
        stop.wait(0.2)


@contextmanager
def stopping_at_signals(stop: Event, report: Callable[..., None]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into ``stop``; a second SIGINT interrupts at once."""

    def note(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        report("warning", message="stopping after this step, with a checkpoint to resume from; again to stop at once")

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
