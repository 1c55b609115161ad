"""What a teacher says as scalar loops in float64, written from the formulas, and the small batches to try them on.

Does not know hone's losses. A teacher's score of None is one that was never made.
"""

import math
import random
from dataclasses import dataclass
from functools import cache
from statistics import fmean

Rows = list[list[float]]
Scored = list[list[float | None]]


@dataclass(frozen=True)
class Taught:
    """Student's scores [b, n], the teacher's, each query's positive column, and which columns are compared."""

    scores: Rows
    teacher: Scored
    positive: list[int]
    compared: list[list[bool]]

    def known(self, query: int) -> dict[int, float]:
        """Column to teacher's score of all that are compared and have one."""
        return {j: t for j, t in enumerate(self.teacher[query]) if t is not None and self.compared[query][j]}


def log_p(scores: dict[int, float]) -> dict[int, float]:
    total = sum(math.exp(s) for s in scores.values())
    return {j: math.log(math.exp(s) / total) for j, s in scores.items()}


def mean(found: list[float]) -> float:
    return fmean(found) if found else 0.0


def kl(scores: Rows, case: Taught, tau: float, t: float) -> float:
    found = []
    for i, row in enumerate(scores):
        known = case.known(i)
        if len(known) < 2:
            continue
        theirs, ours = log_p({j: s / t for j, s in known.items()}), log_p({j: row[j] / tau for j in known})
        found.append(sum(math.exp(theirs[j]) * (theirs[j] - ours[j]) for j in known))
    return mean(found)


def margin_mse(scores: Rows, case: Taught, tau: float, t: float) -> float:
    found = []
    for i, row in enumerate(scores):
        known, own = case.known(i), case.positive[i]
        if own not in known or len(known) < 2:
            continue
        gaps = [(row[own] - row[j]) / tau - (known[own] - s) / t for j, s in known.items() if j != own]
        found.append(fmean(gap * gap for gap in gaps))
    return mean(found)


def soft_infonce(scores: Rows, case: Taught, tau: float, t: float) -> float:
    """The grade y is σ(t⁺/T)."""
    found = []
    for i, row in enumerate(scores):
        own, given = case.positive[i], case.teacher[i][case.positive[i]]
        others = [j for j, is_one in enumerate(case.compared[i]) if is_one and j != own]
        if given is None or not others:
            continue
        y, logs = 1 / (1 + math.exp(-given / t)), log_p({j: row[j] / tau for j in [own, *others]})
        found.append(-y * logs[own] - (1 - y) / len(others) * sum(logs[j] for j in others))
    return mean(found)


def cosent(scores: Rows, case: Taught, tau: float, t: float) -> float:
    pairs = [(s, row[j]) for i, row in enumerate(scores) for j, s in case.known(i).items()]
    return math.log(1 + sum(math.exp((b - a) / tau) for ta, a in pairs for tb, b in pairs if ta > tb))


def ar2(scores: Rows, case: Taught, tau: float, t: float, weight: float = 0.5, over: str = "all") -> float:
    found = []
    for i, row in enumerate(scores):
        known, own = case.known(i), case.positive[i]
        if own not in known or len(known) < 2:
            continue
        ours, theirs = log_p({j: row[j] / tau for j in known}), log_p({j: s / t for j, s in known.items()})
        rewarded = [j for j in known if over == "all" or j != own]
        pushed = sum(math.log(1 / (1 + math.exp(-(known[own] - known[j])))) * ours[j] for j in rewarded)
        matched = -sum(math.exp(theirs[j]) * ours[j] for j in known)
        found.append(weight * pushed + (1 - weight) * matched)
    return mean(found)


@cache
def case_of(seed: int) -> Taught:
    """Query 1's positive has no score, 2 has one score, 3 none, 4 compares its positive alone; two scores are equal."""
    drawn = random.Random(seed)
    scores = [[drawn.uniform(-1, 1) for _ in range(6)] for _ in range(6)]
    teacher: Scored = [[drawn.uniform(-4, 4) if drawn.random() < 0.8 else None for _ in row] for row in scores]
    positive = [0, 1, 2, 3, 4, 1]
    compared = [[j == positive[i] or drawn.random() < 0.8 for j in range(6)] for i in range(6)]
    teacher[0][:3], compared[0][:3] = [1.5, 0.25, 0.25], [True, True, True]
    teacher[1][1] = None
    teacher[2] = [None, None, 0.5, None, None, None]
    teacher[3] = [None] * 6
    compared[4] = [j == 4 for j in range(6)]
    teacher[4][4] = 1.0
    teacher[5][:3], compared[5][:3] = [1.5, -0.75, 2.0], [True, True, True]
    return Taught(scores, teacher, positive, compared)
