"""The whole cycle on tiny data: training moves the index, the index's negatives train on, and dev gets better."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from retriever.artifacts import BEST, CURRENT, SERVED, Series
from retriever.store import Store
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent.parent
RUN = """
seed = 5
[data]
path = "data"
[model]
name = "{model}"
dropout = 0.1
[train]
max_steps = 40
batch_size = 8
learning_rate = 2e-3
warmup_steps = 4
precision = "fp32"
device = "cpu"
save_every = 20
[negatives]
depth = 50
[refresh]
trigger = "steps:10"
adopt = "scheduled"
lag = 5
[index]
precision = "fp32"
"""


def call_hone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``hone`` with ``arguments`` as a person would, on one thread, from ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )


def run_hone(folder: Path, command: str, store: str, *options: str) -> dict[str, Any]:
    """Run ``hone COMMAND run.toml`` to its good end and return its JSON."""
    done = call_hone(folder, command, "run.toml", "--store", store, "--json", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, model and run.toml."""
    folder = tmp_path_factory.mktemp("cycle")
    write_tiny_data(folder / "data", passages=200, queries=160)
    model = write_tiny_model(folder / "tiny")
    (folder / "run.toml").write_text(RUN.format(model=model))
    return folder


@pytest.fixture(scope="module")
def cycled(folder: Path) -> tuple[Store, dict[str, Any]]:
    """The store that `hone cycle` leaves, and what it printed."""
    printed = run_hone(folder, "cycle", "cycled")
    return Store(folder / "cycled"), printed


def facts(series: Series, name: str) -> list[Any]:
    return [series.at(number).facts[name] for number in series.numbers()]


def test_a_cycle_runs_to_its_end(cycled: tuple[Store, dict[str, Any]]) -> None:
    store, printed = cycled
    assert (printed["reason"], printed["step"]) == ("finished", 40)
    assert printed["negative_sets_adopted"] == 4
    assert printed["max_staleness_steps"] == 14  # until a lag of 5 after the next of 10
    assert [(record["step"], record["set"]) for record in store.adoptions()] == [(5, 0), (15, 1), (25, 2), (35, 3)]


def test_each_generation_comes_from_a_later_model(cycled: tuple[Store, dict[str, Any]]) -> None:
    store, _ = cycled
    newest = store.generations.get(CURRENT)
    assert newest is not None and newest.facts["step"] == 40
    steps = facts(store.generations, "step")
    assert steps == sorted({*steps}) and len(steps) >= 3
    for name in ("weights_sha256", "passage_fingerprint", "query_fingerprint", "space"):
        assert len({*facts(store.generations, name)}) == len(steps), name
    assert len({store.generations.at(number).sha256("index.faiss") for number in store.generations.numbers()}) == len(
        steps
    )


def test_negatives_know_the_model_behind_them(cycled: tuple[Store, dict[str, Any]]) -> None:
    store, _ = cycled
    assert facts(store.negatives, "step") == [0, 10, 20, 30, 40]
    pools = {store.negatives.at(number).sha256("passages.npy") for number in store.negatives.numbers()}
    assert len(pools) == 5
    final = store.checkpoints.get(CURRENT)
    assert final is not None and final.facts["final"]
    assert final.parents["negatives"] == 3


def dev(store: Store, pointer: str) -> float:
    generation = store.generations.get(pointer)
    assert generation is not None
    value: float = generation.facts["dev"]["nDCG@10"]
    return value


def test_training_makes_dev_better_than_checkpoint_0(cycled: tuple[Store, dict[str, Any]]) -> None:
    store, printed = cycled
    assert dev(store, CURRENT) > dev(store, "BASELINE") + 0.05
    assert dev(store, BEST) >= dev(store, CURRENT)
    assert dev(store, SERVED) >= dev(store, BEST) - 0.01
    assert store.generations.pointed(BEST) == printed["best_generation"]
    best, trained = store.generations.get(BEST), store.checkpoints.get(BEST)
    assert best is not None and trained is not None
    assert best.facts["weights_sha256"] == trained.facts["weights_sha256"]


