from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.judgements import Ledger
from miner.relabel import SuspectConfig, ask, find_suspects, outcomes
from retriever.data import QuerySet
from retriever.errors import InputError
from retriever.negatives import MAY_BE_DRAWN, NegativeSet, Verdict
from retriever.protocols import Answered, Judge, Judgement, PairText, Progress, silent
from tests.judge_stand_ins import TruthfulJudge, pair

QUERIES = QuerySet("train", ["q0", "q1"], ["a", "b"], [{9: 1, 4: 0}, {8: 1}])
SCORES = [[0.9, 0.8, 0.7, 0.6, 0.0], [-0.1, -0.2, -0.3, -0.4, -0.5]]


def pool(verdicts: list[list[Verdict]]) -> NegativeSet:
    """Two queries, candidates 1 … 5; the positives' scores are .8 and −.25."""
    shape = (2, 5)
    return NegativeSet(
        queries=np.arange(2, dtype=np.int32),
        passages=np.tile(np.arange(1, 6, dtype=np.int32), (2, 1)),
        scores=np.array(SCORES, np.float32),
        sources=np.ones(shape, np.uint8),
        verdicts=np.array(verdicts, np.uint8),
        positives=np.array([[9, -1], [8, -1]], np.int32),
        positive_scores=np.array([[0.8, 0], [-0.25, 0]], np.float32),
        dropped=np.zeros(2, np.bool_),
        mined_from=np.zeros(2, np.int32),
    )


ALL = pool([[Verdict.ELIGIBLE] * 5] * 2)


def chosen(negatives: NegativeSet, config: SuspectConfig) -> list[tuple[int, int]]:
    found = find_suspects(negatives, QUERIES, config)
    assert (np.diff(found.gaps) <= 0).all()
    return list(zip(found.queries.tolist(), found.passages.tolist(), strict=True))


def test_suspects_come_by_how_far_they_are_above_the_positive() -> None:
    assert chosen(ALL, SuspectConfig(top=3)) == [(1, 1), (0, 1), (1, 2), (0, 2), (1, 3), (0, 3)]
    assert chosen(ALL, SuspectConfig(top=3, most=2)) == [(1, 1), (0, 1)]


def test_a_margin_is_a_share_of_the_positive_s_size_whatever_its_sign() -> None:
    # .8 − .2·.8 = .64 and −.25 − .2·.25 = −.3
    assert sorted(chosen(ALL, SuspectConfig(top=None, margin=0.21))) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]


def test_a_least_score() -> None:
    assert sorted(chosen(ALL, SuspectConfig(top=None, min_score=0.65))) == [(0, 1), (0, 2), (0, 3)]


def test_what_the_qrels_judged_is_no_suspect() -> None:
    assert (0, 4) not in chosen(ALL, SuspectConfig(top=None)) and (1, 4) in chosen(ALL, SuspectConfig(top=None))


def test_what_training_never_draws_is_no_suspect_unless_filtered_is_asked_for() -> None:
    kinds = [Verdict.POSITIVE, Verdict.DUPLICATE, Verdict.FILTERED, Verdict.JUDGED_IRRELEVANT, Verdict.JUDGED_RELEVANT]
    negatives = pool([kinds, [Verdict.ELIGIBLE] * 5])
    assert [one for one in chosen(negatives, SuspectConfig()) if one[0] == 0] == []  # 4 is judged by the qrels
    assert [one for one in chosen(negatives, SuspectConfig(filtered=True)) if one[0] == 0] == [(0, 3)]
    padded = replace(negatives, passages=np.full((2, 5), -1, np.int32))
    assert chosen(padded, SuspectConfig(filtered=True)) == []


@given(
    st.lists(st.lists(st.sampled_from(list(Verdict)), min_size=5, max_size=5), min_size=2, max_size=2),
    st.none() | st.integers(1, 5),
    st.none() | st.floats(-1, 1),
    st.none() | st.floats(-1, 1),
    st.booleans(),
)
def test_suspects_are_what_the_rules_say_one_by_one(
    verdicts: list[list[Verdict]], top: int | None, margin: float | None, least: float | None, filtered: bool
) -> None:
    negatives = pool(verdicts)
    expected = []
    for query, positive in enumerate((0.8, -0.25)):
        taken = 0
        for place in range(5):
            score = float(negatives.scores[query, place])
            lowest = float(np.float32(positive))
            may_be = verdicts[query][place] in MAY_BE_DRAWN or (filtered and verdicts[query][place] == Verdict.FILTERED)
            near = margin is None or score >= lowest - margin * abs(lowest)
            if may_be and near and (least is None or score >= least) and (query, place + 1) != (0, 4):
                taken += 1
                if top is None or taken <= top:
                    expected.append((query, place + 1))
    assert sorted(chosen(negatives, SuspectConfig(top, margin, least, filtered=filtered))) == expected


@pytest.mark.parametrize(
    ("key", "config"), [("top", {"top": 0}), ("most", {"most": 0}), ("margin", {"margin": float("nan")})]
)
def test_a_value_that_chooses_nothing_is_named(key: str, config: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"\[suspects\] {key} = "):
        SuspectConfig(**config)  # type: ignore[arg-type]


PAIRS = [pair(f"q{query}", f"p{passage}") for query in range(10) for passage in range(10)]
IDS = [(one.query_id, one.passage_id) for one in PAIRS]


def quiet(judge: Judge) -> Progress:
    return silent


