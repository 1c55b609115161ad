"""Clean labels (RLHN): which negatives are suspect, and what a cascade of judges makes of them.

Thakur et al., "Fixing Data That Hurts Performance: Cascading LLMs to Relabel Hard Negatives" (2025). Does not know how
a judge comes to its answers, nor files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miner.filters import lowest_positive
from miner.judgements import Entry, Ledger
from retriever.data import QuerySet, hash64
from retriever.errors import InputError
from retriever.negatives import MAY_BE_DRAWN, NegativeSet, Verdict
from retriever.protocols import BoolArray, IntArray, Judge, Judgement, PairText, Progress

CHUNK_QUERIES = 1024


@dataclass(frozen=True)
class SuspectConfig:
    """[suspects]: the candidates to judge, of those that training may draw; each key that is written narrows them.

    ``top``: the best so many of each query. ``margin`` m: those that score at least s⁺ − m·|s⁺|, s⁺ the query's lowest
    positive. ``min_score``: those that score at least that. ``most``: so many in all, those nearest to their s⁺ (or
    farthest above it) first. ``filtered``: also what a filter refused, for it may be a positive all the same.
    """

    top: int | None = 10
    margin: float | None = None
    min_score: float | None = None
    most: int | None = None
    filtered: bool = False

    def __post_init__(self) -> None:
        """Raise InputError naming the key of a value that chooses nothing or is no number."""
        for key in ("top", "most"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"[suspects] {key} = {value}: write 1 or more")
        for key in ("margin", "min_score"):
            value = getattr(self, key)
            if value is not None and not math.isfinite(value):
                raise InputError(f"[suspects] {key} = {value}: write a finite number, or leave the key out")


@dataclass(frozen=True)
class Suspects:
    """Pairs to judge, most suspect first: rows ``queries``, ``passages`` int32 [n], ``gaps`` float64 [n], s − s⁺."""

    queries: IntArray
    passages: IntArray
    gaps: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.queries)


def find_suspects(negatives: NegativeSet, queries: QuerySet, config: SuspectConfig) -> Suspects:
    """Return the suspects of a set whose rows are those of ``queries``; what the qrels judged themselves is none."""
    parts = []
    for start in range(0, len(negatives.queries), CHUNK_QUERIES):
        chunk = slice(start, start + CHUNK_QUERIES)
        lines, columns, gaps = _of_chunk(negatives, chunk, queries, config)
        parts.append((negatives.queries[chunk][lines], negatives.passages[chunk][lines, columns], gaps))
    rows, passages, gaps = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((passages, rows, -gaps))[: config.most]
    return Suspects(rows[order], passages[order], gaps[order])


def _of_chunk(
    negatives: NegativeSet, chunk: slice, queries: QuerySet, config: SuspectConfig
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return lines and columns of the suspects of some queries, and how far each is above the query's s⁺."""
    passages, scores = negatives.passages[chunk], negatives.scores[chunk].astype(np.float64)
    lowest = lowest_positive(negatives.positives[chunk], negatives.positive_scores[chunk])[:, None]
    may_be = (*MAY_BE_DRAWN, Verdict.FILTERED) if config.filtered else MAY_BE_DRAWN
    suspect = np.isin(negatives.verdicts[chunk], may_be) & (passages >= 0)
    suspect &= ~_judged_by_qrels(passages, negatives.queries[chunk], queries)
    if config.margin is not None:
        suspect &= scores >= lowest - config.margin * np.abs(lowest)
    if config.min_score is not None:
        suspect &= scores >= config.min_score
    if config.top is not None:  # candidates stand best first
        suspect &= suspect.cumsum(axis=1) <= config.top
    lines, columns = np.nonzero(suspect)
    return lines, columns, (scores - lowest)[lines, columns]


