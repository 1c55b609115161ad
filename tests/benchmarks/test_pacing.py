from benchmarks.alternation import Entrant, alternate, started

MODULE = "tests.benchmarks.stand_in_trainer"


def test_a_training_makes_the_steps_it_is_asked_for_and_waits_in_between() -> None:
    with started(
        [Entrant("one", MODULE, settings={"first": 10.0}), Entrant("two", MODULE, settings={"first": 20.0})]
    ) as (
        one,
        two,
    ):
        answers = alternate([one, two], "work", 2, steps=3)
    assert [answer.facts["losses"] for answer in answers["one"]] == [[10, 11, 12], [13, 14, 15]]
    assert answers["one"][-1].facts["gpu_peak"] == 7
    assert [answer.facts["losses"] for answer in answers["two"]] == [[20, 21, 22], [23, 24, 25]]
