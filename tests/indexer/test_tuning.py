import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.tuning import FAR, Parameters, Point, corners, interpolate, walk_edge

FIRST, SECOND = (1, 2, 3, 4, 6, 8), (1, 2, 4, 8, 16)
LADDERS = {"nprobe": FIRST, "k_factor": SECOND}


def rising(steps: list[int]) -> dict[tuple[float, float], float]:
    """Recall over the grid that never falls as a parameter rises: sums of what each step adds."""
    grid = np.reshape(steps, (len(FIRST), len(SECOND))).cumsum(0).cumsum(1)
    return {(one, other): float(grid[i, j]) for i, one in enumerate(FIRST) for j, other in enumerate(SECOND)}


class Recorder:
    """Measures by looking up, and counts how often each point was asked for."""

    def __init__(self, recall: dict[tuple[float, float], float]) -> None:
        self.recall, self.asked = recall, list[tuple[float, float]]()

    def __call__(self, parameters: Parameters) -> Point:
        place = parameters["nprobe"], parameters["k_factor"]
        self.asked.append(place)
        return {"parameters": dict(parameters), "recall": self.recall[place]}


STEPS = st.lists(st.integers(0, 2), min_size=len(FIRST) * len(SECOND), max_size=len(FIRST) * len(SECOND))


@given(steps=STEPS, target=st.integers(0, 30))
def test_the_walk_finds_every_corner_within_reach_and_visits_few_points(steps: list[int], target: int) -> None:
    measure = Recorder(rising(steps))
    points = walk_edge(LADDERS, target, measure)
    assert len({*measure.asked}) == len(measure.asked) <= len(FIRST) + len(SECOND) + 3
    reached = {place for place, recall in measure.recall.items() if recall >= target}
    least = min((first for first, _ in reached), default=0)
    best = {(a, b) for a, b in reached if not any((c, d) != (a, b) and c <= a and d <= b for c, d in reached)}
    found = {(p["parameters"]["nprobe"], p["parameters"]["k_factor"]) for p in corners(points, target)}
    assert found == {(first, second) for first, second in best if first < FAR * least}


@pytest.mark.parametrize(("target", "least"), [(0.0, 1), (3.5, 4), (8.0, 8), (9.0, None)])
def test_one_parameter_is_bisected(target: float, least: int | None) -> None:
    points = walk_edge({"nprobe": FIRST}, target, lambda p: {"parameters": dict(p), "recall": p["nprobe"]})
    assert len(points) <= 3
    assert [point["parameters"]["nprobe"] for point in corners(points, target)] == ([] if least is None else [least])


def test_without_parameters_there_is_one_point() -> None:
    points = walk_edge({}, 0.9, lambda p: {"parameters": dict(p), "recall": 0.5})
    assert points == [{"parameters": {}, "recall": 0.5}] == corners(points, 0.5)


@given(share=st.floats(-1, 2), low=st.integers(1, 300), high=st.integers(1, 300))
def test_what_lies_between_two_depths_stays_between_and_whole(share: float, low: int, high: int) -> None:
    between = interpolate({"nprobe": low, "k_factor": 1.5}, {"nprobe": high, "k_factor": 6.0}, share)
    assert min(low, high) <= between["nprobe"] <= max(low, high) and between["nprobe"] == int(between["nprobe"])
    assert 1.5 <= between["k_factor"] <= 6.0


def test_half_way_is_the_geometric_mean_rounded_up() -> None:
    assert interpolate({"nprobe": 8, "k_factor": 8.0}, {"nprobe": 64, "k_factor": 1.5}, 0.5) == {
        "nprobe": 23,
        "k_factor": pytest.approx(12**0.5),
    }
    ends = {"nprobe": 8}, {"nprobe": 64}
    assert [interpolate(*ends, share)["nprobe"] for share in (-1, 0, 1, 9)] == [8, 8, 64, 64]
