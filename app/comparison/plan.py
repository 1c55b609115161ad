"""A comparison in TOML: named systems over one run, the same seeds and budget for all, checked before anything runs.

Does not know how a run is carried out or measured.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.config import RunConfig, check_keys, read_toml, run_config, validated
from app.reranking import DEPTH
from retriever.errors import InputError, require

TEST = "test"
ADVICE = "examples/compare.toml is one"
SYSTEM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
SAME_FOR_ALL = {
    "seed": "the seeds are the same for all: write seeds",
    "data.path": "all systems are compared on the same data",
    "data.dev": "all systems are compared on the same queries",
    "train.max_steps": "the budget is the same for all: write steps in [budget]",
    "train.save_every": "all curves have their points at the same steps: write it in the run",
    "train.keep_checkpoints": "all checkpoints are kept until they are measured",
}
"""Keys of a run that no system may override, and why."""


@dataclass(frozen=True)
class Budget:
    """[budget]: a run ends after ``steps`` (None: those of the run) or ``minutes`` of training, what comes first."""

    steps: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class ComparisonFile:
    """compare.toml as it is written; ``base`` is a path relative to it, ``run`` the same as a table.

    ``ranker`` is the folder (relative to it) or hub id of a ranker for all systems, ``rerank`` the depth for any.
    """

    baseline: str
    systems: Mapping[str, dict[str, Any]]
    seeds: tuple[int, ...]
    budget: Budget
    base: str | None = None
    run: dict[str, Any] | None = None
    test: str | None = None
    rerank: int = DEPTH
    ranker: str | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One system with one seed: its whole table, data.path left out, and what that means."""

    system: str
    seed: int
    table: Mapping[str, Any] = field(repr=False)
    config: RunConfig = field(repr=False)

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.system}, seed {self.seed}"


@dataclass(frozen=True)
class Comparison:
    """A checked comparison; ``changes`` are each system's overrides by dotted key, ``test`` None where nothing is said.

    ``data`` is the folder of the data set, ``origin`` the one that paths in a run start from, ``base`` what all share.
    ``ranker`` is that of all systems; of None each run's own reranks, where it has one.
    """

    path: Path
    data: Path
    origin: Path
    base: RunConfig
    baseline: str
    changes: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    budget: Budget
    test: str | None
    runs: tuple[PlannedRun, ...]
    rerank: int
    ranker: str | None


def read_comparison(path: Path) -> Comparison:
    """Read the compare.toml at ``path`` and every run that it asks for.

    Raises InputError naming file and key, for a misspelt key with the nearest right one. Runs are ordered by seed, so
    that whatever changes on the machine meanwhile meets all systems alike.
    """
    place = str(path)
    table = read_toml(path, ADVICE)
    check_keys(table, ComparisonFile, place)
    written = validated({"seeds": [], "systems": {}, "baseline": "", "budget": {}, **table}, ComparisonFile, place)
    _check(written, place)
    shared, folder = _shared(written, path)
    plan = {name: _planned(shared, written, name, place) for name in written.systems}
    config = next(iter(plan.values()))
    return Comparison(
        path=path,
        data=folder / config.data.path,
        origin=folder,
        base=run_config(_budgeted(shared, written.budget), f"{place}: {written.base or 'run'}"),
        baseline=written.baseline,
        changes={name: dict(flat(changes)) for name, changes in written.systems.items()},
        seeds=written.seeds,
        budget=replace(written.budget, steps=config.train.max_steps),
        test=written.test,
        runs=tuple(
            PlannedRun(name, seed, {**_table(shared, written, name), "seed": seed}, replace(plan[name], seed=seed))
            for seed in written.seeds
            for name in written.systems
        ),
        rerank=written.rerank,
        ranker=_named(written.ranker, path.parent),
    )


def _named(ranker: str | None, folder: Path) -> str | None:
    """Return the path of a ranker that is a folder below ``folder``, else its name as it is: a hub id."""
    return str(folder / ranker) if ranker is not None and (folder / ranker).is_dir() else ranker


def run_table(run: PlannedRun, comparison: Comparison, folder: Path) -> dict[str, Any]:
    """Return the whole table of ``run`` for a run.toml in ``folder``, from where it names its files."""

    def relative(path: Path) -> str:
        return os.path.relpath(path.resolve(), folder.resolve())

    table = {**run.table, "data": {**run.table["data"], "path": relative(comparison.data)}}
    verdicts = run.config.negatives.verdicts
    if verdicts is not None:
        table["negatives"] = {**table["negatives"], "verdicts": relative(comparison.origin / verdicts)}
    return table


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of ``table`` by dotted key."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``table`` with ``changes``: tables key by key, everything else replaced."""
    result = dict(table)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def _check(written: ComparisonFile, place: str) -> None:
    budget = written.budget
    rules = {
        "write either base, the path of a run.toml, or a table [run]": (written.base is None) != (written.run is None),
        "seeds must be a list of different numbers, none negative": (
            len({*written.seeds}) == len(written.seeds) > 0 and min(written.seeds) >= 0
        ),
        "write steps or minutes in [budget], or both": budget.steps is not None or budget.minutes is not None,
        "budget.steps must be at least 1": budget.steps is None or budget.steps >= 1,
        "budget.minutes must be above 0": budget.minutes is None or budget.minutes > 0,
        "rerank must be at least 1": written.rerank >= 1,
        "write at least two tables [systems.NAME]": len(written.systems) >= 2,
    }
    require(rules, f"{place}: ")
    for name in written.systems:
        if not SYSTEM_NAME.fullmatch(name):
            raise InputError(f"{place}: systems.{name}: a name has letters, digits, '-', '_' and '.' only")
    if written.baseline not in written.systems:
        near = difflib.get_close_matches(written.baseline, written.systems, 1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(written.systems)}"
        raise InputError(f"{place}: baseline = {written.baseline!r} is no system; {hint}")


def _shared(written: ComparisonFile, path: Path) -> tuple[dict[str, Any], Path]:
    """Return the table that all systems start from, checked by itself, and the folder that its paths start from."""
    if written.run is not None:
        check_keys(written.run, RunConfig, str(path), "run.")
        run_config(written.run, f"{path}: run")
        return written.run, path.parent
    file = path.parent / (written.base or "")
    table = read_toml(file, "write one with `hone init DATA`")
    run_config(table, str(file))
    return table, file.parent


def _budgeted(table: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Return ``table`` with the budget's steps, and with all checkpoints kept: they are measured when training ends.

    No gate asks what a ranker is good for: nothing of a comparison is served, and each generation would wait for it.
    """
    steps = {} if budget.steps is None else {"max_steps": budget.steps}
    kept = {"keep_checkpoints": 1_000_000}
    return merged(table, {"train": {**steps, **kept}, "index": {"rerank_depth": 0}})


def _table(shared: Mapping[str, Any], written: ComparisonFile, name: str) -> dict[str, Any]:
    return _budgeted(merged(shared, written.systems[name]), written.budget)


def _planned(shared: Mapping[str, Any], written: ComparisonFile, name: str, place: str) -> RunConfig:
    changes = written.systems[name]
    check_keys(changes, RunConfig, place, f"systems.{name}.")
    for key, _ in flat(changes):
        if key in SAME_FOR_ALL:
            raise InputError(f"{place}: systems.{name}.{key}: {SAME_FOR_ALL[key]}")
    return run_config(_table(shared, written, name), f"{place}: systems.{name}")
