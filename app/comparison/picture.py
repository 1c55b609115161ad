"""Curves and intervals as inline SVG, coloured by the page's style sheet, so that light and dark need one picture.

Does not know what the numbers are, nor the page around it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 40
TRACK = 14
TICKS = 5
COLOURS = 8

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One system's lines: thin ones, the bold one, and spans (from, to) along x that its track below shows."""

    colour: int
    lines: Sequence[Points]
    bold: Points
    spans: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Bar:
    """One row of ``draw_intervals``: its name, its mean, the interval around it and the single values."""

    name: str
    colour: int
    mean: float
    interval: tuple[float, float] | None
    values: Sequence[float]


class Axis:
    """A linear map of values onto pixels with round ticks."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        """Map ``low`` … ``high`` to the pixels ``first`` … ``last``; equal values are given room around them."""
        if high <= low:
            low, high = low - 0.5, high + 0.5
        self._low, self._scale, self._first = low, (last - first) / (high - low), first
        self.ticks = round_ticks(low, high)
        steps = [f"{tick:g}".partition(".")[2] for tick in self.ticks]
        self._digits = max(map(len, steps))

    def at(self, value: float) -> float:
        """Return the pixel of ``value``."""
        return round(self._first + (value - self._low) * self._scale, 1)

    def label(self, tick: float) -> str:
        """Return ``tick`` with as many digits as all ticks."""
        return f"{tick:.{self._digits}f}"


def round_ticks(low: float, high: float) -> list[float]:
    """Return about five multiples of 1, 2 or 5 times a power of ten within ``low`` … ``high``, which differ."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def draw_curves(title: str, x_name: str, y_name: str, curves: Sequence[Curve]) -> str:
    """Return the SVG of ``curves``; each with spans gets a track of its own under the x axis."""
    tracks = [curve for curve in curves if curve.spans]
    height = HEIGHT + TRACK * len(tracks) + (TRACK if tracks else 0)
    foot = HEIGHT - BOTTOM
    every = [point for curve in curves for line in (*curve.lines, curve.bold) for point in line]
    if not every:
        return ""
    values = [y for _, y in every]
    room = 0.05 * (max(values) - min(values))
    across = Axis(0, max(x for x, _ in every), LEFT, WIDTH - RIGHT)
    upward = Axis(min(values) - room, max(values) + room, foot, TOP)
    parts = [*_opening(title, height), *_grid(across, upward, foot)]
    parts += [
        f'<text x="{LEFT - 44}" y="16">{escape(y_name)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{foot + 34}" class="end">{escape(x_name)}</text>',
    ]
    for curve in curves:
        parts += [_line(line, across, upward, f"thin c{curve.colour}") for line in curve.lines]
    parts += [_line(curve.bold, across, upward, f"bold c{curve.colour}") for curve in curves]
    if tracks:
        parts.append(f'<text x="{LEFT}" y="{foot + 34}" class="small">refreshes:</text>')
    for number, curve in enumerate(tracks):
        parts += _track(curve, across, foot + 34 + TRACK * (number + 1))
    return "\n".join([*parts, "</svg>"])


def draw_intervals(title: str, bars: Sequence[Bar], mark: tuple[str, float] | None) -> str:
    """Return the SVG of a row a bar: single values, mean and interval; ``mark`` is a named line across all rows."""
    row = 44
    height = TOP + row * len(bars) + 30
    ends = [end for bar in bars for end in (*(bar.interval or ()), bar.mean, *bar.values)]
    ends += [] if mark is None else [mark[1]]
    if not bars:
        return ""
    room = 0.06 * (max(ends) - min(ends))
    across = Axis(min(ends) - room, max(ends) + room, 14, WIDTH - RIGHT)
    foot = height - 26
    parts = _opening(title, height)
    for tick in across.ticks:
        parts.append(f'<path class="grid" d="M{across.at(tick)},{TOP} V{foot}"/>')
        parts.append(f'<text x="{across.at(tick)}" y="{foot + 18}" class="mid">{across.label(tick)}</text>')
    if mark is not None:
        x = across.at(mark[1])
        anchor = "end" if x > WIDTH / 2 else "start"
        parts.append(f'<path class="mark" d="M{x},{TOP - 4} V{foot}"/>')
        parts.append(f'<text x="{x}" y="{TOP - 10}" class="small {anchor}">{escape(mark[0])} {mark[1]:.4f}</text>')
    for number, bar in enumerate(bars):
        parts += _bar(bar, across, TOP + row * number + 32)
    return "\n".join([*parts, "</svg>"])


def _opening(title: str, height: float) -> list[str]:
    return [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]


def _grid(across: Axis, upward: Axis, foot: float) -> list[str]:
    parts = []
    for tick in upward.ticks:
        parts.append(f'<path class="grid" d="M{LEFT},{upward.at(tick)} H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{upward.at(tick) + 4}" class="end">{upward.label(tick)}</text>')
    for tick in across.ticks:
        parts.append(f'<text x="{across.at(tick)}" y="{foot + 17}" class="mid">{across.label(tick)}</text>')
    return [*parts, f'<path class="axis" d="M{LEFT},{foot} H{WIDTH - RIGHT}"/>']


def _line(points: Points, across: Axis, upward: Axis, style: str) -> str:
    places = " ".join(f"{across.at(x)},{upward.at(y)}" for x, y in points)
    return f'<polyline class="{style}" points="{places}"/>'


def _track(curve: Curve, across: Axis, y: float) -> list[str]:
    parts = []
    for begin, end in curve.spans:
        parts.append(f'<path class="span c{curve.colour}" d="M{across.at(begin)},{y} H{across.at(end)}"/>')
        parts.append(f'<circle class="dot c{curve.colour}" cx="{across.at(end)}" cy="{y}" r="3.5"/>')
    return parts


def _bar(bar: Bar, across: Axis, y: float) -> list[str]:
    style = f"c{bar.colour}"
    parts = [f'<text x="14" y="{y - 13}">{escape(bar.name)}</text>']
    if bar.interval is not None:
        low, high = map(across.at, bar.interval)
        parts.append(f'<path class="bold {style}" d="M{low},{y} H{high} M{low},{y - 4} v8 M{high},{y - 4} v8"/>')
    parts += [f'<circle class="ring {style}" cx="{across.at(value)}" cy="{y}" r="4"/>' for value in bar.values]
    parts.append(f'<circle class="dot {style}" cx="{across.at(bar.mean)}" cy="{y}" r="5"/>')
    return parts
