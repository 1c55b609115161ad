import json
from typing import Any

import numpy as np
import pytest

from benchmarks.alternation import Answer
from benchmarks.report import last_line, print_rates, ratio, rss_ratio
from retriever.store import code_version


def answers(*seconds: float, peak_rss: int = 2**20) -> list[Answer]:
    return [Answer(second, peak_rss, {}, {}) for second in seconds]


PAIR = {"peer": answers(2, 9, 6, peak_rss=2**22), "hone": answers(1, 3, 4)}


def without_origin(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("command", "code", "peers_here")}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    assert ratio(PAIR, "peer", "hone") == 2  # of 2, 3 and 1.5; the medians' ratio would be 6 / 3
    assert ratio({**PAIR, "peer": answers(2, 9, 30)}, "peer", "hone") == 3


def test_memory_is_compared_at_its_peak() -> None:
    assert rss_ratio(PAIR, "peer", "hone") == 0.25


def test_the_table_shows_rates_ranges_and_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    print_rates("Sleeping", "naps", 12, PAIR, "hone")
    table = capsys.readouterr().out
    assert "Sleeping: medians of 3 rounds" in table
    assert "4.00 (3.00 – 12.0)" in table or "4.00 (3.00 – 12.00)" in table
    assert "2.00 (1.50 – 3.00)" in table


def test_the_last_line_holds_the_claims_keys_and_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"vs_peer": 2.0000001, "vs_other": None}
    last_line(["vs_peer", "vs_other"], figures, {"vs_other": "it is not here"}, rounds=3)
    *above, last = capsys.readouterr().out.splitlines()
    assert without_origin(json.loads(last)) == {
        "vs_peer": 2.0,
        "vs_other": None,
        "reasons": {"vs_other": "it is not here"},
        "rounds": 3,
    }
    assert above == ["vs_other: not measured, it is not here"]


@pytest.mark.parametrize("figures", [{}, {"vs_peer": None}, {"vs_peer": 1.0, "more": 2.0}])
def test_a_key_that_is_missing_unknown_or_null_without_a_reason_is_refused(figures: dict[str, float | None]) -> None:
    with pytest.raises(ValueError, match="vs_peer"):
        last_line(["vs_peer"], figures, {})


def test_numbers_of_numpy_become_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"vs_peer": np.float32(2.1), "rows": np.int64(3), "same": np.True_}
    returned = last_line(["vs_peer", "rows", "same"], figures, {}, share=np.float32(0.5), by_name={"a": [np.int32(1)]})
    line = json.loads(capsys.readouterr().out)
    told = {"vs_peer": 2.1, "rows": 3, "same": True, "reasons": {}, "share": 0.5, "by_name": {"a": [1]}}
    assert without_origin(line) == told
    assert returned == line


def test_the_last_line_tells_what_was_asked_for_and_of_which_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/rank.py", "--data", "my data", "--quick"])
    monkeypatch.setenv("HONE_BENCH_HERE", "1")
    last_line([], {}, {})
    line = json.loads(capsys.readouterr().out)
    assert line["command"] == "rank --data 'my data' --quick"
    assert line["code"] == code_version() and line["peers_here"] is True


def test_what_json_does_not_know_is_refused() -> None:
    with pytest.raises(TypeError, match="JSON does not know ndarray"):
        last_line([], {}, {}, vectors=np.zeros(2))
