"""What judging came to: counts, failures and cost by judge, agreement of judges, and data not worth training on.

Does not know who asked, nor what is drawn of it.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from miner.judgements import Entry
from miner.relabel import Outcome, stands_for
from retriever.protocols import Judge

Z95 = 1.959963984540054
"""The standard normal quantile of a two-sided 95 % interval."""
_Said = dict[tuple[str, str, str], bool | None]
"""What a judge says by query id, passage id and hash of their texts."""


def by_judge(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """Return, by the name of each judge, what its ``entries`` say and cost; ``failures`` are counted by kind."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        of = found.setdefault(entry.judge, _nothing())
        said = entry.judgement
        of["asked"] += 1
        of["relevant"] += said.relevant is True
        of["irrelevant"] += said.relevant is False
        if said.failure is not None:
            of["failed"] += 1
            of["failures"][said.failure] += 1
        of["prompt_tokens"] += said.prompt_tokens
        of["completion_tokens"] += said.completion_tokens
        of["cost"] += said.cost
    return {name: {**of, "failures": dict(of["failures"]), "cost": round(of["cost"], 6)} for name, of in found.items()}


def _nothing() -> dict[str, Any]:
    counts = dict.fromkeys(("asked", "relevant", "irrelevant", "failed", "prompt_tokens", "completion_tokens"), 0)
    return {**counts, "cost": 0.0, "failures": Counter()}


def agreement(judges: Sequence[Judge], entries: Iterable[Entry], check: float) -> list[dict[str, Any]]:
    """Return how far each two ``judges`` agree on what both are asked about, with ``check`` as ``ask`` has it.

    That is {"judges", "pairs", "table", "kappa"}; ``table`` counts [[both relevant, first alone], [second alone,
    neither]]. Kappa (Cohen 1960) weighs each pair by how many it stands for, so that a check by a sample estimates that
    of all; None where a judge always says the same, as the second of a cascade without a check does not meet what the
    first refused. A pair that is in ``entries`` by another check or cascade would count too much, and is left out.
    """
    said: dict[str, _Said] = {judge.fingerprint: {} for judge in judges}
    for entry in entries:
        if entry.fingerprint in said:
            said[entry.fingerprint][entry.query_id, entry.passage_id, entry.texts] = entry.judgement.relevant
    found = []
    for one, other in combinations(range(len(judges)), 2):
        names = [judges[one].name, judges[other].name]
        found.append({"judges": names, **_agreement([*said.values()][: other + 1], one, check)})
    return found


def _agreement(said: Sequence[_Said], one: int, check: float) -> dict[str, Any]:
    """Return the agreement of the judge at place ``one`` with the last."""
    *before, last = said
    table, weights = [[0, 0], [0, 0]], [[0.0, 0.0], [0.0, 0.0]]
    for pair, relevant in last.items():
        weight = stands_for(pair[:2], [of.get(pair) for of in before], check)
        if relevant is not None and weight:
            row, column = int(not before[one][pair]), int(not relevant)
            table[row][column] += 1
            weights[row][column] += weight
    return {"pairs": sum(map(sum, table)), "table": table, "kappa": kappa(weights)}


def kappa(table: Sequence[Sequence[float]]) -> float | None:
    """Return Cohen's kappa of [[both, first alone], [second alone, neither]]; None where chance explains everything."""
    (both, first), (second, neither) = table
    total = both + first + second + neither
    if not total:
        return None
    one, other = (both + first) / total, (both + second) / total
    chance = one * other + (1 - one) * (1 - other)
    if one in (0, 1) or other in (0, 1):
        return None
    return ((both + neither) / total - chance) / (1 - chance)


def pruning(outcomes: Mapping[tuple[str, str], Outcome], group: str, above: float, least: int) -> list[dict[str, Any]]:
    """Return, of each group of judged queries, how many have a false negative; the worst group first.

    ``group``: a regular expression whose first bracket, matched at the start of a query id, names the group; queries
    that it does not name stand together without a name, and are never left out.
    ``interval`` is Wilson's of 95 % on the share; ``leave_out`` says that it lies above ``above``, of at least
    ``least`` queries.
    """
    pattern = re.compile(group)
    queries: dict[str, dict[str, int]] = {}
    for (query, _), outcome in outcomes.items():
        matched = pattern.match(query)
        counts = queries.setdefault((matched and matched[1]) or "", {})
        counts[query] = counts.get(query, 0) + outcome.relevant
    found = []
    for name, counts in queries.items():
        hurt = sum(count > 0 for count in counts.values())
        low, high = wilson(hurt, len(counts))
        found.append(
            {
                "group": name,
                "queries": len(counts),
                "with_false_negatives": hurt,
                "false_negatives": sum(counts.values()),
                "share": hurt / len(counts),
                "interval": [low, high],
                "leave_out": name != "" and low > above and len(counts) >= least,
            }
        )
    return sorted(found, key=lambda one: (-one["share"], one["group"]))


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % score interval (Wilson 1927) of ``count`` out of ``total``, above 0."""
    share, z2 = count / total, Z95 * Z95
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
