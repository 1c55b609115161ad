"""Every loss and its compositions against formulas.py, mutants that must be told apart from it, and limits."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from retriever.losses import contrastive, pairwise, softmax, weighting
from retriever.losses.contrastive import LossConfig, contrastive_loss
from retriever.losses.terms import Candidates, Terms
from tests.retriever.losses.formulas import Knobs, Rows, case_of, reference, slopes

Patch = Callable[[pytest.MonkeyPatch], None]
TEMPERATURE = 0.3
SEEDS = range(3)
NAMES = ("infonce", "decoupled", "gce", "mw", "lambdarank", "ccl", "multi_similarity")
OPTIONS: dict[str, dict[str, Any]] = {
    "margin": {"margin": 0.2},
    "symmetric": {"symmetric": True},
    "debias": {"debias": 0.15},
    "hardness": {"hardness": 2.0},
    "pseudo": {"pseudo_positives": 0.3},
    "trusted": {"guide": "start", "guide_max": 0.4},
    "decay": {"guide": "start", "guide_decay": 0.5},
    "low": {"ccl_margin": -0.5, "ccl_weight": 2.0},
}
COMPOSITIONS = """
infonce | decoupled | gce | mw | lambdarank | ccl | multi_similarity
infonce margin | infonce symmetric | infonce debias | infonce hardness | infonce pseudo | infonce trusted
infonce decay | infonce margin symmetric | infonce debias hardness | infonce trusted decay | infonce symmetric trusted
infonce margin pseudo | infonce symmetric pseudo | infonce decay pseudo | infonce hardness decay
infonce margin symmetric debias hardness trusted decay
decoupled margin | decoupled symmetric | decoupled debias | decoupled hardness | decoupled trusted | decoupled decay
decoupled margin symmetric | decoupled debias hardness | decoupled margin symmetric debias hardness trusted decay
gce margin | gce symmetric | gce debias | gce hardness | gce trusted | gce decay | gce debias hardness
gce margin symmetric debias hardness trusted decay
mw hardness | mw trusted | mw decay | mw hardness trusted decay
lambdarank hardness | lambdarank trusted | lambdarank decay | lambdarank hardness trusted decay
ccl hardness | ccl trusted | ccl low decay | ccl low hardness trusted decay
multi_similarity trusted
"""
ALL = [part.strip() for line in COMPOSITIONS.strip().splitlines() for part in line.split("|")]


def keys_of(composition: str) -> dict[str, Any]:
    name, *options = composition.split()
    return {"name": name} | {key: value for option in options for key, value in OPTIONS[option].items()}


@cache
def expected(composition: str, seed: int) -> tuple[float, Rows, float]:
    """The formula's value and its slopes by every score and by τ."""
    case, knobs = case_of(seed), Knobs(**keys_of(composition))
    return reference(case.scores, case, knobs, TEMPERATURE), *slopes(case, knobs, TEMPERATURE)


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Candidates, Tensor]:
    """The scores, who is compared, and the guide's scores."""
    case = case_of(seed)
    positive = torch.tensor(case.positive)
    allowed = torch.tensor(case.negative).scatter(1, positive[:, None], True)
    scores, guide = torch.tensor(case.scores, dtype=dtype), torch.tensor(case.guide, dtype=dtype)
    return scores, Candidates(positive, allowed, torch.tensor(case.hard)), guide


