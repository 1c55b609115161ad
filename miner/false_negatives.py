"""Likely false negatives by a vote: how many generations and models put an unlabelled candidate above the positive.

Does not know where the scores come from, nor what is done with the suspects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.negatives import NegativeSet, Verdict
from retriever.protocols import BoolArray, FloatArray, IntArray

UNLABELLED = (Verdict.ELIGIBLE, Verdict.FILTERED)
"""Verdicts of candidates that nobody judged; a filter may have refused them for being too good."""

ALIKE = 1e-5
"""How far apart two float32 scores of one pair by one model may be."""

Keys = NDArray[np.int64]
"""Pairs as query row × passages + passage row, ascending."""


@dataclass(frozen=True)
class Voter:
    """One generation's word on the pairs of its pools.

    ``keys`` of all candidates that it speaks of · ``scores`` float32 [n] and ``unlabelled`` bool [n] of them ·
    ``positive`` float32 [Q], the highest of each query's positives, nan where it says nothing of the query · ``floor``
    float32 [Q]: what is no candidate scores at most this, inf where nothing is known of the others.
    """

    name: str
    keys: Keys
    scores: FloatArray
    unlabelled: BoolArray
    positive: FloatArray
    floor: FloatArray


@dataclass(frozen=True)
class Ground:
    """Where keys live: of Q ``queries`` over ``passages`` rows; ``rows`` int32 [q] are a pool's queries among the Q."""

    queries: int
    passages: int
    rows: IntArray


def pool_voter(name: str, pool: NegativeSet, speaks: BoolArray, nearest: int, ground: Ground) -> Voter:
    """Return the voter of a negative set of q queries; ``speaks`` bool [q]: of which of them.

    ``nearest`` is the bit of the source that searched the whole corpus by the same scores, 0 where none did.
    """
    known = pool.positives >= 0
    highest = np.where(known, pool.positive_scores, -np.inf).max(axis=1, initial=-np.inf)
    real = (pool.passages >= 0) & speaks[:, None]
    lowest = np.where(real & ((pool.sources & nearest) > 0), pool.scores, np.inf).min(axis=1, initial=np.inf)
    positive, floor = np.full(ground.queries, np.nan, np.float32), np.full(ground.queries, np.inf, np.float32)
    told = speaks & known.any(axis=1)
    positive[ground.rows[told]], floor[ground.rows[told]] = highest[told], lowest[told]
    query, _ = np.nonzero(real)
    keys = ground.rows[query].astype(np.int64) * ground.passages + pool.passages[real]
    order = np.argsort(keys, kind="stable")
    return Voter(
        name,
        keys[order],
        np.asarray(pool.scores[real], np.float32)[order],
        np.isin(pool.verdicts[real], UNLABELLED)[order],
        positive,
        floor,
    )


def suspects(voters: Sequence[Voter], passages: int) -> Keys:
    """Return the unlabelled pairs that some voter puts above every positive, and that none knows as labelled."""
    above = [v.keys[v.unlabelled & (v.scores > v.positive[v.keys // passages])] for v in voters]
    labelled = [v.keys[~v.unlabelled] for v in voters]
    found = np.unique(np.concatenate([np.empty(0, np.int64), *above]))
    return found[~np.isin(found, np.concatenate([np.empty(0, np.int64), *labelled]))]


@dataclass(frozen=True)
class Ballot:
    """One voter's word on pairs: ``above`` bool [n], ``opinion`` bool [n] (False: it cannot tell), ``gap`` float32 [n].

    ``gap`` is the score minus that of the positive, nan where it was not scored.
    """

    name: str
    above: BoolArray
    opinion: BoolArray
    gap: FloatArray


def vote(voter: Voter, keys: Keys, passages: int) -> Ballot:
    """Return what ``voter`` says of ``keys``; a pair outside its pool is below a positive that reaches the floor."""
    query = keys // passages
    places = np.minimum(np.searchsorted(voter.keys, keys), max(len(voter.keys) - 1, 0))
    inside = voter.keys[places] == keys if len(voter.keys) else np.zeros(len(keys), np.bool_)
    scores = voter.scores[places] if len(voter.keys) else np.zeros(len(keys), np.float32)
    positive = voter.positive[query]
    gap = np.where(inside, scores - positive, np.nan).astype(np.float32)
    return Ballot(voter.name, gap > 0, ~np.isnan(gap) | (~inside & (positive >= voter.floor[query])), gap)


def scored_ballot(name: str, scores: FloatArray, positive: FloatArray) -> Ballot:
    """Return the ballot of what scored every pair: ``scores`` and the highest of their positives, float32 [n] each.

    nan where it was not asked.
    """
    gap = (scores - positive).astype(np.float32)
    return Ballot(name, gap > 0, ~np.isnan(gap), gap)


def one_a_model(ballots: Sequence[Ballot]) -> list[Ballot]:
    """Return ``ballots`` with one for all of a model, under the name of its first.

    They are of one model where they score alike, to rounding, whatever pairs both score: of the untrained one that
    several runs began with.
    """
    models: list[Ballot] = []
    for ballot in ballots:
        for place, model in enumerate(models):
            both = ~np.isnan(model.gap) & ~np.isnan(ballot.gap)
            if both.any() and np.allclose(model.gap[both], ballot.gap[both], rtol=0, atol=ALIKE):
                gap = np.where(np.isnan(model.gap), ballot.gap, model.gap)
                models[place] = Ballot(model.name, gap > 0, model.opinion | ballot.opinion, gap)
                break
        else:
            models.append(ballot)
    return models


@dataclass(frozen=True)
class Election:
    """The outcome for n pairs, the most likely false negatives first.

    ``queries`` and ``passages`` int32 [n], rows · ``votes`` and ``opinions`` int32 [n] · ``gaps`` float32 [n], the mean
    over those that score pairs alike · ``by`` names the voters that put each pair above.
    """

    queries: IntArray
    passages: IntArray
    votes: IntArray
    opinions: IntArray
    gaps: FloatArray
    by: tuple[tuple[str, ...], ...]

    @property
    def likely(self) -> BoolArray:
        """Return bool [n]: those that more than half of the voters with an opinion put above the positive."""
        return 2 * self.votes > self.opinions


def elect(keys: Keys, ballots: Sequence[Ballot], others: Sequence[Ballot], passages: int) -> Election:
    """Count ``ballots``, whose gaps are on one scale, and those of ``others`` (BM25, a ranker) on ``keys``.

    Ordered by (votes + 1) / (opinions + 2), so that one vote of one is worth less than nine of ten; then by gap.
    """
    every = [*ballots, *others]
    above = np.array([ballot.above & ballot.opinion for ballot in every]).reshape(len(every), len(keys))
    votes = above.sum(axis=0)
    opinions = np.array([ballot.opinion for ballot in every]).reshape(above.shape).sum(axis=0)
    scored = np.array([ballot.gap for ballot in ballots], np.float32).reshape(len(ballots), len(keys))
    counted = (~np.isnan(scored)).sum(axis=0)
    gaps = (np.nansum(scored, axis=0) / np.maximum(counted, 1)).astype(np.float32)
    order = np.lexsort((keys, -gaps, -(votes + 1) / (opinions + 2)))
    query, passage = np.divmod(keys[order], passages)
    names = np.array([one.name for one in every])
    return Election(
        query.astype(np.int32),
        passage.astype(np.int32),
        votes[order].astype(np.int32),
        opinions[order].astype(np.int32),
        gaps[order],
        tuple(tuple(names[above[:, place]].tolist()) for place in order.tolist()),
    )
