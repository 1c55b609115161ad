"""Lines over steps as a self-contained SVG: axes, a legend, nothing else.

Does not know what the numbers are.
"""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 720, 300, 50
COLOURS = ("#0b6e99", "#c2571a", "#4b7f3a", "#7a4fa3", "#555555")
Points = Sequence[tuple[float, float]]


def draw_lines(title: str, x: str, y: str, lines: Mapping[str, Points]) -> str:
    """Return the SVG of ``lines``, points (x, y) by name, from 0 on; ``x`` and ``y`` name the axes."""
    every = [point for points in lines.values() for point in points]
    right, top = (max((point[axis] for point in every), default=0) or 1 for axis in (0, 1))

    def place(point: tuple[float, float]) -> str:
        across = MARGIN + point[0] / right * (WIDTH - 2 * MARGIN)
        return f"{across:.1f},{HEIGHT - MARGIN - point[1] / top * (HEIGHT - 2 * MARGIN):.1f}"

    foot, edge = HEIGHT - MARGIN, WIDTH - MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="20" font-size="14">{escape(title)}</text>',
        f'<path d="M{MARGIN},{MARGIN} V{foot} H{edge}" fill="none" stroke="black"/>',
        f'<text x="{edge}" y="{foot + 32}" text-anchor="end">{escape(x)}</text>',
        f'<text x="{MARGIN}" y="{MARGIN - 8}">{escape(y)}</text>',
        f'<text x="{edge}" y="{foot + 16}" text-anchor="end">{right:g}</text>',
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{top:g}</text>',
        f'<text x="{MARGIN - 6}" y="{foot + 4}" text-anchor="end">0</text>',
    ]
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{" ".join(map(place, points))}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{MARGIN + 10 + 160 * number}" y="{foot + 32}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
