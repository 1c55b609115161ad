from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.judgements import Ledger
from miner.relabel import ask, outcomes
from miner.relabel_report import agreement, by_judge, kappa, pruning, wilson
from retriever.protocols import Judgement, silent
from tests.judge_stand_ins import TruthfulJudge, pair

COUNTS = st.integers(0, 30)


def test_kappa_of_cohen_s_kind_of_example() -> None:
    # Observed .7, by chance .5·.6 + .5·.4 = .5
    assert kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    assert kappa([[5, 0], [0, 5]]) == 1.0
    assert kappa([[0, 5], [5, 0]]) == -1.0


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_kappa_is_that_of_its_definition_over_single_pairs(both: int, first: int, second: int, neither: int) -> None:
    answers = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    found = kappa([[both, first], [second, neither]])
    ones, others = [a for a, _ in answers], [b for _, b in answers]
    if len(set(ones)) < 2 or len(set(others)) < 2:
        assert found is None
        return
    n = len(answers)
    observed = sum(a == b for a, b in answers) / n
    chance = sum((ones.count(value) / n) * (others.count(value) / n) for value in (True, False))
    assert found == pytest.approx((observed - chance) / (1 - chance))


def test_wilson_s_interval_of_published_figures() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, table I: .2553 to .3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = wilson(0, 20)
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)


def test_counts_failures_and_cost_by_judge(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "j.jsonl", {})
    one, two = TruthfulJudge("one", []), TruthfulJudge("two", [])
    ledger.add(one, [(pair("q1", "p1"), Judgement(True, cost=0.5, prompt_tokens=9, completion_tokens=1))])
    ledger.add(one, [(pair("q1", "p2"), Judgement(False, cost=0.25, prompt_tokens=8, completion_tokens=1))])
    ledger.add(one, [(pair("q1", "p3"), Judgement(None, "nonsense", cost=0.25))])
    ledger.add(two, [(pair("q1", "p1"), Judgement(None, "timeout", again=True))])
    assert by_judge(ledger.entries) == {
        "one": {
            "asked": 3,
            "relevant": 1,
            "irrelevant": 1,
            "failed": 1,
            "prompt_tokens": 17,
            "completion_tokens": 2,
            "cost": 1.0,
            "failures": {"nonsense": 1},
        },
        "two": {
            "asked": 1,
            "relevant": 0,
            "irrelevant": 0,
            "failed": 1,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "cost": 0.0,
            "failures": {"timeout": 1},
        },
    }


PAIRS = [pair(f"q{n}", "p") for n in range(2000)]
IDS = [(one.query_id, one.passage_id) for one in PAIRS]


def test_a_check_by_a_sample_estimates_the_agreement_on_all(tmp_path: Path) -> None:
    first, second = TruthfulJudge("first", IDS[:400]), TruthfulJudge("second", IDS[100:500])
    whole, sampled = Ledger(tmp_path / "whole.jsonl", {}), Ledger(tmp_path / "sampled.jsonl", {})
    ask([first, second], PAIRS, whole, 1.0, lambda judge: silent)
    ask([first, second], PAIRS, sampled, 0.3, lambda judge: silent)
    (exact,), (estimate,) = agreement([first, second], whole, 1.0), agreement([first, second], sampled, 0.3)
    assert exact["judges"] == ["first", "second"] and exact["table"] == [[300, 100], [100, 1500]]
    assert exact["kappa"] == pytest.approx(0.6875)
    assert estimate["table"][0] == [300, 100] and estimate["pairs"] < 1000
    assert estimate["kappa"] == pytest.approx(exact["kappa"], abs=0.04)


