"""Reranking: the first hits of each query in the order of a ranker, a chunk of queries at a time, kept over a kill.

Does not know where the hits come from, nor which ranker scores them.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retriever.counting import counted
from retriever.data import Corpus
from retriever.durable import append_line, read_lines, sha256_json
from retriever.errors import InputError
from retriever.protocols import FloatArray, IntArray, Progress, TokenRanker, silent

DEPTH = 100
CHUNK_PAIRS = 256
"""Pairs whose texts and tokens are held at once, a few seconds of a small ranker on two cores."""


@dataclass(frozen=True)
class Candidates:
    """Queries, by id and text, with the hits of each: rows of ``corpus`` int32 [Q, D], best first, −1 pads."""

    ids: Sequence[str]
    texts: Sequence[str]
    corpus: Corpus
    hits: IntArray

    def sha256(self) -> str:
        """Return the digest of queries, corpus and hits."""
        hits = hashlib.sha256(np.ascontiguousarray(self.hits).data).hexdigest()
        return sha256_json([list(self.ids), list(self.texts), self.corpus.sha256, self.hits.shape, hits])


@dataclass(frozen=True)
class Reranked:
    """The first ``depth`` hits of each query in the ranker's order, those behind them as they were.

    ``hits`` int32 [Q, D]; ``scores`` float32 [Q, D] fall strictly, −inf in pads: hits that the ranker scored alike, and
    those that it did not read, stand a last digit below the one before. ``seconds`` are those of scoring.
    """

    hits: IntArray
    scores: FloatArray
    depth: int
    pairs: int
    cut_pairs: int
    seconds: float


class Journal:
    """Scores of chunks in an append-only file, so that a long reranking that was killed goes on from there."""

    def __init__(self, path: Path, key: str, warn: Callable[[str], None]) -> None:
        """Take up what ``path`` holds under ``key``; what it holds of anything else is removed, and said."""
        self.path = path
        self._known: dict[int, dict[str, Any]] = {}
        head, *lines = read_lines(path) or [{}]
        if head == {"key": key}:
            self._known = {line["first"]: line for line in lines}
            return
        if head:
            warn(f"{path}: of other hits or of another ranker; it begins anew")
            path.unlink()
        append_line(path, {"key": key})

    @property
    def pairs(self) -> int:
        """Pairs that were scored before."""
        return sum(len(line["scores"]) for line in self._known.values())

    def find(self, first: int) -> dict[str, Any] | None:
        """Return the record of the chunk that begins with query ``first``, None if it was not scored."""
        return self._known.get(first)

    def add(self, record: dict[str, Any]) -> None:
        """Append the record of a chunk."""
        append_line(self.path, record)


def journal_key(ranker: TokenRanker, candidates: Candidates, depth: int) -> str:
    """Return what identifies the scores of a reranking."""
    return sha256_json([ranker.fingerprint, candidates.sha256(), depth, CHUNK_PAIRS])


def rerank(
    ranker: TokenRanker,
    candidates: Candidates,
    depth: int = DEPTH,
    progress: Progress = silent,
    journal: Journal | None = None,
) -> Reranked:
    """Put the first ``depth`` hits of each query in the order of ``ranker``; hits that score alike keep theirs.

    ``progress`` counts the pairs that ``journal`` does not hold yet. Raises InputError for a score that is no number.
    """
    depth = min(depth, candidates.hits.shape[1])
    counts = (candidates.hits[:, :depth] >= 0).sum(axis=1)
    chunks = list(_chunks(len(candidates.ids), depth))
    known = {first: found for first, _ in chunks if journal is not None and (found := journal.find(first))}
    left = sum(int(counts[first:end].sum()) for first, end in chunks if first not in known)
    scores = np.full(candidates.hits.shape, -np.inf, np.float32)
    done = cut = 0
    seconds = 0.0
    if left:
        progress(0, left)
    for first, end in chunks:
        record = known.get(first)
        if record is None:
            record = _scored(ranker, candidates, range(first, end), counts)
            done += len(record["scores"])
            if journal is not None:
                journal.add(record)
            progress(done, left)
        within = np.arange(depth) < counts[first:end, None]
        scores[first:end, :depth][within] = np.array(record["scores"], np.float32)
        cut += record["cut"]
        seconds += record["seconds"]
    hits, ordered = _in_order(candidates.hits, scores, counts)
    return Reranked(hits, ordered, depth, int(counts.sum()), cut, seconds)


def _chunks(queries: int, depth: int) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK_PAIRS // depth)
    yield from ((first, min(first + size, queries)) for first in range(0, queries, size))


def _scored(ranker: TokenRanker, candidates: Candidates, queries: range, counts: IntArray) -> dict[str, Any]:
    """Return the journal's record of ``queries``: the scores of all their pairs, one query after the other."""
    start = time.perf_counter()
    texts = [candidates.texts[query] for query in queries for _ in range(counts[query])]
    rows = [row for query in queries for row in candidates.hits[query, : counts[query]].tolist()]
    pairs, _, cut = ranker.tokenize(texts, candidates.corpus.texts(rows))
    scores = ranker.score_tokens(pairs) if pairs else np.empty(0, np.float32)
    wrong = len(scores) - int(np.isfinite(scores).sum())
    if wrong:
        raise InputError(f"{wrong} of {len(scores)} scores of the ranker are no numbers; it has diverged")
    return {
        "first": queries.start,
        "scores": scores.tolist(),
        "cut": cut,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _in_order(hits: IntArray, scores: FloatArray, counts: IntArray) -> tuple[IntArray, FloatArray]:
    """Return hits and scores in the order of ``scores``, of which the first ``counts`` [Q] of each query are there."""
    order = np.argsort(-scores, axis=1, kind="stable")  # what has no score stays where it is, behind
    hits, scores = np.take_along_axis(hits, order, axis=1), np.take_along_axis(scores, order, axis=1)
    unread = (np.arange(hits.shape[1]) >= counts[:, None]) & (hits >= 0)
    scores[unread] = np.inf
    for place in range(1, hits.shape[1]):
        below = np.nextafter(scores[:, place - 1], np.float32(-np.inf))
        scores[:, place] = np.minimum(scores[:, place], below)
    scores[hits < 0] = -np.inf
    return hits, scores


def reranking_facts(done: Reranked) -> dict[str, Any]:
    """Return depth and cost of a reranking as JSON values."""
    return {
        "depth": done.depth,
        "pairs": done.pairs,
        "cut_pairs": done.cut_pairs,
        "seconds": round(done.seconds, 3),
    }


def warn_of_cut_pairs(done: Reranked, warn: Callable[[str], None]) -> None:
    """Say how many pairs were longer than the ranker reads."""
    if done.cut_pairs:
        of = f"of {done.pairs:,} pairs"
        longer = counted(done.cut_pairs, f"{of} is longer", f"{of} are longer")
        warn(f"{longer} than the ranker reads; the rest is not read")
