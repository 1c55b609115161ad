"""Writes a BEIR folder text by text, out of sight, and shows it whole under its name at the end.

Does not know where the texts come from.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from retriever.durable import appearing
from retriever.errors import InputError

QRELS_HEADER = "query-id\tcorpus-id\tscore\n"


class DatasetWriter:
    """A BEIR folder in the making; ``passages`` and ``queries`` count what is written."""

    def __init__(self, stage: Path, corpus: TextIO, queries: TextIO) -> None:
        """Write passages to ``corpus``, queries to ``queries`` and judgements below ``stage``."""
        self.passages = 0
        self.queries = 0
        self._stage = stage
        self._corpus = corpus
        self._queries = queries

    def add_passage(self, passage_id: str, title: str, text: str, metadata: str = "") -> None:
        """Append a line to corpus.jsonl; ``metadata`` is a JSON object as text, or empty."""
        _write_line(self._corpus, {"_id": passage_id, "title": title, "text": text, **_fields(metadata)})
        self.passages += 1

    def add_query(self, query_id: str, text: str, metadata: str = "") -> None:
        """Append a line to queries.jsonl; ``metadata`` is a JSON object as text, or empty."""
        _write_line(self._queries, {"_id": query_id, "text": text, **_fields(metadata)})
        self.queries += 1

    def write_qrels(self, split: str, judgements: Iterable[tuple[str, str, int]]) -> int:
        """Write (query id, passage id, relevance) as qrels/<split>.tsv; return how many they were."""
        return write_qrels(self._stage / "qrels" / f"{split}.tsv", judgements)


def write_qrels(path: Path, judgements: Iterable[tuple[str, str, int]]) -> int:
    """Write (query id, passage id, relevance) in BEIR's layout; return how many they were."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(QRELS_HEADER)
        for query, passage, relevance in judgements:
            file.write(f"{query}\t{passage}\t{relevance}\n")
            count += 1
    return count


def _fields(metadata: str) -> dict[str, Any]:
    return {"metadata": json.loads(metadata)} if metadata else {}


def _write_line(file: TextIO, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextmanager
def new_dataset(out: Path) -> Iterator[DatasetWriter]:
    """Give a writer; leaving the block publishes what it wrote as ``out``, an exception leaves nothing.

    Raises InputError if ``out`` exists and is not an empty folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists already; remove it or name another folder")
    with appearing(out) as stage:
        (stage / "qrels").mkdir(parents=True)
        with (
            (stage / "corpus.jsonl").open("w", encoding="utf-8", newline="\n") as corpus,
            (stage / "queries.jsonl").open("w", encoding="utf-8", newline="\n") as queries,
        ):
            yield DatasetWriter(stage, corpus, queries)
