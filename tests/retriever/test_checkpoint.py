from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retriever.artifacts import Artifact
from retriever.checkpoint import TrainingState, model_folder, publish_checkpoint, publish_model, restore_training
from retriever.encoder import DualEncoder, ModelConfig, create_encoder, load_encoder
from retriever.errors import CorruptError
from retriever.store import Store
from tests.tiny_model import write_tiny_model

STATE = TrainingState(seed=3, step=7, best=0.25, bad_generations=1, judged=2)
FACTS = {"refresh": True, "final": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


def optimizer_of(model: DualEncoder) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def step(model: DualEncoder, optimizer: torch.optim.Optimizer, target: float) -> None:
    """Take one step towards vectors whose numbers are ``target``."""
    queries, passages = model(model.tokenize("query", ["baka bala"])[0], model.tokenize("passage", ["beki"])[0], 64)
    ((queries - target) ** 2 + (passages - target) ** 2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(tiny: Path, tied: bool = True) -> tuple[DualEncoder, torch.optim.AdamW]:
    model = create_encoder(ModelConfig(str(tiny), tied=tied)).eval()
    optimizer = optimizer_of(model)
    for target in (0.1, 0.2):
        step(model, optimizer, target)
    return model, optimizer


def publish(store: Store, model: DualEncoder, optimizer: torch.optim.Optimizer) -> Artifact:
    return publish_checkpoint(store, model, optimizer, STATE, lambda folder: None, {"corpus": 0}, FACTS)


@pytest.mark.parametrize("tied", [True, False])
def test_a_restored_training_goes_on_to_the_bit(store: Store, tiny: Path, tied: bool) -> None:
    model, optimizer = trained(tiny, tied)
    checkpoint = publish(store, model, optimizer)
    fresh = create_encoder(ModelConfig(str(tiny), tied=tied)).eval()
    fresh_optimizer = optimizer_of(fresh)
    assert restore_training(checkpoint, fresh, fresh_optimizer) == STATE
    assert fresh.weights_sha256() == model.weights_sha256()
    for target in (0.3, 0.4):
        step(model, optimizer, target)
        step(fresh, fresh_optimizer, target)
    assert fresh.weights_sha256() == model.weights_sha256() != checkpoint.facts["weights_sha256"]


def test_a_checkpoint_says_what_it_is(store: Store, tiny: Path) -> None:
    model, optimizer = trained(tiny)
    checkpoint = publish(store, model, optimizer)
    checkpoint.verify()
    assert store.checkpoints.get() == checkpoint
    assert dict(checkpoint.parents) == {"corpus": 0}
    facts = checkpoint.facts
    assert (facts["step"], facts["refresh"], facts["final"]) == (7, True, False)
    assert facts["weights_sha256"] == model.weights_sha256()
    assert ModelConfig(**facts["model"]) == model.config
    assert load_encoder(model_folder(checkpoint)).weights_sha256() == model.weights_sha256()


def write_more(folder: Path) -> None:
    (folder / "more").write_text("more")


def test_a_checkpoint_before_the_first_step_can_be_resumed(store: Store, tiny: Path) -> None:
    model = create_encoder(ModelConfig(str(tiny)))
    checkpoint = publish_checkpoint(store, model, optimizer_of(model), TrainingState(5), write_more, {}, FACTS)
    assert restore_training(checkpoint, model, optimizer_of(model)) == TrainingState(5)
    assert (checkpoint.path / "training/more").read_text() == "more"
    checkpoint.verify()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("name", ["training/state.json", "training/optimizer.safetensors", "model/hone.json"])
def test_a_checkpoint_that_is_damaged_cannot_be_resumed(
    store: Store, tiny: Path, damage: Callable[[Path], None], name: str
) -> None:
    checkpoint = publish(store, *trained(tiny))
    damage(checkpoint.path / name)
    model = create_encoder(ModelConfig(str(tiny)))
    with pytest.raises(CorruptError, match=r"unreadable|cannot be resumed") as caught:
        restore_training(checkpoint, model, optimizer_of(model))
    assert str(checkpoint.path) in str(caught.value)


def test_a_checkpoint_of_another_shape_cannot_be_resumed(store: Store, tiny: Path) -> None:
    checkpoint = publish(store, *trained(tiny))
    other = create_encoder(ModelConfig(str(tiny), tied=False))
    with pytest.raises(CorruptError, match="cannot be resumed"):
        restore_training(checkpoint, other, optimizer_of(other))


def test_an_untrained_model_is_published_once(store: Store, tiny: Path) -> None:
    model = create_encoder(ModelConfig(str(tiny)))
    first = publish_model(store, model, {})
    assert (first.facts["step"], first.facts["refresh"], first.facts["final"]) == (0, False, False)
    assert publish_model(store, model, {}).number == first.number
    model.config = replace(model.config, query_prompt="q: ")
    assert publish_model(store, model, {}).number == first.number + 1
    next(model.parameters()).data[0, 0] += 1
    assert publish_model(store, model, {}).number == first.number + 2
