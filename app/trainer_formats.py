"""Queries with their negatives as the JSON lines that other trainers read.

Does not know where the negatives come from, nor where the lines go.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retriever.data import Corpus, QuerySet

Record = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A query's row among its queries, the corpus rows of its positives and negatives, and a teacher's scores of both.

    The scores are written where the format has a place for them.
    """

    query: int
    positives: Sequence[int]
    negatives: Sequence[int]
    positive_scores: Sequence[float] | None = None
    negative_scores: Sequence[float] | None = None


def _sentence_transformers(corpus: Corpus, queries: QuerySet, example: Example, count: int) -> list[Record]:
    """Return a line a positive: anchor, positive, negative_1 … negative_n. Columns must agree, so all n or no line.

    With a teacher also ``label``: its scores of the positive and of each negative, as MarginMSELoss and
    DistillKLDivLoss read them.
    """
    if len(example.negatives) < count:
        return []
    columns = {f"negative_{place}": text for place, text in enumerate(corpus.texts(example.negatives), 1)}
    anchor, records = queries.texts[example.query], []
    for place, text in enumerate(corpus.texts(example.positives)):
        record: Record = {"anchor": anchor, "positive": text, **columns}
        if example.positive_scores is not None and example.negative_scores is not None:
            record["label"] = [example.positive_scores[place], *example.negative_scores]
        records.append(record)
    return records


def _flag_embedding(corpus: Corpus, queries: QuerySet, example: Example, count: int) -> list[Record]:
    """Return a line; with a teacher also pos_scores and neg_scores, which knowledge_distillation reads."""
    texts = {"pos": corpus.texts(example.positives), "neg": corpus.texts(example.negatives)}
    record: Record = {"query": queries.texts[example.query], **texts}
    if example.positive_scores is not None and example.negative_scores is not None:
        record |= {"pos_scores": list(example.positive_scores), "neg_scores": list(example.negative_scores)}
    return [record]


def _tevatron(corpus: Corpus, queries: QuerySet, example: Example, count: int) -> list[Record]:
    def passages(rows: Sequence[int]) -> list[dict[str, str]]:
        return [{"docid": corpus.id(row), "title": "", "text": corpus.text(row)} for row in rows]

    known = {"query_id": queries.ids[example.query], "query": queries.texts[example.query]}
    both = {"positive_passages": passages(example.positives), "negative_passages": passages(example.negatives)}
    return [{**known, **both}]


FORMATS: dict[str, Callable[[Corpus, QuerySet, Example, int], list[Record]]] = {
    "sentence-transformers": _sentence_transformers,
    "flagembedding": _flag_embedding,
    "tevatron": _tevatron,
}
"""The lines of an example, of which ``count`` negatives were wanted."""


def line(record: Record) -> str:
    """Return ``record`` as a JSON line."""
    return json.dumps(record, ensure_ascii=False) + "\n"
