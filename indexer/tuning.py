"""Finds the cheapest search parameters that reach a recall, by walking along the edge where recall crosses it.

Does not know FAISS, vectors or how a point is measured.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Parameters = Mapping[str, float]
Point = dict[str, Any]
"""One measurement: parameters, recall, queries_per_second, and what its maker adds."""
SERVED_DEPTH = 10
"""Depth that indexes are tuned for beside that of mining: a page of hits."""
FAR = 4
"""The walk ends where the first parameter is so many times its least sufficient value: it costs in proportion."""


def walk_edge(
    ladders: Mapping[str, Sequence[float]], target: float, measure: Callable[[Parameters], Point]
) -> list[Point]:
    """Measure the points of a grid that matter for a ``target`` recall, each once, and return them.

    ``ladders`` has the ascending values of at most two parameters; recall must not fall as one rises. That of the
    first is bisected at the second's largest value. From there the second goes down while the target is reached, and
    the first up while it is not: the saddleback search (Gries), along the ladders' lengths instead of their product.
    Which points are visited depends on recall alone, never on measured speed.
    """
    seen: dict[tuple[float, ...], Point] = {}

    def reaches(*values: float) -> bool:
        if values not in seen:
            seen[values] = measure(dict(zip(ladders, values, strict=True)))
        return bool(seen[values]["recall"] >= target)

    if not ladders:
        reaches()
        return list(seen.values())
    first, *others = ladders.values()
    largest = [values[-1] for values in others]
    least = bisect_left(first, True, key=lambda value: reaches(value, *largest))
    if others:
        second = list(others[0])
        values = [value for value in first[least:] if value < FAR * first[least]]
        while values and second:
            if reaches(values[0], second[-1]):
                second.pop()
            else:
                values.pop(0)
    return list(seen.values())


def corners(points: Sequence[Point], target: float) -> list[Point]:
    """Return the points that reach ``target`` where no other that does is as low in every parameter."""
    reached = [point for point in points if point["recall"] >= target]

    def within(one: Point, other: Point) -> bool:
        return all(value <= other["parameters"][name] for name, value in one["parameters"].items())

    return [point for point in reached if not any(o is not point and within(o, point) for o in reached)]


def interpolate(shallow: Parameters, deep: Parameters, share: float) -> dict[str, float]:
    """Return parameters between ``shallow`` (share 0) and ``deep`` (share 1), geometrically; a share outside is cut.

    Whole numbers stay whole, rounded up.
    """
    share = min(max(share, 0.0), 1.0)
    between: dict[str, float] = {}
    for name, low in shallow.items():
        value = low ** (1 - share) * deep[name] ** share
        whole = float(low).is_integer() and float(deep[name]).is_integer()
        between[name] = math.ceil(value - 1e-9) if whole else value
    return between
