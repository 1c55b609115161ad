import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from app.comparison.report import html, markdown
from app.comparison.run_history import Aged
from tests.app.comparison.results_stand_ins import results_of, some_runs

VOID = {"meta", "br"}


class Nesting(HTMLParser):
    """Fails at a tag that is closed before it was opened; collects what is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def parsed(page: str) -> Nesting:
    nesting = Nesting()
    nesting.feed(page)
    nesting.close()
    assert nesting.open == []
    return nesting


def test_the_page_is_whole_and_needs_nothing_beside_it() -> None:
    page = html(results_of(some_runs()))
    nesting = parsed(page)
    assert page.startswith("<!doctype html>") and nesting.seen.count("h1") == 1
    assert nesting.fetched == [] and "script" not in nesting.seen and "link" not in nesting.seen
    assert not re.search(r"https?://|url\(|@import", page)
    assert nesting.seen.count("svg") == 6
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_whatever_is_missing_the_page_is_whole() -> None:
    one_seed = [run for run in some_runs() if run.seed == 1]
    failed = [{"system": "refreshed", "seed": 1, "problem": "<loss> & nan"}]
    for runs in ([], one_seed[:1], one_seed):
        page = html(results_of(runs, failed=failed))
        parsed(page)
        assert "&lt;loss&gt; &amp; nan" in page and "<loss>" not in page


def test_names_and_texts_of_others_are_escaped() -> None:
    results: dict[str, Any] = json.loads(json.dumps(results_of(some_runs())).replace("refreshed", "<b>&x"))
    page = html(results)
    parsed(page)
    assert "<b>" not in page and "&lt;b&gt;&amp;x" in page


def test_the_same_results_give_the_same_bytes_also_from_their_file() -> None:
    results = results_of(some_runs())
    again = json.loads(json.dumps(results))
    assert html(results) == html(again) and markdown(results) == markdown(again)


def test_colours_follow_the_systems() -> None:
    page = html(results_of(some_runs()))
    legend = re.search(r'<ul class="legend">.*?</ul>', page)
    assert legend is not None
    assert re.findall(r'swatch c(\d)"></span>(\w+)', legend[0]) == [("0", "static"), ("1", "refreshed")]
    assert page.count("<polyline") == 4 * (6 + 2), "dev twice, and two measures of staleness"


def test_markdown_tables_are_square() -> None:
    text = markdown(results_of(some_runs()))
    assert text.startswith("# Comparison: compare\n\n- refreshed against static: +0.0500")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) == 8
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| refreshed | 0.4740" in text


def test_staleness_is_averaged_at_the_steps_that_all_seeds_have() -> None:
    runs = [replace(run, aged=[]) if run.system == "static" else run for run in some_runs()]
    assert "Negatives in use" not in html(results_of([replace(run, aged=[]) for run in runs]))
    runs = [
        replace(run, aged=[Aged(step, 0.1 * run.seed, 0.0, 0.5) for step in (50 * run.seed, 200, 400)])
        if run.aged
        else run
        for run in runs
    ]
    page = html(results_of(runs))
    drawn = page[page.index("Negatives in use") :]
    bold = re.findall(r'class="bold c1" points="([^"]*)"', drawn)
    assert [len(points.split()) for points in bold] == [2, 2], "steps 200 and 400 of three seeds"
