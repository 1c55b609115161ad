"""Fronts of recall and speed: who wins at the same recall, read between measured points.

Does not know who was measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Measured:
    """One setting of one contestant: recall, the speed of each round in queries/s, its process's peak in bytes."""

    setting: Mapping[str, Any]
    recall: float = 0.0
    speeds: list[float] = field(default_factory=list)
    peak_rss: int = 0


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (recall, speed) that no other beats in both, lowest recall first."""
    kept: list[tuple[float, float]] = []
    for recall, speed in sorted(points, reverse=True):
        if not kept or speed > kept[-1][1]:
            kept.append((recall, speed))
    return kept[::-1]


def speed_at(points: Sequence[tuple[float, float]], recall: float) -> float | None:
    """Return the speed at ``recall``: the logarithm of speed is linear between two neighbours on the front.

    None if no point reaches ``recall``. Above the front's lowest recall only: below it, that point's own speed, which
    is less than what a coarser setting would give.
    """
    ranked = front(points)
    above = next((place for place, point in enumerate(ranked) if point[0] >= recall), None)
    if above is None:
        return None
    if above == 0:
        return ranked[0][1]
    (low, fast), (high, slow) = ranked[above - 1], ranked[above]
    share = (recall - low) / (high - low)
    return math.exp((1 - share) * math.log(fast) + share * math.log(slow))
