import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from app import training
from app.indexing import index_data
from app.refreshing import InlineRefresher
from app.training import (
    ElsewhereRefresher,
    Where,
    first_rank_first,
    prepare_store,
    put_back_on_error,
    run_training,
    stopping_at_signals,
)
from retriever.artifacts import BEST
from retriever.durable import append_line, exclusive, read_lines
from retriever.errors import BusyError, CorruptError, InputError
from retriever.pair_memory import read_pairs
from retriever.ranks import TIMEOUT
from retriever.store import Store, is_store
from tests.app.command_line import contents, opened, signal_once_heard, silent, write_run
from tests.tiny_ranker import write_tiny_ranker

ROOT = Path(__file__).parent.parent.parent


def sha256(tiny: Path, store: Path) -> str:
    return opened(tiny / "run.toml", store).config.sha256


def events(store: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(store / "events.jsonl") if event["event"] == name]


def test_a_run_says_at_its_start_who_draws_without_the_quotas(tiny: Path, tmp_path: Path) -> None:
    ranker = write_tiny_ranker(tmp_path / "ranker")
    table = f'[ranker]\nname = "{ranker}"\nbatch_size = 4\nnum_negatives = 2\nwarmup_steps = 0\n'
    quotas = 'sources = ["ann", "bm25"]\nquotas = { ann = 1, bm25 = 1 }\n'
    change = ("[negatives]\n", f"{table}[phases]\nranker = 1\nretriever = 1\n[negatives]\n{quotas}")
    path = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", change)
    run_training(opened(path, tmp_path / "store"), path, "inline")
    said = events(tmp_path / "store", "warning")[0]["message"]
    assert said == "[negatives] quotas add up to 2 negatives: [train] draws its num_negatives = 1 by the sampler alone"


def test_a_run_says_at_its_start_that_ngame_comes_too_late(tiny: Path, tmp_path: Path) -> None:
    changes = (("max_steps = 6", "max_steps = 2"), ("[negatives]\n", '[batches]\nname = "ngame"\n[negatives]\n'))
    path = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", *changes)
    run_training(opened(path, tmp_path / "store"), path, "inline")
    said = events(tmp_path / "store", "warning")[0]["message"]
    assert said == (
        "[batches] ngame: its first 5 batches are random, and the 2 steps of this run take no more; "
        'raise [train] max_steps, or write name = "random"'
    )


def test_a_store_of_the_same_run_and_one_without_training_are_gone_on_with(
    tiny: Path, trained: Path, tmp_path: Path
) -> None:
    before = contents(trained)
    assert prepare_store(trained, sha256(tiny, trained), resume=False, new=False) is None
    assert prepare_store(tmp_path / "none", "any", resume=False, new=False) is None
    Store(tmp_path / "empty", create=True)
    assert prepare_store(tmp_path / "empty", "any", resume=False, new=False) is None
    assert contents(trained) == before and not (tmp_path / "none").exists()


def test_another_configuration_is_refused_gone_on_with_or_moved_aside(trained: Path) -> None:
    before = contents(trained)
    with pytest.raises(InputError, match=r"another configuration.*--resume.*--new"):
        prepare_store(trained, "other", resume=False, new=False)
    assert prepare_store(trained, "other", resume=True, new=False) is None
    assert contents(trained) == before
    aside = prepare_store(trained, "other", resume=False, new=True)
    assert aside is not None and aside.parent == trained.parent and not trained.exists()
    assert contents(aside) == before


@pytest.mark.parametrize("kind", ["corpora", "checkpoints", "generations", "negatives"])
def test_a_store_is_not_moved_away_from_under_a_writer(trained: Path, kind: str) -> None:
    before = contents(trained)
    with exclusive(trained / f"locks/{kind}.lock", kind), pytest.raises(BusyError, match=kind):
        prepare_store(trained, "other", resume=False, new=True)
    assert contents(trained) == before
    assert prepare_store(trained, "other", resume=False, new=True) is not None, "no lock is left behind"


