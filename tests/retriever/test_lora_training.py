"""A run with [model.lora]: what changes, what a checkpoint keeps, exact resumption, and bounded memory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from retriever.checkpoint import model_folder
from retriever.encoder import ModelConfig, create_encoder, load_encoder
from retriever.errors import CorruptError, InputError
from retriever.learner import TrainConfig
from retriever.lora import LoraConfig
from tests.retriever.training_stand_ins import TRAIN, Bench, Killed, ignore, killing_at, stopping_at

pytestmark = pytest.mark.usefixtures("own_precision")

LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    AcceleratorState._reset_state(True)
    bench = Bench(tmp_path_factory.mktemp("undisturbed"), lora=LORA, tied=request.param)
    bench.run()
    return bench


def test_only_adapters_change_and_the_checkpoint_keeps_them_apart(undisturbed: Bench) -> None:
    checkpoint, sides = undisturbed.newest(), [""] if undisturbed.tied else ["query", "passage"]
    start = create_encoder(ModelConfig(str(undisturbed.folder / "tiny"), tied=undisturbed.tied))
    facts = checkpoint.facts["lora"]
    assert facts["name"] == str(undisturbed.folder / "tiny") and facts["weights_sha256"] == start.weights_sha256()
    assert facts["lora"] == {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": None}
    assert undisturbed.weights() != start.weights_sha256()
    for side in sides:
        weights = load_file(model_folder(checkpoint) / side / "model.safetensors")
        before = start.passage.transformer.state_dict()
        changed = {name for name, value in weights.items() if not torch.equal(value, before[name])}
        assert changed and all(
            name.endswith(("query.weight", "key.weight", "value.weight", "dense.weight")) for name in changed
        )
        adapter = checkpoint.path / "training/adapter" / side
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == facts["name"]
        assert all(".lora_" in name for name in load_file(adapter / "adapter_model.safetensors"))
    assert load_encoder(model_folder(checkpoint)).weights_sha256() == checkpoint.facts["weights_sha256"]
    assert not [path for path in checkpoint.path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


def test_the_optimiser_keeps_state_of_adapters_alone(undisturbed: Bench) -> None:
    state = load_file(undisturbed.newest().path / "training/optimizer.safetensors")
    shapes = [tuple(tensor.shape) for name, tensor in state.items() if name.endswith("exp_avg")]
    assert len(shapes) == 2 * 12 * (1 if undisturbed.tied else 2)
    assert all(4 in shape for shape in shapes)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, undisturbed: Bench, step: int) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", step), lora=LORA, tied=undisturbed.tied)
    assert bench.run().reason == "interrupted"
    bench.hears = ignore
    assert bench.run().step == TRAIN.max_steps
    assert bench.weights() == undisturbed.weights()


@pytest.mark.parametrize(("event", "step"), [("checkpoint", 0), ("step", 4)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, undisturbed: Bench, event: str, step: int) -> None:
    bench = Bench(tmp_path, hears=killing_at(event, step), lora=LORA, tied=undisturbed.tied)
    with pytest.raises(Killed):
        bench.run()
    bench.hears = ignore
    bench.run()
    assert bench.weights() == undisturbed.weights()


@pytest.mark.parametrize("bounded", [replace(TRAIN, grad_cache=True), replace(TRAIN, gradient_checkpointing=True)])
@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["fast", "own"])
def test_bounded_memory_changes_no_weight(tmp_path: Path, bounded: TrainConfig, dropout: float) -> None:
    """Dropout of adapters, which the fast path has not, is replayed in the second pass."""
    lora = replace(LORA, dropout=dropout)
    ends = []
    for name, train in (("all", TRAIN), ("bounded", bounded)):
        AcceleratorState._reset_state(True)
        bench = Bench(tmp_path / name, train=train, lora=lora, dropout=0.0)
        bench.run()
        ends.append(load_file(model_folder(bench.newest()) / "model.safetensors"))
        warned = [told["message"] for told in bench.told("warning")]
        assert len(warned) == (dropout > 0) and all("adapter with dropout" in message for message in warned)
    if bounded.grad_cache and dropout:
        return  # micro-batches draw their own dropout, so only test_gradcache's reference has the same bits
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=2e-5, rtol=0)


def test_other_weights_beneath_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", 2), lora=LORA)
    bench.run()
    file = tmp_path / "tiny" / "model.safetensors"
    weights = {name: value + 0.001 for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"its adapters belong to other weights of the model .*tiny"):
        bench.run()


def test_a_damaged_adapter_cannot_be_resumed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hears=stopping_at("checkpoint", 0), lora=LORA)
    bench.run()
    checkpoint = bench.newest()
    (checkpoint.path / "training/adapter/adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptError):
        bench.run()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(LORA, alpha=16), r"\[model\.lora\] alpha = 8, here it is 16; put that back"),
        (replace(LORA, rank=2), r"\[model\.lora\] rank = 4, here it is 2; .* start afresh with --new"),
        (replace(LORA, target_modules=("query",)), r"target_modules = None, here it is \['query'\]"),
    ],
    ids=["alpha", "rank", "target_modules"],
)
def test_adapters_of_another_make_are_refused(tmp_path: Path, other: LoraConfig, said: str) -> None:
    """The same A and B under another alpha are another model."""
    bench = Bench(tmp_path, hears=stopping_at("step", 2), lora=LORA)
    bench.run()
    bench.lora = other
    with pytest.raises(InputError, match=said):
        bench.run()


def test_dropout_may_change_and_target_modules_their_order(tmp_path: Path) -> None:
    lora = replace(LORA, target_modules=("query", "value"))
    bench = Bench(tmp_path, hears=stopping_at("step", 2), lora=lora)
    bench.run()
    bench.lora, bench.hears = replace(lora, dropout=0.1, target_modules=("value", "query")), ignore
    assert bench.run().reason == "finished"


def test_adapters_are_not_put_on_what_was_trained_in_full(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", 2))
    bench.run()
    bench.lora = LORA
    with pytest.raises(InputError, match=r"trained without \[model\.lora\]; take it out"):
        bench.run()