@pytest.mark.parametrize("checks", [(0.05, 0.5), (0.5, 0.05), (1.0, 0.0)])
def test_another_check_before_changes_no_agreement(tmp_path: Path, checks: tuple[float, float]) -> None:
    """The first sample stays in the ledger: what stands there for many pairs stands for fewer now, or for none."""
    judges = [TruthfulJudge("first", IDS[:400]), TruthfulJudge("second", IDS[100:500])]
    twice, once = Ledger(tmp_path / "twice.jsonl", {}), Ledger(tmp_path / "once.jsonl", {})
    for check in checks:
        ask(judges, PAIRS, twice, check, lambda judge: silent)
    ask(judges, PAIRS, once, checks[-1], lambda judge: silent)
    assert len([*twice]) >= len([*once])
    assert agreement(judges, twice, checks[-1]) == agreement(judges, once, checks[-1])


def test_three_judges_meet_what_the_cascade_gives_them(tmp_path: Path) -> None:
    judges = [
        TruthfulJudge(f"judge {n}", IDS[start:end]) for n, (start, end) in enumerate([(0, 400), (100, 500), (0, 300)])
    ]
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ask(judges[2:], PAIRS, ledger, 0.0, lambda judge: silent)  # alone, about all
    ask(judges, PAIRS, ledger, 1.0, lambda judge: silent)
    found = {tuple(one["judges"]): one["table"] for one in agreement(judges, ledger, 1.0)}
    assert found["judge 0", "judge 1"] == [[300, 100], [100, 1500]]
    assert found["judge 0", "judge 2"] == [[300, 100], [0, 0]]
    assert found["judge 1", "judge 2"] == [[200, 100], [100, 0]]


def test_a_ledger_whose_lines_have_a_share_of_then_is_read(tmp_path: Path) -> None:
    judges = [TruthfulJudge("first", IDS[:400]), TruthfulJudge("second", IDS[100:500])]
    path = tmp_path / "j.jsonl"
    ask(judges, PAIRS, Ledger(path, {}), 0.3, lambda judge: silent)
    plain = agreement(judges, Ledger(path, {}), 0.3)
    path.write_text(path.read_text().replace('"judge":"second"', '"sampled":0.05,"judge":"second"'))
    assert agreement(judges, Ledger(path, {}), 0.3) == plain and plain[0]["kappa"] is not None


def test_a_cascade_without_a_check_has_no_kappa(tmp_path: Path) -> None:
    first, second = TruthfulJudge("first", IDS[:400]), TruthfulJudge("second", IDS[100:500])
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ask([first, second], PAIRS, ledger, 0.0, lambda judge: silent)
    assert agreement([first, second], ledger, 0.0) == [
        {"judges": ["first", "second"], "pairs": 400, "table": [[300, 100], [0, 0]], "kappa": None}
    ]


def test_a_bracket_that_takes_no_part_names_no_group(tmp_path: Path) -> None:
    judge, ledger = TruthfulJudge("judge", []), Ledger(tmp_path / "j.jsonl", {})
    ask([judge], [pair("plain", "p"), pair("named/q", "p")], ledger, 0.0, lambda judge: silent)
    found = pruning(outcomes([judge], ledger), "(?:([^/]+)/)?", 0.3, 20)
    assert [one["group"] for one in found] == ["", "named"]


def test_data_sets_with_many_false_negatives_are_named(tmp_path: Path) -> None:
    pairs = [pair(f"{name}/{query}", f"p{n}") for name in ("bad", "good") for query in range(40) for n in range(3)]
    pairs += [pair(f"few/{query}", "p0") for query in range(5)] + [pair(f"none-{query}", "p0") for query in range(50)]
    relevant = {("bad", 30), ("good", 2), ("few", 5)}
    truths = [(f"{name}/{query}", "p0") for name, count in relevant for query in range(count)]
    judge = TruthfulJudge("judge", [*truths, *((f"none-{query}", "p0") for query in range(50))])
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ask([judge], pairs, ledger, 0.0, lambda judge: silent)
    found = pruning(outcomes([judge], ledger), "([^/]+)/", 0.3, 20)
    assert [(one["group"], one["queries"], one["with_false_negatives"], one["leave_out"]) for one in found] == [
        ("", 50, 50, False),
        ("few", 5, 5, False),
        ("bad", 40, 30, True),
        ("good", 40, 2, False),
    ]
    assert found[2]["interval"] == list(wilson(30, 40)) and found[2]["share"] == 0.75
