"""Sequence classifiers of the BERT family by the fast forward pass, the last layer for the token that the head reads.

Does not know texts, nor what its logits mean.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retriever.engines.fast_forward import fast_forward

Logits = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(ids, mask, segments or None), int64 [n, length], padded on the right → float32 logits [n, labels]."""


def _of_bert(classifier: Any, first: Tensor) -> Any:
    return classifier.classifier(classifier.bert.pooler(first))


def _of_roberta(classifier: Any, first: Tensor) -> Any:
    return classifier.classifier(first)


def _of_distilbert(classifier: Any, first: Tensor) -> Any:
    return classifier.classifier(classifier.pre_classifier(first[:, 0]).relu())


def _of_modernbert(classifier: Any, pooled: Tensor) -> Any:
    return classifier.classifier(classifier.head(pooled[:, 0]))


HEADS: dict[str, Callable[[Any, Tensor], Any]] = {
    "BertForSequenceClassification": _of_bert,
    "RobertaForSequenceClassification": _of_roberta,
    "XLMRobertaForSequenceClassification": _of_roberta,
    "CamembertForSequenceClassification": _of_roberta,
    "ElectraForSequenceClassification": _of_roberta,
    "MPNetForSequenceClassification": _of_roberta,
    "DistilBertForSequenceClassification": _of_distilbert,
    "ModernBertForSequenceClassification": _of_modernbert,
}
"""From the state that a classifier's head reads, [n, 1, dim], to its logits, by the class of the classifier."""


def fast_logits(classifier: Any, dtype: torch.dtype) -> Logits | None:
    """Return what computes the logits of ``classifier`` in ``dtype``, None if it is not known here.

    The head computes in float32. ``classifier`` must not be trained further.
    """
    head = HEADS.get(type(classifier).__name__)
    of_mean = getattr(classifier.config, "classifier_pooling", "cls") == "mean"  # only ModernBERT leaves the choice
    forward = None if head is None else fast_forward(classifier.base_model, dtype, first_only=not of_mean)
    if head is None or forward is None:
        return None

    def logits(ids: Tensor, mask: Tensor, segments: Tensor | None) -> Tensor:
        states = forward(ids, mask, segments).float()
        if of_mean:
            weights = mask.unsqueeze(-1).float()
            states = (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        found: Tensor = head(classifier, states)
        return found

    return logits
