import random
from pathlib import Path
from typing import Any

import pytest
import torch

from retriever.engines.fast_ranker import HEADS
from retriever.engines.fast_training import FastTraining
from retriever.ranker import Pair, RankerConfig, load_ranker
from retriever.trained_ranker import TrainedRanker
from tests.stand_ins import WORDS
from tests.tiny_ranker import ARCHITECTURES, write_tiny_ranker

GENERATOR = random.Random(5)
QUERIES = [" ".join(GENERATOR.choices(WORDS, k=GENERATOR.randint(1, 6))) for _ in range(12)]
PASSAGES = [" ".join(GENERATOR.choices(WORDS, k=GENERATOR.choice([1, 5, 20]))) for _ in range(12)]
KNOWN = ("bert", "roberta", "camembert", "electra", "distilbert", "mpnet", "modernbert")
QUIET = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "classifier_dropout": 0.0,
    "summary_last_dropout": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


def trained(folder: Path) -> tuple[TrainedRanker, list[Pair]]:
    ranker = load_ranker(RankerConfig(str(folder))).train()
    return TrainedRanker(ranker), ranker.tokenize(QUERIES, PASSAGES)[0]


def gradients(model: TrainedRanker, pairs: list[Pair], budget: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of a sum in which each pair has another weight."""
    logits = model(pairs, budget)
    torch.autograd.backward((logits * torch.linspace(-1, 1, len(pairs))[:, None]).sum())
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return logits.detach(), found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_its_classifier_s_logits_and_gradients(architecture: str, tmp_path: Path) -> None:
    """In micro-batches as in one batch, by the fast path where it knows the model."""
    model, pairs = trained(write_tiny_ranker(tmp_path, architecture, **QUIET))
    expected = model.ranker.classifier(**model.ranker.pad(pairs)).logits
    torch.autograd.backward((expected * torch.linspace(-1, 1, len(pairs))[:, None]).sum())
    wanted = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    reason = model.train_fast(torch.float32, checkpointing=False)
    assert (reason is None) == (architecture in KNOWN or architecture == "xlm-roberta")
    largest = max(float(one.abs().max()) for one in wanted.values())
    assert expected.std() > 0.1
    for budget in (40, 4096):
        logits, found = gradients(model, pairs, budget)
        assert (logits - expected).abs().max() < 1e-4
        assert found.keys() == wanted.keys()
        assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5 * max(1.0, largest)


def test_without_gradients_few_pairs_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = trained(write_tiny_ranker(tmp_path))
    model.eval().train_fast(torch.float32, checkpointing=False)
    pairs = pairs * 8
    expected = model(pairs, 8).detach()
    embedded: list[int] = []
    embed = FastTraining._embed

    def seen(fast: FastTraining, ids: torch.Tensor, segments: Any) -> torch.Tensor:
        embedded.append(len(ids))
        return embed(fast, ids, segments)

    monkeypatch.setattr(FastTraining, "_embed", seen)
    with torch.no_grad():
        assert torch.equal(model(pairs, 8), expected)
    assert sum(embedded) == len(pairs) and max(embedded) < len(pairs) / 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", [*KNOWN, "gpt2", "deberta-v2"])
def test_dropout_is_drawn_anew_and_from_torch_s_generator(
    architecture: str, checkpointing: bool, tmp_path: Path
) -> None:
    some = {"attention_dropout": 0.1, "mlp_dropout": 0.1} if architecture == "modernbert" else {}
    model, pairs = trained(write_tiny_ranker(tmp_path, architecture, **some))
    reason = model.train_fast(torch.float32, checkpointing=checkpointing)
    if reason is not None and checkpointing:
        model.checkpoint_gradients()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(gradients(model, pairs, 64))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])
    assert not torch.allclose(found[0][0], found[2][0])


@pytest.mark.parametrize("architecture", KNOWN)
def test_the_head_has_dropout_of_its_own(architecture: str, tmp_path: Path) -> None:
    """With the encoder's off, draws still differ: the classifier's is not forgotten by the fast path."""
    heads = {"classifier_dropout": 0.5, "seq_classif_dropout": 0.5}
    quiet = {**QUIET, **heads} if architecture != "mpnet" else {"attention_probs_dropout_prob": 0.0}
    model, pairs = trained(write_tiny_ranker(tmp_path, architecture, **quiet))
    assert model.train_fast(torch.float32, checkpointing=False) is None
    first, second = (model(pairs, 4096).detach() for _ in range(2))
    assert not torch.allclose(first, second)
    model.eval()
    first, second = (model(pairs, 4096).detach() for _ in range(2))
    assert torch.equal(first, second)


def test_several_labels_keep_their_logits(tmp_path: Path) -> None:
    folder = write_tiny_ranker(tmp_path, num_labels=3)
    ranker = load_ranker(RankerConfig(str(folder), label=1))
    model = TrainedRanker(ranker)
    pairs = ranker.tokenize(QUERIES, PASSAGES)[0]
    assert model.train_fast(torch.float32, checkpointing=False) is None
    with torch.no_grad():
        logits = model(pairs, 64)
        assert logits.shape == (12, 3)
        assert torch.allclose(logits, ranker.classifier(**ranker.pad(pairs)).logits, atol=1e-5)


def test_why_a_model_is_not_trained_fast_is_said(tmp_path: Path) -> None:
    unknown, _ = trained(write_tiny_ranker(tmp_path / "gpt2", "gpt2"))
    assert unknown.train_fast(torch.float32, checkpointing=False) == (
        "GPT2ForSequenceClassification is not of a class that is known there"
    )
    left, _ = trained(write_tiny_ranker(tmp_path / "bert"))
    left.ranker.tokenizer.padding_side = "left"
    assert left.train_fast(torch.float32, checkpointing=False) == "its tokenizer pads on the left"
    hooked, _ = trained(tmp_path / "bert")
    hooked.ranker.classifier.base_model.register_forward_hook(lambda *given: None)
    assert hooked.train_fast(torch.float32, checkpointing=False) == "the model has hooks"
    assert {name.removesuffix("ForSequenceClassification").lower() for name in HEADS} == {
        name.replace("-", "") for name in (*KNOWN, "xlm-roberta")
    }
