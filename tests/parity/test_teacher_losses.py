"""What is learned from a teacher, against sentence-transformers' losses on the same vectors and labels."""

import dataclasses
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, DistillKLDivLoss, MarginMSELoss
from torch import Tensor

from retriever.losses import teaching
from retriever.losses.teaching import Lesson


class Given(torch.nn.Module):
    """Stands where sentence-transformers has its model: the features are the vectors already."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def peers(queries: Tensor, passages: Tensor) -> list[dict[str, Tensor]]:
    return [{"sentence_embedding": one} for one in (queries, *passages.unbind(1))]


def test_sentence_transformers_agrees() -> None:
    """On groups of 1 + 3 in which all is scored; it has no student temperature but for KL and CoSENT."""
    torch.manual_seed(3)
    queries, passages = torch.randn(4, 8), torch.randn(4, 4, 8)
    labels = torch.randn(4, 4)
    scores = torch.einsum("bd,bkd->bk", queries, passages)
    given = Lesson(scores, 1.0, labels, 1.0, torch.zeros(4, dtype=torch.int64), torch.ones(4, 4, dtype=torch.bool))
    model: Any = Given()
    theirs = MarginMSELoss(model)(peers(queries, passages), labels)
    assert teaching.margin_mse(given).item() == pytest.approx(theirs.item(), rel=1e-5)
    theirs = DistillKLDivLoss(model, temperature=1.0)(peers(queries, passages), labels)
    assert teaching.kl(given).item() == pytest.approx(theirs.item(), rel=1e-5)
    cosines = torch.nn.functional.cosine_similarity(queries, passages[:, 0])
    theirs = CoSENTLoss(model, scale=20.0)(peers(queries, passages[:, :1]), labels[:, 0])
    ours = dataclasses.replace(given, scores=cosines[:, None], teacher=labels[:, :1], temperature=1 / 20)
    ours = dataclasses.replace(ours, compared=torch.ones(4, 1, dtype=torch.bool))
    assert teaching.cosent(ours).item() == pytest.approx(theirs.item(), rel=1e-5)
