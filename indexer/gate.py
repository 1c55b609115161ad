"""The rule that decides whether a new generation is served and whether it is the best so far.

Does not know stores or pointers: facts and figures in, verdict out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from indexer.flips import flipped
from indexer.slices import Slice
from retriever.counting import the_first
from retriever.protocols import FloatArray

METRIC = "nDCG@10"
MARGIN = 0.01
"""How far the dev metric may fall below the served generation's, whatever a test says of it."""
CHANCE = 0.01
"""A limit is broken where the figures would be this improbable if it held."""
MOST_FLIPS = 0.1
"""Share of the dev queries that may go from answered to not answered."""
LEAST_QUERIES_OF_A_SLICE = 20
"""A slice with fewer dev queries is not looked at by itself."""
SHOWN_SMALL = 20
"""So many of the slices that are not looked at are named; all are counted."""
MOST_ROWS_LOST = 0.01
"""Share of the passages by which the corpus may shrink."""
DRAWS, BLOCK_DRAWS = 10_000, 500

Facts = Mapping[str, Any]


class Pairs(NamedTuple):
    """nDCG@10 float32 [n] of the queries that two generations have in common, and the ``slices`` that they are in."""

    now: FloatArray
    before: FloatArray
    slices: Sequence[Slice] = ()


class Reranked(NamedTuple):
    """nDCG@10 of dev queries after a generation's ranker has reordered their first hits; None where there is none.

    ``own`` has it beside the same generation's without the ranker, ``served`` beside that of the served generation's.
    """

    own: Pairs | None = None
    served: Pairs | None = None


NOT_RERANKED = Reranked()


@dataclass(frozen=True)
class SliceFigures:
    """Mean nDCG@10 of the ``queries`` of a slice, ``now`` and ``before``.

    ``probability``: that of such a fall by chance, times the number of slices (Bonferroni); None for less than a fall
    beyond the margin.
    """

    name: str
    queries: int
    now: float
    before: float
    probability: float | None
    passed: bool


@dataclass(frozen=True)
class Check:
    """One of the gate's questions: its ``name``, whether it ``passed``, and the figures that say why."""

    name: str
    passed: bool
    reason: str
    slices: tuple[SliceFigures, ...] = ()

    def as_facts(self) -> dict[str, Any]:
        """Return what a manifest keeps."""
        facts = asdict(self)
        return facts if self.slices else {name: facts[name] for name in ("name", "passed", "reason")}


@dataclass(frozen=True)
class GateVerdict:
    """Whether SERVED and BEST move to a generation, why SERVED does or does not, and every check that was made."""

    served: bool
    best: bool
    reason: str
    checks: tuple[Check, ...] = ()

    def as_facts(self) -> dict[str, Any]:
        """Return what a manifest keeps."""
        return {**asdict(self), "checks": [check.as_facts() for check in self.checks]}


def is_partial(facts: Facts) -> bool:
    """Tell whether most vectors of the generation with these ``facts`` are mapped from an earlier one's."""
    return facts.get("partial") is not None


def judge(
    new: Facts,
    served: Facts | None,
    best: Facts | None,
    pairs: Pairs | None = None,
    reranked: Reranked = NOT_RERANKED,
) -> GateVerdict:
    """Compare the facts of a new generation with those of the served and of the best one (None: there is none).

    It is served if every check passes, and the best if its dev metric is strictly above the best one's over the same
    queries and corpus. ``pairs`` compare it with the served one by query; without them the means are compared, if they
    are of the same queries and corpus. ``reranked`` is of a generation with a ranker, which is held to it even where
    nothing is served yet. A partial generation is neither, whatever its figures: most of its vectors are not its
    model's.
    """
    if is_partial(new):
        return GateVerdict(False, False, "partial: to be mined from alone")
    checks = tuple(_checks(new, served, pairs, reranked))
    refused = [check for check in checks if not check.passed]
    if refused:
        reason = "; ".join(check.reason for check in refused)
    elif served is None:
        reason = "no generation was served before"
    else:
        compared = [check for check in checks if check.name == "dev"]
        reason = compared[0].reason if compared else "no dev metric to compare with the served generation's"
    return GateVerdict(not refused, _is_best(new, best), reason, checks)


def _checks(new: Facts, served: Facts | None, pairs: Pairs | None, reranked: Reranked) -> Iterator[Check]:
    if "recall_at_10" in new:
        yield _recall(new)
    if reranked.own is not None and len(reranked.own.now):
        yield _fall("ranker", reranked.own, f"dev {METRIC} reranked", "without its ranker")
    if served is None:
        return
    if "rows" in new and "rows" in served:
        yield _rows(new["rows"], served["rows"])
    if "step" in new and "step" in served:
        passed = new["step"] >= served["step"]
        yield Check("step", passed, f"step {new['step']}, served {served['step']}: an older checkpoint may not follow")
    if pairs is not None and len(pairs.now):
        yield _fall("dev", pairs, f"dev {METRIC}", "served")
        yield _flips(pairs.now, pairs.before)
        yield from _slices(pairs)
    elif _comparable(new, served):
        now, before = new["dev"][METRIC], served["dev"][METRIC]
        reason = f"dev {METRIC} {now:.4f}, served {before:.4f}, at most {MARGIN} below allowed"
        yield Check("dev", now >= before - MARGIN, reason)
    if reranked.served is not None and len(reranked.served.now):
        yield _fall("reranked", reranked.served, f"dev {METRIC} reranked", "served")


