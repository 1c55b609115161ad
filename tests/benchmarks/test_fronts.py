import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fronts import front, speed_at

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=10)


@given(points=POINTS)
def test_the_front_holds_exactly_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    kept = front(points)
    assert {*kept} == {p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)}
    assert kept == sorted(kept) and [speed for _, speed in kept] == sorted((speed for _, speed in kept), reverse=True)


def test_between_two_points_the_logarithm_of_speed_is_linear() -> None:
    points = [(0.90, 10_000.0), (0.94, 8000.0), (0.96, 2000.0), (0.95, 1000.0)]
    assert speed_at(points, 0.95) == pytest.approx(4000)
    assert speed_at(points, 0.96) == pytest.approx(2000)
    assert speed_at(points, 0.97) is None


def test_below_the_front_a_finer_setting_is_counted_as_it_is() -> None:
    assert speed_at([(0.97, 500.0), (0.99, 300.0)], 0.95) == 500


@given(points=POINTS, recall=st.integers(0, 9))
def test_more_points_never_make_a_contestant_slower(points: list[tuple[int, int]], recall: int) -> None:
    before, after = speed_at(points, recall), speed_at([*points, (recall, 9)], recall)
    assert after is not None and after >= (before or 0) - 1e-9
