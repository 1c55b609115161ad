"""What a step minimises: the loss of a batch's vectors, with the temperature of the step, a guide and a teacher.

Does not know how vectors are made, nor which process made them.
"""

import numpy as np
import torch
from torch import Tensor, nn

from retriever.examples import Batch
from retriever.losses.contrastive import LossConfig, contrastive_loss
from retriever.losses.teaching import Lesson, ar2, cosent, embedding, kl, margin_mse, soft_infonce
from retriever.losses.temperature import LearnedTemperature, cosine_temperature
from retriever.losses.terms import Candidates
from retriever.protocols import FloatArray
from retriever.teacher import Taught, TeacherConfig

UNIFORMITY_VECTORS = 512


class Objective(nn.Module):
    """The loss; its weights are the temperature where that is learned, and ``head`` where [teacher] asks for one.

    ``head`` multiplies vectors before a teacher's term (DHKD, Yang et al. 2024, of which the logits here are
    similarities): where label and teacher disagree the head gives way, and what is served follows the label.

    ``facts`` tells of the last batch: its temperature, uniformity and tolerance of its vectors, and with a teacher
    both terms and how many of the pairs that it should teach had no score. ``keeps_gradient``: that of the scores is
    wanted, too.
    """

    def __init__(
        self,
        config: LossConfig,
        teaching: TeacherConfig | None = None,
        dimensions: int = 0,
    ) -> None:
        """``teaching`` tells what becomes of a teacher's scores; ``dimensions`` are those of the vectors."""
        super().__init__()
        self.config = config
        self.teaching = teaching
        self.facts: dict[str, float] = {}
        self._queries = torch.empty(0)
        self._scores = self._gradient = torch.empty(0)
        self.keeps_gradient = False
        self.head: nn.Linear | None = None
        if teaching is not None and teaching.head:
            self.head = nn.Linear(dimensions, dimensions, bias=False)
            nn.init.eye_(self.head.weight)
        self.learned = LearnedTemperature(config.temperature) if config.temperature_schedule == "learned" else None

    def temperature(self, step: int) -> Tensor | float:
        """Return τ of optimiser step ``step``."""
        config = self.config
        if self.learned is not None:
            learned: Tensor = self.learned()
            return learned
        if config.temperature_schedule == "cosine":
            return cosine_temperature(config.temperature, config.temperature_max, config.temperature_period, step)
        return config.temperature

    def temperature_at(self, step: int) -> float:
        """Return the number that ``temperature`` is."""
        return _number(self.temperature(step))

    def average(self, ranks: int) -> None:
        """Divide the gradients of τ and head by ``ranks``: each has the whole, of a loss multiplied by their number."""
        for weight in self.parameters():
            if weight.grad is not None:
                weight.grad /= ranks

    def bound(self) -> None:
        """Keep a learned τ in its range; call it after each step of the optimiser."""
        if self.learned is not None:
            self.learned.bound()

    def state(self) -> float | None:
        """Return what a checkpoint keeps: log τ where it is learned."""
        return None if self.learned is None else self.learned.log.item()

    def restore(self, state: float | None) -> None:
        """Take up what ``state`` gave."""
        if self.learned is not None and state is not None:
            torch.nn.init.constant_(self.learned.log, state)

    def query_vectors(self) -> FloatArray:
        """Return the queries of the last batch float32 [b, dim]."""
        vectors: FloatArray = self._queries.float().cpu().numpy()
        return vectors

    def scores(self) -> FloatArray:
        """Return the scores of the last batch float32 [b, n]."""
        scores: FloatArray = self._scores.float().cpu().numpy()
        return scores

    def score_gradient(self) -> FloatArray:
        """Return ∂loss/∂score of the last batch float32 [b, n], by whatever factor it was taken backward with.

        All is 0 before that. It is that of the batch only while ``keeps_gradient`` is set.
        """
        gradient: FloatArray = self._gradient.float().cpu().numpy()
        return gradient

    def hard_scores(self, batch: Batch) -> FloatArray:
        """Return the mean score float32 [b] of each query's own negatives in the last batch, nan where it has none."""
        scores = np.where(batch.hard, self._scores.float().cpu().numpy(), np.float32(0))
        count = batch.hard.sum(axis=1)
        mean: FloatArray = np.where(count > 0, scores.sum(axis=1) / np.maximum(count, 1), np.nan).astype(np.float32)
        return mean

    def forward(
        self,
        queries: Tensor,
        passages: Tensor,
        batch: Batch,
        step: int,
        guide: Tensor | None,
        taught: Taught | None = None,
    ) -> Tensor:
        """Return the scalar loss of ``queries`` float [b, dim] and ``passages`` float [n, dim].

        ``guide`` float [b, n] scores the batch where the configuration names one.
        """
        device = queries.device
        candidates = Candidates(
            torch.from_numpy(batch.positive).to(device),
            torch.from_numpy(batch.allowed).to(device),
            torch.from_numpy(batch.hard).to(device),
        )
        self._queries = queries.detach()
        scores, temperature = queries @ passages.T, self.temperature(step)
        self._scores = scores.detach()
        if self.keeps_gradient:
            self._gradient = torch.zeros_like(self._scores)
            scores.register_hook(self._keep)  # type: ignore[no-untyped-call]  # torch does not annotate it
        with torch.no_grad():
            self.facts = {
                "temperature": self.temperature_at(step),
                "uniformity": _uniformity(passages),
                "tolerance": scores.gather(1, candidates.positive[:, None]).mean().item(),
            }
        guided = None if guide is None else guide.to(device)
        loss = contrastive_loss(scores, candidates, self.config, temperature, guided)
        if self.teaching is None:
            return loss
        if taught is None:
            raise ValueError("what the teacher says of the batch is wanted where [teacher] names one")
        if self.head is not None:
            queries, passages = self.head(queries), self.head(passages)
            scores = queries @ passages.T
        lesson = self._lesson(scores, temperature, candidates, taught.scores.to(device))
        term = self._teaching_term(lesson, (queries, passages), taught)
        unscored = (lesson.compared & ~lesson.known).sum().item()
        self.facts |= {"contrastive_loss": loss.item(), "teacher_loss": term.item(), "unscored": unscored}
        return self.teaching.contrastive * loss + self.teaching.weight * term

    def _keep(self, gradient: Tensor) -> None:
        self._gradient = gradient.detach()

    def _lesson(self, scores: Tensor, temperature: Tensor | float, candidates: Candidates, teacher: Tensor) -> Lesson:
        teaching = self.teaching
        assert teaching is not None
        student = temperature if teaching.student_temperature is None else teaching.student_temperature
        own = teaching.temperature
        if own is None:
            own = _number(student) if teaching.gives_vectors else 1.0
        compared = candidates.allowed
        if teaching.over == "group":
            compared = candidates.hard.scatter(1, candidates.positive[:, None], True)
        return Lesson(scores, student, teacher, own, candidates.positive, compared)

    def _teaching_term(self, lesson: Lesson, vectors: tuple[Tensor, Tensor], taught: Taught) -> Tensor:
        teaching = self.teaching
        assert teaching is not None
        if teaching.loss == "embedding":
            assert taught.queries is not None and taught.passages is not None
            return embedding(torch.cat(vectors), torch.cat([taught.queries, taught.passages]).to(vectors[0]))
        if teaching.loss == "ar2":
            return ar2(lesson, teaching.adversarial, teaching.adversarial_over)
        if teaching.loss == "soft_infonce":
            of_positive = lesson.of_positive(lesson.teacher)[:, 0]
            grade = of_positive.clamp(0, 1)
            return soft_infonce(
                lesson, grade if teaching.gives_vectors else (of_positive / lesson.teacher_temperature).sigmoid()
            )
        return {"kl": kl, "margin_mse": margin_mse, "cosent": cosent}[teaching.loss](lesson)


def _number(temperature: Tensor | float) -> float:
    return temperature.item() if isinstance(temperature, Tensor) else temperature


def _uniformity(vectors: Tensor) -> float:
    """Return log mean exp(−2·‖x − y‖²) over pairs of ``vectors`` float [n, dim] (Wang and Isola, ICML 2020).

    Of many, 512 evenly spread ones tell it: all pairs would cost more than the loss.
    """
    if len(vectors) < 2:
        return 0.0
    vectors = vectors[:: -(-len(vectors) // UNIFORMITY_VECTORS)]
    return torch.pdist(vectors).square().mul(-2).exp().mean().log().item()
