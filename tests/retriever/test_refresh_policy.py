from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InputError
from retriever.refresh_policy import RefreshConfig, parse_trigger, partial_turn, scheduled_origin, staleness_limit


def marked(text: str, up_to: int) -> list[int]:
    trigger = parse_trigger(text, save_every=5)
    return [step for step in range(up_to + 1) if trigger(step)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps:4", [0, 4, 8, 12]),
        ("steps:1", list(range(13))),
        ("0-8:4,8-:2", [0, 4, 8, 10, 12]),
        ("0-8:4, 8-:2", [0, 4, 8, 10, 12]),
        ("3-9:5", [0, 3, 8]),  # counted from the span's start; step 0 always
        ("2-4:1", [0, 2, 3]),  # the end is excluded
        ("checkpoint", [0, 5, 10]),
        ("once", [0]),
        ("never", []),
        ("staleness:0.3", [0]),  # and whenever it is measured
    ],
)
def test_a_trigger_marks_these_steps(text: str, expected: list[int]) -> None:
    assert marked(text, 12) == expected


@given(st.integers(1, 500))
def test_step_zero_is_always_marked(every: int) -> None:
    assert parse_trigger(f"steps:{every}", 5)(0)
    assert parse_trigger(f"7-{7 + every}:{every}", 5)(0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "steps:0",
        "steps:",
        "steps:-5",
        "every:5",
        "0-10:0",
        "0-10:5,",
        "0:5",
        "steps:5 ",
        "0-10",
        "staleness:",
        "begin",
    ],
)
def test_what_is_no_trigger_is_quoted_with_all_forms(text: str) -> None:
    with pytest.raises(InputError, match="trigger") as caught:
        parse_trigger(text, 5)
    assert repr(text) in str(caught.value)
    assert all(form in str(caught.value) for form in ("steps:200", "0-1000:500", "checkpoint", "once", "never"))


@pytest.mark.parametrize("text", ["10-10:5", "10-5:1", "0-5:1,9-8:1"])
def test_a_span_must_end_after_it_begins(text: str) -> None:
    with pytest.raises(InputError, match="ends before it begins"):
        parse_trigger(text, 5)


@pytest.mark.parametrize("text", ["staleness:0", "staleness:1", "staleness:1.5", "staleness:30"])
def test_a_staleness_is_a_share(text: str) -> None:
    with pytest.raises(InputError, match="lies in"):
        staleness_limit(text)


def test_a_staleness_is_a_limit_and_other_triggers_have_none() -> None:
    assert [staleness_limit(text) for text in ("staleness:0.3", "staleness:.05", "steps:3", "once")] == [
        0.3,
        0.05,
        None,
        None,
    ]


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 200))
def test_scheduled_is_exactly_a_lag_after_the_mark(every: int, lag: int, step: int) -> None:
    config = RefreshConfig(trigger=f"steps:{every}", adopt="scheduled", lag=lag)
    origin = scheduled_origin(config, parse_trigger(config.trigger, 5), step)
    expected = step - lag if step >= lag and (step - lag) % every == 0 else None
    assert origin == expected


def test_without_lag_a_set_is_adopted_at_its_own_step() -> None:
    config = RefreshConfig(trigger="steps:5", lag=0)
    assert scheduled_origin(config, parse_trigger("steps:5", 5), 5) == 5


def kinds(config: RefreshConfig, refreshes: int) -> str:
    """F for each full and a turn's number for each partial one of a run's refreshes, the last of them final."""
    earlier: dict[str, Any] | None = None
    found = ""
    for number in range(refreshes):
        turn = partial_turn(config, {"final": number == refreshes - 1}, earlier)
        earlier = {} if turn is None else {"partial": {"turn": turn}}
        found += "F" if turn is None else str(turn)
    return found


@pytest.mark.parametrize(
    ("full_every", "expected"), [(2, "F0F0F0F0F0F"), (3, "F01F01F01FF"), (5, "F0123F0123F"), (99, "F012345678F")]
)
def test_partial_refreshes_stand_between_full_ones(full_every: int, expected: str) -> None:
    assert kinds(RefreshConfig(method="partial", full_every=full_every), 11) == expected


def test_full_is_the_default_and_always_full() -> None:
    assert kinds(RefreshConfig(), 5) == "FFFFF"
