"""What a generation keeps of its dev queries, so that two generations can be compared query by query.

Does not know how a figure is computed, nor what a comparison decides.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retriever.artifacts import Artifact
from retriever.data import Corpus, QuerySet
from retriever.errors import CorruptError
from retriever.protocols import FloatArray, IntArray

QUERIES, FIGURES, DIFFERENCES = "dev/queries.json", "dev/ndcg10.npy", "dev/differences.npy"
RERANKED, RERANKED_DIFFERENCES = "dev/reranked.npy", "dev/reranked_differences.npy"


@dataclass(frozen=True)
class DevRecord:
    """The dev queries of one generation; ``figures`` float32 [Q] are their nDCG@10.

    ``judgements[i]`` maps a passage id to its relevance for query i: ids outlast a corpus, rows do not. ``reranked``
    float32 [Q] are the figures after reranking, nan where that was not measured; None without a ranker. ``metadata`` is
    as a QuerySet has it.
    """

    split: str
    ids: Sequence[str]
    texts: Sequence[str]
    judgements: Sequence[Mapping[str, int]]
    figures: FloatArray
    reranked: FloatArray | None = None
    metadata: Sequence[str] = ()

    @classmethod
    def of(
        cls, queries: QuerySet, corpus: Corpus, figures: FloatArray, reranked: FloatArray | None = None
    ) -> "DevRecord":
        """Return the record of ``queries``, judged over ``corpus``."""
        judged = [{corpus.id(row): grade for row, grade in rows.items()} for rows in queries.judgements]
        of_queries = np.asarray(figures, np.float32)
        texts = list(queries.texts)
        return cls(queries.split, list(queries.ids), texts, judged, of_queries, reranked, list(queries.metadata))

    def write(self, folder: Path) -> None:
        """Write the record below ``folder``, that of a generation in the making."""
        (folder / "dev").mkdir()
        queries = {"split": self.split, "ids": self.ids, "texts": self.texts, "judgements": self.judgements}
        if self.metadata:
            queries["metadata"] = self.metadata
        (folder / QUERIES).write_text(json.dumps(queries, ensure_ascii=False), encoding="utf-8")
        np.save(folder / FIGURES, self.figures)
        if self.reranked is not None:
            np.save(folder / RERANKED, self.reranked)

    @classmethod
    def read(cls, folder: Path) -> "DevRecord":
        """Read what ``write`` wrote below ``folder``. Raises CorruptError."""
        try:
            queries = json.loads((folder / QUERIES).read_text(encoding="utf-8"))
            figures = np.load(folder / FIGURES)
            reranked = np.load(folder / RERANKED) if (folder / RERANKED).exists() else None
            ids, texts, judgements = (queries[name] for name in ("ids", "texts", "judgements"))
            metadata = queries.get("metadata", ())
            record = cls(queries["split"], ids, texts, judgements, figures, reranked, metadata)
            optional = [part for part in (reranked, metadata or None) if part is not None]
            if len({len(part) for part in (ids, texts, judgements, figures, *optional)}) > 1:
                raise ValueError("the parts differ in their number of queries")
        except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{folder / 'dev'}: unreadable ({error}); build it again") from error
        return record

    def query_set(self, corpus: Corpus, warn: Callable[[str], None]) -> QuerySet:
        """Return the queries with their judgements over ``corpus``; those of passages that it lacks are counted out."""
        rows = {name: corpus.row_of(name) for judged in self.judgements for name in judged}
        gone = [name for name, row in rows.items() if row is None]
        if gone:
            warn(f"{len(gone)} judged passages of the dev queries are not in corpus {corpus.number}: {gone[0]} …")
        judged = [{rows[name]: grade for name, grade in names.items()} for names in self.judgements]
        known = [{row: grade for row, grade in grades.items() if row is not None} for grades in judged]
        return QuerySet(self.split, self.ids, self.texts, known, self.metadata)


def read_record(generation: Artifact) -> DevRecord | None:
    """Return what ``generation`` keeps of its dev queries, None if it has none. Raises CorruptError."""
    if QUERIES not in generation.manifest["files"]:
        return None
    return DevRecord.read(generation.path)


def shared_queries(new: DevRecord, old: DevRecord) -> tuple[IntArray, IntArray]:
    """Return the places int32 [n] in ``new`` and in ``old`` of the queries with the same id, text and judgements."""
    places = {name: place for place, name in enumerate(old.ids)}
    pairs = [
        (row, place)
        for row, name in enumerate(new.ids)
        if (place := places.get(name)) is not None
        and new.texts[row] == old.texts[place]
        and new.judgements[row] == old.judgements[place]
    ]
    matrix = np.array(pairs, np.int32).reshape(-1, 2)
    return matrix[:, 0], matrix[:, 1]
