"""The published figures: each entry is sound, and by hand (`-m soak`, HONE_DATA set) each is measured again."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import present_flags

ROOT = Path(__file__).parent.parent.parent
FIGURES: list[dict[str, Any]] = tomllib.loads((ROOT / "benchmarks" / "regressions.toml").read_text())["figure"]
FIELDS = {"benchmark", "data", "quick", "key", "expected", "tolerance", "better", "needs"}


def name(figure: dict[str, Any]) -> str:
    return f"{figure['benchmark']}-{figure['data']}-{figure['key']}"


def holds(figure: dict[str, Any], measured: float) -> bool:
    """Whether ``measured`` is not worse than expected by more than the tolerance."""
    slack: float = figure["tolerance"] * abs(figure["expected"])
    expected: float = figure["expected"]
    if figure["better"] == "higher":
        return measured >= expected - slack
    return measured <= expected + slack


def met(need: str, flags: Collection[str]) -> bool:
    """Whether a processor with these ``flags`` has an instruction, or lacks it where ``need`` is "no INSTRUCTION"."""
    return need.removeprefix("no ") not in flags if need.startswith("no ") else need in flags


@cache
def last_line(benchmark: str, data: str, quick: bool) -> dict[str, Any]:
    if "HONE_DATA" not in os.environ:
        pytest.fail("set HONE_DATA to the folder that holds the data sets")
    folder = Path(os.environ["HONE_DATA"]) / data
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--data", str(folder), *(["--quick"] if quick else [])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    line: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return line


@pytest.mark.parametrize("figure", FIGURES, ids=name)
def test_an_entry_names_a_benchmark_and_a_key_of_its_claim(figure: dict[str, Any]) -> None:
    assert {*figure} == FIELDS
    assert figure["better"] in ("higher", "lower") and 0 <= figure["tolerance"] < 1
    assert figure["key"] in importlib.import_module(f"benchmarks.{figure['benchmark']}").KEYS


@pytest.mark.soak
@pytest.mark.parametrize("figure", FIGURES, ids=name)
def test_a_published_figure_still_holds(figure: dict[str, Any]) -> None:
    unlike = [need for need in figure["needs"] if not met(need, present_flags())]
    if unlike:
        pytest.skip(f"measured on a processor with {', '.join(unlike)}")
    line = last_line(figure["benchmark"], figure["data"], figure["quick"])
    measured = line[figure["key"]]
    assert measured is not None, line["reasons"][figure["key"]]
    assert holds(figure, measured), f"{measured} where {figure['expected']} was published"


def test_a_figure_may_need_an_instruction_or_its_absence() -> None:
    assert met("avx2", ["avx2"]) and not met("avx2", []) and met("no avx2", []) and not met("no avx2", ["avx2"])


def test_only_a_worse_figure_fails() -> None:
    more = {"expected": 2.0, "tolerance": 0.1, "better": "higher"}
    assert [holds(more, measured) for measured in (1.79, 1.81, 9.0)] == [False, True, True]
    less = {"expected": 0.8, "tolerance": 0.1, "better": "lower"}
    assert [holds(less, measured) for measured in (0.1, 0.87, 0.89)] == [True, True, False]
