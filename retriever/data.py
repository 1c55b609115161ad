"""The nouns of retrieval: a memory-mapped corpus whose row is its FAISS id, and the judged queries of one split.

Does not know file formats of data sets, encoders or indexes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retriever.artifacts import Artifact
from retriever.errors import CorruptError
from retriever.protocols import IntArray

BLOCK_ROWS = 4096
"""Rows of an Arrow batch, of an embedding shard and of one unit of encoding work."""


def passage_text(title: str, text: str) -> str:
    """Return what an encoder reads of a passage: title, space, text, stripped."""
    return f"{title} {text}".strip()


def hash64(text: str) -> int:
    """Return a 64-bit BLAKE2b digest of ``text``."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def duplicate_hash(text: str) -> int:
    """Return a 64-bit digest that texts share if they differ in case and white space alone."""
    return hash64(" ".join(text.lower().split()))


class Corpus:
    """The passages of one corpus artifact, read in place from its Arrow file: memory does not grow with the corpus."""

    def __init__(self, artifact: Artifact) -> None:
        """Map the files of ``artifact``. Raises CorruptError if one is unreadable or they disagree in their rows."""
        self.number = artifact.number
        self.sha256 = artifact.sha256("passages.arrow")
        path = artifact.path / "passages.arrow"
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self.text_hash: NDArray[np.uint64] = np.load(artifact.path / "text_hash.npy", mmap_mode="r")
            self._id_hash: NDArray[np.uint64] = np.load(artifact.path / "id_hash.npy", mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise CorruptError(f"{artifact.path}: a file is unreadable ({error}); ingest the data again") from error
        if not self._arrow_rows() == len(self.text_hash) == len(self._id_hash) == artifact.facts["rows"]:
            raise CorruptError(f"{artifact.path}: the files differ in their rows; ingest the data again")

    def _arrow_rows(self) -> int:
        """Count the rows on the promise that every block but the last is full."""
        blocks: int = self._reader.num_record_batches
        rows: int = (blocks - 1) * BLOCK_ROWS + self._reader.get_batch(blocks - 1).num_rows if blocks else 0
        return rows

    def __len__(self) -> int:
        return len(self.text_hash)

    @cached_property
    def _rows_by_id_hash(self) -> NDArray[np.int64]:
        return np.argsort(self._id_hash, kind="stable")

    def _cell(self, column: str, row: int) -> str:
        block, offset = divmod(int(row), BLOCK_ROWS)
        value: str = self._reader.get_batch(block).column(column)[offset].as_py()
        return value

    def id(self, row: int) -> str:
        """Return the passage id at ``row``."""
        return self._cell("id", row)

    def text(self, row: int) -> str:
        """Return title and text of the passage at ``row`` as an encoder reads it."""
        return passage_text(self._cell("title", row), self._cell("text", row))

    def ids(self, rows: Sequence[int] | IntArray) -> list[str]:
        """Return the passage ids at ``rows``."""
        return [self.id(int(row)) for row in rows]

    def texts(self, rows: Sequence[int] | IntArray | range) -> list[str]:
        """Return the passages at ``rows`` as an encoder reads them."""
        return [self.text(int(row)) for row in rows]

    def blocks(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (first row, texts) of each fixed block of 4,096 rows."""
        for block in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(block)
            titles, texts = batch.column("title").to_pylist(), batch.column("text").to_pylist()
            yield block * BLOCK_ROWS, [passage_text(a, b) for a, b in zip(titles, texts, strict=True)]

    @cached_property
    def block_sha256(self) -> list[str]:
        """Digest of the titles and texts of each block: the same wherever a corpus has the same passages in a block."""
        batches = map(self._reader.get_batch, range(self._reader.num_record_batches))
        return [_texts_sha256(batch) for batch in batches]

    def metadata(self) -> Iterator[dict[str, Any]]:
        """Yield the fields of each passage beside title and text, in row order: the "metadata" of its line."""
        for block in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(block)
            if "metadata" not in batch.schema.names:  # ingested before fields were kept
                yield from ({} for _ in range(batch.num_rows))
                continue
            for written in batch.column("metadata").to_pylist():
                yield json.loads(written) if written else {}

    def row_of(self, passage_id: str) -> int | None:
        """Return the row of ``passage_id``, None if the corpus has no such passage."""
        wanted = np.uint64(hash64(passage_id))
        order = self._rows_by_id_hash
        at = int(np.searchsorted(self._id_hash, wanted, sorter=order))
        while at < len(order) and self._id_hash[order[at]] == wanted:
            if self.id(int(order[at])) == passage_id:
                return int(order[at])
            at += 1
        return None


def _texts_sha256(batch: pa.RecordBatch) -> str:
    """Digest the columns as Arrow has them, ends of texts and their bytes, without making a string of each."""
    digest = hashlib.sha256()
    for name in ("title", "text"):
        column = batch.column(name)
        _, ends, content = column.buffers()
        ends = np.frombuffer(ends, np.int32)[column.offset :][: len(column) + 1]
        digest.update(ends - ends[0])
        digest.update(b"" if content is None else memoryview(content)[ends[0] : ends[-1]])
    return digest.hexdigest()


@dataclass(frozen=True)
class QuerySet:
    """The judged queries of one split; a query row is a position in ``ids``.

    ``judgements[i]`` maps a corpus row to its relevance for query i: above 0 is relevant. ``metadata[i]`` is the JSON
    object of its line as text, empty where it has none; without any ``metadata`` is empty.
    """

    split: str
    ids: Sequence[str]
    texts: Sequence[str]
    judgements: Sequence[Mapping[int, int]]
    metadata: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def positives(self, query_row: int) -> IntArray:
        """Return the rows int32 [p] judged relevant for a query, ascending."""
        rows = sorted(row for row, relevance in self.judgements[query_row].items() if relevance > 0)
        return np.array(rows, np.int32)

    def known(self, query_row: int) -> IntArray:
        """Return the rows int32 [p], ascending, judged relevant for the text of a query, under whatever id."""
        alike = self._alike.get(duplicate_hash(self.texts[query_row]))
        if alike is None:
            return self.positives(query_row)
        return np.unique(np.concatenate([self.positives(row) for row in alike]))

    @cached_property
    def _alike(self) -> dict[int, list[int]]:
        """The rows of each text that several queries have, by its hash."""
        rows: dict[int, list[int]] = {}
        for row, text in enumerate(self.texts):
            rows.setdefault(duplicate_hash(text), []).append(row)
        return {text: alike for text, alike in rows.items() if len(alike) > 1}

    @cached_property
    def sha256(self) -> str:
        """Digest of the queries and their judgements; figures do not depend on metadata."""
        digest = hashlib.sha256()
        for name, text, judged in zip(self.ids, self.texts, self.judgements, strict=True):
            digest.update(repr((name, text, sorted(judged.items()))).encode())
        return digest.hexdigest()

    def subset(self, rows: Sequence[int] | IntArray) -> "QuerySet":
        """Return the queries at ``rows``, in that order."""
        picked = [int(row) for row in rows]
        return QuerySet(
            self.split,
            [self.ids[i] for i in picked],
            [self.texts[i] for i in picked],
            [self.judgements[i] for i in picked],
            [self.metadata[i] for i in picked] if self.metadata else (),
        )
