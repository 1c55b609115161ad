import json

import pytest

from benchmarks.load import Load
from benchmarks.report import last_line
from benchmarks.servers import CLIENTS, OURS, Loads, faster, p99_share, print_loads, refuse_failures, shared_rates


def loads(ours: list[float], peer: list[float], other: list[float]) -> Loads:
    """Return a second's loads, the same for each number of clients, by the milliseconds of the requests."""
    given = {OURS: ours, "peer": peer, "other": other}
    return {(name, clients): Load(1.0, times) for clients in CLIENTS for name, times in given.items()}


ROUNDS = [
    loads([1.0] * 4, [2.0] * 2, [9.0]),
    loads([3.0] * 6, [4.0] * 1, [9.0]),
    loads([1.0] * 8, [8.0] * 2, [9.0]),
]


def test_rates_are_compared_round_by_round() -> None:
    assert faster(ROUNDS, "peer") == 4  # of 2, 6 and 4
    assert faster(ROUNDS, "other", clients=1) == 6
    assert faster(ROUNDS, "other", "peer") == 4, "the best of several"


def test_waiting_is_compared_with_the_peer_that_waits_least() -> None:
    assert p99_share(ROUNDS, 8) == 3 / 8  # all rounds' requests together; the other's is 3 / 9


def test_the_rate_of_arrival_is_one_that_the_slowest_can_answer() -> None:
    assert shared_rates(ROUNDS) == {clients: pytest.approx(0.7) for clients in CLIENTS}


def test_what_was_measured_is_shown_and_ends_in_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    facts = print_loads("Napping", ROUNDS)
    assert "6 (1.0 / 3.0)" in capsys.readouterr().out
    last_line([], {}, {}, closed=facts)
    line = json.loads(capsys.readouterr().out)
    assert line["closed"]["peer"] == {str(clients): [2.0, 4.0, 8.0] for clients in CLIENTS}


def test_a_server_that_refuses_is_not_measured() -> None:
    refuse_failures(ROUNDS)
    refusing = loads([1.0], [0.1, 0.1], [9.0])
    refusing["peer", 8].failed = 2
    with pytest.raises(RuntimeError, match="requests failed: 2 of peer at 8 clients"):
        refuse_failures([*ROUNDS, refusing])
