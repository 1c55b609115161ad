import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retriever.encoder import DualEncoder, ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.inference import ENCODED_TOKENS, PIECES, ModelEncoder
from retriever.protocols import Side
from tests.stand_ins import WORDS
from tests.tiny_model import write_tiny_model

TEXTS = [" ".join(WORDS[start : start + length]) for start, length in zip(range(40), [3, 9, 1, 14, 6] * 8, strict=True)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(tiny: Path) -> DualEncoder:
    return create_encoder(ModelConfig(str(tiny), query_prompt="boki ", query_max_length=8, passage_max_length=12))


@pytest.fixture
def encoder(model: DualEncoder) -> ModelEncoder:
    return ModelEncoder(model, device="cpu")


def test_vectors_do_not_depend_on_order_or_neighbours(encoder: ModelEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    together = encoder.encode_passages(TEXTS)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert np.abs(encoder.encode_passages([TEXTS[i] for i in order]) - together[order]).max() < 1e-5
    assert np.abs(np.concatenate([encoder.encode_passages([text]) for text in TEXTS]) - together).max() < 1e-5
    monkeypatch.setitem(ENCODED_TOKENS, "cpu", 20)
    assert np.abs(encoder.encode_passages(TEXTS) - together).max() < 1e-5


def test_a_server_s_batch_is_computed_in_every_stream(encoder: ModelEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has fewer tokens than one batch of a corpus."""
    engine = encoder._engines["query"]
    by, vectors = set(), engine.vectors

    def watched(*arguments: Any, **options: Any) -> Any:
        by.add(threading.get_ident())
        time.sleep(0.05)
        return vectors(*arguments, **options)

    monkeypatch.setattr(engine, "vectors", watched)
    ids, _ = encoder.tokenize("query", TEXTS * 2)
    assert 256 < sum(map(len, ids)) < ENCODED_TOKENS["cpu"]
    for streams, threads in ((2, 2), (1, 1)):
        by.clear()
        encoder.streams = streams
        encoder.encode_tokens("query", ids)
        assert len(by) == threads


def test_pieces_of_texts_make_the_same_whole(encoder: ModelEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    together, cut = encoder.encode_passages(TEXTS), encoder.cut_texts["passage"]
    monkeypatch.setitem(PIECES, "cpu", 7)
    seen: list[tuple[int, int]] = []
    assert np.abs(encoder.encode_passages(TEXTS, lambda *now: seen.append(now)) - together).max() < 1e-5
    assert encoder.cut_texts["passage"] == 2 * cut > 0
    assert seen[-1] == (len(TEXTS), len(TEXTS))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("size", [1000, 7])
@pytest.mark.parametrize("side", ["query", "passage"])
def test_kept_tokens_give_the_same_bits_and_the_same_count_of_cuts(
    encoder: ModelEncoder, monkeypatch: pytest.MonkeyPatch, side: Side, size: int
) -> None:
    """All texts as one piece, and by 7, where two threads make them."""
    monkeypatch.setitem(PIECES, "cpu", size)
    encoder.streams = 2
    expected = encoder.encode_passages(TEXTS) if side == "passage" else encoder.encode_queries(TEXTS)
    cut = encoder.cut_texts[side]
    vectors, tokens = encoder.encode_keeping(side, TEXTS)
    np.testing.assert_array_equal(vectors, expected)
    assert encoder.cut_texts[side] == 2 * cut > 0
    assert [ids.tolist() for ids in tokens.split()] == encoder.tokenize(side, TEXTS)[0]
    told: list[tuple[int, int]] = []
    np.testing.assert_array_equal(encoder.encode_kept(side, tokens, lambda *now: told.append(now)), expected)
    assert encoder.cut_texts[side] == 3 * cut and told[-1] == (len(TEXTS), len(TEXTS))


def test_the_same_texts_give_the_same_bits(encoder: ModelEncoder) -> None:
    assert np.array_equal(encoder.encode_passages(TEXTS), encoder.encode_passages(TEXTS))


def test_vectors_are_those_of_training_without_dropout(encoder: ModelEncoder, model: DualEncoder) -> None:
    with torch.no_grad():
        queries, passages = model(model.tokenize("query", TEXTS)[0], model.tokenize("passage", TEXTS)[0], 64)
    assert np.allclose(encoder.encode_queries(TEXTS), queries.numpy(), atol=1e-5)
    assert np.allclose(encoder.encode_passages(TEXTS), passages.numpy(), atol=1e-5)
    assert not np.allclose(encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS), atol=1e-2)


def test_an_encoder_of_a_model_in_training_knows_no_dropout(tiny: Path) -> None:
    encoder = ModelEncoder(create_encoder(ModelConfig(str(tiny), dropout=0.5)).train(), device="cpu")
    assert np.array_equal(encoder.encode_queries(TEXTS), encoder.encode_queries(TEXTS))


def test_shapes_and_types(encoder: ModelEncoder) -> None:
    vectors = encoder.encode_queries(TEXTS[:3])
    assert vectors.dtype == np.float32 and vectors.shape == (3, encoder.dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_the_tokenizer_is_given_few_texts_at_a_time(
    encoder: ModelEncoder, model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, cut = encoder.encode_passages(TEXTS), encoder.cut_texts["passage"]
    given: list[int] = []
    tokenize = model.tokenize

    def counted(side: Side, texts: list[str]) -> tuple[list[list[int]], list[bool]]:
        given.append(len(texts))
        return tokenize(side, texts)

    monkeypatch.setattr(model, "tokenize", counted)
    monkeypatch.setattr("retriever.inference.TOKENIZED", 16)
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS), expected)
    vectors, tokens = encoder.encode_keeping("passage", TEXTS)
    np.testing.assert_array_equal(vectors, expected)
    assert given == [16, 16, 8] * 2 and len(tokens) == len(TEXTS)
    assert encoder.cut_texts["passage"] == 3 * cut > 0


def test_no_text_is_no_vector(encoder: ModelEncoder) -> None:
    for vectors in (encoder.encode_queries([]), encoder.encode_passages([])):
        assert vectors.dtype == np.float32 and vectors.shape == (0, encoder.dimensions)
    assert encoder.cut_texts == {"query": 0, "passage": 0}


def test_an_empty_text_has_a_vector(encoder: ModelEncoder) -> None:
    assert np.isfinite(encoder.encode_passages([""])).all()


def test_texts_that_are_cut_are_counted(encoder: ModelEncoder) -> None:
    encoder.encode_passages(TEXTS)  # of which 8 have 14 words and two special tokens
    assert encoder.cut_texts == {"query": 0, "passage": 8}
    encoder.encode_queries(TEXTS[:5])  # with the prompt, 9, 14 and 6 words are beyond 8 tokens
    assert encoder.cut_texts == {"query": 3, "passage": 8}


def test_progress_counts_texts_up_to_the_last(encoder: ModelEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODED_TOKENS, "cpu", 50)
    told: list[tuple[int, int]] = []
    encoder.encode_passages(TEXTS, lambda done, total: told.append((done, total)))
    assert told == sorted(told) and len(told) > 3
    assert told[-1] == (len(TEXTS), len(TEXTS))


def test_progress_may_cancel(encoder: ModelEncoder) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode_passages(TEXTS, cancel)


def test_bf16_is_close_and_has_fingerprints_of_its_own(model: DualEncoder) -> None:
    exact, half = (ModelEncoder(model, precision, "cpu") for precision in ("fp32", "bf16"))
    vectors, expected = half.encode_passages(TEXTS), exact.encode_passages(TEXTS)
    assert vectors.dtype == np.float32
    assert (vectors * expected).sum(1).mean() >= 0.9999
    assert not np.array_equal(vectors, expected)
    assert half.fingerprints.passage != exact.fingerprints.passage
    assert half.fingerprints.space == exact.fingerprints.space


def test_an_unknown_precision_names_those_there_are(model: DualEncoder) -> None:
    with pytest.raises(InputError, match="'fp8': choose one of auto, fp32, bf16, int8"):
        ModelEncoder(model, "fp8")


def test_int8_is_for_passages_alone_and_knows_its_calibration(model: DualEncoder) -> None:
    exact = ModelEncoder(model, "fp32", "cpu")
    coarse = ModelEncoder(model, "int8", "cpu", engine="openvino", calibration=TEXTS[:16])
    vectors, expected = coarse.encode_passages(TEXTS), exact.encode_passages(TEXTS)
    assert not np.allclose(vectors, expected, atol=1e-5) and (vectors * expected).sum(1).min() > 0.95
    if coarse.fingerprints.query == exact.fingerprints.query:  # where "auto" is fp32
        np.testing.assert_array_equal(coarse.encode_queries(TEXTS), exact.encode_queries(TEXTS))
    other = ModelEncoder(model, "int8", "cpu", engine="openvino", calibration=TEXTS[16:32])
    assert other.fingerprints.passage != coarse.fingerprints.passage != exact.fingerprints.passage
    assert other.fingerprints.space == coarse.fingerprints.space == exact.fingerprints.space


def test_queries_are_computed_in_int8_where_that_is_asked_for_and_passages_as_ever(model: DualEncoder) -> None:
    exact = ModelEncoder(model, device="cpu")
    quick = ModelEncoder(model, device="cpu", query_precision="int8")
    np.testing.assert_array_equal(quick.encode_passages(TEXTS), exact.encode_passages(TEXTS))
    queries, precise = quick.encode_queries(TEXTS), exact.encode_queries(TEXTS)
    assert float((queries * precise).sum(1).min()) > 0.98 and not np.allclose(queries, precise, atol=1e-5)
    np.testing.assert_array_equal(queries[7:9], quick.encode_queries(TEXTS[7:9]))
    assert quick.fingerprints.passage == exact.fingerprints.passage, "no passage is encoded anew for it"
    assert quick.fingerprints.query != exact.fingerprints.query
    assert quick.fingerprints.space == exact.fingerprints.space


def test_openvino_gives_torch_s_vectors_to_several_streams(model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODED_TOKENS, "cpu", 50)
    other = ModelEncoder(model, "fp32", "cpu", engine="openvino")
    np.testing.assert_allclose(
        other.encode_passages(TEXTS), ModelEncoder(model, "fp32", "cpu").encode_passages(TEXTS), atol=2e-6
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_the_vectors_of_the_cpu(tiny: Path, precision: str) -> None:
    def vectors(device: str) -> np.ndarray:
        return ModelEncoder(create_encoder(ModelConfig(str(tiny))), precision, device).encode_passages(TEXTS * 40)

    found, expected = vectors("cuda"), vectors("cpu")
    assert float((found * expected).sum(1).min()) > (0.99999 if precision == "fp32" else 0.999)
