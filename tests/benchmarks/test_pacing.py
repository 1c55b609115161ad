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
    assert [answer.facts["losses"] for answer in answers["two"]] == [[20, 21, 22], [23, 24, 25]]


def test_the_thread_that_trains_is_pinned_as_well() -> None:
    with started([Entrant("one", MODULE, settings={"first": 1.0})], threads=1) as (one,):
        assert one.ask("work", steps=1).facts["gpu_peak"] == 1, "what the stand-in tells in its place"
