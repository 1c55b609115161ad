"""What a teacher says of a batch as a loss: to score as it scores, or to place vectors where it places them.

Does not know who the teacher is, nor when its scores were made. Only pairs that have a score are learned from.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from retriever.losses.terms import NEVER

TeachingName = Literal["kl", "margin_mse", "soft_infonce", "cosent", "embedding", "ar2"]
AdversarialOver = Literal["all", "negatives"]


@dataclass(frozen=True)
class Lesson:
    """A batch of b queries and n passages as student and teacher score it.

    ``scores`` float [b, n], the student's similarities, and its ``temperature`` · ``teacher`` float [b, n], nan where
    it has no score, and its ``teacher_temperature``: neither is divided yet · ``positive`` int64 [b], the column of
    each query's positive · ``compared`` bool [b, n], the passages that a query is taught about, its positive too.
    """

    scores: Tensor
    temperature: Tensor | float
    teacher: Tensor
    teacher_temperature: Tensor | float
    positive: Tensor
    compared: Tensor

    @property
    def known(self) -> Tensor:
        """Return bool [b, n]: what is compared and has a teacher's score."""
        return self.compared & self.teacher.isfinite()

    @property
    def negatives(self) -> Tensor:
        """Return bool [b, n]: what is compared beside the positive."""
        return self.compared.scatter(1, self.positive[:, None], False)

    @property
    def graded(self) -> Tensor:
        """Return the teacher's scores [b, n], 0 where there is none, without gradient."""
        return torch.where(self.known, self.teacher, 0.0).detach()

    def of_positive(self, values: Tensor) -> Tensor:
        """Return [b, 1] of ``values`` [b, n]: each query's positive."""
        return values.gather(1, self.positive[:, None])

    def log_student(self, among: Tensor) -> Tensor:
        """Return log p_S [b, n], the student's softmax ``among`` bool [b, n]; far below 0 elsewhere."""
        return (self.scores / self.temperature).masked_fill(~among, NEVER).log_softmax(dim=1)

    def log_teacher(self, among: Tensor) -> Tensor:
        """Return log p_T [b, n], the teacher's softmax ``among`` bool [b, n]; far below 0 elsewhere."""
        return (self.graded / self.teacher_temperature).masked_fill(~among, NEVER).log_softmax(dim=1).detach()


def kl(lesson: Lesson) -> Tensor:
    """Return KL(p_T ‖ p_S) over each query's scored passages, averaged over queries with at least two (Hinton 2015)."""
    known = lesson.known
    teacher = lesson.log_teacher(known)
    gap = teacher.exp() * (teacher - lesson.log_student(known))
    return _mean(torch.where(known, gap, 0.0).sum(dim=1), known.sum(dim=1) > 1)


def margin_mse(lesson: Lesson) -> Tensor:
    """Return the mean over a query's scored negatives of ((s⁺ − s)/τ − (t⁺ − t)/T)², averaged over queries with any.

    Hofstätter et al. 2020; queries whose positive has no score have nothing to compare with.
    """
    known, logits, graded = lesson.known, lesson.scores / lesson.temperature, lesson.graded / lesson.teacher_temperature
    pairs = known & lesson.negatives & lesson.of_positive(known)
    gap = (lesson.of_positive(logits) - logits) - (lesson.of_positive(graded) - graded)
    count = pairs.sum(dim=1)
    each = torch.where(pairs, gap.square(), 0.0).sum(dim=1) / count.clamp(min=1)
    return _mean(each, count > 0)


def soft_infonce(lesson: Lesson, grade: Tensor) -> Tensor:
    """Return −y·log p⁺ − (1 − y)/N·Σ_j log p_j over a query's N negatives, averaged; y in [0, 1] is ``grade`` [b].

    CLAIF (Cheng et al., Findings of ACL 2023), whose code smooths all labels so. Queries without a grade (nan) or a
    negative are left out.
    """
    log_p, negatives = lesson.log_student(lesson.compared), lesson.negatives
    count = negatives.sum(dim=1)
    taught = grade.isfinite() & (count > 0)
    y = torch.where(taught, grade, 0.0).detach()
    others = torch.where(negatives, log_p, 0.0).sum(dim=1) / count.clamp(min=1)
    return _mean(-y * lesson.of_positive(log_p)[:, 0] - (1 - y) * others, taught)


def cosent(lesson: Lesson) -> Tensor:
    """Return log(1 + Σ exp((s_b − s_a)/τ)) over all scored pairs a, b of the batch whose teacher scores are t_a > t_b.

    CoSENT (Su 2022). Memory is one line a pair: sorted by the teacher, the sum over b is a running one.
    """
    known = lesson.known
    logits, teacher = (lesson.scores / lesson.temperature)[known], lesson.teacher[known].detach()
    teacher, order = teacher.sort(stable=True)
    logits = logits[order]
    below = torch.searchsorted(teacher, teacher, side="left")  # how many the teacher scores lower
    ahead = below > 0
    nothing = logits.new_zeros(1)
    if not ahead.any():
        return lesson.scores.sum() * 0.0
    lower = logits.logcumsumexp(dim=0)[below[ahead] - 1]
    return torch.cat([nothing, lower - logits[ahead]]).logsumexp(dim=0)


def embedding(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over n texts of ‖x − x_T‖², ``vectors`` and the ``teacher``'s float [n, dim]."""
    return (vectors - teacher.detach()).square().sum(dim=1).mean()


def ar2(lesson: Lesson, adversarial: float, over: AdversarialOver) -> Tensor:
    """Return λ·Σ_d r_d·log p_S(d) + (1 − λ)·CE(p_T ‖ p_S), averaged over queries: AR2's loss of the retriever.

    r_d = log σ(t⁺ − t_d) on raw scores without gradient, over the positive and its negatives or, by ``over``, the
    negatives alone; λ is ``adversarial`` (Zhang et al., ICLR 2022). Both terms are sums over a query's passages, where
    the authors' code sums one and averages the other. Queries whose positive or all negatives have no score are left
    out.
    """
    known, graded = lesson.known, lesson.graded
    log_p = lesson.log_student(known)
    rewarded = known if over == "all" else known & lesson.negatives
    reward = logsigmoid(lesson.of_positive(graded) - graded)
    pushed = torch.where(rewarded, reward * log_p, 0.0).sum(dim=1)
    taught = lesson.log_teacher(known).exp()
    matched = -torch.where(known, taught * log_p, 0.0).sum(dim=1)
    has_both = lesson.of_positive(known)[:, 0] & (known & lesson.negatives).any(dim=1)
    return _mean(adversarial * pushed + (1 - adversarial) * matched, has_both)


def _mean(each: Tensor, taught: Tensor) -> Tensor:
    """Return the mean of ``each`` [b] over the queries that are ``taught`` bool [b]; 0 where none is."""
    return torch.where(taught, each, 0.0).sum() / taught.sum().clamp(min=1)
