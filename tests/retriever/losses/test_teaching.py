"""What teachers say against teaching_formulas.py, mutants that must be told apart from it, and limits."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from retriever.losses import teaching
from retriever.losses.teaching import Lesson
from tests.retriever.losses import teaching_formulas as formulas
from tests.retriever.losses.teaching_formulas import Rows, Taught, case_of

TAU, T = 0.3, 1.7
SEEDS = range(3)
Loss = Callable[[Lesson], Tensor]
Formula = Callable[[Rows, Taught, float, float], float]


def graded(lesson: Lesson) -> Tensor:
    return torch.sigmoid(lesson.of_positive(lesson.teacher)[:, 0] / lesson.teacher_temperature)


LOSSES: dict[str, tuple[Loss, Formula]] = {
    "kl": (teaching.kl, formulas.kl),
    "margin_mse": (teaching.margin_mse, formulas.margin_mse),
    "soft_infonce": (lambda x: teaching.soft_infonce(x, graded(x)), formulas.soft_infonce),
    "cosent": (teaching.cosent, formulas.cosent),
    "ar2": (lambda x: teaching.ar2(x, 0.5, "all"), formulas.ar2),
    "ar2 negatives": (
        lambda x: teaching.ar2(x, 0.3, "negatives"),
        partial(formulas.ar2, weight=0.3, over="negatives"),
    ),
    "ar2 adversarial alone": (lambda x: teaching.ar2(x, 1.0, "all"), partial(formulas.ar2, weight=1.0)),
    "ar2 distillation alone": (lambda x: teaching.ar2(x, 0.0, "all"), partial(formulas.ar2, weight=0.0)),
}


def lesson(case: Taught, dtype: torch.dtype = torch.float64, **changes: Any) -> Lesson:
    teacher = [[math.nan if s is None else s for s in row] for row in case.teacher]
    made = Lesson(
        torch.tensor(case.scores, dtype=dtype, requires_grad=True),
        TAU,
        torch.tensor(teacher, dtype=dtype),
        T,
        torch.tensor(case.positive),
        torch.tensor(case.compared),
    )
    return dataclasses.replace(made, **changes)


def slopes(formula: Formula, case: Taught) -> tuple[Tensor, float]:
    """The formula's derivative by each score and by τ: central differences."""
    step, scores = 1e-6, [list(row) for row in case.scores]
    found = torch.zeros(len(scores), len(scores[0]), dtype=torch.float64)
    for i, row in enumerate(scores):
        for j, value in enumerate(row):
            ends = []
            for moved in (value + step, value - step):
                row[j] = moved
                ends.append(formula(scores, case, TAU, T))
            row[j] = value
            found[i, j] = (ends[0] - ends[1]) / (2 * step)
    by_tau = formula(scores, case, TAU + step, T) - formula(scores, case, TAU - step, T)
    return found, by_tau / (2 * step)


def gap(name: str, seed: int) -> tuple[float, float]:
    """How far a loss and its gradients, by scores and τ, lie from its formula."""
    loss, formula = LOSSES[name]
    case, tau = case_of(seed), torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    given = lesson(case, temperature=tau)
    value = loss(given)
    torch.autograd.backward(value)
    assert given.scores.grad is not None
    by_scores, by_tau = slopes(formula, case)
    of_tau = 0.0 if tau.grad is None else tau.grad.item()
    wanted = formula(case.scores, case, TAU, T)
    distance = (given.scores.grad - by_scores).abs().max().item()
    return abs(value.item() - wanted), max(distance, abs(of_tau - by_tau))


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_those_of_the_formula(name: str) -> None:
    for seed in SEEDS:
        value, gradient = gap(name, seed)
        assert value < 1e-9 and gradient < 1e-7  # the latter is what central differences of step 1e-6 can tell


