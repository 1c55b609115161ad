import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from retriever.errors import InputError
from retriever.learner import open_workplace
from retriever.pair_memory import FILE, AuditConfig
from retriever.ranker_learner import RankerLearner
from retriever.ranks import Ranks
from retriever.retriever_learner import RetrieverLearner
from tests.retriever.ranks_script import EXACT, adapted, anchored, distilled, exact, ranked
from tests.retriever.training_stand_ins import Bench

pytestmark = pytest.mark.timeout(500)  # two ranks are given 400 seconds


@pytest.fixture
def alone() -> Iterator[Ranks]:
    AcceleratorState._reset_state(True)
    yield Ranks(Accelerator(cpu=True))
    AcceleratorState._reset_state(True)


class OneOf:
    """As much of an accelerator as ``Ranks.share`` asks for."""

    def __init__(self, count: int, index: int) -> None:
        self.num_processes, self.process_index = count, index


# ---- a single process


def test_with_one_process_everything_is_the_identity(alone: Ranks) -> None:
    assert (alone.count, alone.index, alone.is_first) == (1, 0, True)
    vectors = torch.ones(3, 2, requires_grad=True)
    assert alone.gather(vectors, 3) is vectors
    assert list(range(10))[alone.share(10)] == list(range(10))
    assert alone.broadcast(7) == 7
    assert (alone.any(True), alone.any(False)) == (True, False)
    alone.wait()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8])
def test_shares_are_even_and_make_up_the_whole(count: int, length: int) -> None:
    items = list(range(length))
    shares = [items[Ranks(OneOf(count, index)).share(length)] for index in range(count)]
    assert [item for share in shares for item in share] == items
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("ranks", "size", "exclude", "told"), [(3, 2, "off", "fewer"), (2, 2, "thin", "may leave 1 ")])
def test_a_batch_that_some_rank_may_have_no_part_of_is_refused(
    tmp_path: Path, ranks: int, size: int, exclude: Literal["off", "thin"], told: str
) -> None:
    AcceleratorState._reset_state(True)
    bench = Bench(tmp_path, train=replace(EXACT, batch_size=size), audit=AuditConfig(exclude=exclude))
    place = replace(open_workplace(bench.train), ranks=Ranks(OneOf(ranks, 0)))
    with pytest.raises(InputError, match=rf"batch_size = {size}: .*{told}"):
        RetrieverLearner(bench.retriever_parts(), bench.train, 1, place, bench.fail)
    AcceleratorState._reset_state(True)


class AnotherSays(Ranks):
    """One of several ranks, of which another has what is asked for."""

    def any(self, flag: bool) -> bool:
        """Return True."""
        return True


def test_pairs_that_another_rank_cuts_are_said(tmp_path: Path, alone: Ranks) -> None:
    bench, said = Bench(tmp_path, dropout=0.0), list[str]()
    bench.ranker = bench.ranking()
    parts, place = bench.ranker_parts(), open_workplace(bench.train)
    assert parts is not None
    place = replace(place, ranks=AnotherSays(place.accelerator))
    learner = RankerLearner(parts, bench.train, 3, place, said.append)
    for step in range(2):
        learner.step(step)
    assert [message.partition(" [ranker]")[0] for message in said] == [
        "the ranker reads some pairs of query and passage cut to"
    ]


# ---- two


def seen(folder: Path, run: str) -> list[Any]:
    """What each rank saw of ``run``."""
    return [json.loads((folder / f"rank{rank}.json").read_text())[run] for rank in range(2)]


@pytest.mark.slow
def test_ranks_wait_for_the_first_as_long_as_a_refresh_may_take(two_ranks: Path) -> None:
    assert seen(two_ranks, "timeout") == [7, 7]


