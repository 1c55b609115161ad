import sys
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from app.comparison.plan import read_comparison
from benchmarks import quality
from benchmarks.quality import KEYS, SYSTEMS, comparison, figures
from tests.stand_ins import write_tiny_data


def given(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Namespace:
    arguments = ["quality", "--data", str(folder / "data"), "--out", str(folder / "out"), *flags]
    monkeypatch.setattr(sys, "argv", arguments)
    return quality._options()


def test_the_comparison_is_one_that_hone_compare_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_data(tmp_path / "data")
    path = tmp_path / "compare.toml"
    path.write_text(comparison(given(tmp_path, monkeypatch, "--quick", "--max-length", "64")))
    planned = read_comparison(path)
    assert (planned.baseline, planned.seeds, planned.budget.steps) == ("static", (13,), 60)
    assert [run.name for run in planned.runs] == [f"{name}, seed 13" for name in SYSTEMS]
    static = tomllib.loads(path.read_text())["run"]
    assert static["model"]["passage_max_length"] == 64 and static["train"]["save_every"] == 20


def results(*systems: str) -> dict[str, Any]:
    means = {"in_batch": 0.5, "static": 0.4, "max_loss": 0.6}

    def run(system: str, seed: int) -> dict[str, Any]:
        points = [{"step": step, "seconds": step / 2 + seed, "dev": {"nDCG@10": 0.1 * seed}} for step in (0, 20)]
        return {"system": system, "seed": seed, "curve": points}

    read = {name: {"nDCG@10": {"mean": means[name], "interval": None}} for name in systems}
    zero = {name: {"nDCG@10": 0.25} for name in systems}
    readings = [{"axis": "seconds", "systems": {}}, {"axis": "steps", "systems": read}]
    runs = [run(name, seed) for name in systems for seed in (1, 2)]
    return {"findings": {"readings": readings, "zero_shot": zero}, "runs": runs}


def test_its_figures_are_those_at_equal_steps() -> None:
    told = figures(results("in_batch", "static", "max_loss"))
    assert set(told) == set(KEYS)
    assert (told["zero_shot"], told["in_batch"], told["static"]) == (0.25, 0.5, 0.4)
    assert told["best"] == {"system": "max_loss", "nDCG@10": 0.6}
    assert told["systems"]["static"] == {"nDCG@10": 0.4, "interval": None}
    second = told["curve"]["static"][1]
    assert second == {"step": 20, "seconds": 11.5, "nDCG@10": 0.15}
