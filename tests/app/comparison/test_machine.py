import os

import pytest

from app.comparison.machine import machine


def test_the_machine_is_named() -> None:
    told = machine()
    assert told["processor"] and told["cpus"] >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind processes to cores")
def test_only_what_this_process_may_use_is_counted() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert machine()["cpus"] == 1
    finally:
        os.sched_setaffinity(0, allowed)
