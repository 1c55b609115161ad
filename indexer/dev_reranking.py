"""The dev queries of a generation with their first hits in the order of its ranker, so that the gate can judge that.

Does not know which ranker it is, nor what is decided.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.evaluation import Evaluation
from indexer.gate import METRIC
from retriever.data import Corpus, QuerySet
from retriever.errors import StoreError
from retriever.metrics import per_query
from retriever.protocols import FloatArray, IntArray, Progress, Ranker

MOST_PAIRS = 2000
"""Pairs that a ranker reads for the gate at most, over a minute of MiniLM on two cores (docs/ranking-speed.md)."""


@dataclass(frozen=True)
class RerankedDev:
    """``figures`` float32 [Q] are the dev queries' nDCG@10 after reranking, nan of those outside the sample."""

    figures: FloatArray
    facts: dict[str, Any]


def rerank_dev(
    ranker: Ranker,
    dev: QuerySet,
    corpus: Corpus,
    evaluation: Evaluation,
    depth: int,
    seed: int,
    progress: Progress,
) -> RerankedDev:
    """Put the first ``depth`` hits of dev queries in the order of ``ranker``, as many queries as ``MOST_PAIRS`` allow.

    Hits that score alike keep their order, those behind ``depth`` stay behind. ``progress`` counts pairs. The facts
    tell ``depth``, ``queries``, ``pairs`` and the mean nDCG@10 of these queries after reranking and ``before``. Raises
    StoreError for a score that is not finite.
    """
    places = sample(dev.ids, MOST_PAIRS // depth, seed)
    hits = evaluation.hits[places]
    first = hits[:, :depth]
    lines, columns = np.nonzero(first >= 0)
    asked = [dev.texts[places[line]] for line in lines]
    scores = np.full(first.shape, -np.inf, np.float32)
    scores[lines, columns] = found = ranker.score(asked, corpus.texts(first[lines, columns]), progress)
    wrong = len(found) - int(np.isfinite(found).sum())
    if wrong:
        raise StoreError(f"{wrong} of {len(found)} scores of the ranker are not finite; it has diverged")
    order = np.argsort(-scores, axis=1, kind="stable")
    reranked = np.concatenate([np.take_along_axis(first, order, axis=1), hits[:, depth:]], axis=1)
    figures = np.full(len(dev), np.nan, np.float32)
    figures[places] = per_query(reranked, [dev.judgements[place] for place in places], [METRIC])[METRIC]
    facts = {
        "depth": depth,
        "queries": len(places),
        "pairs": len(found),
        METRIC: float(figures[places].mean()),
        "before": float(evaluation.per_query[METRIC][places].mean()),
    }
    return RerankedDev(figures, facts)


def sample(ids: Sequence[str], most: int, seed: int) -> IntArray:
    """Return the places int32 [n], ascending, of at most ``most`` queries.

    Each id has its own lot, so that two sets that share queries share them in their samples, too.
    """
    lots = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in ids]
    drawn = sorted(range(len(ids)), key=lots.__getitem__)[:most]
    return np.array(sorted(drawn), np.int32)
