"""The page of an audit: one HTML file that needs nothing beside it, with the texts to judge by; and its tables.

Does not know how anything was found. The same result gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from app.report_page import framed_table, page

STYLE = Path(__file__).with_name("audit_report.css")
NOTHING = "–"
SHOWN_NAMES = 6

Result = Mapping[str, Any]
"""What app.audit_findings.as_json gives."""


def summary(result: Result) -> list[str]:
    """Return a sentence an audit: what it found, or why it found nothing."""
    labels, rivals, seeds = result["labels"], result["false_negatives"], result["seeds"]
    told = [f"{result['queries']:,} training queries of {_named(result['runs'], 'runs')}."]
    if labels is None:
        told.append("AUM and bad pairs: no run kept a memory of its pairs; write a table [audit] and train.")
    else:
        if labels["threshold"] is None:
            told.append(f"AUM: a ranking of {labels['pairs']:,} pairs, without a threshold: nothing was planted.")
        else:
            told.append(
                f"AUM: {labels['below']:,} of {labels['pairs']:,} pairs are below {labels['threshold']:+.3f}, the "
                "threshold of planted mislabels."
            )
        told.append(
            f"Bad pairs: {labels['bad']:,} have a loss, batch by batch, outside the mean ± {labels['beta']:g} "
            "deviations."
        )
    if rivals["voters"]:
        told.append(
            f"False negatives: {rivals['pairs']:,} unlabelled passages of {rivals['queries']:,} queries are likely "
            f"relevant, by the votes of {_named(rivals['voters'], 'voters')}."
        )
    else:
        told.append("False negatives: no negative set is there to vote.")
    if seeds is not None:
        told.append(
            f"Seeds: two systems must differ by more than {seeds['least_gap']:.4f} nDCG@10 before it is more than "
            f"seeds, two single runs by more than {seeds['least_gap_single']:.4f}."
        )
    return told


def _named(names: Sequence[str], what: str) -> str:
    """Return all of a few names, or how many there are of ``what``."""
    return ", ".join(names) if len(names) <= SHOWN_NAMES else f"{len(names)} {what}"


def tables(result: Result) -> list[tuple[str, str, Sequence[str], list[list[str]]]]:
    """Return title, note, header and rows of each table that has something to say."""
    found: list[tuple[str, str, Sequence[str], list[list[str]]]] = []
    if result["data_sets"]:
        note = (
            "The one to suspect first. Only leaving one out shows harm: + means that the other data sets' test queries "
            "do better without it. The rest are hints; a hard data set looks like a bad one."
        )
        header = ("data set", "pairs", "loss", "margin", "below", "bad", "false negatives", "without it")
        found.append(("Data sets", note, header, [_dataset(one) for one in result["data_sets"]]))
    if result["seeds"] is not None:
        note = (
            f"nDCG@10 of {result['seeds']['queries']:,} test queries. Vary: not the same figure with all seeds. Flip: "
            "answered among the first ten with some seeds and not with others."
        )
        columns = ("system", "seeds", "mean", "sd of seeds", "sd of a query", "vary", "flip")
        found.append(("Seeds", note, columns, [_system(one) for one in result["seeds"]["systems"]]))
    return found


def _dataset(one: Mapping[str, Any]) -> list[str]:
    shares = [NOTHING if one[key] is None else f"{one[key]:.1%}" for key in ("below", "bad", "false_negatives")]
    numbers = [NOTHING if one[key] is None else f"{one[key]:.3f}" for key in ("loss", "margin")]
    without = one["without"]
    last = NOTHING if without is None else f"{without['gap']:+.4f} ({without['verdict']})"
    return [one["name"], f"{one['pairs']:,}", *numbers, *shares, last]


def _system(one: Mapping[str, Any]) -> list[str]:
    spreads = [NOTHING if one[key] is None else f"{one[key]:.4f}" for key in ("spread", "query_spread")]
    return [one["name"], str(one["seeds"]), f"{one['mean']:.4f}", *spreads, str(one["varying"]), str(one["flipping"])]


def html(result: Result) -> str:
    """Return the page."""
    title = f"Audit: {result['runs'][0]}" + (" and others" if len(result["runs"]) > 1 else "")
    body = [f"<h1>{escape(title)}</h1>", '<ul class="headline">']
    body += [f"<li>{escape(sentence)}</li>" for sentence in summary(result)]
    body.append("</ul>")
    for name, note, header, rows in tables(result):
        body += [f"<h2>{escape(name)}</h2>", f'<p class="note">{escape(note)}</p>', framed_table(header, rows)]
    body.append("<h2>What to look at first</h2>")
    body.append(
        '<p class="note">One ranking over all audits: each adds 1 / (60 + rank) to a query. Grey: the audit would look '
        "here first, but does not suspect it. Green: the positive. Orange: a rival that nobody labelled.</p>"
    )
    body += [_article(number, item) for number, item in enumerate(result["items"], 1)]
    if not result["items"]:
        body.append("<p>Nothing.</p>")
    return page(title, body, STYLE.read_text())


def _article(number: int, item: Mapping[str, Any]) -> str:
    reasons = []
    for finding in item["findings"]:
        about = f" ({', '.join(finding['passages'])})" if finding["passages"] else ""
        style = "" if finding["flagged"] else ' class="hint"'
        said = escape(f"{finding['reason']}{about}")
        reasons.append(f'<li{style}><span class="tag">{escape(finding["audit"])}</span> {said}</li>')
    texts = [_text("positive", one) for one in item["positives"]] + [_text("rival", one) for one in item["rivals"]]
    return "\n".join(
        [
            f"<article>\n<h3>{number}. {escape(item['text'])} "
            f"<small>{escape(item['query'])}, {escape(item['split'])}</small></h3>",
            f'<ul class="reasons">{"".join(reasons)}</ul>',
            f'<div class="texts">{"".join(texts)}</div>\n</article>',
        ]
    )


def _text(role: str, passage: Mapping[str, str]) -> str:
    heading = f"{role} {passage['id']}"
    return f'<section class="{role}"><h4>{escape(heading)}</h4><p>{escape(passage["text"])}</p></section>'
