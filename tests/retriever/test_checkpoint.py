import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retriever.artifacts import Artifact
from retriever.checkpoint import TrainingState, model_folder, publish_checkpoint, publish_model, read_state
from retriever.encoder import DualEncoder, ModelConfig, create_encoder, load_encoder
from retriever.errors import CorruptError, InputError
from retriever.learner import Learner
from retriever.store import Store
from tests.retriever.training_stand_ins import Bench
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.usefixtures("own_precision")

STATE = TrainingState(seed=3, step=7, best=0.25, bad_generations=1, judged=2)
FACTS = {"refresh": True, "final": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "other", create=True)


class Towers(Bench):
    """A bench whose model has one tower, or a tower a side."""

    tied = True

    def model(self) -> DualEncoder:
        return create_encoder(ModelConfig(str(self.folder / "tiny"), tied=self.tied, dropout=0.2))


def learner(folder: Path, *, tied: bool = True) -> Learner:
    """Return what a new process starts with."""
    bench = Towers(folder)
    bench.tied = tied
    return bench.trainer()._learners["retriever"]


def step(one: Learner, number: int) -> None:
    torch.manual_seed(number)
    one.step(number)


def trained(folder: Path, tied: bool = True) -> Learner:
    one = learner(folder, tied=tied)
    for number in (0, 1):
        step(one, number)
    return one


def publish(store: Store, one: Learner) -> Artifact:
    return publish_checkpoint(store, {"retriever": one}, STATE, {"corpus": 0}, FACTS)


def restore(checkpoint: Artifact, one: Learner) -> TrainingState:
    state, learners = read_state(checkpoint)
    assert one.restore(checkpoint, learners["retriever"], None) is None
    return state


@pytest.mark.parametrize("tied", [True, False])
def test_a_restored_training_goes_on_to_the_bit(store: Store, tmp_path: Path, tied: bool) -> None:
    one = trained(tmp_path, tied)
    checkpoint, fresh = publish(store, one), learner(tmp_path, tied=tied)
    assert restore(checkpoint, fresh) == STATE
    ends = []
    for each in (one, fresh):
        for number in (2, 3):
            step(each, number)
        ends.append(publish(store, each).facts["weights_sha256"])
    assert ends[0] == ends[1] != checkpoint.facts["weights_sha256"]


def test_a_checkpoint_says_what_it_is(store: Store, tmp_path: Path) -> None:
    checkpoint = publish(store, trained(tmp_path))
    checkpoint.verify()
    assert store.checkpoints.get() == checkpoint
    assert dict(checkpoint.parents) == {"corpus": 0}
    facts = checkpoint.facts
    assert (facts["step"], facts["refresh"], facts["final"]) == (7, True, False)
    model = load_encoder(model_folder(checkpoint))
    assert facts["weights_sha256"] == model.weights_sha256()
    assert ModelConfig(**facts["model"]) == model.config


def test_a_checkpoint_before_the_first_step_can_be_resumed(store: Store, tmp_path: Path) -> None:
    checkpoint = publish_checkpoint(store, {"retriever": learner(tmp_path)}, TrainingState(5), {}, FACTS)
    assert restore(checkpoint, learner(tmp_path)) == TrainingState(5)
    checkpoint.verify()


def test_a_checkpoint_from_when_the_retriever_learned_alone_is_read(store: Store, tmp_path: Path) -> None:
    checkpoint = publish(store, trained(tmp_path))
    path = checkpoint.path / "training" / "state.json"
    saved = json.loads(path.read_text())
    of_retriever = saved.pop("retriever")
    path.write_text(json.dumps({**saved, **of_retriever}))
    assert {*of_retriever} == {"groups", "temperature"}
    assert restore(checkpoint, learner(tmp_path)) == STATE


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("name", ["training/state.json", "training/optimizer.safetensors", "model/hone.json"])
def test_a_checkpoint_that_is_damaged_cannot_be_resumed(
    store: Store, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    checkpoint = publish(store, trained(tmp_path))
    damage(checkpoint.path / name)
    with pytest.raises(CorruptError, match=r"unreadable|cannot be resumed") as caught:
        restore(checkpoint, learner(tmp_path))
    assert str(checkpoint.path) in str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_of_another_number_of_towers_is_refused(store: Store, tmp_path: Path, tied: bool) -> None:
    """One tower would take up the second of two without a word."""
    checkpoint = publish(store, trained(tmp_path, tied))
    with pytest.raises(InputError, match=rf"tied = {str(tied).lower()}; put that back, or start afresh with --new"):
        restore(checkpoint, learner(tmp_path, tied=not tied))


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_a_model_that_reads_otherwise_is_another_though_its_weights_are_the_same(
    store: Store, tiny: Path, tmp_path: Path, file: str
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "mended")
    first = publish_model(store, create_encoder(ModelConfig(str(folder))), {})
    assert publish_model(store, create_encoder(ModelConfig(str(folder))), {}).number == first.number
    text = (folder / file).read_text()
    old, new = ('"type": "Lowercase"', '"type": "NFC"') if file == "tokenizer.json" else ('"gelu"', '"relu"')
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    assert publish_model(store, create_encoder(ModelConfig(str(folder))), {}).number == first.number + 1


def test_a_damaged_checkpoint_is_published_anew(store: Store, tiny: Path) -> None:
    model = create_encoder(ModelConfig(str(tiny)))
    first = publish_model(store, model, {})
    weights = bytearray((first.path / "model/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (first.path / "model/model.safetensors").write_bytes(weights)
    said: list[str] = []
    again = publish_model(store, model, {}, warn=said.append)
    assert again.number == first.number + 1 and len(said) == 1 and said[0].endswith("; it is published anew")
    again.verify()


def test_an_untrained_model_is_published_once(store: Store, tiny: Path) -> None:
    model = create_encoder(ModelConfig(str(tiny)))
    first = publish_model(store, model, {})
    assert (first.facts["step"], first.facts["refresh"], first.facts["final"]) == (0, False, False)
    assert publish_model(store, model, {}).number == first.number
    model.config = replace(model.config, query_prompt="q: ")
    assert publish_model(store, model, {}).number == first.number + 1
    next(model.parameters()).data[0, 0] += 1
    assert publish_model(store, model, {}).number == first.number + 2
