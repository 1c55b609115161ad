import threading
import time

import pytest
import torch

from retriever.streams import most_streams, streams

CPU = torch.device("cpu")


def thread_and_count(item: int) -> tuple[int, str, int]:
    time.sleep(0.01)
    return item, threading.current_thread().name, torch.get_num_threads()


def test_results_come_in_order_from_threads_that_compute_alone() -> None:
    with streams(2, CPU) as run:
        found = list(run(thread_and_count, range(8)))
    assert [item for item, _, _ in found] == list(range(8))
    assert {threads for _, _, threads in found} == {1}
    assert len({name for _, name, _ in found}) == 2


def test_a_single_stream_is_the_caller() -> None:
    with streams(1, CPU) as run:
        assert list(run(thread_and_count, [0])) == [(0, threading.current_thread().name, 1)]


@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_threads_is_put_back(count: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with streams(count, CPU) as run:
            list(run(thread_and_count, range(2)))
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyboardInterrupt), streams(count, CPU):
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_the_work_that_has_not_begun() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.005)
        done.append(item)

    def interrupted() -> None:
        with streams(2, CPU) as run:
            for _ in run(work, range(200)):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(done) < 20


def test_an_accelerator_has_one() -> None:
    device = torch.device("meta")
    assert most_streams(device) == 1
    with streams(1, device) as run:
        assert list(run(str, [1])) == ["1"]


def test_a_gpu_is_fed_by_several() -> None:
    device = torch.device("cuda")
    with streams(most_streams(device), device) as run:
        found = list(run(thread_and_count, range(8)))
    assert [item for item, _, _ in found] == list(range(8))
    assert len({name for _, name, _ in found}) > 1