def test_a_store_that_cannot_be_moved_says_what_to_do(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mounted(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    before = contents(trained)
    monkeypatch.setattr(Path, "rename", mounted)
    with pytest.raises(InputError, match=r"cannot be moved to .*busy\); without --new.*--store .*/store/NAME"):
        prepare_store(trained, "other", resume=False, new=True)
    assert contents(trained) == before


def test_a_model_that_was_indexed_as_it_is_cannot_be_gone_on_with(indexed: Path) -> None:
    for resume in (False, True):
        with pytest.raises(InputError, match=r"hone index.*--new.*--store"):
            prepare_store(indexed, "any", resume=resume, new=False)


def test_a_model_that_is_indexed_while_the_run_is_opened_is_not_gone_on_with(tiny: Path, tmp_path: Path) -> None:
    run = opened(tiny / "run.toml", tmp_path / "store")
    index_data(tmp_path / "store", tiny / "data", str(tiny / "model"), asdict(run.config.index), silent)
    with pytest.raises(InputError, match=r"hone index.*--new.*--store"):
        run_training(run, tiny / "run.toml", "inline")


def test_a_run_whose_checkpoints_are_all_broken(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for manifest in trained.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{")
    with pytest.raises(CorruptError, match="no intact artifact"):
        prepare_store(trained, "any", resume=False, new=False)
    assert "using the one before it" in capsys.readouterr().err


def test_a_store_moved_aside_in_vain_is_put_back(tiny: Path, trained: Path) -> None:
    before = contents(trained)
    aside = prepare_store(trained, "other", resume=False, new=True)
    with pytest.raises(InputError), put_back_on_error(trained, aside):
        opened(tiny / "none.toml", Store(trained, create=True).root)
    assert contents(trained) == before and [path.name for path in trained.parent.iterdir()] == ["store"]
    with pytest.raises(InputError), put_back_on_error(trained, None):
        raise InputError("no store was moved")
    assert contents(trained) == before
    with put_back_on_error(trained, prepare_store(trained, "other", resume=False, new=True)):
        Store(trained, create=True)
    assert is_store(trained) and contents(trained) != before


def test_a_run_in_one_process(tiny: Path, tmp_path: Path) -> None:
    run = opened(tiny / "run.toml", tmp_path / "store")
    result = run_training(run, tiny / "run.toml", "inline")
    assert (result.outcome.reason, result.outcome.step, result.outcome.negative_sets_adopted) == ("finished", 6, 2)
    assert result.refresher_pid is None
    json.dumps(result.as_json())
    assert [event["step"] for event in events(run.store.root, "step")] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in events(run.store.root, "generation_published")] == [0, 3, 6]
    best = run.store.generations.get(BEST)
    assert best is not None and best.number == result.best_generation
    assert run.store.checkpoints.pointed(BEST) == best.parents["checkpoint"]
    assert list((tmp_path / "store/tensorboard").iterdir())


def test_the_same_run_twice_gives_the_same_weights(tiny: Path, trained: Path, tmp_path: Path) -> None:
    again = opened(tiny / "run.toml", tmp_path / "again")
    run_training(again, tiny / "run.toml", "inline")
    weights = [store.checkpoints.at(2).facts["weights_sha256"] for store in (Store(trained), again.store)]
    assert weights[0] == weights[1]


def test_dev_figures_reach_whoever_watches(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate publishes them, not the trainer: they come by way of the event log."""
    run_training(opened(tiny / "run.toml", tmp_path / "store"), tiny / "run.toml", "inline")
    seen = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["step"] for event in seen if event["event"] == "generation_published"] == [0, 3, 6]
    assert [event["step"] for event in seen if event["event"] == "step"] == [1, 2, 3, 4, 5, 6], "each once"


def test_a_finished_run_stays_as_it_is(tiny: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for where in ("inline", "child"):
        result = run_training(opened(tiny / "run.toml", trained), tiny / "run.toml", where)
        assert (result.outcome.reason, result.outcome.step, result.outcome.checkpoint) == ("finished", 6, 2)
        assert "ended this run already" in capsys.readouterr().err
    assert Store(trained).checkpoints.numbers() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changed", "what"), [("corpus.jsonl", "another corpus"), ("queries.jsonl", "other training queries")]
)
def test_a_finished_run_does_not_pass_for_one_of_other_data(
    tiny: Path, trained: Path, tmp_path: Path, changed: str, what: str
) -> None:
    data = shutil.copytree(tiny / "data", tmp_path / "data")
    (data / changed).write_text((data / changed).read_text().replace('"text": "', '"text": "baka ', 1))
    for steps in (6, 9):  # to the end again, and further
        longer = ("max_steps = 6", f"max_steps = {steps}")
        config = write_run(tmp_path / "run.toml", data, tiny / "model", longer)
        with pytest.raises(InputError, match=f"checkpoint 2 learned from {what} than today's.*--store.*hone index"):
            run_training(opened(config, trained), config, "inline")
    assert Store(trained).checkpoints.numbers() == [0, 1, 2]


@pytest.mark.parametrize("where", ["inline", pytest.param("child", marks=pytest.mark.slow)])
def test_a_finished_run_is_gone_on_with_by_a_longer_one(
    tiny: Path, trained: Path, tmp_path: Path, where: Where
) -> None:
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("max_steps = 6", "max_steps = 9"))
    result = run_training(opened(config, trained), config, where)
    assert (result.outcome.reason, result.outcome.step) == ("finished", 9)
    assert [event["step"] for event in events(trained, "resumed")] == [6]
    assert [event["step"] for event in events(trained, "step")] == list(range(1, 10))
    mined = Store(trained).negatives.get()
    assert mined is not None and mined.facts["step"] == 9 and mined.facts["final"]
    shorter = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("max_steps = 6", "max_steps = 5"))
    assert run_training(opened(shorter, trained), shorter, where).outcome.step == 9


def test_a_kill_in_the_last_refresh_is_made_up_for(tiny: Path, trained: Path, tmp_path: Path) -> None:
    """As a kill leaves it: the final checkpoint is there, its generation or its negatives are not."""
    whole = Store(trained).negatives.at(2)
    for kinds in (["negatives"], ["negatives", "generations"]):
        torn = shutil.copytree(trained, tmp_path / "-".join(kinds))
        for kind in kinds:
            shutil.rmtree(torn / f"{kind}/000002")
            for pointer in Store(torn).series(kind).pointers():
                (torn / kind / pointer).write_text("000001\n")
        result = run_training(opened(tiny / "run.toml", torn), tiny / "run.toml", "inline")
        assert result.outcome.reason == "finished"
        mined = Store(torn).negatives.get()
        assert mined is not None and mined.parents == whole.parents
        assert {name: mined.sha256(name) for name in mined.manifest["files"]} == {
            name: whole.sha256(name) for name in whole.manifest["files"]
        }


def test_a_second_trainer_leaves_no_trace(tiny: Path, trained: Path) -> None:
    run = opened(tiny / "run.toml", trained)
    before = contents(trained)
    with exclusive(trained / "locks/checkpoints.lock", "checkpoints"), pytest.raises(BusyError, match="checkpoints"):
        run_training(run, tiny / "run.toml", "child")
    assert contents(trained) == before


def test_ctrl_c_while_the_last_generation_is_awaited_is_an_interruption(tiny: Path, trained: Path) -> None:
    """Nobody refreshes elsewhere, so it would never come."""
    shutil.rmtree(trained / "negatives/000002")
    (trained / "negatives/CURRENT").write_text("000001\n")
    run = opened(tiny / "run.toml", trained)
    interrupt = signal_once_heard(signal.SIGINT)
    result = run_training(run, tiny / "run.toml", "elsewhere")
    interrupt.join()
    assert (result.outcome.reason, result.outcome.step) == ("interrupted", 6)
    assert any("no refresher works on this store" in event["message"] for event in events(trained, "warning"))


def test_whether_somebody_refreshes_elsewhere_is_told_by_the_lock(trained: Path) -> None:
    refresher = ElsewhereRefresher(Store(trained))
    assert refresher.nobody_there() and refresher.nobody_there()
    with exclusive(trained / "locks/generations.lock", "generations"):
        assert not refresher.nobody_there()
    refresher.marked(Store(trained).checkpoints.at(0))
    assert refresher.trouble() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_the_second_interrupts(number: signal.Signals) -> None:
    said: list[str] = []
    stop = Event()
    before = signal.getsignal(number)
    with stopping_at_signals(stop, lambda event, message: said.append(message)):
        signal.raise_signal(number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
    assert len(said) == 1 and "checkpoint to resume from" in said[0]


def test_a_process_that_a_library_forks_ends_by_its_signals() -> None:
    """OpenVINO's converter forks one and terminates it: it must neither outlive that nor speak for its parent."""
    code = (
        "import os, signal, sys, time; from threading import Event; from app.training import stopping_at_signals\n"
        "with stopping_at_signals(Event(), lambda event, message: print(message)):\n"
        "    reading, writing = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0: os.write(writing, b'.'); time.sleep(60); sys.exit(7)\n"
        "    os.read(reading, 1)\n"  # a fork forgets the signals that come before it is done
        "    os.kill(child, signal.SIGTERM); print(os.WTERMSIG(os.waitpid(child, 0)[1]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(int(signal.SIGTERM))]


@pytest.mark.timeout(60)
def test_a_signal_in_the_middle_of_a_report_does_not_lock_up(tmp_path: Path) -> None:
    """The signal finds the main thread where it holds the event log, which the signal is reported to."""
    path = tmp_path / "events.jsonl"
    stop = Event()

    def report(event: str, message: str) -> None:
        append_line(path, {"event": event}, flush=False)

    with stopping_at_signals(stop, report), exclusive(path, "events"):  # the lock that append_line takes
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
    assert [line["event"] for line in read_lines(path)] == ["warning"]


def test_inline_refreshes_are_done_before_the_next_step(tiny: Path, tmp_path: Path) -> None:
    run = opened(tiny / "run.toml", tmp_path / "store")
    run_training(run, tiny / "run.toml", "inline")
    assert [event["staleness"] for event in events(run.store.root, "adopted")] == [0, 0]
    assert InlineRefresher(run, silent).trouble() is None


@pytest.mark.slow
def test_two_ranks_train_one_run(tiny: Path, tmp_path: Path) -> None:
    """torchrun's rank 0 alone prepares the store, refreshes and prints; both plant the same labels for [audit]."""
    audit = ("[refresh]", "[audit]\nplanted = 0.2\n[refresh]")
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", audit)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["-m", "app.cli", "train", str(config), "--store", str(tmp_path / "store"), "--json"]
    ended = subprocess.run([*launcher, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout)
    assert (result["reason"], result["step"]) == ("finished", 6)
    assert len(events(tmp_path / "store", "refresher_started")) == 1
    assert [event["step"] for event in events(tmp_path / "store", "step")] == [1, 2, 3, 4, 5, 6]
    final = Store(tmp_path / "store").checkpoints.get()
    assert final is not None and final.facts["final"]
    pairs = read_pairs(final.path / "training")
    assert pairs is not None and pairs.seen.sum() == 6 * 4, "each batch whole, and once"


def test_ranks_that_wait_for_the_first_are_given_days(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class State:
        def __init__(self, **asked_for: Any) -> None:
            asked.append(asked_for)

        def main_process_first(self) -> AbstractContextManager[None]:
            return nullcontext()

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(training, "PartialState", State)
    with first_rank_first("cpu"):
        assert asked == [{"cpu": True, "timeout": TIMEOUT}] and TIMEOUT.days == 7


def test_a_batch_that_the_queries_do_not_fill_is_refused_before_a_refresher_starts(tiny: Path, tmp_path: Path) -> None:
    change = ("batch_size = 4", "batch_size = 99")
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", change)
    with pytest.raises(InputError, match=r"\[train\] batch_size = 99: write 1 to 20"):
        run_training(opened(config, tmp_path / "store"), config, "child")
    assert not events(tmp_path / "store", "refresher_started")
