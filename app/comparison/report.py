"""The report of a comparison: one HTML page that needs nothing beside it, and the same tables as Markdown.

Does not know how the results came about. The same results give the same bytes.
"""

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.comparison.picture import COLOURS, Bar, Curve, draw_curves, draw_intervals
from app.comparison.run_curve import METRIC
from app.comparison.tables import Results, Table, headline, limit_text, notes, tables
from app.report_page import framed_table, page


def markdown(results: Results) -> str:
    """Return the report without pictures."""
    parts = [f"# Comparison: {results['title']}", _items(headline(results))]
    for table in tables(results):
        head, *rows = ["| " + " | ".join(map(_cell, row)) + " |" for row in (table.header, *table.rows)]
        rule = "|" + "|".join(["---", *["---" if table.words else "---:"] * (len(table.header) - 1)]) + "|"
        parts += [f"## {table.title}", table.note, "\n".join([head, rule, *rows])]
    parts += ["## How to read this", _items(notes(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _items(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def html(results: Results) -> str:
    """Return the report as a page of its own."""
    title = f"Comparison: {results['title']}"
    readings = results["findings"]["readings"]
    body = [f"<h1>{escape(title)}</h1>", _list(headline(results), "headline")]
    every = tables(results)
    shown = [_section(table) for table in every]
    pictures = [_intervals(results, reading) for reading in readings]
    main = len(readings)
    body += [*shown[:main], _legend(results), _figures(pictures), "<h2>On dev, while training</h2>", _curves(results)]
    body += _staleness(results)
    body += shown[2 * main :]
    body += [
        f"<details><summary>{escape(table.title)}</summary>{_table(table)}</details>"
        for table in every[main : 2 * main]
    ]
    body += ["<h2>How to read this</h2>", _list(notes(results), "notes")]
    return page(title, body)


def _list(sentences: Sequence[str], style: str) -> str:
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{style}">\n{items}\n</ul>'


def _section(table: Table) -> str:
    return f"<h2>{escape(table.title)}</h2>\n{_table(table)}"


def _table(table: Table) -> str:
    style = "words" if table.words else "figures"
    framed = framed_table(table.header, table.rows, style, _breakable)
    return f'<p class="note">{escape(table.note)}</p>\n{framed}'


def _breakable(text: str) -> str:
    """Return a cell's text; an interval may stand on a line of its own."""
    value, bracket, rest = escape(text).partition(" [")
    return f"{value}<br><small>[{rest}</small>" if bracket else value


def _legend(results: Results) -> str:
    items = "".join(
        f'<li><span class="swatch c{colour}"></span>{escape(name)}</li>' for name, colour in _colours(results).items()
    )
    return f'<ul class="legend">{items}</ul>'


def _colours(results: Results) -> dict[str, int]:
    return {name: number % COLOURS for number, name in enumerate(results["systems"])}


def _figures(pictures: Sequence[str]) -> str:
    inner = "\n".join(f"<figure>{picture}</figure>" for picture in pictures if picture)
    return f'<div class="pictures">\n{inner}\n</div>'


def _intervals(results: Results, reading: Mapping[str, Any]) -> str:
    colours = _colours(results)
    bars = [
        Bar(name, colours[name], of[METRIC]["mean"], _cut(of[METRIC]["interval"]), list(of[METRIC]["by_seed"].values()))
        for name, of in reading["systems"].items()
    ]
    zero = results["findings"]["zero_shot"].get(results["baseline"], {}).get(METRIC)
    split = results["data"]["test"]["split"]
    caption = f"{METRIC} on {split} at {limit_text(reading)}: mean, 95 % interval, seeds"
    picture = draw_intervals(caption, bars, None if zero is None else ("zero-shot", zero))
    return f"{picture}<figcaption>{escape(caption)}</figcaption>" if picture else ""


def _cut(interval: Sequence[float] | None) -> tuple[float, float] | None:
    """Return an interval as far as the measure goes, 0 … 1: that of two seeds reaches far beyond."""
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def _curves(results: Results) -> str:
    pictures = []
    for axis, key in (("steps", "step"), ("seconds", "seconds")):
        curves = [_curve(results, name, colour, key) for name, colour in _colours(results).items()]
        caption = f"{METRIC} on {results['data']['dev']['split']} against {axis}: thin each seed, bold their mean"
        shown = draw_curves(caption, axis, METRIC, [curve for curve in curves if curve.bold])
        pictures.append(f"{shown}<figcaption>{escape(caption)}</figcaption>" if shown else "")
    return _figures(pictures)


def _staleness(results: Results) -> list[str]:
    """Return what the trainers' probes told of their negatives, drawn; nothing where no run has one."""
    pictures = []
    for key, told in (
        ("overlap", "overlap@10 of the negatives in use with a fresh order"),
        ("easy", "share of easy ones"),
    ):
        curves = []
        for name, colour in _colours(results).items():
            runs = [run for run in results["runs"] if run["system"] == name and run["aged"]]
            lines = [[(float(one["step"]), float(one[key])) for one in run["aged"]] for run in runs]
            curves += [Curve(colour, lines, _mean_by_step(lines))] if lines else []
        caption = f"{told} against steps: thin each seed, bold their mean"
        shown = draw_curves(caption, "steps", key, curves)
        pictures.append(f"{shown}<figcaption>{escape(caption)}</figcaption>" if shown else "")
    return ["<h2>Negatives in use, while training</h2>", _figures(pictures)] if any(pictures) else []


def _mean_by_step(lines: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean over seeds at the steps that all have: a probe waits for the first set, which comes at any."""
    told = [dict(line) for line in lines]
    shared = sorted(set.intersection(*(set(one) for one in told)))
    return [(step, statistics.fmean(one[step] for one in told)) for step in shared]


def _curve(results: Results, name: str, colour: int, key: str) -> Curve:
    runs = [run for run in results["runs"] if run["system"] == name]
    lines = [[(float(point[key]), float(point["dev"][METRIC])) for point in run["curve"]] for run in runs]
    spans = [_span(refresh, key) for run in runs for refresh in run["refreshes"]]
    return Curve(colour, lines, _mean_line(lines), spans)


def _mean_line(lines: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean over seeds of each point that all have: of both x and y, since seconds differ."""
    columns = zip(*lines, strict=False)
    return [(statistics.fmean(x for x, _ in column), statistics.fmean(y for _, y in column)) for column in columns]


def _span(refresh: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Return where a refresh lies: from its checkpoint, or the beginning of its build, to its adoption."""
    if key == "step":
        return refresh["origin"], refresh["step"]
    return refresh["seconds"] if refresh["begun"] is None else refresh["begun"], refresh["seconds"]
