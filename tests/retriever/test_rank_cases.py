"""Two ranks with a share of each batch learn what one process does of the whole: losses, options, teachers, rankers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from retriever.encoder import ModelConfig, create_encoder
from retriever.ranker import RankerConfig, load_ranker
from tests.retriever.rank_cases import BOUNDS, CASES, LORA, RANKER, STEADY, TAKEN, learn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]  # two ranks are given 400 seconds


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which this process has taken all cases, with all of each batch and without GradCache."""
    AcceleratorState._reset_state(True)
    folder = tmp_path_factory.mktemp("by-one")
    for name, case in CASES.items():
        learn(case, folder / "bench", folder / name, BOUNDS["whole"])
    AcceleratorState._reset_state(True)
    return folder


def tensors(place: Path) -> dict[str, torch.Tensor]:
    """All that a case saved, by file and name: weights, adapters, optimisers, banks, memories."""
    files = sorted(place.rglob("*.safetensors"))
    return {f"{file.relative_to(place)}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def told(place: Path) -> Any:
    return json.loads((place / "facts.json").read_text())


def numbers(facts: Any) -> list[float]:
    """The leaves of what was told, in order."""
    if isinstance(facts, dict | list):
        return [leaf for one in (facts.values() if isinstance(facts, dict) else facts) for leaf in numbers(one)]
    return [np.nan if facts is None else facts]


def is_weight(key: str) -> bool:
    return "model" in key or key.startswith((RANKER, "training/selection", "training/anchor"))


def check_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, rounded: bool) -> None:
    """Compare gradients' running means and squares, memories, banks and plans one by one, weights all together.

    A mean of the latter: where a gradient is zero but for rounding, AdamW makes a step of the rounding. ``rounded`` to
    bf16 no single number of a gradient is sure, so all of an optimiser are compared by their length.
    """
    assert all(torch.equal(found[key].isnan(), expected[key].isnan()) for key in expected)
    wanted = {key: tensor.double().nan_to_num().flatten() for key, tensor in expected.items()}
    gaps = {key: found[key].double().nan_to_num().flatten() - wanted[key] for key in wanted}
    weights = torch.cat([gap for key, gap in gaps.items() if is_weight(key)])
    assert weights.abs().mean() <= (0.1 if rounded else 0.01) * STEADY.learning_rate
    rest = [key for key in wanted if not is_weight(key)]
    if rounded:
        for end in ("optimizer.safetensors", "ranker_optimizer.safetensors"):
            keys = [key for key in rest if f"/{end}" in key and key.endswith("exp_avg")]
            gap, length = (torch.cat([one[key] for key in keys]).norm() for one in (gaps, wanted))
            assert 0 < gap <= 0.1 * length, f"{end}: {gap} of {length}"
        return
    for key in rest:
        gap, largest = gaps[key].abs().max(), wanted[key].abs().max()
        assert gap <= 1e-4 * largest + 1e-7, f"{key}: {gap} of {largest}"


@pytest.mark.parametrize(("name", "bound"), TAKEN)
def test_two_ranks_learn_what_one_process_does(two_ranks: Path, by_one: Path, name: str, bound: str) -> None:
    first, second = (two_ranks / bound / name / f"rank{rank}" for rank in (0, 1))
    mine, theirs, alone = tensors(first), tensors(second), tensors(by_one / name)
    assert mine.keys() == alone.keys() >= theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(tensor.nan_to_num(), mine[key].nan_to_num()), f"{key} is not alike on both ranks"
    assert told(first) == told(second)
    rounded = "bf16" in name
    check_near(mine, alone, rounded=rounded)
    assert max(float(value.abs().max()) for key, value in mine.items() if key.endswith("exp_avg")) > 1e-3
    near = 0.05 if rounded else 1e-4
    assert numbers(told(first)) == pytest.approx(numbers(told(by_one / name)), rel=near, abs=near, nan_ok=True)


def test_what_is_compared_was_at_work(by_one: Path) -> None:
    """A memory left pairs out, negatives gave way to others, a bank made clusters, temperatures moved."""
    size = STEADY.batch_size * STEADY.accumulation
    assert tensors(by_one / "audit")["training/pairs.safetensors:seen"].sum() < CASES["audit"].steps * size
    assert tensors(by_one / "per query")["training/per_query.safetensors:turn"].max() > 0
    assert tensors(by_one / "ngame")["training/bank.safetensors:epoch"].tolist() == [1]
    for name in ("learned", "learned mw"):
        assert told(by_one / name)[-1]["log τ"] != pytest.approx(np.log(0.05), abs=1e-6)
    for name in ("stored kl", "live margin_mse", "ar2"):
        assert told(by_one / name)[-2]["teacher_loss"] > 0


# ---- adapters


@pytest.mark.parametrize("name", ["lora", "lora bf16"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_two_ranks_leave_what_lies_below_adapters_and_save_it_merged(two_ranks: Path, name: str, bound: str) -> None:
    place = two_ranks / bound / name / "rank0"
    untied, tiny = name == "lora", two_ranks / "run_exact"
    tower = create_encoder(ModelConfig(str(tiny / "tiny"))).passage.transformer.state_dict()
    for side in ("query/", "passage/") if untied else ("",):
        check_merged(tower, load_file(place / f"model/{side}model.safetensors"), place / f"training/adapter/{side}")
    ranker = load_ranker(RankerConfig(str(tiny / "ranker"))).classifier.state_dict()
    check_merged(ranker, load_file(place / "ranker/model.safetensors"), place / "training/ranker_adapter")
    for rank in ("rank0", "rank1"):
        below = load_file(place.with_name(rank) / RANKER)
        kept = [key for key in below if ".lora_" not in key and not key.startswith(WHOLLY)]
        assert kept and all(torch.equal(below[key], ranker[key.replace(".base_layer.", ".")]) for key in kept)


WHOLLY = ("classifier.", "bert.pooler.")
"""What of a ranker is trained whole beside adapters."""


def check_merged(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], folder: Path) -> None:
    """Every weight with an adapter is W + alpha/rank·B·A, every other one has its bits."""
    adapter = load_file(folder / "adapter_model.safetensors")
    merged = 0
    for key, weight in after.items():
        name = f"base_model.model.{key.removesuffix('.weight')}.lora"
        if f"{name}_A.weight" in adapter:
            addition = adapter[f"{name}_B.weight"].double() @ adapter[f"{name}_A.weight"].double()
            assert float(addition.abs().max()) > 0
            expected = before[key].double() + LORA.alpha / LORA.rank * addition
            torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-7)
            merged += 1
        elif not key.startswith(WHOLLY):
            assert torch.equal(weight, before[key]), key
    assert merged == 12
