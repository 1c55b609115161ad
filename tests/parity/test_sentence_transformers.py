"""The same vectors here and in sentence-transformers: what hone saves it loads, and what it saves hone loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from retriever.encoder import DualEncoder, ModelConfig, create_encoder, load_encoder, model_path
from retriever.inference import ModelEncoder
from retriever.protocols import FloatArray
from tests.stand_ins import WORDS
from tests.tiny_model import write_tiny_model, write_tiny_t5
from tests.tiny_ranker import ARCHITECTURES, write_tiny_ranker

TEXTS = [
    " ".join(WORDS[start : start + length]) for start, length in zip(range(30), [1, 4, 9, 16, 40] * 6, strict=True)
]
PROMPTS = {"query": "boki duka ", "document": "bula "}
MODES = {"cls": "cls", "mean": "mean", "last": "lasttoken"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def theirs(folder: Path | str, **options: Any) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", **options)


def cosines(one: FloatArray, other: FloatArray) -> FloatArray:
    found: FloatArray = (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
    return found


def check(ours: FloatArray, others: FloatArray) -> None:
    """The same direction, and the same length where a model does not normalise."""
    assert cosines(ours, others).min() >= 0.9999
    assert np.allclose(ours, others, atol=1e-4)


def check_sides(encoder: ModelEncoder, query: SentenceTransformer, passage: SentenceTransformer) -> None:
    check(encoder.encode_queries(TEXTS), query.encode_query(TEXTS))
    check(encoder.encode_passages(TEXTS), passage.encode_document(TEXTS))


def moved(model: DualEncoder) -> DualEncoder:
    """Towers that differ, if there are two, as after training."""
    if not model.config.tied:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.query.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pooling", MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_saved_here_gives_the_same_vectors_there(
    tiny: Path, tmp_path: Path, tied: bool, pooling: str, normalize: bool
) -> None:
    config = ModelConfig(
        name=str(tiny),
        tied=tied,
        pooling=pooling,
        normalize=normalize,
        query_prompt=PROMPTS["query"],
        passage_prompt=PROMPTS["document"],
        query_max_length=12,
        passage_max_length=12,
    )
    model = moved(create_encoder(config))
    model.save(tmp_path)
    encoder = ModelEncoder(model, device="cpu")
    query, passage = (theirs(tmp_path if tied else tmp_path / side) for side in ("query", "passage"))
    check_sides(encoder, query, passage)
    check_sides(ModelEncoder(load_encoder(tmp_path), device="cpu"), query, passage)
    assert encoder.cut_texts["query"] + encoder.cut_texts["passage"] > 0
    if not tied:
        assert not np.allclose(encoder.encode_queries(TEXTS), passage.encode_query(TEXTS), atol=1e-2)


@pytest.mark.parametrize("pooling", MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_saved_there_gives_the_same_vectors_here(
    tiny: Path, tmp_path: Path, pooling: str, normalize: bool
) -> None:
    modules = [Transformer(str(tiny), max_seq_length=14), Pooling(32, MODES[pooling])]
    saved = SentenceTransformer(
        modules=[*modules, Normalize()] if normalize else modules, prompts=PROMPTS, device="cpu"
    )
    saved.save(str(tmp_path), create_model_card=False)
    model = create_encoder(ModelConfig(str(tmp_path)))
    config = model.config
    assert (config.pooling, config.normalize) == (pooling, normalize)
    assert (config.query_prompt, config.passage_prompt) == (PROMPTS["query"], PROMPTS["document"])
    assert (config.query_max_length, config.passage_max_length) == (14, 14)
    check_sides(ModelEncoder(model, device="cpu"), saved, saved)


@pytest.mark.parametrize("pooling", MODES)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "t5"])
def test_every_architecture_has_their_vectors_and_keeps_them(architecture: str, pooling: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write_tiny_t5(plain) if architecture == "t5" else write_tiny_ranker(plain, architecture)
    modules = [Transformer(str(plain), max_seq_length=14), Pooling(32, MODES[pooling]), Normalize()]
    saved = SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu")
    saved.save(str(tmp_path / "theirs"), create_model_card=False)
    model = create_encoder(ModelConfig(str(tmp_path / "theirs")))
    model.save(tmp_path / "ours")
    encoder = ModelEncoder(model, device="cpu")
    if (architecture, pooling) != ("gpt2", "cls"):  # whose first token sees no other
        assert np.std(encoder.encode_passages(TEXTS), axis=0).max() > 0.01  # else any encoder would pass
    check_sides(encoder, saved, saved)
    check_sides(ModelEncoder(load_encoder(tmp_path / "ours"), device="cpu"), saved, saved)
    check_sides(encoder, theirs(tmp_path / "ours"), theirs(tmp_path / "ours"))


def test_texts_in_capitals_are_lowered_where_theirs_are(tiny: Path, tmp_path: Path) -> None:
    create_encoder(ModelConfig(str(tiny))).save(tmp_path / "theirs")
    for name, key, value in (("sentence_bert_config", "do_lower_case", True), ("tokenizer", "normalizer", None)):
        path = tmp_path / "theirs" / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    model = create_encoder(ModelConfig(str(tmp_path / "theirs")))
    model.save(tmp_path / "ours")
    shouted = [text.upper() for text in TEXTS]
    ours = ModelEncoder(model, device="cpu").encode_passages(shouted)
    check(ours, ModelEncoder(model, device="cpu").encode_passages(TEXTS))
    check(ours, theirs(tmp_path / "theirs").encode_document(shouted))
    check(ours, theirs(tmp_path / "ours").encode_document(shouted))
    again = load_encoder(tmp_path / "ours")
    assert again.passage.tokenizer_sha256() == model.passage.tokenizer_sha256()


def test_a_default_prompt_counts_here_as_it_does_there(tiny: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(tiny)), Pooling(32, "mean"), Normalize()]
    saved = SentenceTransformer(modules=modules, prompts={"all": "boki "}, default_prompt_name="all", device="cpu")
    saved.save(str(tmp_path), create_model_card=False)
    check_sides(ModelEncoder(create_encoder(ModelConfig(str(tmp_path))), device="cpu"), saved, saved)


def test_a_model_keeps_its_prompts_and_length_on_the_way_there_and_back(tiny: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(tiny), max_seq_length=14), Pooling(32, "cls")]
    saved = SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu")
    saved.save(str(tmp_path / "theirs"), create_model_card=False)
    create_encoder(ModelConfig(str(tmp_path / "theirs"))).save(tmp_path / "ours")
    back = theirs(tmp_path / "ours")
    assert back.prompts == PROMPTS
    assert back.max_seq_length == 14
    assert np.allclose(back.encode_query(TEXTS), saved.encode_query(TEXTS), atol=1e-5)


def test_bf16_gives_nearly_the_same_vectors(tiny: Path, tmp_path: Path) -> None:
    model = create_encoder(ModelConfig(str(tiny)))
    model.save(tmp_path)
    ours = ModelEncoder(model, "bf16", "cpu").encode_passages(TEXTS)
    assert cosines(ours, theirs(tmp_path).encode_document(TEXTS)).mean() >= 0.9999


REAL_TEXTS = [
    "How many people live in Berlin?",
    "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "New York City is famous for the Metropolitan Museum of Art.",
    "def add(a, b):\n    return a + b",
    "Ünïcödé, 漢字 and emoji 🎉 are texts, too",
    "",
    "word " * 400,
]


@pytest.mark.slow
def test_the_packaged_minilm_gives_their_vectors(tmp_path: Path) -> None:
    model = create_encoder(ModelConfig("minilm"))
    assert (model.config.pooling, model.config.normalize, model.config.passage_max_length) == ("mean", True, 256)
    model.save(tmp_path)
    encoder, half = ModelEncoder(model, device="cpu"), ModelEncoder(model, "bf16", "cpu")
    ours, rough = encoder.encode_passages(REAL_TEXTS), half.encode_passages(REAL_TEXTS)
    assert encoder.cut_texts["passage"] == 1
    for folder in (model_path("minilm"), tmp_path):
        expected = theirs(folder).encode_document(REAL_TEXTS)
        check(ours, expected)
        assert cosines(rough, expected).mean() >= 0.9999
