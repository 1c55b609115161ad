"""What the runs of a comparison say: figures at equal steps and at equal seconds, gaps to the baseline, costs.

Pure: the same runs give the same findings. Does not know how runs were made, nor how findings are shown.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.comparison.reranked_run import RerankedRun
from app.comparison.run_curve import METRIC, Point
from app.comparison.run_history import Aged, Costs, Refresh
from app.comparison.significance import holm, randomisation_p, t_interval

ROUNDS = 10_000
TEST_SEED = 20070
LEVEL = 0.05

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class RunResult:
    """A finished run: its curve with each point's seconds, and what it cost. ``folder`` is its folder's name.

    ``ended``: "steps", "minutes" or "early" (by [train] patience). ``peak``: resident bytes, ``cpu``: seconds
    computed, both by process. ``machines``: those that its sessions were trained on. ``reranked`` None: no ranker.
    ``aged``: its measures of staleness.
    """

    system: str
    seed: int
    folder: str
    ended: str
    points: Sequence[Point]
    seconds: Sequence[float]
    refreshes: Sequence[Refresh]
    costs: Costs
    peak: Mapping[str, int]
    cpu: Mapping[str, float]
    machines: Sequence[dict[str, Any]]
    sessions: int
    warnings: Sequence[str]
    code_version: str
    reranked: RerankedRun | None = None
    aged: Sequence[Aged] = ()

    def chosen(self, limit: float, of: Sequence[float]) -> int:
        """Return the place of the point that is best on dev among those whose ``of`` is at most ``limit``.

        The first point, the untrained model, is there whatever the limit.
        """
        within = [place for place, value in enumerate(of) if value <= limit or place == 0]
        return max(within, key=lambda place: (self.points[place].dev[METRIC], -place))

    def has_trained(self, limit: float, of: Sequence[float]) -> bool:
        """Tell whether a point other than the untrained model is within ``limit``."""
        return any(step > 0 and value <= limit for step, value in zip(self.steps, of, strict=True))

    @property
    def steps(self) -> list[int]:
        """Step of each point."""
        return [point.step for point in self.points]


@dataclass(frozen=True)
class Figure:
    """A measure of one system over seeds: mean, 95 % interval, standard deviation (both None for one seed), each."""

    mean: float
    interval: tuple[float, float] | None
    spread: float | None
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Gap:
    """How far a system is from the baseline in one measure, over the seeds that both have.

    ``interval`` is Student's over the seeds' gaps (None for one seed), ``over_queries`` the same over queries,
    ``p`` that of the randomisation test over queries and ``holm`` the same corrected for the number of systems; the
    last three are None for a measure that no query has by itself.
    """

    mean: float
    interval: tuple[float, float] | None
    over_queries: tuple[float, float] | None
    p: float | None
    holm: float | None

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the test and the seeds' interval both say so, else why not."""
        if self.holm is None:
            return "not tested"
        if self.interval is None:
            return "one seed"
        if self.holm >= LEVEL or self.interval[0] * self.interval[1] <= 0:
            return "not told apart"
        return "better" if self.mean > 0 else "worse"


@dataclass(frozen=True)
class Reading:
    """All systems read at one ``limit`` of ``axis`` ("steps" or "seconds"): figures and gaps by system and measure.

    ``late`` are the systems with a run that keeps no trained checkpoint within it; nothing is told of gaps to them.
    """

    axis: str
    limit: float
    figures: Mapping[str, Mapping[str, Figure]]
    gaps: Mapping[str, Mapping[str, Gap]]
    steps: Mapping[str, Sequence[int]]
    late: Sequence[str]


@dataclass(frozen=True)
class Pipeline:
    """The systems with a ranker, retrieval and ranker together, by system and measure.

    ``before`` are the same checkpoints without it and ``gains`` what it adds to them. ``gaps`` are those to the
    baseline: to its own pipeline (``against`` "reranked"), or to its retrieval at equal steps where it has no ranker.
    """

    depth: int
    against: str
    figures: Mapping[str, Mapping[str, Figure]]
    before: Mapping[str, Mapping[str, Figure]]
    gains: Mapping[str, Mapping[str, Gap]]
    gaps: Mapping[str, Mapping[str, Gap]]


@dataclass(frozen=True)
class Findings:
    """The readings, each system's figures before training (``zero_shot``), and what rankers add, if there are any."""

    readings: Sequence[Reading]
    zero_shot: Mapping[str, Mapping[str, float]]
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pipeline: Pipeline | None = None


