"""The rule that decides whether a new generation is served and whether it is the best so far.

Does not know stores or pointers: facts in, verdict out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METRIC = "nDCG@10"
TOLERANCE = 0.01
"""How far the dev metric may fall below the served generation's."""

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class GateVerdict:
    """Whether SERVED and BEST move to a generation, and why SERVED does or does not."""

    served: bool
    best: bool
    reason: str


def is_partial(facts: Facts) -> bool:
    """Tell whether most vectors of the generation with these ``facts`` are mapped from an earlier one's."""
    return facts.get("partial") is not None


def judge(new: Facts, served: Facts | None, best: Facts | None) -> GateVerdict:
    """Compare the facts of a new generation with those of the served and of the best one (None: there is none).

    It is served unless its dev metric is more than .01 below the served one's, and the best if strictly above the
    best one's. Figures over different dev queries or corpora are not compared: the new generation then takes over.
    A partial generation is neither, whatever its figures: most of its vectors are not its model's.
    """
    if is_partial(new):
        return GateVerdict(False, False, "partial: to be mined from alone")
    passed, reason = _serve(new, served)
    return GateVerdict(passed, _is_best(new, best), reason)


def _comparable(new: Facts, old: Facts) -> bool:
    same = all(new.get(key) == old.get(key) for key in ("dev_sha256", "corpus_sha256"))
    return same and METRIC in new["dev"] and METRIC in old["dev"]


def _serve(new: Facts, served: Facts | None) -> tuple[bool, str]:
    if served is None:
        return True, "no generation was served before"
    if not _comparable(new, served):
        return True, "no dev metric to compare with the served generation's"
    now, before = new["dev"][METRIC], served["dev"][METRIC]
    passed = now >= before - TOLERANCE
    return passed, f"dev {METRIC} {now:.4f}, served {before:.4f}, at most {TOLERANCE} below allowed"


def _is_best(new: Facts, best: Facts | None) -> bool:
    if METRIC not in new["dev"]:
        return False
    return best is None or not _comparable(new, best) or bool(new["dev"][METRIC] > best["dev"][METRIC])
