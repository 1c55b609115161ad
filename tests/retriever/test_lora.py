"""LoRA: what is trained, that merged and apart give the same, and peft's own reading of the files."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from retriever.encoder import DualEncoder, ModelConfig, create_encoder, load_encoder
from retriever.engines.fast_training import FastTraining, why_not_fast
from retriever.errors import InputError
from retriever.inference import ModelEncoder
from retriever.lora import LoraConfig, adapt, load_adapter, merged_state, save_adapter
from retriever.ranker import PairClassifier, RankerConfig, load_ranker
from retriever.teacher import Anchor
from retriever.tower import weights_sha256
from tests.retriever.engines.architectures import FAST, random_transformer
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

TEXTS = ["baka beki bodu", "duku", "bilo " * 9]
LORA = LoraConfig(rank=4, alpha=8)
# PeftModel, which hone itself does without, asks transformers by a name that is to go.
peft_asks_by_an_old_name = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def moved(model: Any, spread: float = 0.3) -> Any:
    """Set each trained weight to something that shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(tiny: Path, lora: LoraConfig = LORA, **settings: Any) -> DualEncoder:
    model = create_encoder(ModelConfig(str(tiny), **settings))
    model.adapt(lora, seed=1)
    return model


def vectors(model: DualEncoder) -> Tensor:
    return torch.cat(model.eval()(model.tokenize("query", TEXTS)[0], model.tokenize("passage", TEXTS)[0], 64))


def test_a_fresh_adapter_changes_nothing_and_alone_will_learn(tiny: Path) -> None:
    before, model = create_encoder(ModelConfig(str(tiny))), adapted(tiny)
    assert model.weights_sha256() == before.weights_sha256()
    torch.testing.assert_close(vectors(model), vectors(before))
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name for name in learning) and len(learning) == 2 * 2 * 6
    assert not any("pooler" in name for name in learning), "nothing reads it"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_merged_and_apart_give_the_same_vectors(tiny: Path, tmp_path: Path, tied: bool, fast: bool) -> None:
    model = moved(adapted(tiny, tied=tied))
    if fast:
        assert model.train_fast(torch.float32, checkpointing=False) == []
    model.save(tmp_path / "model")
    loaded = load_encoder(tmp_path / "model")
    assert loaded.weights_sha256() == model.weights_sha256()
    names = [name for tower in loaded.towers().values() for name, _ in tower.named_parameters()]
    assert not any("lora_" in name for name in names) and loaded.config.lora is None
    torch.testing.assert_close(vectors(model), vectors(loaded), atol=1e-5, rtol=0)
    assert (vectors(model) - vectors(create_encoder(ModelConfig(str(tiny))))).abs().max() > 0.01
    encoder = ModelEncoder(loaded, device="cpu")
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), vectors(model).detach()[:3], atol=1e-5)


@peft_asks_by_an_old_name
def test_peft_reads_the_adapter_over_the_model_beneath(tiny: Path, tmp_path: Path) -> None:
    model = moved(adapted(tiny))
    model.save_adapters(tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny), str(tmp_path / "adapter")).eval()
    ids, mask = model.passage.pad(model.tokenize("passage", TEXTS)[0])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        found = model.eval().passage.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_comes_back_to_the_bit(tiny: Path, tmp_path: Path, tied: bool) -> None:
    model = moved(adapted(tiny, tied=tied))
    model.save_adapters(tmp_path / "adapter")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]
    again = adapted(tiny, tied=tied)
    again.load_adapters(tmp_path / "adapter")
    assert again.weights_sha256() == model.weights_sha256()


def test_an_adapter_of_other_modules_is_refused(tiny: Path, tmp_path: Path) -> None:
    adapted(tiny, LoraConfig(target_modules=("query",))).save_adapters(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"the adapter differs from the run's in base_model\.model\.encoder"):
        adapted(tiny).load_adapters(tmp_path / "adapter")


def test_the_seed_alone_decides_a_fresh_adapter(tiny: Path) -> None:
    def first(seed: int) -> Tensor:
        torch.rand(seed + 3)  # what was drawn before does not matter
        model = create_encoder(ModelConfig(str(tiny)))
        model.adapt(LORA, seed)
        return next(parameter for name, parameter in model.named_parameters() if "lora_A" in name).detach()

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
    state = torch.random.get_rng_state()
    adapted(tiny)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", sorted(FAST))
