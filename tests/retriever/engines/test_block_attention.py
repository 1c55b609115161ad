import pytest
import torch
from torch import Tensor

from retriever.engines import block_attention
from retriever.engines.block_attention import FEWEST, LONGEST, attend_in_blocks, is_faster

HEADS, SIZE = 3, 8


def random(texts: int, places: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as they come from one product: views of the same memory."""
    torch.manual_seed(places)
    parts = torch.randn(texts, places, 3, HEADS, SIZE).to(dtype).permute(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def by_text(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention in float64, [texts, places of queries, heads, size]."""
    scores = torch.einsum("thqs,thks->thqk", query.double(), key.double()) / SIZE**0.5 + bias.double()
    return torch.einsum("thqk,thks->tqhs", scores.exp() / scores.exp().sum(-1, keepdim=True), value.double())


@pytest.mark.parametrize("places", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("block", [1, 2 * HEADS * 70 * 96, 2**20])
def test_it_is_softmax_attention_whatever_the_block(block: int, places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_attention, "BLOCK", block)
    query, key, value = random(5, places)
    ends = torch.tensor([places, 1, places, max(1, places // 2), places])
    padding = (torch.arange(places) >= ends[:, None])[:, None, None] * -1e9
    relative = torch.randn(1, HEADS, places, places)
    none = torch.zeros(1, 1, 1, places)
    for bias, given in ((none, None), (padding, padding), (relative, relative), (padding + relative,) * 2):
        found = attend_in_blocks(query, key, value, given)
        assert found.shape == (5, places, HEADS, SIZE)
        assert float((found - by_text(query, key, value, bias)).abs().max()) < 1e-5


def test_queries_may_be_fewer_than_keys() -> None:
    query, key, value = random(4, 40)
    found = attend_in_blocks(query[:, :, :1], key, value, None)
    whole = attend_in_blocks(query, key, value, None)
    assert found.shape == (4, 1, HEADS, SIZE)
    assert torch.allclose(found, whole[:, :1], atol=1e-6)


def test_a_text_of_nothing_but_padding_is_finite() -> None:
    query, key, value = random(2, 5)
    assert torch.isfinite(attend_in_blocks(query, key, value, torch.full((2, 1, 1, 5), -1e9))).all()


def test_in_bf16_it_stays_as_near_as_the_format_allows() -> None:
    query, key, value = random(6, 50, torch.bfloat16)
    exact = by_text(query, key, value, torch.zeros(1, 1, 1, 50))
    found = attend_in_blocks(query, key, value, None)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - exact).norm() / exact.norm()) < 2**-7


def test_it_is_for_many_places_of_short_texts_in_bf16_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(texts: int, places: int, dtype: torch.dtype = torch.bfloat16) -> bool:
        query, key, _ = random(texts, places, dtype)
        return is_faster(query[:, :, :1], key)

    monkeypatch.setattr(block_attention, "has_fast_bf16", lambda device: True)
    assert chosen(FEWEST, 1) and chosen(1, LONGEST)
    assert not chosen(FEWEST - 1, 1) and not chosen(1, LONGEST + 1)
    assert not chosen(FEWEST, 1, torch.float32)
    monkeypatch.setattr(block_attention, "has_fast_bf16", lambda device: False)
    assert not chosen(FEWEST, 1)
