import math
from statistics import fmean, pstdev

import pytest
import torch
from torch import Tensor

from retriever.losses import weighting


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, a mask and a guide's scores [4, 6]; the mask's last query has nothing."""
    generator = torch.Generator().manual_seed(seed)
    scores, guide = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    mask = torch.rand(4, 6, generator=generator) < 0.6
    mask[3] = False
    return scores, mask, guide


@pytest.mark.parametrize("beta", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_hardness_weighs_by_the_exponential_with_a_mean_of_one(seed: int, beta: float) -> None:
    scores, negatives, _ = drawn(seed)
    found = weighting.hardness(scores, negatives, beta)
    for i in range(3):
        own = [j for j in range(6) if negatives[i, j]]
        heat = {j: math.exp(beta * scores[i, j].item()) for j in own}
        wanted = [heat[j] / fmean(heat.values()) for j in own]
        weights = found[i, own].exp().tolist()
        assert weights == pytest.approx(wanted, rel=1e-9)
        assert fmean(weights) == pytest.approx(1, abs=1e-9)
    assert not found[~negatives].any()


def test_hardness_does_not_overflow_and_passes_no_gradient() -> None:
    scores, negatives, _ = drawn(0)
    found = weighting.hardness((scores * 1e6).float().requires_grad_(), negatives, 50.0)
    assert not found.requires_grad
    assert not found.isnan().any() and found[negatives].amax() <= math.log(6) + 1e-6
    sums = found.exp().masked_fill(~negatives, 0.0).sum(dim=1)
    torch.testing.assert_close(sums, negatives.sum(dim=1).float())


def test_a_guide_trusts_what_scores_below_the_limit() -> None:
    guide = torch.tensor([[0.1, 0.5, 0.49, 0.9, -1.0]])
    negatives = torch.tensor([[True, True, True, True, False]])
    assert weighting.trusted(negatives, guide, 0.5).tolist() == [[True, False, True, False, False]]


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_decay_lowers_hard_negatives_up_to_the_guide_alone(seed: int, sigma: float) -> None:
    scores, hard, guide = drawn(seed)
    found = weighting.decayed(scores, hard, guide, sigma)
    lowered = 0
    for i in range(4):
        for j in range(6):
            s, s0 = scores[i, j].item(), guide[i, j].item()
            inside = bool(hard[i, j]) and s <= s0
            wanted = s - s * math.exp(-((s - s0) ** 2) / (2 * sigma**2)) if inside else s
            assert found[i, j].item() == pytest.approx(wanted, abs=1e-12)
            lowered += inside
    assert 0 < lowered < hard.sum()


def test_decay_takes_all_of_a_score_that_the_guide_gives_too_and_none_above_it() -> None:
    scores, hard = torch.tensor([[0.5, 0.5, 0.5]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    guide = torch.tensor([[0.5, 0.4999, 9.0]], dtype=torch.float64)
    assert weighting.decayed(scores, hard, guide, 0.1).tolist() == [[0.0, 0.5, 0.5]]


def test_decay_leaves_the_gradient_at_one() -> None:
    scores, hard, guide = drawn(1)
    scores.requires_grad_()
    guide.requires_grad_()
    weights = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    torch.autograd.backward((weighting.decayed(scores, hard, guide, 0.5) * weights).sum())
    assert scores.grad is not None and torch.equal(scores.grad, weights)
    assert guide.grad is None


@pytest.mark.parametrize("seed", range(3))
def test_to_scale_gives_the_guide_mean_and_spread_of_the_compared_scores(seed: int) -> None:
    scores, compared, guide = drawn(seed)
    found = weighting.to_scale(guide * 7 + 3, scores, compared)
    ours, brought = scores[compared].tolist(), found[compared].tolist()
    assert fmean(brought) == pytest.approx(fmean(ours)) and pstdev(brought) == pytest.approx(pstdev(ours))
    torch.testing.assert_close(found, weighting.to_scale(guide, scores, compared))  # whatever the guide's own scale is
    order = guide[compared].argsort()
    assert torch.equal(found[compared].argsort(), order)


def test_to_scale_looks_at_the_compared_places_alone() -> None:
    scores, compared, guide = drawn(2)
    found = weighting.to_scale(guide, scores, compared)
    others = weighting.to_scale(guide.masked_fill(~compared, 1e6), scores.masked_fill(~compared, -1e6), compared)
    torch.testing.assert_close(found[compared], others[compared])


@pytest.mark.parametrize("places", [1, 6])
def test_to_scale_of_a_guide_without_spread_is_the_mean(places: int) -> None:
    scores, compared = drawn(0)[0], torch.zeros(4, 6, dtype=torch.bool)
    compared[0, :places] = True
    found = weighting.to_scale(torch.full_like(scores, 0.25), scores, compared)
    torch.testing.assert_close(found, scores[compared].mean().expand(4, 6))


def test_to_scale_passes_no_gradient() -> None:
    scores, compared, guide = drawn(0)
    assert not weighting.to_scale(guide.requires_grad_(), scores.requires_grad_(), compared).requires_grad