def _recall(new: Facts) -> Check:
    """Recall is measured over a sample of queries: it is refused where the sample speaks against the target."""
    recall, target = new["recall_at_10"], new["index_config"]["target_recall"]
    slack = 2.33 * new["recall_at_10_error"]  # one-sided, 1 %
    reason = f"recall@10 {recall:.4f} ± {slack:.4f} against exact search, target {target}"
    return Check("recall", recall + slack >= target, reason)


def _rows(now: int, before: int) -> Check:
    passed = now >= before * (1 - MOST_ROWS_LOST)
    return Check("rows", passed, f"{now} passages, served {before}, at most {MOST_ROWS_LOST:.0%} fewer allowed")


def _fall(name: str, pairs: Pairs, what: str, other: str) -> Check:
    """The mean may not be more than the margin below, unless chance explains that it is below at all."""
    now, before = pairs.now, pairs.before
    differences = now - before
    fall = -float(differences.mean())
    chance = 1.0 if fall <= MARGIN else probability_of_fall(differences)
    reason = (
        f"{what} {now.mean():.4f}, {other} {before.mean():.4f} over {len(now)} queries, at most {MARGIN} below allowed"
    )
    reason += f", probability of such a fall by chance {chance:.4f}" if fall > MARGIN else ""
    return Check(name, chance >= CHANCE, reason)


def probability_of_fall(differences: FloatArray, seed: int = 0) -> float:
    """Return the probability of a mean as low as that of ``differences`` [n] if each could as well have the other sign.

    A paired randomisation test (Fisher 1935; for retrieval: Smucker, Allan and Carterette 2007) with 10,000 draws.
    """
    moved = differences[differences != 0]
    observed = moved.sum() + 1e-6
    generator = np.random.default_rng(seed)
    as_low = 0
    for _ in range(DRAWS // BLOCK_DRAWS):
        signs = generator.integers(0, 2, (BLOCK_DRAWS, len(moved)), dtype=np.int8) * np.float32(2) - 1
        as_low += int((signs @ moved <= observed).sum())
    return (as_low + 1) / (DRAWS + 1)


def _slices(pairs: Pairs) -> Iterator[Check]:
    """No slice may fall as the whole may not; chance is multiplied by the number of slices (Bonferroni)."""
    parts = [one for one in pairs.slices if len(one.places) < len(pairs.now)]  # the whole is what "dev" looks at
    if not parts:
        return
    looked_at = [one for one in parts if len(one.places) >= LEAST_QUERIES_OF_A_SLICE]
    small = [one.name for one in parts if len(one.places) < LEAST_QUERIES_OF_A_SLICE]
    figures = tuple(_slice_figures(one, pairs, len(looked_at)) for one in looked_at)
    fallen = [
        f"{one.name!r} by {one.before - one.now:.4f} over {one.queries} queries" for one in figures if not one.passed
    ]
    told = f"of {len(looked_at)} slices of the dev queries with at least {LEAST_QUERIES_OF_A_SLICE} "
    told += f"fell: {', '.join(fallen)}" if fallen else "none fell"
    if small:
        told += f"; not looked at, since they have fewer: {len(small)} ({the_first([*map(repr, small)], SHOWN_SMALL)})"
    yield Check("slices", not fallen, told, figures)


def _slice_figures(one: Slice, pairs: Pairs, slices: int) -> SliceFigures:
    now, before = pairs.now[one.places], pairs.before[one.places]
    differences, probability = now - before, None
    if -float(differences.mean()) > MARGIN:
        probability = min(1.0, probability_of_fall(differences) * slices)
    passed = probability is None or probability >= CHANCE
    return SliceFigures(one.name, len(now), float(now.mean()), float(before.mean()), probability, passed)


def _flips(now: FloatArray, before: FloatArray) -> Check:
    """Count the queries with a relevant passage among the first ten before and none now (Yan et al. 2021)."""
    flips, queries = int(flipped(now, before).sum()), len(now)
    passed = flips <= MOST_FLIPS * queries or probability_of_count(flips, queries, MOST_FLIPS) >= CHANCE
    reason = f"{flips} of {queries} dev queries lost their answer among the first 10, {MOST_FLIPS:.0%} allowed"
    return Check("flips", passed, reason)


def probability_of_count(count: int, trials: int, rate: float) -> float:
    """Return the binomial probability of ``count`` or more in ``trials`` at ``rate``."""
    k = np.arange(count, trials + 1)
    log_choose = np.array([math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in k])
    return float(np.exp(log_choose + k * math.log(rate) + (trials - k) * math.log1p(-rate)).sum())


def _comparable(new: Facts, old: Facts) -> bool:
    same = all(new.get(key) == old.get(key) for key in ("dev_sha256", "corpus_sha256"))
    return same and METRIC in new["dev"] and METRIC in old["dev"]


def _is_best(new: Facts, best: Facts | None) -> bool:
    if METRIC not in new["dev"]:
        return False
    return best is None or not _comparable(new, best) or bool(new["dev"][METRIC] > best["dev"][METRIC])
