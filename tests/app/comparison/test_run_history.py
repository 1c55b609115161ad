from typing import Any

import pytest

from app.comparison.run_history import Aged, Clock, Refresh, aged, costs, refreshes, seconds_of_checkpoints


def event(time: float, name: str, source: str | None = "trainer", **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": name, **({} if source is None else {"source": source}), **fields}


FIRST = [
    event(105, "refresher_started", pid=1),
    event(110, "checkpoint", step=0, number=0),
    event(111, "build_started", "refresher", checkpoint=0, step=0),
    event(112, "step", step=1),
    event(114, "waiting", step=1, seconds=0.5),
    event(117, "generation_published", None, step=0, seconds={"encode": 4.0, "index": 1.0, "check": 0.5}),
    event(118, "waiting", step=1, seconds=4.5),
    event(119, "negatives_published", "refresher", step=0),
    event(120, "adopted", step=1, staleness=1),
    event(125, "step", step=2),
    event(126, "checkpoint", step=2, number=1),
]
"""A session that is started at 100, has its first sign of life at 105 and its last at 126."""

SECOND = [
    event(1010, "refresher_started", pid=2),
    event(1012, "resumed", step=2, checkpoint=1),
    event(1013, "generation_reused", "refresher", step=2),
    event(1016, "negatives_published", "refresher", step=2),
    event(1020, "step", step=3),
    event(1021, "adopted", step=3, staleness=1),
    event(1030, "checkpoint", step=4, number=2, final=True),
    event(1040, "generation_published", None, step=4, seconds={"encode": 3.0}),
]

STARTS = [100.0, 1000.0]


def test_only_what_the_trainer_lived_through_is_on_the_clock() -> None:
    clock = Clock([*FIRST, *SECOND], STARTS)
    assert clock.total == 21 + 20
    assert [clock.at(time) for time in (50, 105, 110, 126)] == [0, 0, 5, 21]
    assert [clock.at(time) for time in (500, 1005, 1010, 1012, 1030)] == [21, 21, 21, 23, 41]
    assert clock.at(1040) == 41, "the refresher outlives the trainer"


def test_before_anything_happened_no_second_has_passed() -> None:
    clock = Clock([], [100.0])
    assert clock.total == 0 and clock.at(101) == 0
    assert costs([], []).training == 0


def test_each_checkpoint_has_its_seconds_also_one_whose_report_a_kill_prevented() -> None:
    clock = Clock([*FIRST, *SECOND], STARTS)
    assert seconds_of_checkpoints([*FIRST, *SECOND], clock) == {0: 5, 1: 21, 2: 41}
    assert seconds_of_checkpoints([*FIRST[:-1], *SECOND], Clock([*FIRST[:-1], *SECOND], STARTS))[1] == 22


def test_seconds_are_told_apart() -> None:
    found = costs([*FIRST, *SECOND], STARTS)
    assert found.waiting == pytest.approx(120 - 113.5)
    assert found.training == pytest.approx(41 - 6.5)
    assert (found.encoding, found.indexing) == (7.0, 1.5)
    assert found.mining == (119 - 117) + (1016 - 1013)


def test_a_wait_that_an_interruption_ends_does_not_run_on_into_the_next_session() -> None:
    waits = [event(105, "checkpoint", step=0, number=0), event(110, "waiting", step=0, seconds=1.0)]
    found = costs([*waits, event(1010, "step", step=1)], STARTS)
    assert found.waiting == 1 and found.training == 4


def test_refreshes_lie_between_their_checkpoint_and_their_adoption() -> None:
    again = event(1025, "adopted", step=3, staleness=1)
    events = [*FIRST, *SECOND[:-2], again, *SECOND[-2:]]
    found = refreshes(events, Clock(events, STARTS))
    assert found == [Refresh(0, 1, 6.0, 15.0), Refresh(2, 3, None, 36.0)], "of a replayed adoption the replay counts"


def test_a_probe_that_a_resumed_run_takes_again_counts_once() -> None:
    probes = [
        event(1, "staleness", step=50, overlap=0.4, drift=-0.1, easy=0.3),
        event(2, "staleness", step=100, overlap=0.7, drift=0.0, easy=0.1),
        event(9, "staleness", step=100, overlap=0.8, drift=0.0, easy=0.0),
    ]
    assert aged([*FIRST, *probes]) == [Aged(50, 0.4, -0.1, 0.3), Aged(100, 0.8, 0.0, 0.0)]