def test_vectors_are_drawn_to_the_teachers() -> None:
    ours = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    theirs = torch.tensor([[0.0, 2.5], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    value = teaching.embedding(ours, theirs)
    torch.autograd.backward(value)
    assert value.item() == pytest.approx((1 + 0.25 + 4) / 2)
    assert ours.grad is not None and ours.grad.tolist() == [[1.0, -0.5], [0.0, -2.0]]
    assert theirs.grad is None


# ------------------------------------------------------------------------------------------------------- mutants


def of(place: object, name: str, mutant: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(place, name, mutant)


def replaced(**changes: Callable[[Lesson], Any]) -> Callable[[Lesson], Lesson]:
    return lambda given: dataclasses.replace(given, **{name: change(given) for name, change in changes.items()})


GIVEN = {
    "no student temperature": replaced(temperature=lambda x: 1.0),
    "no teacher temperature": replaced(teacher_temperature=lambda x: 1.0),
    "teacher turned round": replaced(teacher=lambda x: -x.teacher),
    "what has no score scores 0": replaced(teacher=lambda x: x.teacher.nan_to_num(0.0)),
    "all are compared": replaced(compared=lambda x: torch.ones_like(x.compared)),
    "another positive": replaced(positive=lambda x: (x.positive + 1) % 6),
}
BLIND = {
    "cosent": {"no teacher temperature", "another positive"},  # an order has no scale, and every pair counts
    "kl": {"another positive"},  # a distribution does not know which of its places is the positive
    "ar2 adversarial alone": {"no teacher temperature"},  # rewards are of raw scores
}
MUTANTS: dict[str, tuple[tuple[str, ...], Callable[[pytest.MonkeyPatch], None]]] = {
    "the sum instead of the mean": (
        tuple(name for name in LOSSES if name != "cosent"),
        of(teaching, "_mean", lambda each, taught: torch.where(taught, each, 0.0).sum()),
    ),
    "untaught queries count": (
        tuple(name for name in LOSSES if name != "cosent"),
        of(teaching, "_mean", lambda each, taught: torch.where(taught, each, 0.0).mean()),
    ),
    "rewards without the logarithm": (
        ("ar2", "ar2 negatives", "ar2 adversarial alone"),
        of(teaching, "logsigmoid", torch.sigmoid),
    ),
    "rewards of the other sign": (
        ("ar2", "ar2 negatives", "ar2 adversarial alone"),
        of(teaching, "logsigmoid", lambda x: -torch.nn.functional.logsigmoid(x)),
    ),
    "rewards by s_d - s⁺": (
        ("ar2", "ar2 negatives", "ar2 adversarial alone"),
        of(teaching, "logsigmoid", lambda x: torch.nn.functional.logsigmoid(-x)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mutant", GIVEN)
def test_what_a_lesson_says_matters(name: str, mutant: str) -> None:
    loss, formula = LOSSES[name]
    found = [abs(loss(GIVEN[mutant](lesson(case))).item() - formula(case.scores, case, TAU, T)) for case in CASES]
    assert (max(found) > 1e-3) is (mutant not in BLIND.get(name, ()))


CASES = [case_of(seed) for seed in SEEDS]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_told_apart(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names, change = MUTANTS[mutant]
    change(monkeypatch)
    for name in names:
        assert max(max(gap(name, seed)) for seed in SEEDS) > 1e-3, name


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"adversarial": 0.4}, True), ({"over": "negatives"}, True), ({"adversarial": 0.5}, False)],
)
def test_the_keys_of_ar2_matter(changed: dict[str, Any], told: bool) -> None:
    found = teaching.ar2(lesson(case_of(0)), **{"adversarial": 0.5, "over": "all", **changed}).item()
    assert (abs(found - formulas.ar2(case_of(0).scores, case_of(0), TAU, T)) > 1e-3) is told


# -------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("name", LOSSES)
def test_where_nothing_is_scored_nothing_is_learned(name: str) -> None:
    case = case_of(0)
    given = lesson(dataclasses.replace(case, teacher=[[None] * 6 for _ in case.teacher]))
    value = LOSSES[name][0](given)
    torch.autograd.backward(value)
    assert value.item() == 0 and given.scores.grad is not None and not given.scores.grad.any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e4, 1e-8])
def test_huge_and_tiny_scores_have_finite_gradients_in_float32(name: str, size: float) -> None:
    case = case_of(1)
    scores = (torch.tensor(case.scores) * size).requires_grad_()
    teacher = lesson(case, torch.float32).teacher * size
    value = LOSSES[name][0](lesson(case, torch.float32, scores=scores, teacher=teacher))
    torch.autograd.backward(value)
    assert math.isfinite(value.item()) and scores.grad is not None and scores.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_an_infinite_score_is_no_score(bad: float) -> None:
    case = case_of(0)
    for loss, _ in LOSSES.values():
        whole, broken = lesson(case), lesson(case)
        teacher = torch.where(whole.teacher.isnan(), bad, whole.teacher)
        if loss is not LOSSES["soft_infonce"][0]:
            assert loss(dataclasses.replace(broken, teacher=teacher)).item() == loss(whole).item()


def test_a_student_that_scores_as_its_teacher_has_nothing_to_learn() -> None:
    given = lesson(case_of(2))
    scores = (given.graded * TAU / T).requires_grad_()
    for loss in (teaching.kl, teaching.margin_mse):
        value = loss(dataclasses.replace(given, scores=scores))
        torch.autograd.backward(value)
        assert value.item() == pytest.approx(0, abs=1e-12)
    assert scores.grad is not None and scores.grad.abs().max() < 1e-12


def test_a_constant_added_to_one_querys_scores_is_nothing_to_a_softmax_and_something_to_cosent() -> None:
    given = lesson(case_of(0))
    moved = dataclasses.replace(given, scores=given.scores + torch.tensor([[0.4], [0], [0], [0], [0], [0]]))
    for name, (loss, _) in LOSSES.items():
        assert (abs(loss(moved).item() - loss(given).item()) > 1e-3) is (name == "cosent"), name


def test_no_gradient_reaches_the_teacher() -> None:
    for loss, _ in LOSSES.values():
        given = lesson(case_of(0))
        teacher = given.teacher.clone().requires_grad_()
        torch.autograd.backward(loss(dataclasses.replace(given, teacher=teacher)))
        assert teacher.grad is None or not teacher.grad.nan_to_num(0).any()


def test_cosent_of_many_pairs_takes_memory_of_one_line_a_pair() -> None:
    """40,000 pairs: all against all would be 1.6 billion numbers."""
    torch.manual_seed(0)
    scores, teacher = torch.randn(200, 200, dtype=torch.float64), torch.randn(200, 200, dtype=torch.float64)
    given = Lesson(scores, 1.0, teacher, 1.0, torch.arange(200), torch.ones(200, 200, dtype=torch.bool))
    some = torch.randperm(40_000)[:300]
    few = dataclasses.replace(given, scores=scores.reshape(1, -1)[:, some], teacher=teacher.reshape(1, -1)[:, some])
    few = dataclasses.replace(
        few, positive=torch.zeros(1, dtype=torch.int64), compared=torch.ones(1, 300, dtype=torch.bool)
    )
    s, t = few.scores[0], few.teacher[0]
    wanted = torch.where(t[:, None] > t[None, :], (s[None, :] - s[:, None]).exp(), 0).sum().log1p()
    assert teaching.cosent(few).item() == pytest.approx(wanted.item())
    assert 0 < teaching.cosent(given).item() < math.log(40_000**2) + 10