def find(runs: Sequence[RunResult], systems: Sequence[str], baseline: str) -> Findings:
    """Return the findings over finished ``runs``; a system without one is in none of them."""
    by_system = {name: [run for run in runs if run.system == name] for name in systems}
    present = {name: found for name, found in by_system.items() if found}
    if not present:
        return Findings((), {})
    axes: dict[str, Callable[[RunResult], Sequence[float]]] = {
        "steps": lambda run: run.steps,
        "seconds": lambda run: run.seconds,
    }
    # A run that stopped early keeps what it has: it sets no limit to the others.
    bounding = [run for run in runs if run.ended != "early"] or list(runs)
    readings = [_read(axis, min(of(run)[-1] for run in bounding), of, present, baseline) for axis, of in axes.items()]
    return Findings(
        readings,
        {name: dict(found[0].points[0].test or {}) for name, found in present.items()},
        {name: mean_costs(found) for name, found in present.items()},
        _pipeline(present, baseline, readings[0].limit),
    )


def _pipeline(runs: Mapping[str, Sequence[RunResult]], baseline: str, limit: float) -> Pipeline | None:
    """Return what rankers add; ``limit`` is that of equal steps."""
    found = {name: {run.seed: run.reranked for run in of if run.reranked is not None} for name, of in runs.items()}
    found = {name: of for name, of in found.items() if of}
    if not found:
        return None
    after = {name: {seed: one.after for seed, one in of.items()} for name, of in found.items()}
    before = {name: {seed: one.before for seed, one in of.items()} for name, of in found.items()}
    plain = {run.seed: run.points[run.chosen(limit, run.steps)] for run in runs.get(baseline, ())}
    return Pipeline(
        next(one.depth for of in found.values() for one in of.values()),
        "reranked" if baseline in after else "retrieved",
        {name: _figures(points) for name, points in after.items()},
        {name: _figures(points) for name, points in before.items()},
        _corrected({name: _against(points, before[name]) for name, points in after.items()}),
        _gaps(after, baseline, after.get(baseline, plain)),
    )


def _read(
    axis: str,
    limit: float,
    of: Callable[[RunResult], Sequence[float]],
    runs: Mapping[str, Sequence[RunResult]],
    baseline: str,
) -> Reading:
    chosen = {name: {run.seed: run.points[run.chosen(limit, of(run))] for run in found} for name, found in runs.items()}
    late = [name for name, found in runs.items() if any(not run.has_trained(limit, of(run)) for run in found)]
    told = {name: points for name, points in chosen.items() if name not in late}
    return Reading(
        axis,
        limit,
        {name: _figures(points) for name, points in chosen.items()},
        _gaps(told, baseline, told.get(baseline, {})),
        {name: sorted(point.step for point in points.values()) for name, points in chosen.items()},
        late,
    )


def _measures(points: Iterable[Point]) -> list[str]:
    """Return the measures that all ``points`` have on test."""
    first, *others = [point.test or {} for point in points]
    return [name for name in first if all(name in test for test in others)]


def _figures(points: Mapping[int, Point]) -> dict[str, Figure]:
    return {measure: _figure(points, measure) for measure in _measures(points.values())}


def _figure(points: Mapping[int, Point], measure: str) -> Figure:
    by_seed = {seed: float((point.test or {})[measure]) for seed, point in points.items()}
    values = list(by_seed.values())
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Figure(statistics.fmean(values), t_interval(values), spread, by_seed)


def _gaps(
    chosen: Mapping[str, Mapping[int, Point]], baseline: str, reference: Mapping[int, Point]
) -> dict[str, dict[str, Gap]]:
    """Return how far the systems but ``baseline`` are from its points ``reference``."""
    others = {name: points for name, points in chosen.items() if name != baseline and points.keys() & reference.keys()}
    return _corrected({name: _against(points, reference) for name, points in others.items()})


def _against(points: Mapping[int, Point], reference: Mapping[int, Point]) -> dict[str, Gap]:
    """Return the gaps of ``points`` to ``reference`` over the seeds that both have, in the measures that all have."""
    pairs = [(point, reference[seed]) for seed, point in points.items() if seed in reference]
    both = [point for pair in pairs for point in pair]
    return {measure: _gap(pairs, measure) for measure in _measures(both)}


