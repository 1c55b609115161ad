"""hone compare on tiny data: real trainings in processes of their own, killed in the middle, resumed, reported."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.comparison.report import html, markdown
from retriever.artifacts import BEST, CURRENT
from retriever.durable import read_lines
from retriever.store import Store
from tests.app.comparison.test_report import parsed
from tests.cycle.test_cycle import ROOT, RUN
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

COMPARE = """\
base = "run.toml"
seeds = [1, 2]
baseline = "in-batch"
[budget]
steps = 30
minutes = 5
[systems.in-batch]
train.num_negatives = 0
refresh.trigger = "never"
[systems.refreshed.refresh]
trigger = "steps:10"
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "app.cli", "compare", "compare.toml"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def run_to_the_end(folder: Path) -> dict[str, Any]:
    """Run the comparison; return its last line."""
    process = start(folder)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err[-3000:]
    last: dict[str, Any] = json.loads(out.splitlines()[-1])
    return last


def wait_for_step(folder: Path, pattern: str, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run whose folder fits ``pattern`` has done ``step`` steps."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-3000:]
        for log in (folder / "compare/runs").glob(f"{pattern}/store/events.jsonl"):
            if any(event["event"] == "step" and event["step"] >= step for event in read_lines(log)):
                return
        time.sleep(0.05)
    raise AssertionError(f"{pattern} never came to step {step}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_comparison_is_killed_resumed_and_reported(tmp_path: Path) -> None:
    write_tiny_data(tmp_path / "data", passages=200, queries=160)
    (tmp_path / "run.toml").write_text(RUN.format(model=write_tiny_model(tmp_path / "tiny")))
    (tmp_path / "compare.toml").write_text(COMPARE)

    killed = start(tmp_path)
    wait_for_step(tmp_path, "refreshed-1-*", 3, killed)
    killed.kill()
    killed.communicate()
    (first,) = (tmp_path / "compare/runs").glob("in-batch-1-*")
    before = (first / "evaluations.jsonl").read_bytes()

    last = run_to_the_end(tmp_path)
    assert (last["runs"], last["failed"], last["baseline"]) == (4, 0, "in-batch")
    assert (first / "evaluations.jsonl").read_bytes() == before and len(read_lines(first / "sessions.jsonl")) == 2, (
        "a finished run is left alone"
    )

    results = json.loads((tmp_path / last["results"]).read_text())
    check_runs(results)
    check_report(tmp_path, last, results)
    check_stores(tmp_path / "compare/runs")
    assert run_to_the_end(tmp_path) == last, "nothing is left to do, and the figures stay"


RANKED = """\
base = "run.toml"
seeds = [1]
baseline = "in-batch"
rerank = 10
[budget]
steps = 12
[systems.in-batch]
train.num_negatives = 0
refresh.trigger = "never"
[systems.ranked.ranker]
name = "{ranker}"
batch_size = 8
num_negatives = 2
warmup_steps = 0
[systems.ranked.phases]
ranker = 2
retriever = 1
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_system_that_trains_a_ranker_is_measured_with_it(tmp_path: Path) -> None:
    write_tiny_data(tmp_path / "data", passages=200, queries=160)
    (tmp_path / "run.toml").write_text(RUN.format(model=write_tiny_model(tmp_path / "tiny")))
    (tmp_path / "compare.toml").write_text(RANKED.format(ranker=write_tiny_ranker(tmp_path / "ranker")))
    last = run_to_the_end(tmp_path)
    results = json.loads((tmp_path / last["results"]).read_text())
    plain, ranked = (run["reranked"] for run in results["runs"])
    assert plain is None and (ranked["depth"], ranked["pairs"]) == (10, 400)
    pipeline = results["findings"]["pipeline"]
    assert (pipeline["against"], list(pipeline["systems"])) == ("retrieved", ["ranked"])
    assert last["reranked"] == {"ranked": pytest.approx(ranked["test"]["nDCG@10"], abs=1e-5)}
    assert "Retrieve, then rerank 10" in (tmp_path / last["report"]).read_text()
    curve = (tmp_path / "compare/runs").glob("*/curve.json")
    written = {path: path.stat().st_mtime_ns for path in curve}
    assert run_to_the_end(tmp_path)["reranked"] == last["reranked"], "found again"
    assert {path: path.stat().st_mtime_ns for path in written} == written


def check_runs(results: dict[str, Any]) -> None:
    runs = {(run["system"], run["seed"]): run for run in results["runs"]}
    assert len(runs) == 4
    for (system, _), run in runs.items():
        assert [one["step"] for one in run["curve"]] == [0, 20, 30] and run["ended"] == "steps"
        seconds = [one["seconds"] for one in run["curve"]]
        assert seconds == sorted(seconds) and seconds[-1] == pytest.approx(
            run["costs"]["training"] + run["costs"]["waiting"], abs=1
        )
        refreshes = [(one["origin"], one["step"]) for one in run["refreshes"]]
        assert refreshes == ([] if system == "in-batch" else [(0, 5), (10, 15), (20, 25)])
        assert (run["costs"]["encoding"] > 0) == (system == "refreshed")
        assert run["best"]["test"]["nDCG@10"] > 0 and {"RR@10", "R@100", "AUC"} <= {*run["last"]["test"]}
        if Path("/proc/self/status").exists():
            assert min(run["peak"].values()) > 50_000_000 and {*run["peak"]} == {"trainer", "refresher"}
    assert [runs[name]["sessions"] for name in (("in-batch", 1), ("refreshed", 1), ("in-batch", 2))] == [1, 2, 1]
    curves = [run["curve"][0]["dev"] for run in results["runs"]]
    assert all(curve == curves[0] for curve in curves), "all start from the same model"
    assert all(run["curve"][-1]["dev"]["nDCG@10"] > curves[0]["nDCG@10"] for run in results["runs"])


def check_report(folder: Path, last: dict[str, Any], results: dict[str, Any]) -> None:
    page = (folder / last["report"]).read_text()
    assert parsed(page).fetched == [] and page.count("<svg") == 4
    assert html(results) == page and markdown(results) == (folder / "compare/report.md").read_text()
    for reading in results["findings"]["readings"]:  # in the seconds of in-batch refreshed may have no checkpoint yet
        told = ("not told",) if "refreshed" in reading["late"] else ("better", "worse", "not told apart")
        assert last["verdicts"][reading["axis"]]["refreshed"] in told
        assert reading["axis"] == "seconds" or reading["late"] == []
    assert last["nDCG@10"]["steps"]["refreshed"] == pytest.approx(
        sum(run["best"]["test"]["nDCG@10"] for run in results["runs"] if run["system"] == "refreshed") / 2, abs=1e-5
    )


def check_stores(runs: Path) -> None:
    for root in sorted(runs.glob("*/store")):
        store = Store(root)
        newest, best = store.checkpoints.get(CURRENT), store.checkpoints.get(BEST)
        assert newest is not None and best is not None and newest.facts["final"]
        newest.verify()
        assert not list(runs.glob("*/store/*/.tmp-*"))
