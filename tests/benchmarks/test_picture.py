from xml.etree import ElementTree

from benchmarks.picture import HEIGHT, MARGIN, WIDTH, draw_lines


def test_lines_reach_from_the_origin_to_the_largest_values() -> None:
    drawn = ElementTree.fromstring(draw_lines("A < B", "step", "stale", {"a": [(0, 0), (10, 5)], "b & c": [(5, 2.5)]}))
    lines = [element.attrib["points"] for element in drawn.iter() if element.tag.endswith("polyline")]
    assert lines[0] == f"{MARGIN:.1f},{HEIGHT - MARGIN:.1f} {WIDTH - MARGIN:.1f},{MARGIN:.1f}"
    assert lines[1] == f"{WIDTH / 2:.1f},{HEIGHT / 2:.1f}"
    texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert {"A < B", "step", "stale", "10", "5", "b & c"} <= {*texts}


def test_nothing_to_draw_is_an_empty_frame() -> None:
    assert "polyline" not in draw_lines("t", "x", "y", {})