def test_the_fast_path_gives_adapters_the_gradients_of_the_model_s_own(family: str) -> None:
    transformer = random_transformer(FAST[family]())
    adapt(transformer, LORA, seed=1)
    moved(transformer, 0.1).eval()
    assert why_not_fast(transformer) is None
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    fast = FastTraining(transformer, torch.float32, 0)([[[one.tolist() for one in ids]]])[0][0]
    own = transformer(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(fast, own, atol=1e-4, rtol=1e-4)
    learning = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    weights = torch.sin(torch.arange(own.numel())).view(own.shape)
    of_fast, of_own = (torch.autograd.grad((states * weights).sum(), learning) for states in (fast, own))
    for ours, theirs in zip(of_fast, of_own, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_dropout_of_adapters_is_for_the_model_s_own_way(tiny: Path) -> None:
    (reason,) = adapted(tiny, LoraConfig(dropout=0.1)).train_fast(torch.float32, checkpointing=False)
    assert reason.endswith("has an adapter with dropout")


def test_target_modules_are_ends_of_names(tiny: Path) -> None:
    model = adapted(tiny, LoraConfig(target_modules=("query", "output.dense")))
    layers = {
        name.partition(".lora_")[0].partition("layer.")[2] for name, _ in model.named_parameters() if ".lora_" in name
    }
    assert layers == {
        f"{n}.{end}" for n in (0, 1) for end in ("attention.self.query", "attention.output.dense", "output.dense")
    }
    with pytest.raises(
        InputError, match=r"lora\.target_modules: the model has no product 'q_proj'; there are dense, key"
    ):
        adapted(tiny, LoraConfig(target_modules=("q_proj",)))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_values_that_make_no_adapter_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="lora: rank must be at least 1"):
        LoraConfig(**wrong)


def test_without_peft_the_extra_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"lora needs peft: pip install -e '\.\[lora\]'"):
        adapted(tiny)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert", "deberta-v2"])
def test_a_ranker_s_head_is_trained_whole_and_all_of_it_merges(tmp_path: Path, architecture: str) -> None:
    """The helper is one for both: the adapted classifier, merged, is a ranker that loads with the same scores."""
    folder = write_tiny_ranker(tmp_path / "ranker", architecture)
    ranker = load_ranker(RankerConfig(str(folder)))
    adapt(ranker.classifier, LORA, seed=1)
    moved(ranker.classifier)
    whole = {name for name, one in ranker.classifier.named_parameters() if one.requires_grad and ".lora_" not in name}
    assert any("classifier" in name for name in whole)
    assert not any("embeddings" in name for name in whole)
    ranker.classifier.save_pretrained(tmp_path / "merged", state_dict=merged_state(ranker.classifier))
    ranker.tokenizer.save_pretrained(tmp_path / "merged")
    merged = load_ranker(RankerConfig(str(tmp_path / "merged")))
    assert weights_sha256(merged.classifier) == weights_sha256(ranker.classifier)
    torch.testing.assert_close(scores(ranker), scores(merged), atol=1e-5, rtol=0)
    save_adapter(ranker.classifier, LORA, str(folder), tmp_path / "adapter")
    again = load_ranker(RankerConfig(str(folder)))
    adapt(again.classifier, LORA, seed=9)
    load_adapter(again.classifier, tmp_path / "adapter")
    assert torch.equal(scores(again), scores(ranker))


@peft_asks_by_an_old_name
def test_peft_reads_a_ranker_s_adapter_with_its_head(tmp_path: Path) -> None:
    folder = write_tiny_ranker(tmp_path / "ranker")
    ranker = load_ranker(RankerConfig(str(folder)))
    adapt(ranker.classifier, LORA, seed=1)
    save_adapter(moved(ranker.classifier), LORA, str(folder), tmp_path / "adapter")
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    theirs = PeftModel.from_pretrained(theirs, str(tmp_path / "adapter"))
    classifier = PairClassifier(theirs, ranker.tokenizer, ranker.config).eval()
    torch.testing.assert_close(scores(classifier), scores(ranker), atol=1e-5, rtol=0)


def scores(ranker: PairClassifier) -> Tensor:
    pairs, _ = ranker.tokenize(["baka", "duku"], ["beki bodu", "bilo"])
    with torch.no_grad():
        found: Tensor = ranker(ranker.pad(pairs))
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_an_anchor_follows_the_merged_weights(tiny: Path, tied: bool) -> None:
    anchor = Anchor(create_encoder(ModelConfig(str(tiny), tied=tied)), 0.0, torch.device("cpu"))
    student = moved(adapted(tiny, tied=tied))
    anchor.follow(student)
    np.testing.assert_allclose(anchor.encode_queries(TEXTS), vectors(student).detach()[:3], atol=1e-5)
    np.testing.assert_allclose(anchor.encode_passages(TEXTS), vectors(student).detach()[3:], atol=1e-5)
