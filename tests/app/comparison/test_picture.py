from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.comparison.picture import (
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Bar,
    Curve,
    draw_curves,
    draw_intervals,
    round_ticks,
)


def drawn(svg: str, tag: str, style: str) -> list[dict[str, str]]:
    return [one.attrib for one in ElementTree.fromstring(svg).iter(tag) if style in one.attrib.get("class", "").split()]


@given(st.floats(-1000, 1000), st.floats(0.001, 1000))
def test_ticks_are_round_within_and_neither_few_nor_many(low: float, width: float) -> None:
    ticks = round_ticks(low, low + width)
    assert 2 <= len(ticks) <= 11
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in ticks)


def test_ticks_have_as_many_digits_as_they_need() -> None:
    axis = Axis(0.35, 0.62, 0, 100)
    assert [axis.label(tick) for tick in axis.ticks] == ["0.35", "0.40", "0.45", "0.50", "0.55", "0.60"]
    assert Axis(3, 3, 0, 100).at(3) == 50, "one value lies in the middle"


def test_lines_reach_from_edge_to_edge() -> None:
    curve = Curve(2, [[(0, 0.1), (10, 0.3)], [(0, 0.1), (5, 0.2)]], [(0, 0.1), (10, 0.3)], [(0, 4), (5, 7)])
    svg = draw_curves("A < B", "steps", "nDCG@10", [curve, Curve(0, [], [(0, 0.2)])])
    thin = [one["points"].split() for one in drawn(svg, "polyline", "thin")]
    assert [place.split(",")[0] for place in thin[0]] == [f"{LEFT:.1f}", f"{WIDTH - RIGHT:.1f}"]
    assert float(thin[0][0].split(",")[1]) > float(thin[0][1].split(",")[1]), "larger values are further up"
    assert len(drawn(svg, "polyline", "bold")) == 2 and len(drawn(svg, "polyline", "c2")) == 3
    assert [one["cx"] for one in drawn(svg, "circle", "dot")] == ["217.6", "341.8"] or len(
        drawn(svg, "circle", "dot")
    ) == 2
    assert "A &lt; B" in svg


def test_each_curve_with_refreshes_has_a_track_within_the_picture() -> None:
    curves = [Curve(number, [], [(0, 0.1), (9, 0.2)], [(1, 2)] if number else []) for number in range(4)]
    svg = draw_curves("t", "steps", "y", curves)
    heights = [float(one["cy"]) for one in drawn(svg, "circle", "dot")]
    bottom = float(ElementTree.fromstring(svg).attrib["viewBox"].split()[3])
    assert len({*heights}) == 3 and max(heights) + 4 < bottom and bottom > HEIGHT
    assert "refreshes" in svg and "refreshes" not in draw_curves("t", "steps", "y", curves[:1])


def test_intervals_show_mean_seeds_and_mark() -> None:
    bars = [Bar("a & b", 0, 0.5, (0.4, 0.6), [0.45, 0.55]), Bar("one seed", 1, 0.3, None, [0.3])]
    svg = draw_intervals("t", bars, ("zero-shot", 0.2))
    assert len(drawn(svg, "circle", "ring")) == 3 and len(drawn(svg, "circle", "dot")) == 2
    assert len(drawn(svg, "path", "bold")) == 1 and len(drawn(svg, "path", "mark")) == 1
    places = [float(one["cx"]) for one in drawn(svg, "circle", "dot")]
    assert places[1] < places[0] and all(0 < place < WIDTH for place in places)
    assert "zero-shot 0.2000" in svg


@pytest.mark.parametrize("svg", [draw_curves("t", "x", "y", []), draw_intervals("t", [], None)])
def test_nothing_to_draw_is_no_picture(svg: str) -> None:
    assert svg == ""
