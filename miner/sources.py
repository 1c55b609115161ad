"""Where candidates come from: indexes, a positive's neighbourhood, the set before, or shared words; and their union.

Does not know which of them may be negatives.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InputError
from retriever.negatives import NegativeSet
from retriever.protocols import FloatArray, IntArray, Searcher

SOURCES = {"ann": 1, "lookahead": 2, "momentum": 4, "bm25": 8}
"""Bit of each source in a negative set's ``sources``; those of other generations come behind, see ``bits_of``."""
GENERATION = "generation:"
MOST_GENERATIONS = 4
LONGEST_POINTER = 255
"""Bytes: a pointer is a file's name."""
CHUNK_PAIRS = 16_384


@dataclass(frozen=True)
class OpenGeneration:
    """What mining needs of generation ``number`` and of what was there before.

    ``encode`` is its query tower: texts to float32 [n, dim]; ``gather`` gives its passage vectors float32 [n, dim] at
    rows int32 [n]. ``last``: the set mined before, for momentum; ``lexical``: query rows int32 [q] to their BM25
    candidates int32 [q, depth]; ``others``: the same by the name of a source that is another generation, where there is
    one yet; ``pools``: a set whose candidates are scored anew instead of asking any source.
    """

    number: int
    encode: Callable[[Sequence[str]], FloatArray]
    searcher: Searcher
    gather: Callable[[IntArray], FloatArray]
    last: NegativeSet | None = None
    lexical: Callable[[IntArray], IntArray] | None = None
    pools: NegativeSet | None = None
    others: Mapping[str, Callable[[IntArray], IntArray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A chunk of queries: their rows int32 [q], vectors float32 [q, dim], positives int32 [q, P] with scores [q, P]."""

    rows: IntArray
    vectors: FloatArray
    positives: IntArray
    positive_scores: FloatArray


@dataclass(frozen=True)
class Found:
    """Candidates int32 [q, D], each once, best first, −1 pads; scores float32, 0 at pads; bits uint8 of sources."""

    rows: IntArray
    scores: FloatArray
    sources: NDArray[np.uint8]


def generation_of(source: str) -> str | int | None:
    """Return which other generation ``source`` names: a pointer, or n for the n-th before; None if it names none.

    Raises InputError for what is neither.
    """
    if not source.startswith(GENERATION):
        return None
    name = source.removeprefix(GENERATION)
    if len(name.encode()) <= LONGEST_POINTER:
        if name.isidentifier():
            return name
        if name[:1] == "-" and name[1:].isdecimal() and int(name[1:]):
            return int(name[1:])
    raise InputError(
        f'[negatives] sources: {source!r}: write "generation:NAME" for the one that a pointer names, '
        'or "generation:-1" for the one before'
    )


def bits_of(sources: Sequence[str]) -> dict[str, int]:
    """Return the bit of each of ``sources``; generations have the free ones in the order in which they are named.

    Raises InputError naming a source that there is not, or more generations than there are bits.
    """
    bits: dict[str, int] = {}
    free = [max(SOURCES.values()) << place for place in range(1, MOST_GENERATIONS + 1)]
    for name in sources:
        if name not in SOURCES and generation_of(name) is None:
            known = f'{", ".join(SOURCES)}, "generation:NAME", "generation:-1"'
            raise InputError(f"[negatives] sources = {list(sources)}: choose from {known}")
        if name not in SOURCES and not free:
            raise InputError(f"[negatives] sources = {list(sources)}: at most {MOST_GENERATIONS} other generations")
        bits[name] = SOURCES[name] if name in SOURCES else free.pop(0)
    return bits


def find(asked: Asked, generation: OpenGeneration, sources: Sequence[str], depth: int) -> Found:
    """Return the union of ``depth`` candidates a query from each of ``sources``: D = depth × sources.

    A candidate of several sources has the bits of all. Scores are exact dot products of the generation's vectors; those
    of "ann" alone are the index's. Raises InputError if the corpus has fewer passages than ``depth``.
    """
    if generation.pools is not None:
        pools = generation.pools
        return _ranked(asked, generation, pools.passages[asked.rows], pools.sources[asked.rows])
    if list(sources) == ["ann"]:
        rows, scores = ann_candidates(generation.searcher, asked.vectors, depth)
        return Found(rows, scores, np.where(rows >= 0, np.uint8(SOURCES["ann"]), np.uint8(0)))
    found = [_candidates(name, asked, generation, depth) for name in sources]
    rows, bits = union(found, [*bits_of(sources).values()])
    return _ranked(asked, generation, rows, bits)


def ann_candidates(searcher: Searcher, query_vectors: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
    """Return the nearest rows int32 [q, depth], best first, −1 pads, and their scores float32, 0 at pads.

    This is ANCE's source (Xiong et al., ICLR 2021). Raises InputError if the corpus has fewer passages than
    ``depth``.
    """
    if depth > searcher.rows:
        raise InputError(
            f"[negatives] depth = {depth} is larger than the corpus ({searcher.rows} passages); "
            f"set it to {searcher.rows} or less"
        )
    rows, scores = searcher.search(query_vectors, depth)
    # Indexes mark pads with −inf or the lowest float, which no sum of scores would survive.
    return rows, np.where(rows >= 0, scores, np.float32(0))


def _ann(asked: Asked, generation: OpenGeneration, depth: int) -> IntArray:
    return ann_candidates(generation.searcher, asked.vectors, depth)[0]


def _lookahead(asked: Asked, generation: OpenGeneration, depth: int) -> IntArray:
    """Return the passages nearest to a positive of the query: of several, the one that scores best for it.

    ANCE-Tele's lookahead negatives (Sun et al., EMNLP 2022): where training is about to move the query to.
    """
    real = asked.positives >= 0
    best = np.where(real, asked.positive_scores, -np.inf).argmax(axis=1)
    positives = np.take_along_axis(asked.positives, best[:, None], axis=1)[:, 0]
    found = np.full((len(asked.rows), depth), -1, np.int32)
    known = positives >= 0
    if known.any():
        found[known], _ = ann_candidates(generation.searcher, generation.gather(positives[known]), depth)
    return found


def _momentum(asked: Asked, generation: OpenGeneration, depth: int) -> IntArray:
    """Return the best candidates of the set before that could be drawn from it; none before there is one.

    ANCE-Tele's momentum negatives: what training has just pushed away is not forgotten at once.
    """
    found = np.full((len(asked.rows), depth), -1, np.int32)
    if generation.last is not None:
        before = generation.last.lines(asked.rows)
        drawn = before.may_be_drawn
        order = np.argsort(~drawn, axis=1, kind="stable")[:, :depth]
        kept = np.take_along_axis(np.where(drawn, before.passages, np.int32(-1)), order, axis=1)
        found[:, : kept.shape[1]] = kept
    return found


def _bm25(asked: Asked, generation: OpenGeneration, depth: int) -> IntArray:
    assert generation.lexical is not None  # whoever opens a generation for this source opens that, too
    return generation.lexical(asked.rows)


CANDIDATES = {"ann": _ann, "lookahead": _lookahead, "momentum": _momentum, "bm25": _bm25}


def _candidates(name: str, asked: Asked, generation: OpenGeneration, depth: int) -> IntArray:
    """Return the candidates int32 [q, depth] of a source; none of another generation that there is not yet."""
    if name in CANDIDATES:
        return CANDIDATES[name](asked, generation, depth)
    if name not in generation.others:
        return np.full((len(asked.rows), depth), -1, np.int32)
    return generation.others[name](asked.rows)


def union(found: Sequence[IntArray], bits: Sequence[int]) -> tuple[IntArray, NDArray[np.uint8]]:
    """Return the rows int32 [q, D] of all ``found`` [q, n], each once, −1 pads behind, and uint8 [q, D] of their bits.

    D is the sum of the widths; ``bits`` names the sources of ``found``. Rows come in ascending order.
    """
    rows = np.concatenate(found, axis=1)
    of_row = np.concatenate([np.full(one.shape, bit, np.uint8) for one, bit in zip(found, bits, strict=True)], axis=1)
    order = np.argsort(rows, axis=1, kind="stable")
    rows, of_row = np.take_along_axis(rows, order, axis=1), np.take_along_axis(of_row, order, axis=1)
    first = np.concatenate([np.ones((len(rows), 1), np.bool_), rows[:, 1:] != rows[:, :-1]], axis=1)
    # All bits of a run of equal rows gather in its first place.
    starts = np.flatnonzero(first)
    gathered = np.zeros(rows.shape, np.uint8)
    gathered.ravel()[starts] = np.bitwise_or.reduceat(of_row.ravel(), starts) if len(starts) else 0
    kept = first & (rows >= 0)
    front = np.argsort(~kept, axis=1, kind="stable")
    return (
        np.take_along_axis(np.where(kept, rows, np.int32(-1)), front, axis=1),
        np.take_along_axis(np.where(kept, gathered, np.uint8(0)), front, axis=1),
    )


def _ranked(asked: Asked, generation: OpenGeneration, rows: IntArray, bits: NDArray[np.uint8]) -> Found:
    """Score ``rows`` [q, D] by the generation's vectors and order them best first; equal ones keep their order."""
    scores = exact_scores(asked.vectors, rows, generation.gather)
    order = np.argsort(np.where(rows >= 0, -scores, np.inf), axis=1, kind="stable")
    rows, bits = np.take_along_axis(rows, order, axis=1), np.take_along_axis(bits, order, axis=1)
    return Found(rows, np.take_along_axis(scores, order, axis=1), bits)


def exact_scores(
    query_vectors: FloatArray, rows: IntArray, gather: Callable[[IntArray], FloatArray]
) -> NDArray[np.float32]:
    """Return exact dot products float32 [q, n] of queries float32 [q, dim] and passages ``rows`` [q, n], 0 at pads."""
    scores = np.zeros(rows.shape, np.float32)
    lines, columns = np.nonzero(rows >= 0)
    for start in range(0, len(lines), CHUNK_PAIRS):
        line, column = lines[start : start + CHUNK_PAIRS], columns[start : start + CHUNK_PAIRS]
        scores[line, column] = np.einsum("nd,nd->n", query_vectors[line], gather(rows[line, column]))
    return scores