def _corrected(gaps: dict[str, dict[str, Gap]]) -> dict[str, dict[str, Gap]]:
    """Return ``gaps`` with each measure's p corrected for the number of systems."""
    for measure in {measure: None for of_system in gaps.values() for measure in of_system}:
        p_values = {name: gap.p for name, of in gaps.items() if (gap := of.get(measure)) and gap.p is not None}
        for name, corrected in holm(p_values).items():
            gap = gaps[name][measure]
            gaps[name][measure] = Gap(gap.mean, gap.interval, gap.over_queries, gap.p, corrected)
    return gaps


def _gap(pairs: Sequence[tuple[Point, Point]], measure: str) -> Gap:
    by_seed = [(ours.test or {})[measure] - (base.test or {})[measure] for ours, base in pairs]
    interval = t_interval(by_seed)
    if any(measure not in point.per_query for pair in pairs for point in pair):
        return Gap(statistics.fmean(by_seed), interval, None, None, None)
    differences: Float64 = np.mean([ours.per_query[measure] - base.per_query[measure] for ours, base in pairs], axis=0)
    return Gap(
        statistics.fmean(by_seed),
        interval,
        t_interval(differences.tolist()),
        randomisation_p(differences, ROUNDS, TEST_SEED),
        None,
    )


def mean_costs(runs: Sequence[RunResult]) -> dict[str, float]:
    """Return what the runs of one system cost on average: seconds, refreshes, staleness in steps, bytes."""
    last = [refresh.step - refresh.origin for run in runs for refresh in run.refreshes]
    every: dict[str, list[float]] = {
        "steps": [run.steps[-1] for run in runs],
        "seconds": [run.seconds[-1] for run in runs],
        **{name: [getattr(run.costs, name) for run in runs] for name in Costs.__dataclass_fields__},
        "refreshes": [len(run.refreshes) for run in runs],
        "age_at_adoption": [float(age) for age in last],
        **{f"peak_{role}": [run.peak[role] for run in runs if role in run.peak] for role in ("trainer", "refresher")},
        "cpu": [sum(run.cpu.values()) for run in runs if run.cpu],
        "reranking": [run.reranked.seconds for run in runs if run.reranked is not None],
        "reranked_pairs": [float(run.reranked.pairs) for run in runs if run.reranked is not None],
    }
    return {name: statistics.fmean(values) for name, values in every.items() if values}


def as_json(findings: Findings) -> dict[str, Any]:
    """Return the findings as JSON values, to 6 digits; seeds become strings."""
    return {
        "readings": [
            {
                "axis": reading.axis,
                "limit": round(reading.limit, 1),
                "systems": {
                    name: {
                        measure: _figure_json(figure, reading.gaps.get(name, {}).get(measure))
                        for measure, figure in of.items()
                    }
                    for name, of in reading.figures.items()
                },
                "steps": {name: list(steps) for name, steps in reading.steps.items()},
                "late": list(reading.late),
            }
            for reading in findings.readings
        ],
        "zero_shot": findings.zero_shot,
        "costs": {name: {key: round(value, 1) for key, value in of.items()} for name, of in findings.costs.items()},
        "pipeline": None if findings.pipeline is None else _pipeline_json(findings.pipeline),
    }


def _pipeline_json(pipeline: Pipeline) -> dict[str, Any]:
    return {
        "depth": pipeline.depth,
        "against": pipeline.against,
        "systems": {
            name: {
                measure: {
                    **_figure_json(figure, pipeline.gaps.get(name, {}).get(measure)),
                    "before": _figure_json(pipeline.before[name][measure], None),
                    "gain": _gap_json(pipeline.gains[name][measure]),
                }
                for measure, figure in of.items()
            }
            for name, of in pipeline.figures.items()
        },
    }


def _figure_json(figure: Figure, gap: Gap | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "mean": round(figure.mean, 6),
        "interval": _pair(figure.interval),
        "spread": None if figure.spread is None else round(figure.spread, 6),
        "by_seed": {str(seed): value for seed, value in figure.by_seed.items()},
    }
    return shown if gap is None else {**shown, "gap": _gap_json(gap)}


def _gap_json(gap: Gap) -> dict[str, Any]:
    return {
        "mean": round(gap.mean, 6),
        "interval": _pair(gap.interval),
        "over_queries": _pair(gap.over_queries),
        "p": gap.p,
        "holm": gap.holm,
        "verdict": gap.verdict,
    }


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(value, 6) for value in interval]
