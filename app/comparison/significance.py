"""Intervals of means, paired tests over queries, and their correction for several comparisons, in numpy.

Does not know what was measured.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

CONFIDENCE = 0.95
CHUNK_SIGNS = 1 << 22


def t_cdf(t: float, freedom: int) -> float:
    """Return P(T ≤ t) of Student's distribution with ``freedom`` ≥ 1 degrees (Abramowitz and Stegun, 26.7.3 and 4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    term = total = cosine if freedom % 2 else 1.0
    for k in range(3 if freedom % 2 else 2, freedom, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if freedom % 2:
        two_sided = 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))
    else:
        two_sided = math.sin(angle) * total
    return (1 + two_sided) / 2


def t_quantile(probability: float, freedom: int) -> float:
    """Return the t with P(T ≤ t) = ``probability`` in (0.5, 1), to 1e-9, by bisection."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of ``values`` by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return mean - half, mean + half


def randomisation_p(differences: Float64, rounds: int, seed: int) -> float:
    """Return the two-sided p-value that paired ``differences`` [Q] have mean 0, by ``rounds`` random flips of sign.

    The paired randomisation test of Smucker, Allan and Carterette (CIKM 2007): under the null either sign of a
    difference is as likely. p = (1 + flips whose mean is at least as far from 0) / (1 + rounds).
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    generator = np.random.default_rng(seed)
    observed = abs(moved.sum()) * (1 - 1e-12)  # equal sums in another order count as equal
    extreme = done = 0
    while done < rounds:
        count = min(rounds - done, max(1, CHUNK_SIGNS // len(moved)))
        signs = generator.integers(0, 2, (count, len(moved)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ moved) >= observed).sum())
        done += count
    return (1 + extreme) / (1 + rounds)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return ``p_values`` corrected for their number by Holm's step-down method (1979), by the same names."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
