"""One training run from start to end: trainer here, refresher as a child, elsewhere or inline; reports and signals.

Does not know the command line's flags or how the outcome is printed.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

from accelerate import PartialState

from app.composition import Run, first_planner, make_trainer
from app.live import training_view
from app.options import warn
from app.progress import Report
from app.refresher_process import LOG_NAME, RefresherProcess, refresher_command
from app.refreshing import InlineRefresher
from app.reports import all_of, event_log, forwarded, tensorboard
from app.start_warnings import warnings_at_start
from retriever.adoption import Refresher
from retriever.artifacts import BEST, CURRENT, Artifact
from retriever.checkpoint import can_be_resumed
from retriever.durable import exclusive
from retriever.errors import BusyError, HoneError, InputError, StoreError
from retriever.ranks import TIMEOUT
from retriever.store import KINDS, Store, is_store
from retriever.trainer import Outcome, mark_best

Where = Literal["child", "elsewhere", "inline"]
STOPPING = "stopping after this step, with a checkpoint to resume from; again to stop at once"
AFRESH = "--new moves the store aside and starts afresh"


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


def prepare_store(store_root: Path, config_sha256: str, *, resume: bool, new: bool) -> Path | None:
    """Refuse a store that another configuration trained in, unless ``resume``; with ``new`` move it aside first.

    Returns where it was moved to. Raises InputError naming both ways out, or where the store cannot be moved, BusyError
    where ``new`` would move it away from under a process that writes in it.
    """
    if not is_store(store_root):
        return None
    store = Store(store_root)
    if new:
        aside = store_root.with_name(f"{store_root.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        with ExitStack() as stack:
            for kind in KINDS:
                stack.enter_context(store.series(kind).writer())
            _move(store_root, aside)
        return aside
    newest = store.checkpoints.intact(CURRENT, warn)
    if newest is None:
        return None
    _refuse_untrained(store, newest)
    if newest.manifest["config_sha256"] != config_sha256 and not resume:
        raise InputError(
            f"{store_root}: its newest checkpoint ({newest.number}) comes from another configuration; "
            f"--resume goes on from there with this one, {AFRESH}"
        )
    return None


def _move(store_root: Path, aside: Path) -> None:
    try:
        store_root.rename(aside)
    except OSError as error:  # a mounted volume has no place beside it
        raise InputError(
            f"{store_root}: cannot be moved to {aside} ({error.strerror}); without --new, give the training a folder "
            f"of its own: --store {store_root / 'NAME'}"
        ) from error


def _refuse_untrained(store: Store, newest: Artifact) -> None:
    if not can_be_resumed(newest):
        raise InputError(
            f"{store.root}: its newest checkpoint ({newest.number}) is a model that `hone index` took as it is, not a "
            f"training to go on with; {AFRESH}, --store names another"
        )


@contextmanager
def put_back_on_error(store_root: Path, aside: Path | None) -> Iterator[None]:
    """Put the store that lies ``aside`` back in its place if the block, which makes the new one, raises."""
    try:
        yield
    except BaseException:
        if aside is not None:
            shutil.rmtree(store_root, ignore_errors=True)
            aside.rename(store_root)
        raise


def run_training(run: Run, config_path: Path, where: Where, *, skip_missing: bool = False) -> TrainingResult:
    """Train to the end, or to an interruption, and wait for the generation of the final checkpoint.

    Raises HoneError where the refresher or the store fails for good, BusyError where another process trains; what was
    published stays.
    """
    started = time.monotonic()
    stop = Event()
    first_planner(run.config, run.train)  # before a refresher starts
    if not is_first_rank():
        with stopping_at_signals(stop, _unheard):
            outcome = make_trainer(run, ElsewhereRefresher(run.store), _unheard, stop).run()
        return TrainingResult(outcome, None, round(time.monotonic() - started, 1), None)
    with ExitStack() as stack:
        stack.enter_context(run.store.checkpoints.writer())  # before anything is written for those who watch
        board = stack.enter_context(tensorboard(run.store.root / "tensorboard"))
        seen = all_of(stack.enter_context(training_view()), board)
        report = all_of(seen, event_log(run.store, "trainer"))
        stack.enter_context(forwarded(run.store, "trainer", seen))
        stack.enter_context(stopping_at_signals(stop, report))
        refresher = _refresher(run, config_path, where, report, skip_missing=skip_missing)
        pid = None
        if isinstance(refresher, RefresherProcess):
            stack.callback(refresher.close)
            if not _ended_before(run.store):
                refresher.start()
            pid = refresher.pid
        outcome = _train(run, refresher, report, stop)
        if outcome.reason != "interrupted":
            if _wait_for_last_generation(run.store, refresher, stop):
                _mark_best(run.store, report)
            else:
                outcome = replace(outcome, reason="interrupted")
    best = run.store.generations.pointed(BEST)
    return TrainingResult(outcome, pid, round(time.monotonic() - started, 1), best)


def is_first_rank() -> bool:
    """Tell whether this process prepares the store, refreshes and prints: any does but torchrun's ranks above 0."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def first_rank_first(device: str) -> Iterator[None]:
    """Let torchrun's rank 0 go through the block before the other ranks do; ``device`` is that of [train]."""
    if "RANK" not in os.environ:
        yield
        return
    with PartialState(cpu=device == "cpu", timeout=TIMEOUT).main_process_first():
        yield


