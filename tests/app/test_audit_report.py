import re
from typing import Any

from app.audit_report import html, summary, tables
from tests.app.test_comparison_report import parsed


def result(**changes: Any) -> dict[str, Any]:
    finding = {"audit": "AUM", "query": "q1", "passages": ["p1"], "reason": "mean margin -0.1", "flagged": True}
    item = {
        "query": "q1",
        "split": "train",
        "text": "who?",
        "score": 0.03,
        "positives": [{"id": "p1", "text": "the first"}],
        "rivals": [{"id": "p2", "text": "the second"}],
        "findings": [finding, {**finding, "audit": "bad pair", "flagged": False}],
    }
    system = {"name": "all", "seeds": 3, "mean": 0.5, "spread": 0.01, "query_spread": 0.2, "varying": 7, "flipping": 2}
    data_set = {"name": "a", "pairs": 1200, "loss": 0.5, "margin": None, "below": 0.125, "bad": None}
    return {
        "runs": ["run"],
        "queries": 20,
        "labels": {"pairs": 20, "threshold": -0.05, "below": 3, "beta": 2.0, "bad": 1},
        "false_negatives": {"voters": ["generation 1 of run"], "pairs": 4, "queries": 2},
        "data_sets": [{**data_set, "false_negatives": 0.5, "without": {"gap": 0.02, "verdict": "better"}}],
        "seeds": {"queries": 10, "systems": [system], "least_gap": 0.0123, "least_gap_single": 0.0213},
        "items": [item],
        **changes,
    }


def test_the_page_is_whole_and_needs_nothing_beside_it() -> None:
    page = html(result())
    nesting = parsed(page)
    assert nesting.fetched == [] and not {"script", "link", "img"} & {*nesting.seen}
    assert not re.search(r"https?://|url\(|@import", page)
    assert nesting.seen.count("article") == 1 and nesting.seen.count("table") == 2
    assert '<section class="positive"><h4>positive p1</h4><p>the first</p>' in page
    assert '<section class="rival"><h4>rival p2</h4><p>the second</p>' in page
    assert '<li class="hint"><span class="tag">bad pair</span>' in page and html(result()) == page


def test_texts_of_others_are_escaped() -> None:
    evil = '<script src="https://x.example/a.js">&'
    hostile = result(runs=[evil])
    item = hostile["items"][0]
    item.update(query=evil, text=evil, split=evil, positives=[{"id": evil, "text": evil}], rivals=item["positives"])
    item["findings"][0].update(reason=evil, passages=[evil], audit=evil)
    hostile["seeds"]["systems"][0]["name"] = hostile["data_sets"][0]["name"] = evil
    nesting = parsed(html(hostile))
    assert "script" not in nesting.seen and nesting.fetched == []


def test_each_audit_says_what_it_found_or_why_it_did_not() -> None:
    told = " ".join(summary(result()))
    assert "3 of 20 pairs are below -0.050" in told and "more than 0.0123 nDCG@10" in told and "4 unlabelled" in told
    nothing = result(
        labels=None, false_negatives={"voters": [], "pairs": 0, "queries": 0}, seeds=None, data_sets=[], items=[]
    )
    told = " ".join(summary(nothing))
    assert "write a table [audit]" in told and "no negative set" in told and "Seeds" not in told
    assert tables(nothing) == [] and "<p>Nothing.</p>" in html(nothing)
    parsed(html(nothing))
    ranked = result(labels={"pairs": 20, "threshold": None, "below": None, "beta": 2.0, "bad": 1})
    assert "without a threshold: nothing was planted" in " ".join(summary(ranked))


def test_what_is_not_known_of_a_data_set_is_a_dash() -> None:
    (_, _, _, rows), (_, _, header, systems) = tables(result())
    assert rows == [["a", "1,200", "0.500", "–", "12.5%", "–", "50.0%", "+0.0200 (better)"]]
    assert len(systems[0]) == len(header)
