"""Every ranker loss against ranking_formulas.py, mutants that must be told apart from it, limits and refusals."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from retriever.errors import InputError
from retriever.losses import ranking
from retriever.losses.ranking import RANKING_LOSSES, READS, Groups, RankingLossConfig
from tests.retriever.losses.ranking_formulas import Knobs, case_of, reference, slopes

Patch = Callable[[pytest.MonkeyPatch], None]
SEEDS = range(3)
KEYS: list[dict[str, Any]] = [
    *({"name": name} for name in RANKING_LOSSES),
    {"name": "listwise", "temperature": 0.4},
    {"name": "gce", "temperature": 2.0, "gce_q": 0.3},
    {"name": "asymmetric", "gamma": 0.0},
    {"name": "asymmetric", "gamma": 2.0, "shift": 0.0},
    {"name": "em", "unknown": 1.0},
    {"name": "dice", "smooth": 0.0},
]
ALL = [pytest.param(keys, id=" ".join(map(str, keys.values()))) for keys in KEYS]


def groups(seed: int, dtype: torch.dtype = torch.float64) -> Groups:
    case = case_of(seed)
    mask = torch.tensor([[True, *there] for there in case.there])
    return Groups(torch.tensor(case.logits, dtype=dtype), mask, torch.tensor(case.teacher, dtype=dtype))


def run(keys: dict[str, Any], given: Groups) -> tuple[Tensor, Tensor]:
    """The loss of each query and the gradient of their sum."""
    config, logits = RankingLossConfig(**keys), given.logits.clone().requires_grad_()
    values = RANKING_LOSSES[config.name](dataclasses.replace(given, logits=logits), config)
    torch.autograd.backward(values.sum())
    assert logits.grad is not None and values.shape == logits.shape[:1]
    return values.detach(), logits.grad


def gap(keys: dict[str, Any], seed: int) -> tuple[float, float]:
    """How far losses and gradients lie from the formula."""
    rest = {key: value for key, value in keys.items() if key != "name"}
    case, knobs = case_of(seed), Knobs(**rest)
    values, gradient = run(keys, groups(seed))
    wanted = torch.tensor(reference(keys["name"], case.logits, case, knobs), dtype=torch.float64)
    by_logits = torch.tensor(slopes(keys["name"], case, knobs), dtype=torch.float64)
    return (values - wanted).abs().max().item(), (gradient - by_logits).abs().max().item()


@pytest.mark.parametrize("keys", ALL)
def test_values_and_gradients_are_those_of_the_formula(keys: dict[str, Any]) -> None:
    gaps = [gap(keys, seed) for seed in SEEDS]
    assert max(value for value, _ in gaps) < 1e-9
    assert max(gradient for _, gradient in gaps) < 1e-7  # what central differences of step 1e-6 can tell


# ------------------------------------------------------------------------------------------------------- mutants


def of(name: str, mutant: object) -> Patch:
    return lambda patch: patch.setattr(ranking, name, mutant)


def given(change: Callable[[Groups], dict[str, Any]]) -> Patch:
    """Losses that are given other groups."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        for name, loss in RANKING_LOSSES.items():
            mutant = _changed(loss, change)
            patch.setitem(RANKING_LOSSES, name, mutant)

    return patched


def _changed(loss: Any, change: Callable[[Groups], dict[str, Any]]) -> Any:
    return lambda one, config: loss(dataclasses.replace(one, **change(one)), config)


