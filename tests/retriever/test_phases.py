from hypothesis import given
from hypothesis import strategies as st

from retriever.phases import RETRIEVER_ALONE, PhasesConfig

PHASES = st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(any)


def test_the_ranker_comes_first_and_then_they_take_turns() -> None:
    phases = PhasesConfig(2, 3)
    turns = [phases.learner_at(step) for step in range(7)]
    assert turns == ["ranker"] * 2 + ["retriever"] * 3 + ["ranker"] * 2


@given(PHASES, st.integers(0, 40))
def test_steps_taken_are_those_that_were_dealt_out(lengths: tuple[int, int], steps: int) -> None:
    phases = PhasesConfig(*lengths)
    turns = [phases.learner_at(step) for step in range(steps)]
    assert phases.taken("ranker", steps) == turns.count("ranker")
    assert phases.taken("retriever", steps) == turns.count("retriever")


def test_one_may_be_left_out() -> None:
    assert {PhasesConfig(4, 0).learner_at(step) for step in range(9)} == {"ranker"}
    assert {RETRIEVER_ALONE.learner_at(step) for step in range(9)} == {"retriever"}
    assert RETRIEVER_ALONE.taken("retriever", 9) == 9
