import json
from pathlib import Path

import pytest

from miner.judgements import Ledger
from retriever.errors import InputError
from retriever.protocols import Judgement, PairText
from tests.judge_stand_ins import TruthfulJudge, pair

JUDGE = TruthfulJudge("first", set())
PAIR = pair("q1", "p1")


def test_a_judgement_stands_in_the_file_with_its_provenance_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    ledger = Ledger(path, {"negatives": 4, "generation": 2})
    ledger.add(JUDGE, [(PAIR, Judgement(True, answer="yes", prompt_tokens=7, completion_tokens=1, cost=0.5))])
    (line,) = [json.loads(one) for one in path.read_text().splitlines()]
    assert line.pop("time") > 1e9 and len(line.pop("texts")) == 16
    assert line == {
        "query": "q1",
        "passage": "p1",
        "relevant": True,
        "judge": "first",
        "answer": "yes",
        "prompt_tokens": 7,
        "completion_tokens": 1,
        "cost": 0.5,
        "fingerprint": "first",
        "model": "model of first",
        "negatives": 4,
        "generation": 2,
    }
    again = Ledger(path, {})
    assert again.known(JUDGE, PAIR) == Judgement(True, None, False, None, "yes", 7, 1, 0.5)
    assert list(again.added) == [] and len(ledger.added) == 1


@pytest.mark.parametrize(
    ("judge", "asked"),
    [
        (TruthfulJudge("second", set()), PAIR),
        (JUDGE, pair("q2", "p1")),
        (JUDGE, pair("q1", "p2")),
        (JUDGE, PairText("q1", "another text", "p1", PAIR.passage, "")),
        (JUDGE, PairText("q1", PAIR.query, "p1", "another text", "")),
    ],
)
def test_another_judge_pair_or_text_is_not_known(tmp_path: Path, judge: TruthfulJudge, asked: PairText) -> None:
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ledger.add(JUDGE, [(PAIR, Judgement(False))])
    assert ledger.known(JUDGE, PAIR) == Judgement(False) and ledger.known(judge, asked) is None


def test_another_positive_matters_to_a_judge_that_reads_it(tmp_path: Path) -> None:
    reader = TruthfulJudge("reader", set())
    reader.reads_positive = True
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ledger.add(reader, [(PAIR, Judgement(True))])
    ledger.add(JUDGE, [(PAIR, Judgement(True))])
    other = pair("q1", "p1", "another positive")
    assert ledger.known(reader, PAIR) and ledger.known(reader, other) is None and ledger.known(JUDGE, other)
    assert [(entry.judge, entry.is_about(PAIR), entry.is_about(other)) for entry in ledger] == [
        ("reader", True, False),
        ("first", True, True),
    ]


def test_a_failure_that_may_pass_is_asked_about_again_and_nonsense_is_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ledger.add(JUDGE, [(PAIR, Judgement(None, "timeout", again=True))])
    assert ledger.known(JUDGE, PAIR) is None
    ledger.add(JUDGE, [(PAIR, Judgement(None, "nonsense"))])
    assert ledger.known(JUDGE, PAIR) == Judgement(None, "nonsense")
    assert len(ledger.entries) == 2 and len(list(ledger)) == 1


def test_a_line_that_a_crash_tore_off_is_as_if_never_written(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Ledger(path, {}).add(JUDGE, [(PAIR, Judgement(True)), (pair("q2", "p2"), Judgement(False))])
    path.write_bytes(path.read_bytes()[:-9])
    torn = Ledger(path, {})
    assert torn.known(JUDGE, PAIR) == Judgement(True) and torn.known(JUDGE, pair("q2", "p2")) is None
    torn.add(JUDGE, [(pair("q3", "p3"), Judgement(True))])
    assert [entry.query_id for entry in Ledger(path, {})] == ["q1", "q3"]


@pytest.mark.parametrize("line", ["[]", "{}", '{"query": "q", "passage": "p"}', "nothing"])
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=r"j\.jsonl(, line |:)1"):
        Ledger(path, {})
