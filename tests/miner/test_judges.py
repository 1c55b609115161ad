import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from miner.judges import NOT_A_NUMBER, NOT_RECORDED, EncoderRanker, RecordedJudge, ScoreJudge
from retriever.errors import InputError
from retriever.protocols import FloatArray, Judge, Judgement, PairText, Progress, silent
from tests.judge_stand_ins import pair
from tests.stand_ins import HashEncoder, OverlapRanker, write_json_lines


def asked(judge: Judge, pairs: Sequence[PairText]) -> list[Judgement]:
    found: dict[int, Judgement] = {}
    judge.judge(pairs, found.update)
    assert sorted(found) == [*range(len(pairs))]
    return [found[place] for place in range(len(pairs))]


def overlapping(count: int, positive: int = 0) -> PairText:
    """A pair that shares ``count`` words, with a positive that shares ``positive``."""
    words = "a b c d e".split()
    texts = [" ".join([*words[:n], *"uvwxy"[n:]]) for n in (count, positive)]
    return PairText("q", " ".join(words), f"p{count}", texts[0], texts[1])


def test_relevant_is_what_scores_at_least_the_threshold() -> None:
    pairs = [overlapping(count) for count in (5, 1, 3, 2)]
    judge = ScoreJudge("overlap", OverlapRanker(), 2.95)
    said = asked(judge, pairs)
    assert [one.relevant for one in said] == [True, False, True, False]
    assert [round(one.score or 0, 2) for one in said] == [4.95, 0.95, 2.95, 1.95]
    assert not judge.reads_positive and judge.provenance == {"model": "overlap"}


def test_a_relative_threshold_counts_from_the_positive_s_score() -> None:
    judge = ScoreJudge("overlap", OverlapRanker(), -1.5, relative=True)
    pairs = [overlapping(3, 4), overlapping(2, 4), overlapping(2, 3)]
    assert [one.relevant for one in asked(judge, pairs)] == [True, False, True] and judge.reads_positive


def test_each_setting_makes_another_fingerprint() -> None:
    made = [
        ScoreJudge("one", OverlapRanker(), 1.0),
        ScoreJudge("one", OverlapRanker(), 2.0),
        ScoreJudge("one", OverlapRanker(), 1.0, relative=True),
        ScoreJudge("one", EncoderRanker(HashEncoder()), 1.0),
    ]
    assert len({judge.fingerprint for judge in made}) == len(made)
    assert ScoreJudge("two", OverlapRanker(), 1.0).fingerprint == made[0].fingerprint


class BrokenRanker(OverlapRanker):
    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        return np.array([np.nan, np.inf, 1.0], np.float32)


def test_a_score_that_is_no_number_makes_no_label() -> None:
    said = asked(ScoreJudge("broken", BrokenRanker(), 0.5), [pair("q", f"p{n}") for n in range(3)])
    assert said == [Judgement(None, NOT_A_NUMBER), Judgement(None, NOT_A_NUMBER), Judgement(True, score=1.0)]


def test_an_encoder_scores_by_inner_products_and_reads_a_text_once() -> None:
    encoder = HashEncoder()
    queries, passages = ["ba ka", "da ki", "ba ka"], ["ba ka be", "da", "da"]
    scores = EncoderRanker(encoder).score(queries, passages)
    assert encoder.encoded_passages == 2
    expected = (HashEncoder().encode_queries(queries) * HashEncoder().encode_passages(passages)).sum(axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="2 queries but 1 passages"):
        EncoderRanker(encoder).score(["a", "b"], ["c"])


def line(query: str, passage: str, relevant: bool | None, judge: str = "person") -> dict[str, object]:
    return {"query": query, "passage": passage, "relevant": relevant, "judge": judge}


def test_a_recorded_judge_says_what_its_file_says_last(tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    records = [line("q1", "p1", False), line("q1", "p1", True), line("q2", "p1", False), line("q1", "p1", None)]
    write_json_lines(path, [*records, line("q3", "p1", True, "machine")])
    pairs = [pair("q1", "p1"), pair("q2", "p1"), pair("q3", "p1"), pair("q4", "p1")]
    said = asked(RecordedJudge("recorded", path), pairs)
    assert [one.relevant for one in said] == [True, False, True, None] and said[3].failure == NOT_RECORDED
    assert [one.relevant for one in asked(RecordedJudge("recorded", path, "person"), pairs)] == [
        True,
        False,
        None,
        None,
    ]


@pytest.mark.parametrize("record", [{"query": "q"}, line("q", "p", 1), {"query": 1, "passage": "p", "relevant": True}])  # type: ignore[arg-type]
def test_a_bad_recorded_line_is_named(tmp_path: Path, record: dict[str, object]) -> None:
    path = tmp_path / "recorded.jsonl"
    path.write_text(json.dumps(line("q", "p", True)) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(InputError, match=r"recorded\.jsonl:2: write"):
        RecordedJudge("recorded", path)


def test_a_file_without_a_judgement_of_the_judge_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    write_json_lines(path, [line("q", "p", True)])
    with pytest.raises(InputError, match="holds no judgement of judge 'machine'"):
        RecordedJudge("recorded", path, "machine")
