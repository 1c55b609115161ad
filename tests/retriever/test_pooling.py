import pytest
import torch
from torch import Tensor

from retriever.pooling import POOLINGS, pool_cls, pool_last, pool_mean

LENGTHS = [1, 3, 5]


def padded(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Token vectors [3, 5, 4] whose padding holds large garbage, and their mask."""
    torch.manual_seed(0)
    tokens = torch.randn(3, 5, 4, dtype=torch.float64)
    mask = torch.zeros(3, 5, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
        tokens[row, length:] = 1e6
    return tokens.to(dtype), mask


def test_cls_is_the_first_token() -> None:
    tokens, mask = padded()
    assert torch.equal(pool_cls(tokens, mask), tokens[:, 0])


def test_mean_is_over_the_marked_tokens_alone() -> None:
    tokens, mask = padded()
    expected = [
        [sum(tokens[row, place, d].item() for place in range(n)) / n for d in range(4)] for row, n in enumerate(LENGTHS)
    ]
    assert torch.allclose(pool_mean(tokens, mask), torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_last_is_the_last_marked_token() -> None:
    tokens, mask = padded()
    pooled = pool_last(tokens, mask)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(pooled[row], tokens[row, length - 1])


@pytest.mark.parametrize("name", POOLINGS)
def test_padding_neither_changes_the_vector_nor_gets_a_gradient(name: str) -> None:
    tokens, mask = padded()
    tokens.requires_grad_()
    pooled = POOLINGS[name](tokens, mask)
    for row, length in enumerate(LENGTHS):
        alone = POOLINGS[name](tokens[row : row + 1, :length], mask[row : row + 1, :length])
        assert torch.allclose(pooled[row], alone[0], atol=1e-12)
    torch.autograd.backward(pooled.sum())
    assert tokens.grad is not None
    assert not tokens.grad[mask == 0].any()
    assert tokens.grad[mask == 1].any()


def test_the_mean_of_many_half_precision_tokens_is_summed_in_float32() -> None:
    tokens = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    pooled = pool_mean(tokens, torch.ones(1, 1000, dtype=torch.int64))
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, torch.ones(1, 2))


@pytest.mark.parametrize("name", ["mean", "last"])
def test_a_text_without_tokens_gives_finite_numbers(name: str) -> None:
    pooled = POOLINGS[name](torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64))
    assert torch.isfinite(pooled).all()
