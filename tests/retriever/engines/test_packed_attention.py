from typing import Any

import pytest
import torch
from torch import Tensor

from retriever.engines.fast_forward import fast_forward
from retriever.engines.packed_attention import packed_attention
from tests.retriever.engines.architectures import FAST, ragged, random_transformer

PADDED = {"mpnet", "modernbert"}


def by_text(query: Tensor, key: Tensor, value: Tensor, asked: Tensor, ends: Tensor, most: int, longest: int) -> Tensor:
    """Attention over packed texts, one after the other."""
    assert asked.dtype == ends.dtype == torch.int32
    assert most == int(asked.diff().max())
    assert longest == int(ends.diff().max())
    found = torch.empty_like(query)
    for number in range(len(ends) - 1):
        own, all_of = slice(*asked[number : number + 2].tolist()), slice(*ends[number : number + 2].tolist())
        scores = torch.einsum("qhs,khs->hqk", query[own], key[all_of]) * query.shape[-1] ** -0.5
        found[own] = torch.einsum("hqk,khs->qhs", scores.softmax(-1), value[all_of])
    return found


class Counted:
    """``by_text``, with its calls counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *given: Any) -> Tensor:
        self.calls += 1
        return by_text(*given)


@pytest.mark.parametrize("lengths", [(40, 7, 20, 1, 33), (5, 5), (1, 1, 1)])
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("name", FAST)
def test_packed_texts_have_the_states_of_padded_ones(name: str, first_only: bool, lengths: tuple[int, ...]) -> None:
    transformer, attention = random_transformer(FAST[name]()), Counted()
    ids, mask = ragged(transformer.config.pad_token_id, lengths)
    forward = fast_forward(transformer, torch.float32, first_only=first_only, attention=attention)
    assert forward is not None
    with torch.inference_mode():
        expected = transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        found = forward(ids, mask)
    if first_only:
        expected, mask = expected[:, :1], mask[:, :1]
    assert found.shape == expected.shape
    assert float((found - expected)[mask.bool()].abs().max()) < 2e-5
    assert (attention.calls > 0) == (name not in PADDED)


def test_the_places_of_padding_are_zero() -> None:
    ids, mask = ragged(0, (9, 2))
    forward = fast_forward(random_transformer(FAST["bert"]()), torch.float32, attention=Counted())
    assert forward is not None
    with torch.inference_mode():
        assert not forward(ids, mask)[1, 2:].any()


def test_a_text_without_a_token_is_padded() -> None:
    ids, mask = ragged(0, (9, 0))
    attention = Counted()
    forward = fast_forward(random_transformer(FAST["bert"]()), torch.float32, attention=attention)
    assert forward is not None
    with torch.inference_mode():
        assert torch.isfinite(forward(ids, mask)).all()
    assert attention.calls == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_only_a_gpu_packs(dtype: torch.dtype) -> None:
    assert packed_attention(torch.device("cpu"), dtype) is None


@pytest.mark.gpu
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("name", FAST)
def test_a_gpu_packs_to_the_same_states(name: str, first_only: bool) -> None:
    device = torch.device("cuda")
    transformer: Any = random_transformer(FAST[name]())
    ids, mask = ragged(transformer.config.pad_token_id)
    with torch.inference_mode():
        expected = transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        attention = packed_attention(device, torch.bfloat16)
        assert attention is not None
        forward = fast_forward(transformer.to(device), torch.bfloat16, first_only=first_only, attention=attention)
        assert forward is not None
        found = forward(ids, mask).float().cpu()
    if first_only:
        expected, mask = expected[:, :1], mask[:, :1]
    cosine = torch.cosine_similarity(found, expected, dim=-1)[mask.bool()]
    assert float(cosine.mean()) > 0.999
