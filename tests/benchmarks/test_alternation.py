import sys

import numpy as np
import pytest

from benchmarks.alternation import Entrant, alternate, started

MODULE = "tests.benchmarks.stand_in_contestant"
SLOW, QUICK = (Entrant(name, MODULE, settings={"nap": nap}) for name, nap in (("slow", 0.1), ("quick", 0.01)))


def test_contestants_take_turns_and_hand_over_facts_and_arrays() -> None:
    with started([SLOW, QUICK]) as contestants:
        answers = alternate(contestants, "work", 3, value=5)
    assert {name: len(given) for name, given in answers.items()} == {"slow": 3, "quick": 3}
    assert all(slow.seconds > 0.1 > quick.seconds for slow, quick in zip(*answers.values(), strict=True))
    answer = answers["quick"][-1]
    assert answer.facts == {"value": 5}
    assert np.array_equal(answer.arrays["vectors"], np.full((2, 3), 5, np.float32))
    assert 5e6 < answer.peak_rss < 1e9  # its own, not this process's


def test_an_action_may_count_its_own_seconds() -> None:
    with started([QUICK]) as (quick,):
        assert quick.ask("own_clock").seconds == 7.0


def test_versions_are_those_of_the_contestants_environment() -> None:
    with started([QUICK]) as (quick,):
        there = {"python": sys.version.split()[0], "numpy": np.__version__}
        assert quick.versions == {**there, "installed-nowhere": "absent"}


def test_the_reason_of_a_death_is_told() -> None:
    with started([QUICK]) as (quick,), pytest.raises(RuntimeError, match=r"quick ended with 1:\n(.*\n)*.*the reason"):
        quick.ask("fail")


def test_a_contestant_has_two_threads_its_own_variables_and_not_our_way_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    entrant = Entrant("quick", MODULE, settings={"nap": 0}, variables={"ITS_OWN": "value"})
    with started([entrant]) as (quick,):
        given = {name: quick.ask("variable", name=name).facts["value"] for name in ("OMP_NUM_THREADS", "ITS_OWN")}
        assert given == {"OMP_NUM_THREADS": "2", "ITS_OWN": "value"}
        assert quick.ask("variable", name="OMP_WAIT_POLICY").facts["value"] is None


def test_affinity_goes_by_the_number_of_threads() -> None:
    with started([QUICK], threads=1) as (quick,):
        assert quick.ask("affinity").facts["value"] == 1


def test_a_contestant_that_cannot_start_says_why() -> None:
    broken = Entrant("broken", MODULE, settings={"nap": 0}, variables={"PYTHONHASHSEED": "none"})
    with pytest.raises(RuntimeError, match="broken ended"), started([broken]):
        pass
