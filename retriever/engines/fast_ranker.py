"""Sequence classifiers of the BERT family by the fast passes, the last layer for the token that the head reads.

Does not know texts, nor what its logits mean.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retriever.device import on_device
from retriever.engines.fast_forward import fast_forward
from retriever.engines.packed_attention import packed_attention

Logits = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(ids, mask, segments or None), int64 [n, length] on the CPU, padded on the right → float32 logits [n, labels]."""


def _of_bert(classifier: Any, first: Tensor) -> Any:
    return classifier.classifier(classifier.dropout(classifier.bert.pooler(first)))


def _of_roberta(classifier: Any, first: Tensor) -> Any:
    return classifier.classifier(first)


def _of_distilbert(classifier: Any, first: Tensor) -> Any:
    return classifier.classifier(classifier.dropout(classifier.pre_classifier(first[:, 0]).relu()))


def _of_modernbert(classifier: Any, pooled: Tensor) -> Any:
    return classifier.classifier(classifier.drop(classifier.head(pooled[:, 0])))


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
"""From the states that a classifier's head reads the first of, [n, length, dim], to logits, by the classifier's class.

Their dropout is that of the classifier, so none where it is not trained.
"""


def of_mean(classifier: Any) -> bool:
    """Tell whether the head reads the mean of all tokens; only ModernBERT leaves the choice."""
    return getattr(classifier.config, "classifier_pooling", "cls") == "mean"


def head_logits(classifier: Any, states: Tensor, mask: Tensor) -> Tensor:
    """Return the logits float32 [n, labels] of last hidden states float32 [n, length, dim] and mask [n, length].

    ``classifier`` must be of a class in HEADS.
    """
    if of_mean(classifier):
        weights = mask.unsqueeze(-1).float()
        states = (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    found: Tensor = HEADS[type(classifier).__name__](classifier, states)
    return found


def fast_logits(classifier: Any, dtype: torch.dtype) -> Logits | None:
    """Return what computes the logits of ``classifier`` in ``dtype``, None if it is not known here.

    The head computes in float32. ``classifier`` must not be trained further.
    """
    if type(classifier).__name__ not in HEADS:
        return None
    forward = fast_forward(
        classifier.base_model,
        dtype,
        first_only=not of_mean(classifier),
        attention=packed_attention(classifier.device, dtype),
    )
    if forward is None:
        return None

    def logits(ids: Tensor, mask: Tensor, segments: Tensor | None) -> Tensor:
        states = forward(ids, mask, segments).float()
        return head_logits(classifier, states, on_device(mask, states.device))

    return logits
