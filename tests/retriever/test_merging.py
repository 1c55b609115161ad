"""Merging: the arithmetic against numpy over the files' tensors, the ends of the scale, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from transformers import BertModel

from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.inference import ModelEncoder
from retriever.merging import Parent, merge, merged_facts, read_parent
from retriever.ranker import RankerConfig, load_ranker, start_ranker
from retriever.ranker_files import save_ranker
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

TEXTS = ["baka beki bodu", "duku"]


def saved(folder: Path, seed: int, **settings: Any) -> Path:
    """Save a tiny encoder as a run does."""
    create_encoder(ModelConfig(str(write_tiny_model(folder / "hf", seed)), **settings)).save(folder / "model")
    return folder / "model"


def parents(folder: Path, *places: Path) -> list[Parent]:
    return [read_parent(place.name, str(place), folder / f"scratch{n}") for n, place in enumerate(places)]


def test_a_ranker_merges_with_what_was_trained_from_it(tmp_path: Path) -> None:
    """What is written beside the weights differs: hone did not save the first."""
    old, new = write_tiny_ranker(tmp_path / "old"), tmp_path / "new"
    config = json.loads((old / "config.json").read_text())
    config["sentence_transformers"] = {"version": "4.0.0"}
    (old / "config.json").write_text(json.dumps(config))
    new.mkdir()
    save_ranker(start_ranker(RankerConfig(str(old)), 0), new)
    merge(parents(tmp_path, old, new), (0.5, 0.5), tmp_path / "out")
    before, after = (load_ranker(RankerConfig(str(folder))) for folder in (old, tmp_path / "out"))
    assert after.config.activation == before.config.activation


@pytest.mark.parametrize("shares", [(0.3, 0.7), (0.5, 0.25, 0.25), (1 / 3, 1 / 3, 1 / 3)])
def test_each_weight_is_the_weighted_mean(tmp_path: Path, shares: tuple[float, ...]) -> None:
    places = [saved(tmp_path / str(seed), seed) for seed in range(len(shares))]
    merge(parents(tmp_path, *places), shares, tmp_path / "out")
    files = [load_file(place / "model.safetensors") for place in places]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == files[0].keys()
    for name, value in found.items():
        expected = sum(share * file[name].astype(np.float64) for share, file in zip(shares, files, strict=True))
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_a_share_of_one_is_that_model_to_the_bit(tmp_path: Path, tied: bool) -> None:
    places = [saved(tmp_path / str(seed), seed, tied=tied) for seed in (1, 2)]
    both = parents(tmp_path, *places)
    for place, share in zip(both, (1.0, 0.0), strict=True):
        out = tmp_path / f"out{share}"
        merge(both, (share, 1 - share), out)
        assert create_encoder(ModelConfig(str(out))).weights_sha256() == place.weights_sha256


def test_untied_towers_merge_each_with_its_own(tmp_path: Path) -> None:
    """A trained model's towers differ: exchanging them would show."""
    places = [saved(tmp_path / str(seed), seed, tied=False) for seed in (1, 2)]
    model = create_encoder(ModelConfig(str(places[0])))
    with torch.no_grad():
        model.query.transformer.embeddings.word_embeddings.weight.add_(1)
    model.save(tmp_path / "moved" / "model")
    merge(parents(tmp_path, tmp_path / "moved" / "model", places[1]), (0.5, 0.5), tmp_path / "out")
    name = "embeddings.word_embeddings.weight"
    query, passage = (load_file(tmp_path / f"out/{side}/model.safetensors")[name] for side in ("query", "passage"))
    np.testing.assert_allclose(query - passage, 0.5, atol=1e-6)


def test_a_merge_is_a_model_like_any_other(tmp_path: Path) -> None:
    """sentence-transformers and hone read it alike; settings are the last's, and the files say what it is made of."""
    places = [saved(tmp_path / "a", 1, query_max_length=9), saved(tmp_path / "b", 2, passage_prompt="duku ")]
    both = parents(tmp_path, *places)
    merge(both, (0.25, 0.75), tmp_path / "out")
    model = create_encoder(ModelConfig(str(tmp_path / "out")))
    assert (model.config.passage_prompt, model.config.query_max_length) == ("duku ", 64)
    ours = ModelEncoder(model, device="cpu").encode_passages(TEXTS)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode_document(TEXTS)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert json.loads((tmp_path / "out/merged.json").read_text()) == {
        "parents": [{"model": "model", "weights_sha256": parent.weights_sha256} for parent in both],
        "shares": [0.25, 0.75],
    }
    assert merged_facts(str(tmp_path / "out"))["merged"]["shares"] == [0.25, 0.75]
    assert merged_facts("minilm") == merged_facts(str(places[0])) == {}


def test_a_plain_model_merges_with_one_of_ours_whatever_format_its_weights_have(tmp_path: Path) -> None:
    plain = write_tiny_model(tmp_path / "plain", seed=1)
    BertModel.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(plain, max_shard_size="10KB")
    assert len([*plain.glob("*.safetensors")]) > 1
    merge(parents(tmp_path, plain, saved(tmp_path / "own", 2)), (1, 0), tmp_path / "out")
    expected = create_encoder(ModelConfig(str(plain))).weights_sha256()
    assert create_encoder(ModelConfig(str(tmp_path / "out"))).weights_sha256() == expected


def test_rankers_merge_as_they_are(tmp_path: Path) -> None:
    places = [write_tiny_ranker(tmp_path / name) for name in ("one", "two")]
    weights = load_file(places[1] / "model.safetensors")
    save_file(
        {name: torch.from_numpy(value + 1) for name, value in weights.items()},
        places[1] / "model.safetensors",
        {"format": "pt"},
    )
    merge(parents(tmp_path, *places), (0.5, 0.5), tmp_path / "out")
    found = load_ranker(RankerConfig(str(tmp_path / "out"))).classifier.state_dict()
    for name, value in weights.items():
        np.testing.assert_allclose(found[name].numpy(), value + 0.5, atol=1e-6)


def more_heads(folder: Path) -> Path:
    """Change what the weights compute, not their shapes."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    return folder


def other_words(folder: Path) -> Path:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("baka", "bakk"))
    return folder


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda folder: more_heads(saved(folder, 2)), "they differ in num_attention_heads (2 and 4)"),
        (lambda folder: other_words(saved(folder, 2)), "they differ in tokenizer"),
        (lambda folder: saved(folder, 2, pooling="cls"), "they differ in pooling (mean and cls)"),
        (lambda folder: saved(folder, 2, normalize=False), "they differ in normalize (True and False)"),
        (lambda folder: saved(folder, 2, tied=False), "they differ in towers (one and two)"),
        (write_tiny_ranker, "they differ in towers (one and none: it is a ranker), and "),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path: Path, other: Callable[[Path], Path], said: str) -> None:
    places = saved(tmp_path / "first", 1), other(tmp_path / "second")
    with pytest.raises(InputError, match=re.escape(said)):
        merge(parents(tmp_path, *places), (0.5, 0.5), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shares", [(0.5, 0.4), (1.5, -0.5), (1.0,)])
def test_shares_must_make_a_whole(tmp_path: Path, shares: tuple[float, ...]) -> None:
    place = saved(tmp_path, 1)
    with pytest.raises(InputError, match="2 of 0 to 1 that sum to 1 are needed"):
        merge(parents(tmp_path, place, place), shares, tmp_path / "out")


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    both = parents(tmp_path, saved(tmp_path / "a", 1), saved(tmp_path / "b", 2))
    (both[0].folder / "model.safetensors").rename(both[0].folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        merge(both, (0.5, 0.5), tmp_path / "out")
