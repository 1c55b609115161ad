"""The ranker's losses as scalar loops in float64, written from their formulas, and the small groups to try them on.

Does not know hone's losses. Gains of ranks, which have no gradient, are fixed at the case's own logits.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

Rows = list[list[float]]


@dataclass(frozen=True)
class Knobs:
    """The keys that a formula reads, with their documented defaults."""

    temperature: float = 1.0
    gce_q: float = 0.7
    gamma: float = 4.0
    shift: float = 0.05
    unknown: float = 0.2
    smooth: float = 1.0


@dataclass(frozen=True)
class Case:
    """Logits [q, 1 + k], the positive first, which of the others are there, and the teacher's scores, nan if none."""

    logits: Rows
    there: list[list[bool]]
    teacher: Rows


@dataclass(frozen=True)
class Group:
    """One query's logits, the same where they count as constants, and the teacher's."""

    positive: float
    negatives: list[float]
    fixed_positive: float
    fixed_negatives: list[float]
    taught: list[float]
    taught_positive: float


def sigma(s: float) -> float:
    return 1 / (1 + math.exp(-s))


def share(group: Group, t: float) -> float:
    own = math.exp(group.positive / t)
    return own / (own + sum(math.exp(s / t) for s in group.negatives))


def listwise(group: Group, knobs: Knobs) -> float:
    return -math.log(share(group, knobs.temperature))


def gce(group: Group, knobs: Knobs) -> float:
    return (1 - math.pow(share(group, knobs.temperature), knobs.gce_q)) / knobs.gce_q


def ranknet(group: Group, knobs: Knobs) -> float:
    costs = [math.log(1 + math.exp(s - group.positive)) for s in group.negatives]
    return sum(costs) / len(costs) if costs else 0.0


def lambdarank(group: Group, knobs: Knobs) -> float:
    """Σ_j |1/log₂(1 + r⁺) − 1/log₂(1 + r_j)|·log(1 + exp(s_j − s⁺))."""
    own, others = group.fixed_positive, group.fixed_negatives
    first, total = 1 + sum(s >= own for s in others), 0.0
    for s, fixed in zip(group.negatives, others, strict=True):
        rank = 1 + sum(other > fixed for other in others) + (own > fixed)
        gain = abs(1 / math.log2(1 + first) - 1 / math.log2(1 + rank))
        total += gain * math.log(1 + math.exp(s - group.positive))
    return total


def margin_mse(group: Group, knobs: Knobs) -> float:
    costs = [
        ((group.positive - s) - (group.taught_positive - t)) ** 2
        for s, t in zip(group.negatives, group.taught, strict=True)
        if not math.isnan(t) and not math.isnan(group.taught_positive)
    ]
    return sum(costs) / len(costs) if costs else 0.0


def asymmetric(group: Group, knobs: Knobs) -> float:
    total = -math.log(sigma(group.positive))
    for s in group.negatives:
        p = max(sigma(s) - knobs.shift, 0.0)
        total -= math.pow(p, knobs.gamma) * math.log(1 - p)
    return total


def em(group: Group, knobs: Knobs) -> float:
    total = -math.log(sigma(group.positive))
    for s in group.negatives:
        p = sigma(s)
        total -= knobs.unknown * -(p * math.log(p) + (1 - p) * math.log(1 - p))
    return total


def dice(group: Group, knobs: Knobs) -> float:
    below = sigma(group.positive) ** 2 + 1 + knobs.smooth
    for s in group.negatives:
        below += sigma(s) ** 2
    return 1 - (2 * sigma(group.positive) + knobs.smooth) / below


FORMULAS: dict[str, Callable[[Group, Knobs], float]] = {
    f.__name__: f for f in (listwise, gce, ranknet, lambdarank, margin_mse, asymmetric, em, dice)
}


def reference(name: str, logits: Rows, case: Case, knobs: Knobs) -> list[float]:
    found = []
    for row, fixed, there, taught in zip(logits, case.logits, case.there, case.teacher, strict=True):
        kept = [place for place, is_there in enumerate(there, 1) if is_there]
        group = Group(
            row[0], [row[j] for j in kept], fixed[0], [fixed[j] for j in kept], [taught[j] for j in kept], taught[0]
        )
        found.append(FORMULAS[name](group, knobs))
    return found


@cache
def case_of(seed: int) -> Case:
    """Five groups: one without a negative, one with a single one, one that the teacher leaves out, the others mixed."""
    drawn = random.Random(seed)
    logits = [[drawn.gauss(0, 2) for _ in range(6)] for _ in range(5)]
    there = [[drawn.random() < 0.7 for _ in range(5)] for _ in range(5)]
    there[1], there[2] = [False] * 5, [j == seed for j in range(5)]
    there[0][0] = there[3][1] = there[3][2] = there[4][4] = True
    teacher = [[drawn.gauss(0, 1) for _ in row] for row in logits]
    teacher[3][2] = teacher[4][0] = math.nan
    return Case(logits, there, teacher)


def slopes(name: str, case: Case, knobs: Knobs) -> Rows:
    """The derivative of the losses' sum by each logit: central differences."""
    step, logits = 1e-6, [list(row) for row in case.logits]
    found: Rows = []
    for row in logits:
        found.append([])
        for place, value in enumerate(row):
            row[place] = value + step
            above = sum(reference(name, logits, case, knobs))
            row[place] = value - step
            below = sum(reference(name, logits, case, knobs))
            row[place] = value
            found[-1].append((above - below) / (2 * step))
    return found
