"""The losses as scalar loops in float64, written from their formulas, and the small batches to try them on.

Does not know hone's losses. What has no gradient (hardness weights, gains of ranks, decay) is fixed at the case's own
scores, so that central differences move the rest alone.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, pstdev

Rows = list[list[float]]
Masks = list[list[bool]]


@dataclass(frozen=True)
class Knobs:
    """The keys of [loss] that a formula reads, with their documented defaults."""

    name: str = "infonce"
    symmetric: bool = False
    margin: float = 0.0
    debias: float | None = None
    hardness: float | None = None
    pseudo_positives: float | None = None
    guide: str | None = None
    guide_max: float | None = None
    guide_decay: float | None = None
    gce_q: float = 0.7
    ccl_margin: float = 0.4
    ccl_weight: float = 50.0
    ms_alpha: float = 2.0
    ms_beta: float = 50.0
    ms_threshold: float = 0.5
    ms_epsilon: float = 0.1


@dataclass(frozen=True)
class Case:
    """Scores [b, n], each query's positive column, who is its negative, who of them is hard, and the guide's scores."""

    scores: Rows
    positive: list[int]
    negative: Masks
    hard: Masks
    guide: Rows

    def turned(self) -> "Case":
        """Passages looking for queries: of two queries with one positive, neither is the other's negative."""
        places = range(len(self.positive))
        negative = [[self.negative[k][own] for k in places] for own in self.positive]
        hard = [[False for _ in places] for _ in places]
        return Case(
            columns(self.scores, self.positive), list(places), negative, hard, columns(self.guide, self.positive)
        )


@dataclass(frozen=True)
class Query:
    """One query's scores, and the same where they count as constants."""

    positive: float
    negatives: list[float]
    weights: list[float]
    fixed_positive: float
    fixed_negatives: list[float]


def columns(rows: Rows, places: list[int]) -> Rows:
    return [[row[j] for row in rows] for j in places]


def falls(case: Case, sigma: float) -> Rows:
    """−s·exp(−(s − s₀)²/2σ²) of hard negatives with s ≤ s₀, the guide at mean and spread of all allowed scores."""
    found = [[0.0 for _ in row] for row in case.scores]
    places = [(i, j) for i, row in enumerate(case.negative) for j, is_one in enumerate(row) if is_one]
    places += list(enumerate(case.positive))
    ours, theirs = [case.scores[i][j] for i, j in places], [case.guide[i][j] for i, j in places]
    for i, j in places:
        s = case.scores[i][j]
        s0 = (case.guide[i][j] - fmean(theirs)) / pstdev(theirs) * pstdev(ours) + fmean(ours)
        if case.hard[i][j] and s <= s0:
            found[i][j] = -s * math.exp(-((s - s0) ** 2) / (2 * sigma**2))
    return found


def queries_of(scores: Rows, case: Case, knobs: Knobs) -> list[Query]:
    """s⁺ − m; negatives that the guide trusts, lowered by the decay; weights ∝ exp(β·s) with mean 1."""
    sigma, limit = knobs.guide_decay, math.inf if knobs.guide_max is None else knobs.guide_max
    fall = [[0.0 for _ in row] for row in scores] if sigma is None else falls(case, sigma)
    found = []
    for i, own in enumerate(case.positive):
        kept = [j for j, is_one in enumerate(case.negative[i]) if is_one and case.guide[i][j] < limit]
        fixed = [case.scores[i][j] + fall[i][j] for j in kept]
        heat = [math.exp((knobs.hardness or 0.0) * s) for s in fixed]
        weights = [len(heat) * h / sum(heat) for h in heat]
        moved = [scores[i][j] + fall[i][j] for j in kept]
        found.append(Query(scores[i][own] - knobs.margin, moved, weights, case.scores[i][own], fixed))
    return found


def mass(query: Query, knobs: Knobs, t: float) -> float:
    """Σ w·exp(s/τ); debiased max((Σ − N·τ⁺·exp(s⁺/τ))/(1 − τ⁺), N·exp(−1/τ))."""
    total, number = (
        sum(w * math.exp(s / t) for s, w in zip(query.negatives, query.weights, strict=True)),
        len(query.weights),
    )
    if knobs.debias is None:
        return total
    least = number * math.exp(-1 / t)
    return max((total - number * knobs.debias * math.exp(query.positive / t)) / (1 - knobs.debias), least)


def infonce(query: Query, knobs: Knobs, t: float) -> float:
    """(−log p⁺ − α·Σ log p_j)/(1 + α·number) over the negatives with s_j ≥ s⁺; α = 0 is InfoNCE."""
    alpha, above = knobs.pseudo_positives or 0.0, [s for s in query.negatives if s >= query.positive]
    everything = math.exp(query.positive / t) + mass(query, knobs, t)
    logs = [math.log(math.exp(s / t) / everything) for s in (query.positive, *above)]
    return -(logs[0] + alpha * sum(logs[1:])) / (1 + alpha * len(above))