def tensors(bench: Bench, name: str) -> dict[str, torch.Tensor]:
    return load_file(bench.newest().path / name)


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], part: str) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one if part in key)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same run in this process."""
    AcceleratorState._reset_state(True)
    bench = exact(tmp_path_factory.mktemp("one"))
    assert bench.run().reason == "finished"
    AcceleratorState._reset_state(True)
    return bench


@pytest.mark.slow
@pytest.mark.parametrize("run", ["run_exact", "run_interrupted", "run_cached"])
def test_two_ranks_give_the_gradients_and_weights_of_one_process(two_ranks: Path, one_process: Bench, run: str) -> None:
    check_alike(one_process, exact(two_ranks / run))


@pytest.mark.slow
@pytest.mark.parametrize("taught", [anchored, distilled])
def test_two_ranks_learn_from_a_teacher_what_one_process_does(
    two_ranks: Path, tmp_path: Path, taught: Callable[[Path], Bench]
) -> None:
    AcceleratorState._reset_state(True)
    alone = taught(tmp_path / "one")
    assert alone.run().reason == "finished"
    AcceleratorState._reset_state(True)
    both = exact(two_ranks / f"run_{taught.__name__}")
    check_alike(alone, both)
    if taught is anchored:
        mine, theirs = (tensors(bench, "training/anchor.safetensors") for bench in (alone, both))
        assert furthest(mine, theirs, "") < 1e-6


def check_alike(one_process: Bench, both: Bench) -> None:
    assert both.newest().facts["step"] == EXACT.max_steps
    mine, theirs = (tensors(bench, "training/optimizer.safetensors") for bench in (one_process, both))
    assert max(float(mine[key].abs().max()) for key in mine if "exp_avg" in key) > 1e-2  # there is something to compare
    assert furthest(mine, theirs, "exp_avg") < 1e-6  # the running means of the gradients and of their squares
    weights, others = (tensors(bench, "model/model.safetensors") for bench in (one_process, both))
    assert furthest(weights, others, "") < 1e-6
    start = load_file(both.store.checkpoints.at(0).path / "model" / "model.safetensors")
    assert furthest(weights, start, "") > 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("run", ["run_exact", "run_ready", "run_interrupted", "run_cached"])
def test_both_ranks_draw_every_batch_from_the_same_set(two_ranks: Path, run: str) -> None:
    first, second = seen(two_ranks, run)
    assert first == second
    assert first["draws"]


@pytest.mark.slow
def test_a_set_that_comes_at_any_time_is_adopted_by_both_at_one_step(two_ranks: Path) -> None:
    first, _ = seen(two_ranks, "run_ready")
    adopted = [(record["step"], record["set"]) for record in exact(two_ranks / "run_ready").store.adoptions()]
    starts: dict[int, int] = {}
    for position, number in first["draws"]:
        starts.setdefault(number, position // EXACT.accumulation)
    assert adopted == [(step, number) for number, step in starts.items()]
    assert len(adopted) > 1


@pytest.mark.slow
def test_a_stop_on_any_rank_stops_both_at_one_step(two_ranks: Path) -> None:
    for found in seen(two_ranks, "run_interrupted"):
        assert found["reasons"] == ["interrupted", "finished"]
        assert found["steps"] == [1, EXACT.max_steps]


@pytest.mark.slow
def test_two_ranks_train_a_ranker_as_one_process_does(two_ranks: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    alone, both = ranked(tmp_path), ranked(two_ranks / "run_ranked")
    alone.run()
    AcceleratorState._reset_state(True)
    assert both.newest().facts["step"] == 4
    for name in ("optimizer", "ranker_optimizer"):
        mine, theirs = (tensors(bench, f"training/{name}.safetensors") for bench in (alone, both))
        assert max(float(mine[key].abs().max()) for key in mine if "exp_avg" in key) > 1e-3
        assert furthest(mine, theirs, "exp_avg") < 1e-5
    mine, theirs = (tensors(bench, "ranker/model.safetensors") for bench in (alone, both))
    # A mean: where a gradient is zero but for rounding, AdamW makes a step of the rounding.
    assert float(torch.cat([(mine[name] - theirs[name]).abs().flatten() for name in mine]).mean()) < 1e-7
    first, second = seen(two_ranks, "run_ranked")
    assert first["draws"] == second["draws"] == [list(draw) for draw in alone.ranker_draws]
    assert first["losses"] == pytest.approx([told["loss"] for told in alone.told("step")], abs=1e-3)
    for both_told, told in zip(first["sources"], alone.told("step"), strict=True):
        for name in ("ann", "bm25"):
            assert both_told[name] == pytest.approx(told["by_source"][name], abs=1e-3), "of both ranks together"


@pytest.mark.slow
def test_two_ranks_go_on_with_adapters_and_a_memory_as_one_process_learns(two_ranks: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    alone, both = adapted(tmp_path), adapted(two_ranks / "run_adapted")
    assert alone.run().reason == "finished"
    AcceleratorState._reset_state(True)
    assert [found["reasons"] for found in seen(two_ranks, "run_adapted")] == [["interrupted", "finished"]] * 2
    for name in ("optimizer", "ranker_optimizer"):
        mine, theirs = (tensors(bench, f"training/{name}.safetensors") for bench in (alone, both))
        assert max(float(mine[key].abs().max()) for key in mine if "exp_avg" in key) > 1e-3
        assert furthest(mine, theirs, "exp_avg") < 1e-5
    for name in ("training/adapter/adapter_model", "training/ranker_adapter/adapter_model"):
        mine, theirs = (tensors(bench, f"{name}.safetensors") for bench in (alone, both))
        assert max(float(mine[key].abs().max()) for key in mine if "lora_B" in key) > 1e-5
        assert float(torch.cat([(mine[key] - theirs[key]).abs().flatten() for key in mine]).mean()) < 1e-6
    mine, theirs = (tensors(bench, f"training/{FILE}") for bench in (alone, both))
    assert 0 < mine["seen"].sum() < 3 * EXACT.accumulation * EXACT.batch_size
    assert torch.equal(mine["seen"], theirs["seen"]) and furthest(mine, theirs, "") < 1e-4
