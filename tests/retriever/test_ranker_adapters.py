"""[ranker.lora]: a ranker that learns by adapters beside the retriever, saved merged and resumed apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from retriever.errors import InputError
from retriever.lora import LoraConfig
from retriever.phases import PhasesConfig
from retriever.ranker import RankerConfig, load_ranker
from retriever.tower import weights_sha256
from tests.retriever.training_stand_ins import Bench, ignore, stopping_at

pytestmark = pytest.mark.usefixtures("own_precision")


@pytest.fixture(scope="module")
def undisturbed_adapters(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    AcceleratorState._reset_state(True)
    made = with_adapters(tmp_path_factory.mktemp("adapters"))
    made.run()
    return made


def with_adapters(folder: Path, **settings: Any) -> Bench:
    made = Bench(folder, phases=PhasesConfig(1, 1), **settings)
    made.ranker = replace(made.ranking(), lora=LoraConfig(rank=4))
    return made


def test_a_ranker_learns_by_adapters_and_its_head_and_is_saved_merged(undisturbed_adapters: Bench) -> None:
    made = undisturbed_adapters
    first, last = made.store.checkpoints.at(0), made.newest()
    before, after = (load_file(one.path / "ranker/model.safetensors") for one in (first, last))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "classifier.weight" in changed and not any("embeddings" in name or "LayerNorm" in name for name in changed)
    facts = last.facts["ranker"]
    assert weights_sha256(load_ranker(RankerConfig(str(last.path / "ranker"))).classifier) == facts["weights_sha256"]
    assert facts["lora"]["weights_sha256"] == first.facts["ranker"]["weights_sha256"]
    kept = load_file(last.path / "training/ranker_adapter/adapter_model.safetensors")
    assert {name.rpartition(".lora_")[0] != "" or "classifier" in name or "pooler" in name for name in kept} == {True}


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_ranker_with_adapters_ends_with_the_same_bits(
    tmp_path: Path, undisturbed_adapters: Bench, step: int
) -> None:
    made = with_adapters(tmp_path, hears=stopping_at("step", step))
    made.run()
    made.hears = ignore
    made.run()
    assert made.newest().facts["ranker"] == {
        **undisturbed_adapters.newest().facts["ranker"],
        "lora": {**undisturbed_adapters.newest().facts["ranker"]["lora"], "name": str(made.folder / "ranker")},
    }


def test_another_alpha_of_a_ranker_s_adapters_is_refused(tmp_path: Path) -> None:
    made = with_adapters(tmp_path, hears=stopping_at("step", 2))
    made.run()
    assert made.ranker is not None
    made.ranker = replace(made.ranker, lora=LoraConfig(rank=4, alpha=8))
    with pytest.raises(InputError, match=r"\[ranker\.lora\] alpha = 16\.0, here it is 8; put that back"):
        made.run()


def test_other_weights_beneath_a_ranker_s_adapters_are_refused(tmp_path: Path) -> None:
    made = with_adapters(tmp_path, hears=stopping_at("step", 2))
    made.run()
    file = made.folder / "ranker/model.safetensors"
    save_file({name: value + 0.001 for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(InputError, match="its adapters belong to other weights of the model"):
        made.run()