def decoupled(query: Query, knobs: Knobs, t: float) -> float:
    return math.log(mass(query, knobs, t)) - query.positive / t if query.negatives else 0.0


def gce(query: Query, knobs: Knobs, t: float) -> float:
    own = math.exp(query.positive / t)
    return (1 - math.pow(own / (own + mass(query, knobs, t)), knobs.gce_q)) / knobs.gce_q


def lambdarank(query: Query, knobs: Knobs, t: float) -> float:
    """Σ_j w_j·|1/r⁺ − 1/r_j|·log(1 + exp((s_j − s⁺)/τ))."""
    own, others = query.fixed_positive, query.fixed_negatives
    first, total = 1 + sum(s >= own for s in others), 0.0
    for s, w, fixed in zip(query.negatives, query.weights, others, strict=True):
        rank = 1 + sum(other > fixed for other in others) + (own > fixed)
        total += w * abs(1 / first - 1 / rank) * math.log(1 + math.exp((s - query.positive) / t))
    return total


def ccl(query: Query, knobs: Knobs, t: float) -> float:
    hinges = [w * max(0.0, s - knobs.ccl_margin) for s, w in zip(query.negatives, query.weights, strict=True)]
    return 1 - query.positive + (knobs.ccl_weight * fmean(hinges) if hinges else 0.0)


def multi_similarity(query: Query, knobs: Knobs, t: float) -> float:
    alpha, beta, threshold, epsilon = knobs.ms_alpha, knobs.ms_beta, knobs.ms_threshold, knobs.ms_epsilon
    mined = [s for s in query.negatives if s > query.positive - epsilon]
    near = any(query.positive < s + epsilon for s in query.negatives)
    pulled = math.log(1 + math.exp(-alpha * (query.positive - threshold))) / alpha if near else 0.0
    return pulled + math.log(1 + sum(math.exp(beta * (s - threshold)) for s in mined)) / beta


def mann_whitney(queries: list[Query], t: float) -> float:
    """Σ w·log(1 + exp((s⁻ − s⁺)/τ)) / Σ w over all positives × all negatives of the batch."""
    total = weight = 0.0
    for one in queries:
        for other in queries:
            for s, w in zip(other.negatives, other.weights, strict=True):
                total += w * math.log(1 + math.exp((s - one.positive) / t))
                weight += w
    return total / weight


FORMULAS: dict[str, Callable[[Query, Knobs, float], float]] = {
    f.__name__: f for f in (infonce, decoupled, gce, lambdarank, ccl, multi_similarity)
}


def reference(scores: Rows, case: Case, knobs: Knobs, t: float) -> float:
    if knobs.symmetric:
        one_way, turned = replace(knobs, symmetric=False), columns(scores, case.positive)
        return (reference(scores, case, one_way, t) + reference(turned, case.turned(), one_way, t)) / 2
    queries = queries_of(scores, case, knobs)
    if knobs.name == "mw":
        return mann_whitney(queries, t)
    return fmean(FORMULAS[knobs.name](query, knobs, t) for query in queries)


@cache
def case_of(seed: int) -> Case:
    """Two queries share a positive, one has no negative, one has a single one; some scores beat the positive."""
    drawn = random.Random(seed)
    scores = [[drawn.uniform(-1, 1) for _ in range(7)] for _ in range(5)]
    guide = [[drawn.uniform(-1, 1) for _ in row] for row in scores]
    positive = [0, 1, 1, 3, 4]
    negative = [[j != positive[i] and drawn.random() < 0.7 for j in range(7)] for i in range(5)]
    negative[3], negative[4] = [False] * 7, [j == seed % 3 for j in range(7)]
    hard = [[is_one and drawn.random() < 0.6 for is_one in row] for row in negative]
    return Case(scores, positive, negative, hard, guide)


def slopes(case: Case, knobs: Knobs, t: float) -> tuple[Rows, float]:
    """The loss's derivative by each score and by τ: central differences."""
    step, scores = 1e-6, [list(row) for row in case.scores]
    found: Rows = []
    for row in scores:
        found.append([])
        for place, value in enumerate(row):
            row[place] = value + step
            above = reference(scores, case, knobs, t)
            row[place] = value - step
            below = reference(scores, case, knobs, t)
            row[place] = value
            found[-1].append((above - below) / (2 * step))
    hotter, colder = (reference(scores, case, knobs, t + change) for change in (step, -step))
    return found, (hotter - colder) / (2 * step)
