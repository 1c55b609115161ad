from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig

from retriever.engines.fast_forward import FAMILIES, fast_forward
from tests.retriever.engines.architectures import FAST, GENERIC, SIZES, ragged, random_transformer


def difference(ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    return float((ours - theirs)[mask.bool()].abs().max())


@pytest.fixture(params=FAST)
def transformer(request: pytest.FixtureRequest) -> Any:
    return random_transformer(FAST[request.param]())


def test_every_family_has_a_model_here() -> None:
    assert {make().model_type for make in FAST.values()} == set(FAMILIES)


@pytest.mark.parametrize("packed", [True, False])
def test_hidden_states_are_those_of_transformers(transformer: Any, packed: bool) -> None:
    ids, mask = ragged(transformer.config.pad_token_id)
    with torch.inference_mode():
        expected = transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        forward = fast_forward(transformer, torch.float32, packed=packed)
        assert forward is not None
        assert difference(forward(ids, mask), expected, mask) < 2e-5
        longest = forward(ids[:1], mask[:1])  # nothing is padded here, so no mask is used
    assert difference(longest, expected[:1], mask[:1]) < 2e-5


def test_heads_that_no_kernel_of_packed_texts_takes_are_left_padded() -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise AssertionError("its head size is no multiple of 8")

    narrow = random_transformer(BertConfig(**{**SIZES, "hidden_size": 24}))
    ids, mask = ragged(0)
    forward = fast_forward(narrow, torch.float32, attention=refuses)
    assert forward is not None
    with torch.inference_mode():
        expected = narrow(input_ids=ids, attention_mask=mask).last_hidden_state
        assert difference(forward(ids, mask), expected, mask) < 2e-5


def test_the_first_token_alone_has_the_same_state(transformer: Any) -> None:
    ids, mask = ragged(transformer.config.pad_token_id)
    with torch.inference_mode():
        expected = transformer(input_ids=ids, attention_mask=mask).last_hidden_state[:, :1]
        forward = fast_forward(transformer, torch.float32, first_only=True)
        assert forward is not None
        found = forward(ids, mask)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 2e-5


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_segments_count(name: str) -> None:
    transformer = random_transformer(FAST[name]())
    ids, mask = ragged(0)
    segments = (torch.arange(ids.shape[1]) > 3).long().expand_as(ids)
    forward = fast_forward(transformer, torch.float32)
    assert forward is not None
    with torch.inference_mode():
        expected = transformer(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state
        assert difference(forward(ids, mask, segments), expected, mask) < 2e-5
        assert difference(forward(ids, mask), expected, mask) > 0.01


def test_bf16_stays_near(transformer: Any) -> None:
    ids, mask = ragged(transformer.config.pad_token_id)
    with torch.inference_mode():
        expected = transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        forward = fast_forward(transformer, torch.bfloat16)
        assert forward is not None
        found = forward(ids, mask)
    assert found.dtype == torch.bfloat16
    cosine = torch.cosine_similarity(found.float(), expected, dim=-1)[mask.bool()]
    assert float(cosine.mean()) > 0.999


def test_padding_changes_nothing(transformer: Any) -> None:
    ids, mask = ragged(transformer.config.pad_token_id)
    forward = fast_forward(transformer, torch.float32)
    assert forward is not None
    with torch.inference_mode():
        together = forward(ids, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = forward(ids[row : row + 1, :length], mask[row : row + 1, :length])
            assert float((alone[0] - together[row, :length]).abs().max()) < 2e-5


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_batches_of_many_shapes_are_multiplied_in_few(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each number of rows oneDNN keeps half a megabyte a product."""
    multiplied: set[int] = set()
    multiply = torch.ops.mkldnn._linear_pointwise

    def counted(x: Tensor, *others: Any) -> Tensor:
        multiplied.add(x.numel() // x.shape[-1])
        product: Tensor = multiply(x, *others)
        return product

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    forward = fast_forward(random_transformer(FAST[name]()), torch.float32)
    assert forward is not None
    shapes = [(2048 // length, length) for length in range(9, 64)]
    with torch.inference_mode():
        for n, length in shapes:
            found = forward(torch.ones(n, length, dtype=torch.int64), torch.ones(n, length, dtype=torch.int64))
            assert found.shape == (n, length, 32)
    assert len({n * length for n, length in shapes}) > 20 and len(multiplied) <= 4
    assert max(multiplied) <= 2048


@pytest.mark.parametrize("name", GENERIC)
def test_what_is_not_known_here_is_left_to_transformers(name: str) -> None:
    assert fast_forward(random_transformer(GENERIC[name]()), torch.float32) is None


def test_a_layer_that_is_more_than_a_product_is_left_to_transformers() -> None:
    class Adapted(nn.Linear):
        """A stand-in for an adapter that is not merged."""

    transformer = random_transformer(FAST["bert"]())
    transformer.encoder.layer[1].attention.self.query = Adapted(32, 32)
    assert fast_forward(transformer, torch.float32) is None
