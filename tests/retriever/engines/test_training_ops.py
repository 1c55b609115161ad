import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from retriever.engines.training_ops import (
    BLOCK,
    STEPS,
    Bucket,
    Dice,
    activate_and_multiply,
    attend,
    drop,
    scale,
    threshold,
)
from retriever.errors import InputError

HEADS, SIZE = 2, 4


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a sum that weighs each place differently."""
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs)


def near(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
        assert float(other.abs().max()) > 1e-2, "a gradient of zero proves nothing"


# ---- dice and dropout


def test_numbers_depend_on_the_seed_alone() -> None:
    one, same, other = (Dice(7, 1).throw((50, 3)), Dice(7, 1).throw((50, 3)), Dice(7, 2).throw((50, 3)))
    assert torch.equal(one, same) and not torch.equal(one, other)
    dice = Dice(7, 1)
    assert not torch.equal(dice.throw((50, 3)), dice.throw((50, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_rest_is_as_it_was(dtype: torch.dtype, p: float) -> None:
    x = torch.randn(400_000, dtype=dtype).abs() + 1
    found = drop(x, p, Dice(1))
    kept = found != 0
    assert torch.equal(found[kept], x[kept])
    deviation = np.sqrt(p * (1 - p) / len(x))
    assert abs(float(1 - kept.float().mean()) - threshold(p) / STEPS) < 5 * deviation
    assert float((kept[1:] & kept[:-1]).float().mean()) == pytest.approx((1 - p) ** 2, abs=6 * deviation)  # independent
    assert threshold(p) / STEPS == pytest.approx(p, abs=1 / STEPS)
    assert scale(p) * (1 - threshold(p) / STEPS) == pytest.approx(1)


def test_both_number_formats_drop_the_same_places() -> None:
    x = torch.ones(1000)
    assert torch.equal(drop(x, 0.3, Dice(5)), drop(x.bfloat16(), 0.3, Dice(5)).float())


def test_a_gradient_flows_where_a_value_did() -> None:
    x = torch.ones(1000, requires_grad=True)
    found = drop(x, 0.3, Dice(5))
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], found.detach())


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    x, dice = torch.ones(8), Dice(5)
    assert drop(x, 0.0, dice) is x
    assert torch.equal(dice.throw((4,)), Dice(5).throw((4,)))


@pytest.mark.parametrize("p", [1.0, -0.1, 7.0])
def test_a_share_that_leaves_nothing_is_refused(p: float) -> None:
    with pytest.raises(InputError, match="from 0 to below 1"):
        drop(torch.ones(3), p, Dice(1))


# ---- attention


def plain(qkv: Tensor, bias: Tensor | None, kept: Tensor | None, p: float) -> Tensor:
    """Attention as it is written: [texts, length, 3, heads, size] → [places, heads · size]."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(2, 3) / SIZE**0.5
    shares = torch.softmax(scores if bias is None else scores + bias, -1)
    if kept is not None:
        shares = shares * kept * scale(p)
    attended: Tensor = (shares @ value).transpose(1, 2).reshape(-1, HEADS * SIZE)
    return attended


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("block", [BLOCK, 2 * HEADS * 25])
def test_attention_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch, p: float, block: int) -> None:
    monkeypatch.setattr("retriever.engines.training_ops.BLOCK", block)  # two texts at a time, or all
    torch.manual_seed(0)
    buckets = [Bucket(3, 5, None), Bucket(2, 5, torch.ones(2, 5))]
    qkv = torch.randn(25, 3 * HEADS * SIZE, requires_grad=True)
    shared = torch.randn(1, HEADS, 5, 5, requires_grad=True)
    own = torch.randn(2, 1, 1, 5)
    whole = (own + shared).detach().requires_grad_()
    dice, expected = Dice(3), []
    for bucket, first, bias in zip(buckets, (0, 15), (shared, whole), strict=True):
        parts, step = [], max(1, block // (HEADS * 25))
        for start in range(0, bucket.texts, step):
            texts = min(step, bucket.texts - start)
            drawn = dice.throw((texts, HEADS, 5, 5)) if p else None
            kept = None if drawn is None else ((drawn & (STEPS - 1)) >= threshold(p)).float()
            part = qkv[first + 5 * start : first + 5 * (start + texts)].view(texts, 5, 3, HEADS, SIZE)
            parts.append(plain(part, bias if len(bias) == 1 else bias[start : start + texts], kept, p))
        expected.append(torch.cat(parts))
    reference = torch.cat(expected)
    found = attend(qkv, buckets, HEADS, [shared, whole], p, Dice(3))
    assert torch.allclose(found, reference, atol=1e-6)
    near(gradients(found, qkv, shared, whole), gradients(reference, qkv, shared, whole))


def test_attention_in_bf16_stays_near() -> None:
    torch.manual_seed(0)
    exact = torch.randn(24, 3 * HEADS * SIZE).bfloat16().float().requires_grad_()
    short = exact.detach().bfloat16().requires_grad_()
    ours, reference = (attend(x, [Bucket(4, 6, None)], HEADS, [None], 0.2, Dice(9)) for x in (short, exact))
    assert torch.allclose(ours.float(), reference, atol=0.03)
    (one,), (other,) = gradients(ours, short), gradients(reference, exact)
    assert float(torch.cosine_similarity(one.float().flatten(), other.flatten(), 0)) > 0.999


# ---- activation and product


@pytest.mark.parametrize("biased", [True, False])
def test_activation_and_product_are_those_of_torch(biased: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((7, 6), (5, 6), (5,)))
    inputs = (x, weight, bias) if biased else (x, weight)
    found = activate_and_multiply(x, gelu, weight, bias if biased else None)
    expected = linear(gelu(x), weight, bias if biased else None)
    assert torch.equal(found, expected)
    near(gradients(found, *inputs), gradients(expected, *inputs))
