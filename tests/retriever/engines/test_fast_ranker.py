from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retriever.engines.fast_ranker import HEADS, fast_logits
from retriever.ranker import PairClassifier, RankerConfig, load_ranker
from tests.stand_ins import WORDS
from tests.tiny_ranker import ARCHITECTURES, write_tiny_ranker

GENERIC = ("deberta-v2", "xlnet", "gpt2")
FAST = [
    *((name, {}) for name in ARCHITECTURES if name not in GENERIC),
    ("modernbert", {"classifier_pooling": "cls"}),
    ("bert", {"num_labels": 3}),
    ("bert", {"hidden_act": "relu"}),
]


def load(folder: Path, architecture: str, **settings: Any) -> PairClassifier:
    label = 0 if settings.get("num_labels", 1) > 1 else None
    return load_ranker(RankerConfig(str(write_tiny_ranker(folder, architecture, **settings)), label=label))


def padded(model: PairClassifier) -> dict[str, Tensor]:
    queries = [" ".join(WORDS[:count]) for count in (1, 6, 3)]
    return model.pad(model.tokenize(queries, [" ".join(WORDS[-count:]) for count in (25, 1, 9)])[0])


def fast(model: PairClassifier, inputs: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    logits = fast_logits(model.classifier, dtype)
    assert logits is not None
    return logits(inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids"))


@pytest.mark.parametrize(("architecture", "settings"), FAST)
def test_logits_are_those_of_transformers(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = load(tmp_path, architecture, **settings)
    inputs = padded(model)
    with torch.inference_mode():
        expected = model.classifier(**inputs).logits
        found, near = fast(model, inputs, torch.float32), fast(model, inputs, torch.bfloat16)
    assert found.dtype == near.dtype == torch.float32
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-5
    assert 0 < float((near - expected).abs().max()) < 0.3


def test_every_head_has_a_model_here(tmp_path: Path) -> None:
    models = [load(tmp_path / name, name) for name in ARCHITECTURES if name not in GENERIC]
    assert {type(model.classifier).__name__ for model in models} == set(HEADS)


@pytest.mark.parametrize("architecture", GENERIC)
def test_what_is_not_known_here_is_left_to_transformers(architecture: str, tmp_path: Path) -> None:
    assert fast_logits(load(tmp_path, architecture).classifier, torch.float32) is None


def test_a_head_of_ones_own_is_left_to_transformers(tmp_path: Path) -> None:
    classifier = load(tmp_path, "bert").classifier
    classifier.__class__ = type("OwnBert", (type(classifier),), {})
    assert fast_logits(classifier, torch.float32) is None