def _judged_by_qrels(passages: IntArray, query_rows: IntArray, queries: QuerySet) -> BoolArray:
    found = np.zeros(passages.shape, np.bool_)
    for line, row in enumerate(query_rows.tolist()):
        judged = queries.judgements[row]
        if len(judged) > len(queries.positives(row)):  # positives are no suspects in any case
            found[line] = np.isin(passages[line], np.fromiter(judged, np.int32))
    return found


def ask(
    judges: Sequence[Judge],
    pairs: Sequence[PairText],
    ledger: Ledger,
    check: float,
    progress: Callable[[Judge], Progress],
) -> list[dict[int, Judgement]]:
    """Have ``pairs`` judged, by each judge those that all before it found relevant; return each judge's by place.

    What the ``ledger`` knows is not asked again, what is answered goes into it at once. ``check``: the share of what
    the judge before found irrelevant that the next is asked about all the same, to measure agreement; it changes no
    outcome.
    """
    given: list[dict[int, Judgement]] = []
    places, checked = [*range(len(pairs))], list[int]()
    for judge in judges:
        given.append(_ask_one(judge, pairs, [*places, *checked], ledger, progress(judge)))
        refused = [place for place in places if (said := given[-1].get(place)) and said.relevant is False]
        checked = [place for place in refused if _draw(pairs[place].query_id, pairs[place].passage_id) < check]
        places = [place for place in places if (said := given[-1].get(place)) and said.relevant]
    return given


def _ask_one(
    judge: Judge,
    pairs: Sequence[PairText],
    places: Sequence[int],
    ledger: Ledger,
    progress: Progress,
) -> dict[int, Judgement]:
    found = {place: said for place in places if (said := ledger.known(judge, pairs[place])) is not None}
    fresh = [place for place in places if place not in found]
    done = 0

    def answered(answers: Mapping[int, Judgement]) -> None:
        nonlocal done
        ledger.add(judge, [(pairs[fresh[n]], judgement) for n, judgement in answers.items()])
        found.update({fresh[n]: judgement for n, judgement in answers.items()})
        done += len(answers)
        progress(done, len(fresh))

    if fresh:
        judge.judge([pairs[place] for place in fresh], answered)
    return found


def _draw(query_id: str, passage_id: str) -> float:
    """Return a number in [0, 1) that the pair's ids alone decide."""
    return hash64(f"check\0{query_id}\0{passage_id}") / 2**64


def stands_for(pair: tuple[str, str], before: Sequence[bool | None], check: float) -> float:
    """Return for how many pairs one of (query id, passage id) stands among those that ``ask`` gives to a judge.

    ``before``: what the judges before it said, None where one said nothing. 0: it is not asked about that pair.
    """
    *flagged, last = before
    if not all(flagged) or last is None:
        return 0.0
    return 1.0 if last else 1 / check if _draw(*pair) < check else 0.0


@dataclass(frozen=True)
class Outcome:
    """What a cascade made of a pair: relevant by all its judges, or irrelevant by the last that was asked.

    ``entries`` are their judgements, in the cascade's order.
    """

    relevant: bool
    entries: tuple[Entry, ...]


def outcomes(judges: Sequence[Judge], ledger: Ledger) -> dict[tuple[str, str], Outcome]:
    """Return what ``judges`` made of each pair of (query id, passage id) in the ledger, in its order.

    A pair of which one of them failed, or was not asked although it should be, has none: a failure makes no label.
    """
    by_pair: dict[tuple[str, str], dict[str, Entry]] = {}
    for entry in ledger:
        by_pair.setdefault((entry.query_id, entry.passage_id), {})[entry.fingerprint] = entry
    found = {}
    for pair, entries in by_pair.items():
        chain = [entries.get(judge.fingerprint) for judge in judges]
        asked: list[Entry] = []
        while len(asked) < len(chain) and (not asked or asked[-1].judgement.relevant):
            said = chain[len(asked)]
            if said is None or said.judgement.relevant is None or (asked and said.texts != asked[0].texts):
                break
            asked.append(said)
        else:
            found[pair] = Outcome(bool(asked[-1].judgement.relevant), tuple(asked))
    return found