def test_judge_2_is_called_for_what_judge_1_flagged_alone(tmp_path: Path) -> None:
    first = TruthfulJudge("first", IDS[:30], false_alarms=0.1)
    second = TruthfulJudge("second", IDS[:20])
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ask([first, second], PAIRS, ledger, 0.0, quiet)
    assert sorted(first.asked) == sorted(IDS)
    assert sorted(second.asked) == sorted(ids for ids in IDS if first.says(ids)) and len(second.asked) < 50
    found = outcomes([first, second], ledger)
    assert {ids for ids, outcome in found.items() if outcome.relevant} == set(IDS[:20])
    assert found.keys() == set(IDS)


def test_a_check_asks_judge_2_about_a_sample_and_changes_no_outcome(tmp_path: Path) -> None:
    first, second = TruthfulJudge("first", IDS[:20]), TruthfulJudge("second", IDS)
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ask([first, second], PAIRS, ledger, 0.25, quiet)
    sample = set(second.asked) - set(IDS[:20])
    assert 5 < len(sample) < 40, "a quarter of eighty"
    assert {ids for ids, one in outcomes([first, second], ledger).items() if one.relevant} == set(IDS[:20])


def test_a_judge_that_fails_makes_no_label(tmp_path: Path) -> None:
    failures = {IDS[0]: Judgement(None, "timeout", again=True), IDS[1]: Judgement(None, "nonsense")}
    first, second = TruthfulJudge("first", IDS), TruthfulJudge("second", IDS, fails=failures)
    ledger = Ledger(tmp_path / "j.jsonl", {})
    given = ask([first, second], PAIRS, ledger, 0.0, quiet)
    assert given[1][0].failure == "timeout"
    assert outcomes([first, second], ledger).keys() == set(IDS[2:])


def test_what_was_answered_is_not_asked_again_and_what_failed_for_now_is(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    failures = {IDS[0]: Judgement(None, "timeout", again=True), IDS[1]: Judgement(None, "nonsense")}
    ask([TruthfulJudge("first", IDS, fails=failures)], PAIRS[:50], Ledger(path, {}), 0.0, quiet)
    first = TruthfulJudge("first", IDS)
    ledger = Ledger(path, {})
    ask([first], PAIRS, ledger, 0.0, quiet)
    assert sorted(first.asked) == sorted([IDS[0], *IDS[50:]])
    assert outcomes([first], ledger).keys() == set(IDS) - {IDS[1]}


class StoppingJudge(TruthfulJudge):
    """Stops asking after three pairs, as where a budget is spent."""

    def judge(self, pairs: Sequence[PairText], answered: Answered) -> None:
        super().judge(pairs[:3], answered)


def test_pairs_that_were_not_asked_about_are_undecided(tmp_path: Path) -> None:
    first, second = TruthfulJudge("first", IDS), StoppingJudge("second", IDS)
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ask([first, second], PAIRS, ledger, 0.0, quiet)
    assert outcomes([first, second], ledger).keys() == set(IDS[:3])


def test_judgements_on_different_texts_of_a_pair_make_no_outcome(tmp_path: Path) -> None:
    first, second = TruthfulJudge("first", IDS), TruthfulJudge("second", IDS)
    ledger = Ledger(tmp_path / "j.jsonl", {})
    ledger.add(first, [(PAIRS[0], Judgement(True))])
    ledger.add(second, [(replace(PAIRS[0], passage="another"), Judgement(True))])
    assert outcomes([first, second], ledger) == {}


def test_progress_counts_what_is_asked_alone(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(judge: Judge) -> Progress:
        return lambda done, total: seen.append((judge.name, done, total))

    path = tmp_path / "j.jsonl"
    ask([TruthfulJudge("first", [])], PAIRS[:98], Ledger(path, {}), 0.0, quiet)
    ask([TruthfulJudge("first", [])], PAIRS, Ledger(path, {}), 0.0, progress)
    assert seen == [("first", 2, 2)]


@pytest.mark.parametrize(("misses", "false_alarms"), [(0.0, 0.0), (0.2, 0.02), (0.1, 0.1)])
def test_planted_positives_come_back_as_the_judges_rates_say(
    tmp_path: Path, misses: float, false_alarms: float
) -> None:
    """1,000 hidden positives among 10,000 suspects: what comes back, and what comes along, is binomial."""
    pairs = [pair(f"q{query}", f"p{passage}") for query in range(1000) for passage in range(10)]
    hidden = {(one.query_id, one.passage_id) for one in pairs if one.passage_id == "p0"}
    one_judge = [TruthfulJudge("weak", hidden, misses, false_alarms)]
    two_judges = [*one_judge, TruthfulJudge("strong", hidden, misses / 2, false_alarms / 2)]
    for judges, miss, alarm in (
        (one_judge, misses, false_alarms),
        (two_judges, 1 - (1 - misses) * (1 - misses / 2), false_alarms**2 / 2),
    ):
        ledger = Ledger(tmp_path / f"{len(judges)}.jsonl", {})
        ask(judges, pairs, ledger, 0.0, quiet)
        relevant = {ids for ids, one in outcomes(judges, ledger).items() if one.relevant}
        back, along = len(relevant & hidden), len(relevant - hidden)
        assert abs(back - 1000 * (1 - miss)) <= 4 * (1000 * miss * (1 - miss)) ** 0.5
        assert abs(along - 9000 * alarm) <= 4 * (9000 * alarm * (1 - alarm)) ** 0.5