def _unheard(event: str, **fields: Any) -> None:
    """Take a report that the first rank makes as well."""


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
    newest = run.store.checkpoints.intact(CURRENT, lambda text: report("warning", message=text))
    if newest is not None:
        _refuse_untrained(run.store, newest)  # once more: `hone index` may have come between
        _refuse_other_data(run, newest)
    if newest is None or not _is_done(newest, run):
        for told in warnings_at_start(run.config, len(run.train)):
            report("warning", message=told)
        return make_trainer(run, refresher, report, stop).run()
    if not _is_mined(run.store, newest.number):  # a kill came before the last refresh was done
        refresher.marked(newest)
    report("warning", message=f"checkpoint {newest.number} ended this run already; --new starts afresh")
    return Outcome("finished", newest.facts["step"], newest.number, len(run.store.adoptions()), 0)


def _refuse_other_data(run: Run, newest: Artifact) -> None:
    """Raise InputError where ``newest``, which ended the run or has negatives, learned from other data than today's."""
    ended, adopted = bool(newest.facts.get("final")), newest.parents.get("negatives")
    if adopted is None and not ended:
        return
    try:
        queries = run.train.sha256 if adopted is None else run.store.negatives.at(adopted).facts["queries_sha256"]
        corpus = run.store.corpora.at(newest.parents["corpus"]).sha256("passages.arrow")
    except StoreError:  # what is gone or torn tells nothing; its reader reports it
        return
    if (corpus, queries) != (run.corpus.sha256, run.train.sha256):
        what = "another corpus" if corpus != run.corpus.sha256 else "other training queries"
        serve = ", or serve new passages with what was learned by `hone index DATA`" if ended else ""
        raise InputError(
            f"{run.store.root}: checkpoint {newest.number} learned from {what} than today's; train on today's in "
            f"another store (--store){serve}"
        )


def _is_mined(store: Store, checkpoint: int | None) -> bool:
    newest = store.negatives.get()
    return newest is not None and newest.parents.get("checkpoint") == checkpoint


def _ended_before(store: Store) -> bool:
    """Tell whether the newest checkpoint is the final one of an earlier run: a refresher would drain at once."""
    newest = store.checkpoints.get(CURRENT)
    return newest is not None and bool(newest.facts.get("final"))


def _is_done(newest: Artifact, run: Run) -> bool:
    """Tell whether ``newest`` ended a run of this configuration, or of another one that was not shorter."""
    same = newest.manifest["config_sha256"] == run.config.sha256
    return bool(newest.facts.get("final")) and (same or newest.facts["step"] >= run.config.train.max_steps)


def _wait_for_last_generation(store: Store, refresher: Refresher, stop: Event) -> bool:
    """Return whether the final checkpoint's generation and negatives are published; False if ``stop`` comes first."""
    final = store.checkpoints.pointed(CURRENT)
    while not _is_mined(store, final):
        trouble = refresher.trouble()
        if trouble is None and isinstance(refresher, RefresherProcess) and refresher.drained:
            trouble = f"the refresher is done without it; see {store.root / LOG_NAME}"
        if trouble is not None:
            raise HoneError(f"training is done, but the last generation is missing: {trouble}")
        if stop.wait(0.2):
            return False
    return True


def _mark_best(store: Store, report: Report) -> None:
    try:
        mark_best(store)
    except StoreError as error:  # its generation holds the same weights
        report("warning", message=f"{error}; BEST of the checkpoints stays as it is")


@contextmanager
def stopping_at_signals(stop: Event, report: Callable[..., None]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into ``stop``; a second one interrupts at once.

    A process that a library forks in the block, to end it later, ends by them as if nothing had been set.
    """
    owner = os.getpid()

    def note(number: int, frame: object) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # A thread: what the signal came in between of may hold a lock that the report needs.
        reporting.append(Thread(target=report, args=("warning",), kwargs={"message": STOPPING}))
        reporting[-1].start()

    reporting: list[Thread] = []
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
        for thread in reporting:
            thread.join()
