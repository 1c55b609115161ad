"""What the seeds of a comparison make of the same system: which queries vary, which flip, how large a gap must be.

Does not know how runs were made or measured.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.comparison.findings import ROUNDS, TEST_SEED, Gap
from app.comparison.significance import CONFIDENCE, holm, randomisation_p, t_interval, t_quantile
from miner.audit import Finding

Float64 = NDArray[np.float64]

Figures = Mapping[str, Mapping[int, Float64]]
"""System → seed → a measure of each test query float64 [Q], of the checkpoint that dev chose."""


@dataclass(frozen=True)
class SystemSeeds:
    """One system over its seeds: mean, ``spread`` of the seeds' means and mean ``query_spread``, None for one seed.

    ``varying`` counts the queries whose figure is not the same for all seeds, ``flipping`` those that some seeds answer
    among the first ten and others do not.
    """

    name: str
    seeds: int
    mean: float
    spread: float | None
    query_spread: float | None
    varying: int
    flipping: int


@dataclass(frozen=True)
class SeedVariance:
    """The report over ``queries`` test queries.

    ``least_gap``: two systems of that many seeds each must differ by more before it is more than seeds (two-sided,
    95 %, standard deviation pooled over systems); ``least_gap_single`` for one run each. ``spreads`` float64 [Q] are
    standard deviations over seeds, averaged over systems; ``flips`` int64 [Q] counts systems.
    """

    queries: int
    systems: Sequence[SystemSeeds]
    pooled: float
    least_gap: float
    least_gap_single: float
    spreads: Float64
    flips: NDArray[np.int64]


def seed_variance(figures: Figures) -> SeedVariance | None:
    """Return the report, None without a system of two seeds."""
    tables = {name: np.array(list(of.values())) for name, of in figures.items() if of}
    several = {name: table for name, table in tables.items() if len(table) > 1}
    if not several:
        return None
    freedom = sum(len(table) - 1 for table in several.values())
    squares = sum(float(table.mean(axis=1).var(ddof=1)) * (len(table) - 1) for table in several.values())
    pooled = math.sqrt(squares / freedom)
    t = t_quantile((1 + CONFIDENCE) / 2, freedom)
    seeds = min(map(len, several.values()))
    return SeedVariance(
        queries=next(iter(tables.values())).shape[1],
        systems=[_system(name, table) for name, table in tables.items()],
        pooled=pooled,
        least_gap=t * pooled * math.sqrt(2 / seeds),
        least_gap_single=t * pooled * math.sqrt(2),
        spreads=np.mean([table.std(axis=0, ddof=1) for table in several.values()], axis=0),
        flips=np.sum([_flips(table) for table in several.values()], axis=0),
    )


def _system(name: str, table: Float64) -> SystemSeeds:
    means = table.mean(axis=1)
    several = len(table) > 1
    return SystemSeeds(
        name=name,
        seeds=len(table),
        mean=float(means.mean()),
        spread=statistics.stdev(means.tolist()) if several else None,
        query_spread=float(table.std(axis=0, ddof=1).mean()) if several else None,
        varying=int((np.ptp(table, axis=0) > 0).sum()),
        flipping=int(_flips(table).sum()),
    )


def _flips(table: Float64) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (table > 0).any(axis=0) & (table == 0).any(axis=0)
    return found


def seed_findings(report: SeedVariance, figures: Figures, ids: Sequence[str]) -> list[Finding]:
    """Return the queries that vary, those that flip in the most systems first, then by their spread."""
    order = np.lexsort((-report.spreads, -report.flips))
    findings = []
    for place in order[report.spreads[order] > 0].tolist():
        told = [
            f"{name} {', '.join(f'{values[place]:.2f}' for values in of.values())}"
            for name, of in figures.items()
            if len({float(values[place]) for values in of.values()}) > 1
        ]
        flips = int(report.flips[place])
        lost = f"found by some seeds only, in {flips} of the systems; " if flips else ""
        reason = f"{lost}sd {report.spreads[place]:.2f} over seeds: {'; '.join(told)}"
        findings.append(Finding("seeds", ids[place], (), reason, flagged=flips > 0))
    return findings


def left_out_gaps(
    all_of: Mapping[int, Float64], without: Mapping[str, Mapping[int, Float64]], rest: Mapping[str, NDArray[np.bool_]]
) -> dict[str, Any]:
    """Return by data set {"gap", "p", "seeds", "verdict"}: how much better ``rest`` bool [Q] of the queries do without.

    Over the seeds that both have: "better" means that the data set hurts the others. The test is that of a comparison,
    corrected for the number of data sets by Holm's method.
    """
    by_query, gaps = {}, {}
    for name, of in without.items():
        by_query[name] = np.array([of[seed][rest[name]] - all_of[seed][rest[name]] for seed in all_of if seed in of])
        by_seed = by_query[name].mean(axis=1).tolist()
        p = randomisation_p(by_query[name].mean(axis=0), ROUNDS, TEST_SEED)
        gaps[name] = Gap(statistics.fmean(by_seed), t_interval(by_seed), None, p, p)
    for name, p in holm({name: gap.p for name, gap in gaps.items() if gap.p is not None}).items():
        gaps[name] = replace(gaps[name], holm=p)
    return {
        name: {"gap": gap.mean, "p": gap.holm, "seeds": len(by_query[name]), "verdict": gap.verdict}
        for name, gap in gaps.items()
    }