@pytest.mark.slow
def test_a_refresher_process_gives_the_same_weights(folder: Path, cycled: tuple[Store, dict[str, Any]]) -> None:
    """Under "scheduled" two processes, each at its own pace, end where one process does."""
    store, printed = cycled
    also_printed = run_hone(folder, "train", "trained")
    other = Store(folder / "trained")
    finals = [one.checkpoints.get(CURRENT) for one in (store, other)]
    digests = {final.facts["weights_sha256"] for final in finals if final is not None}
    assert len(digests) == 1 and None not in finals
    assert [(r["step"], r["set"]) for r in other.adoptions()] == [(r["step"], r["set"]) for r in store.adoptions()]
    assert also_printed["refresher_pid"] is not None and printed["refresher_pid"] is None
    events = [json.loads(line) for line in (other.root / "events.jsonl").read_text().splitlines()]
    said = [(event.get("source"), event["event"], event.get("step")) for event in events]
    published = [place for place, event in enumerate(events) if event["event"] == "generation_published"]
    marked = [said.index(("trainer", "checkpoint", events[end]["step"])) for end in published]
    stepped = [
        sum(one[:2] == ("trainer", "step") for one in said[start:end])
        for start, end in zip(marked, published, strict=True)
    ]
    assert sum(stepped) > 0  # the trainer goes on before the index of its checkpoint is there


@pytest.mark.slow
def test_partial_refreshes_give_the_same_weights_from_one_process_and_from_two(folder: Path) -> None:
    text = (folder / "run.toml").read_text().replace("lag = 5", 'lag = 5\nmethod = "partial"\nshare = 0.25')
    (folder / "partial").mkdir()
    (folder / "partial/run.toml").write_text(text.replace('"data"', '"../data"'))
    finals = []
    for command in ("cycle", "train"):
        run_hone(folder / "partial", command, command)
        store = Store(folder / "partial" / command)
        finals.append(store.checkpoints.get(CURRENT))
        made = [store.generations.at(number).facts for number in store.generations.numbers()]
        assert [facts.get("partial", {}).get("turn") for facts in made] == [None, 0, 1, 2, None]
        assert store.generations.pointed(SERVED) in (0, 4)
    assert len({final.facts["weights_sha256"] for final in finals if final is not None}) == 1 and None not in finals


@pytest.mark.slow
def test_a_trainer_and_a_refresher_of_its_own_may_be_started_together(
    folder: Path, cycled: tuple[Store, dict[str, Any]]
) -> None:
    """On a store that is not there yet: both make it, both ingest the corpus, neither waits for a person."""
    with ThreadPoolExecutor() as pool:
        refreshing = pool.submit(call_hone, folder, "refresh", "run.toml", "--store", "apart")
        printed = run_hone(folder, "train", "apart", "--refresher", "elsewhere")
        refreshed = refreshing.result()
    assert refreshed.returncode == 0, refreshed.stderr[-3000:]
    assert printed["refresher_pid"] is None and printed["negative_sets_adopted"] == 4
    finals = [one.checkpoints.get(CURRENT) for one in (cycled[0], Store(folder / "apart"))]
    assert len({final.facts["weights_sha256"] for final in finals if final is not None}) == 1 and None not in finals
    assert Store(folder / "apart").corpora.numbers() == [0]
    mined = Store(folder / "apart").negatives.get()
    assert mined is not None and mined.facts["final"], "the refresher ended after the final checkpoint"


@pytest.mark.slow
def test_of_two_that_index_one_fresh_store_each_ends_well_or_is_told_of_the_other(folder: Path) -> None:
    arguments = ("index", "data", "--model", "tiny", "--precision", "fp32", "--store", "twice")
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda _: call_hone(folder, *arguments), range(2)))
    codes = sorted(one.returncode for one in ended)
    assert codes in ([0, 0], [0, 2]), [one.stderr[-1000:] for one in ended]
    assert all("already writing" in one.stderr for one in ended if one.returncode)
    store = Store(folder / "twice")
    assert len(store.corpora.numbers()) == len(store.checkpoints.numbers()) == 1
    for number in store.generations.numbers():
        store.generations.at(number).verify()