def run(
    composition: str, scores: Tensor, candidates: Candidates, guide: Tensor, t: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the scores."""
    config, scores = LossConfig(**keys_of(composition)), scores.clone().requires_grad_()
    value = contrastive.contrastive_loss(scores, candidates, config, t, guide if config.guide else None)
    torch.autograd.backward(value)
    assert scores.grad is not None
    return value.detach(), scores.grad


def gap(composition: str, seed: int) -> tuple[float, float]:
    """How far the loss and its gradients, by scores and τ, lie from the formula."""
    tau = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
    value, gradient = run(composition, *batch(seed), tau)
    wanted, by_scores, by_tau = expected(composition, seed)
    of_tau = 0.0 if tau.grad is None else tau.grad.item()
    of_scores = (gradient - torch.tensor(by_scores, dtype=torch.float64)).abs().max().item()
    return abs(value.item() - wanted), max(of_scores, abs(of_tau - by_tau))


@pytest.mark.parametrize("composition", ALL)
def test_values_and_gradients_are_those_of_the_formula(composition: str) -> None:
    gaps = [gap(composition, seed) for seed in SEEDS]
    assert max(value for value, _ in gaps) < 1e-9
    assert max(gradient for _, gradient in gaps) < 1e-8  # what central differences of step 1e-6 can tell


# ------------------------------------------------------------------------------------------------------- mutants


def of(place: object, name: str, mutant: object) -> Patch:
    return lambda patch: patch.setattr(place, name, mutant)


def of_terms(change: Callable[[Terms], dict[str, Any]]) -> Patch:
    """A loss that is given other terms."""
    whole = contrastive._terms

    def mutant(*given: Any) -> Terms:
        terms = whole(*given)
        return dataclasses.replace(terms, **change(terms))

    return of(contrastive, "_terms", mutant)


def of_keys(**changes: Any) -> Patch:
    """A loss that reads other keys."""

    def mutant(scores: Tensor, candidates: Candidates, config: LossConfig, *rest: Any) -> Tensor:
        return contrastive_loss(scores, candidates, dataclasses.replace(config, **changes), *rest)

    return of(contrastive, "contrastive_loss", mutant)


def without_floor(log_sum: Tensor, terms: Terms, prior: float) -> Tensor:
    expected_ones = terms.counts * prior * (terms.positive / terms.temperature).exp()
    rest = ((log_sum.exp() - expected_ones) / (1 - prior)).clamp(min=1e-12).log()
    return torch.where(terms.counts > 0, rest, log_sum)


def without_count(log_sum: Tensor, terms: Terms, prior: float) -> Tensor:
    rest = (log_sum.exp() - prior * (terms.positive / terms.temperature).exp()) / (1 - prior)
    return torch.where(terms.counts > 0, rest.clamp(min=math.exp(-1 / TEMPERATURE)).log(), log_sum)


def hardness_with_gradient(scores: Tensor, negatives: Tensor, beta: float) -> Tensor:
    logits = (beta * scores).masked_fill(~negatives, -1e30)
    mean = logits.logsumexp(1, keepdim=True) - negatives.sum(1, keepdim=True).clamp(min=1).log()
    return (logits - mean).masked_fill(~negatives, 0.0)


def decayed_with_gradient(scores: Tensor, hard: Tensor, guide: Tensor, sigma: float) -> Tensor:
    lowered = -scores * torch.exp(-((scores - guide) ** 2) / (2 * sigma**2))
    return scores + torch.where(hard & (scores <= guide), lowered, 0.0)


def decayed_above(scores: Tensor, hard: Tensor, guide: Tensor, sigma: float) -> Tensor:
    lowered = -scores * torch.exp(-((scores - guide) ** 2) / (2 * sigma**2))
    return scores + torch.where(hard & (scores > guide), lowered, 0.0).detach()


def lambda_rank(gain: Callable[[Tensor, Tensor], Tensor], descending: bool = True) -> Callable[[Terms], Tensor]:
    """LambdaRank with other gains, of the positive's rank and the negatives' among themselves."""

    def mutant(terms: Terms) -> Tensor:
        below = terms.scores.detach().masked_fill(~terms.negatives, -1e30 if descending else 1e30)
        first = (terms.negatives & (terms.scores >= terms.positive[:, None])).sum(1, keepdim=True) + 1.0
        gains = gain(first, below.argsort(1, descending=descending).argsort(1) + 1.0) * terms.weights
        return (gains * softplus((terms.scores - terms.positive[:, None]) / terms.temperature)).sum(1).mean()

    return mutant


def within_queries(terms: Terms) -> Tensor:
    """Mann–Whitney of each query's own pairs."""
    pairs = softplus((terms.scores - terms.positive[:, None]) / terms.temperature) * terms.weights
    return pairs.sum() / terms.weights.sum()


def keeping_duplicates(candidates: Candidates) -> Candidates:
    """Turned, with the queries of the same positive as negatives of each other."""
    number = len(candidates.positive)
    allowed = candidates.allowed[:, candidates.positive].T
    return Candidates(torch.arange(number), allowed, torch.zeros(number, number, dtype=torch.bool))


def hinge_dropped(terms: Terms, margin: float, weight: float) -> Tensor:
    above = (terms.scores - margin) * terms.weights
    return (1 - terms.positive + weight * above.sum(1) / terms.counts.clamp(min=1)).mean()


PSEUDO, CCL, MS = softmax.with_pseudo_positives, pairwise.cosine_contrastive, pairwise.multi_similarity
SCALED = "infonce|decoupled|gce|mw|lambdarank"
HARD = "infonce hardness|decoupled hardness|gce hardness|mw hardness|lambdarank hardness|ccl hardness"
DECAY = "infonce decay|decoupled decay|gce decay|mw decay|lambdarank decay|ccl low decay"
MUTANTS: list[tuple[str, str, Patch]] = [
    ("sign flipped", "|".join(NAMES), of_terms(lambda terms: {"positive": -terms.positive, "scores": -terms.scores})),
    ("τ dropped", SCALED, of_terms(lambda terms: {"temperature": 1.0})),
    ("mask dropped", "|".join(NAMES), of_terms(lambda terms: {"negatives": torch.ones_like(terms.negatives)})),
    ("positive as negative", "|".join(NAMES), of(Candidates, "negatives", property(lambda self: self.allowed))),
    ("summed", "|".join(NAMES), of(contrastive, "contrastive_loss", lambda *given: 5 * contrastive_loss(*given))),
    ("weight dropped", HARD, of_terms(lambda terms: {"log_weights": torch.zeros_like(terms.scores)})),
    (
        "not normalised",
        HARD,
        of(weighting, "hardness", lambda s, negatives, beta: (beta * s).masked_fill(~negatives, 0)),
    ),
    (
        "weights with gradient",
        HARD.replace("lambdarank hardness|", ""),
        of(weighting, "hardness", hardness_with_gradient),
    ),
    ("margin added", "infonce margin|decoupled margin|gce margin", of_terms(lambda t: {"positive": t.positive + 0.4})),
    ("one-sided", "infonce symmetric|decoupled symmetric|gce symmetric", of_keys(symmetric=False)),
    ("duplicates kept", "infonce symmetric|gce symmetric", of(Candidates, "turned", keeping_duplicates)),
    ("no floor", "infonce debias|decoupled debias|gce debias", of(softmax, "debiased", without_floor)),
    ("N dropped", "infonce debias|decoupled debias|gce debias", of(softmax, "debiased", without_count)),
    ("debias dropped", "infonce debias|decoupled debias|gce debias", of_keys(debias=None)),
    ("all pseudo-positives", "infonce pseudo", of(softmax, "with_pseudo_positives", lambda t, z, w: PSEUDO(t, z, 1.0))),
    ("pseudo-positives dropped", "infonce pseudo", of_keys(pseudo_positives=None)),
    (
        "guide inverted",
        "infonce trusted|ccl trusted|mw trusted",
        of(weighting, "trusted", lambda n, g, m: n & (g >= m)),
    ),
    ("guide dropped", "|".join(f"{name} trusted" for name in NAMES), of(weighting, "trusted", lambda n, g, m: n)),
    ("decay dropped", DECAY, of(weighting, "decayed", lambda scores, *rest: scores)),
    ("decay with gradient", DECAY, of(weighting, "decayed", decayed_with_gradient)),
    ("decay above", DECAY, of(weighting, "decayed", decayed_above)),
    ("guide not to scale", DECAY, of(weighting, "to_scale", lambda guide, *rest: guide)),
    (
        "ranks ascending",
        "lambdarank",
        of(pairwise, "lambda_rank", lambda_rank(lambda a, b: (1 / a - 1 / (b + (b >= a))).abs(), False)),
    ),
    ("positive unranked", "lambdarank", of(pairwise, "lambda_rank", lambda_rank(lambda a, b: (1 / a - 1 / b).abs()))),
    ("gains dropped", "lambdarank", of(pairwise, "lambda_rank", lambda_rank(lambda a, b: torch.ones_like(b)))),
    ("relu for softplus", "mw|lambdarank|multi_similarity", of(pairwise, "softplus", relu)),
    ("relu for softplus", "infonce", of(softmax, "softplus", relu)),
    ("within queries", "mw", of(pairwise, "mann_whitney", within_queries)),
    ("margin dropped", "ccl", of(pairwise, "cosine_contrastive", lambda terms, m, w: CCL(terms, 0.0, w))),
    ("hinge dropped", "ccl", of(pairwise, "cosine_contrastive", hinge_dropped)),
    (
        "mining dropped",
        "multi_similarity",
        of(pairwise, "multi_similarity", lambda t, a, b, c, e: MS(t, a, b, c, 10.0)),
    ),
    (
        "α and β swapped",
        "multi_similarity",
        of(pairwise, "multi_similarity", lambda t, a, b, c, e: MS(t, b, a, c, e)),
    ),
    ("λ dropped", "multi_similarity", of(pairwise, "multi_similarity", lambda t, a, b, c, e: MS(t, a, b, 0.0, e))),
    ("q dropped", "gce", of_keys(gce_q=1.0)),
    ("positive in the denominator", "decoupled", of(softmax, "decoupled", softmax.info_nce)),
    ("no positive in the denominator", "infonce", of(softmax, "info_nce", softmax.decoupled)),
]
EACH = [
    pytest.param(composition, patch, id=f"{name}: {composition}")
    for name, compositions, patch in MUTANTS
    for composition in compositions.split("|")
]


@pytest.mark.parametrize(("composition", "patch"), EACH)
def test_the_formula_tells_a_mutant_apart(composition: str, patch: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch)
    gaps = [found for seed in SEEDS for found in gap(composition, seed)]
    assert all(math.isfinite(found) for found in gaps)
    assert max(gaps) > 1e-3


# -------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("composition", ALL)
def test_without_any_negative_only_the_positive_counts(composition: str) -> None:
    scores, candidates, guide = batch(0)
    own = torch.nn.functional.one_hot(candidates.positive, scores.shape[1]).bool()
    alone = Candidates(candidates.positive, own, torch.zeros_like(own))
    value, gradient = run(composition, scores, alone, guide, TEMPERATURE)
    of_positives = (1 - scores[own]).mean() if composition.startswith("ccl") else torch.tensor(0.0)
    assert value.item() == pytest.approx(of_positives.item(), abs=1e-12)
    assert not gradient[~own].any()


@pytest.mark.parametrize("composition", ALL)
def test_what_is_not_allowed_has_no_say(composition: str) -> None:
    scores, candidates, guide = batch(1)
    value, gradient = run(composition, scores, candidates, guide, TEMPERATURE)
    raised = scores.masked_fill(~candidates.allowed, 1e3)
    same, again = run(composition, raised, candidates, guide.masked_fill(~candidates.allowed, -1e3), TEMPERATURE)
    assert torch.equal(value, same) and torch.equal(gradient, again)
    assert not gradient[~candidates.allowed].any()


@pytest.mark.parametrize("size", [1.0, 1e4, 1e6, -1e6])
@pytest.mark.parametrize("composition", ALL)
def test_extreme_scores_and_temperatures_stay_finite(composition: str, size: float) -> None:
    scores, candidates, guide = batch(0, torch.float32)
    for temperature in (0.01, 0.001):
        value, gradient = run(composition, scores * size, candidates, guide, temperature)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_a_small_temperature_leaves_the_hardest_negative() -> None:
    """τ·InfoNCE → max(0, max s⁻ − s⁺), no further away than τ·log of the number of candidates."""
    scores, candidates, guide = batch(0)
    positive = scores.gather(1, candidates.positive[:, None])[:, 0]
    hardest = scores.masked_fill(~candidates.negatives, -math.inf).amax(dim=1)
    for temperature in (1e-1, 1e-2, 1e-3):
        value, _ = run("infonce", scores, candidates, guide, temperature)
        wanted = (hardest - positive).clamp(min=0).mean()
        assert 0 <= temperature * value - wanted <= temperature * math.log(scores.shape[1])


def test_a_single_negative_makes_infonce_a_logistic_loss() -> None:
    candidates = Candidates(torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    scores = torch.tensor([[0.2, 0.5]], dtype=torch.float64)
    value, gradient = run("infonce", scores, candidates, scores, TEMPERATURE)
    assert value.item() == pytest.approx(math.log1p(math.exp(0.3 / TEMPERATURE)))
    pull = 1 / (1 + math.exp(-0.3 / TEMPERATURE)) / TEMPERATURE
    assert gradient.tolist() == [pytest.approx([-pull, pull])]


def test_gce_goes_from_infonce_to_a_loss_linear_in_p() -> None:
    scores, candidates, _ = batch(2)
    logits = (scores / TEMPERATURE).masked_fill(~candidates.allowed, -math.inf)
    p = logits.softmax(dim=1).gather(1, candidates.positive[:, None])
    linear = contrastive_loss(scores, candidates, LossConfig("gce", gce_q=1.0), TEMPERATURE)
    near = contrastive_loss(scores, candidates, LossConfig("gce", gce_q=1e-7), TEMPERATURE)
    assert linear.item() == pytest.approx((1 - p).mean().item(), abs=1e-12)
    assert near.item() == pytest.approx(-p.log().mean().item(), abs=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_mann_whitney_bounds_the_pairs_in_wrong_order(seed: int) -> None:
    """ln 2·(1 − AUC) from above, at every temperature."""
    scores, candidates, guide = batch(seed)
    positives = scores.gather(1, candidates.positive[:, None])[:, 0].tolist()
    wrong = [s >= own for s in scores[candidates.negatives].tolist() for own in positives]
    for temperature in (1.0, TEMPERATURE, 0.01):
        value, _ = run("mw", scores, candidates, guide, temperature)
        assert value.item() >= math.log(2) * sum(wrong) / len(wrong) > 0


def test_only_mann_whitney_notices_a_constant_on_one_querys_scores() -> None:
    scores, candidates, guide = batch(0)
    shifted = scores.clone()
    shifted[0] += 0.5
    for name in ("infonce", "decoupled", "gce", "lambdarank"):
        before, after = (run(name, s, candidates, guide, TEMPERATURE)[0].item() for s in (scores, shifted))
        assert after == pytest.approx(before, abs=1e-12)
    before, after = (run("mw", s, candidates, guide, TEMPERATURE)[0].item() for s in (scores, shifted))
    assert abs(after - before) > 1e-3


@pytest.mark.parametrize("pairs", [1, 30])
@pytest.mark.parametrize("composition", ["mw", "mw hardness trusted decay"])
def test_mann_whitney_in_chunks_is_the_whole(composition: str, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, candidates, guide = batch(0)
    found = []
    for size in (pairwise.CHUNK_PAIRS, pairs):
        monkeypatch.setattr(pairwise, "CHUNK_PAIRS", size)
        tau = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
        value, gradient = run(composition, scores, candidates, guide, tau)
        assert tau.grad is not None
        found.append(torch.cat([value[None], tau.grad[None], gradient.flatten()]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def test_the_configured_temperature_holds_unless_another_is_given() -> None:
    scores, candidates, _ = batch(0)
    configured = contrastive_loss(scores, candidates, LossConfig(temperature=0.2))
    assert torch.equal(configured, contrastive_loss(scores, candidates, LossConfig(), 0.2))
    assert not torch.equal(configured, contrastive_loss(scores, candidates, LossConfig()))


def test_lambda_ranks_a_tie_as_if_the_negative_led() -> None:
    """r⁺ = 2 beside r = 1 and 3: the gains are 1/2 and 1/6."""
    everything = torch.ones(1, 3, dtype=torch.bool)
    scores = torch.tensor([[0.5, 0.5, 0.1]], dtype=torch.float64)
    value, _ = run("lambdarank", scores, Candidates(torch.tensor([0]), everything, everything), scores, TEMPERATURE)
    wanted = math.log(2) / 2 + math.log1p(math.exp(-0.4 / TEMPERATURE)) / 6
    assert value.item() == pytest.approx(wanted, rel=1e-6)