def keyed(**changes: Any) -> Patch:
    """Losses that read other keys."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        for name, loss in RANKING_LOSSES.items():
            patch.setitem(RANKING_LOSSES, name, _keyed(loss, changes))

    return patched


def _keyed(loss: Any, changes: dict[str, Any]) -> Any:
    return lambda one, config: loss(one, dataclasses.replace(config, **changes))


def gains_of(gain: Callable[[Tensor, Tensor], Tensor], descending: bool = True) -> Callable[[Groups], Tensor]:
    """LambdaRank with other gains, of the positive's rank and the negatives' among themselves."""

    def mutant(one: Groups) -> Tensor:
        below = one.logits.detach()[:, 1:].masked_fill(~one.negatives, -1e30 if descending else 1e30)
        first = (one.negatives & (one.logits[:, 1:] >= one.logits[:, :1])).sum(1, keepdim=True) + 1.0
        gains = gain(first, below.argsort(1, descending=descending).argsort(1) + 1.0)
        costs = gains * torch.nn.functional.softplus(one.margins)
        return costs.masked_fill(~one.negatives, 0.0).sum(1)

    return mutant


def discount(rank: Tensor) -> Tensor:
    return 1 / torch.log2(1 + rank)


def gradient_through_weight(one: Groups, gamma: float, shift: float) -> Tensor:
    """p^γ as a constant, as some implementations have it."""
    logits = one.logits[:, 1:]
    p = (torch.sigmoid(logits) - shift).clamp(min=0)
    costs = -(p.detach() ** gamma) * torch.log(1 - p)
    return costs.masked_fill(~one.negatives, 0.0).sum(1) - logsigmoid(one.logits[:, 0])


def squared(margins: Callable[[Groups], Tensor]) -> Callable[[Groups], Tensor]:
    def mutant(one: Groups) -> Tensor:
        assert one.teacher is not None
        known = one.negatives & (one.teacher[:, 1:] - one.teacher[:, :1]).isfinite()
        return one.mean((one.margins - margins(one).nan_to_num()).square(), known)

    return mutant


def fraction(below: Callable[[Tensor], Tensor]) -> Callable[[Groups, float], Tensor]:
    """Dice with another sum below the fraction."""

    def mutant(one: Groups, smooth: float) -> Tensor:
        p = torch.sigmoid(one.logits) * one.mask
        return 1 - (2 * p[:, 0] + smooth) / (below(p).sum(dim=1) + 1 + smooth)

    return mutant


def in_sum(self: Groups, values: Tensor, counted: Tensor) -> Tensor:
    return values.masked_fill(~counted, 0.0).sum(dim=1)


NAMES = "|".join(RANKING_LOSSES)
MUTANTS: list[tuple[str, str, Patch]] = [
    ("sign flipped", NAMES, given(lambda one: {"logits": -one.logits})),
    ("mask dropped", NAMES.replace("margin_mse|", ""), given(lambda one: {"mask": torch.ones_like(one.mask)})),
    ("halved", NAMES, given(lambda one: {"logits": one.logits / 2})),
    ("summed", "ranknet|margin_mse", lambda patch: patch.setattr(Groups, "mean", in_sum)),
    ("τ", "listwise|gce", keyed(temperature=0.7)),
    ("q", "gce", keyed(gce_q=1.0)),
    ("γ", "asymmetric", keyed(gamma=1.0)),
    ("shift dropped", "asymmetric", keyed(shift=0.0)),
    ("entropy dropped", "em", keyed(unknown=0.0)),
    ("unsmoothed", "dice", keyed(smooth=0.0)),
    ("chances unsquared", "dice", of("dice", fraction(lambda p: p))),
    ("negatives forgotten", "dice", of("dice", fraction(lambda p: p.square()[:, :1]))),
    ("positive counted above alone", "dice", of("dice", fraction(lambda p: p.square()[:, 1:]))),
    ("entropy minimised", "em", lambda patch: patch.setattr(ranking, "entropy_maximising", minimising)),
    ("relu for softplus", "ranknet|lambdarank", of("softplus", relu)),
    ("weight without gradient", "asymmetric", of("asymmetric", gradient_through_weight)),
    (
        "gains of reciprocal ranks",
        "lambdarank",
        of("lambda_rank", gains_of(lambda a, b: (1 / a - 1 / (b + (b >= a))).abs())),
    ),
    ("gains dropped", "lambdarank", of("lambda_rank", gains_of(lambda a, b: torch.ones_like(b)))),
    ("positive unranked", "lambdarank", of("lambda_rank", gains_of(lambda a, b: (discount(a) - discount(b)).abs()))),
    (
        "ranks ascending",
        "lambdarank",
        of("lambda_rank", gains_of(lambda a, b: (discount(a) - discount(b + (b >= a))).abs(), False)),
    ),
    ("teacher turned", "margin_mse", of("margin_mse", squared(lambda one: one.teacher[:, :1] - one.teacher[:, 1:]))),  # type: ignore[index]
    ("teacher's positive dropped", "margin_mse", of("margin_mse", squared(lambda one: one.teacher[:, 1:]))),  # type: ignore[index]
    ("teacher dropped", "margin_mse", of("margin_mse", squared(lambda one: torch.zeros_like(one.margins)))),
]


def minimising(one: Groups, weight: float) -> Tensor:
    ours = -logsigmoid(one.logits[:, 0])
    return 2 * ours - ENTROPY_MAXIMISING(one, weight)


ENTROPY_MAXIMISING = ranking.entropy_maximising
EACH = [
    pytest.param(loss, patch, id=f"{name}: {loss}") for name, losses, patch in MUTANTS for loss in losses.split("|")
]


@pytest.mark.parametrize(("loss", "patch"), EACH)
def test_the_formula_tells_a_mutant_apart(loss: str, patch: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch)
    gaps = [found for seed in SEEDS for found in gap({"name": loss}, seed)]
    assert all(math.isfinite(found) for found in gaps)
    assert max(gaps) > 1e-3


# -------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("keys", ALL)
def test_without_any_negative_only_the_positive_counts(keys: dict[str, Any]) -> None:
    one = groups(0)
    alone = dataclasses.replace(one, mask=torch.zeros_like(one.mask).index_fill(1, torch.tensor([0]), True))
    values, gradient = run(keys, alone)
    of_positives = -logsigmoid(one.logits[:, 0]) if keys["name"] in ("asymmetric", "em") else torch.tensor(0.0)
    if keys["name"] == "dice":
        p, smooth = torch.sigmoid(one.logits[:, 0]), keys.get("smooth", 1.0)
        of_positives = (1 - p) ** 2 / (p**2 + 1 + smooth)
    assert torch.allclose(values, torch.zeros_like(values) + of_positives)
    assert not gradient[:, 1:].any()


@pytest.mark.parametrize("keys", ALL)
def test_what_is_masked_has_no_say(keys: dict[str, Any]) -> None:
    one = groups(1)
    raised = dataclasses.replace(one, logits=one.logits.masked_fill(~one.mask, 1e3))
    (value, gradient), (same, again) = run(keys, one), run(keys, raised)
    assert torch.equal(value, same) and torch.equal(gradient, again)
    assert not gradient[~one.mask].any()


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, -1e4])
@pytest.mark.parametrize("keys", ALL)
def test_extreme_logits_stay_finite(keys: dict[str, Any], size: float) -> None:
    one = groups(0, torch.float32)
    values, gradient = run(keys, dataclasses.replace(one, logits=one.logits * size))
    assert torch.isfinite(values).all() and torch.isfinite(gradient).all()


def test_a_single_negative_makes_listwise_and_ranknet_the_same() -> None:
    one = Groups(torch.tensor([[0.3, -0.4], [2.0, 5.0]]), torch.ones(2, 2, dtype=torch.bool))
    assert torch.allclose(run({"name": "listwise"}, one)[0], run({"name": "ranknet"}, one)[0])


def test_gce_goes_from_listwise_to_a_loss_linear_in_p() -> None:
    one = groups(2)
    p = (-run({"name": "listwise"}, one)[0]).exp()
    assert torch.allclose(run({"name": "gce", "gce_q": 1.0}, one)[0], 1 - p)
    assert torch.allclose(run({"name": "gce", "gce_q": 1e-7}, one)[0], -p.log(), atol=1e-5)


def test_a_negative_below_the_shift_costs_nothing_and_moves_nothing() -> None:
    low = math.log(0.04 / 0.96)
    one = Groups(torch.tensor([[0.0, low, 0.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool))
    _, gradient = run({"name": "asymmetric"}, one)
    assert gradient[0, 1] == 0 < gradient[0, 2]


def test_an_unknown_passage_is_drawn_to_one_half() -> None:
    one = Groups(torch.tensor([[0.0, -2.0, 2.0, 0.0]], dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool))
    _, gradient = run({"name": "em"}, one)
    assert gradient[0, 1] < 0 < gradient[0, 2]
    assert gradient[0, 3] == pytest.approx(0, abs=1e-12)


def test_of_certain_probabilities_dice_is_one_minus_f1() -> None:
    logits = torch.tensor([[50.0, 50.0, -50.0, 50.0], [50.0, -50.0, -50.0, -50.0], [-50.0, 50.0, -50.0, -50.0]])
    one = Groups(logits.double(), torch.ones(3, 4, dtype=torch.bool))
    values, _ = run({"name": "dice", "smooth": 0.0}, one)
    assert values.tolist() == pytest.approx([1 - 2 * 1 / (3 + 1), 0.0, 1.0])


def test_dice_pulls_less_on_a_negative_that_is_told_apart_already() -> None:
    one = Groups(torch.tensor([[1.0, -6.0, 0.0, -6.0]], dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool))
    _, of_dice = run({"name": "dice"}, one)
    _, of_listwise = run({"name": "listwise"}, one)
    assert 0 < of_dice[0, 1] / of_dice[0, 2] < 0.1 * of_listwise[0, 1] / of_listwise[0, 2]


def test_margin_mse_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher"):
        run({"name": "margin_mse"}, dataclasses.replace(groups(0), teacher=None))


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("problem", "keys"),
    [
        ("temperature must", {"temperature": 0.0}),
        ("gce_q must", {"name": "gce", "gce_q": 1.1}),
        ("gamma must", {"name": "asymmetric", "gamma": 0.5}),
        ("shift must", {"name": "asymmetric", "shift": 1.0}),
        ("unknown must", {"name": "em", "unknown": -0.1}),
        ("smooth must", {"name": "dice", "smooth": -0.1}),
    ],
)
def test_a_value_out_of_range_is_refused(problem: str, keys: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=problem):
        RankingLossConfig(**keys)


ANOTHER = {"temperature": 0.5, "gce_q": 0.2, "gamma": 2.0, "shift": 0.1, "unknown": 0.5, "smooth": 0.5}


@pytest.mark.parametrize("name", RANKING_LOSSES)
def test_each_key_is_read_or_refused(name: Any) -> None:
    plain = run({"name": name}, groups(0))[0]
    for key, value in ANOTHER.items():
        if key in READS[name]:
            assert not torch.equal(run({"name": name, key: value}, groups(0))[0], plain)
        else:
            with pytest.raises(InputError, match=rf"loss\.{key}: name = \"{name}\" does not read it"):
                RankingLossConfig(name, **{key: value})
