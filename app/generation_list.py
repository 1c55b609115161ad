"""The published generations in the form that people and clients read: lineage, figures, verdict, names.

Does not know who asks.
"""

from collections.abc import Callable, Mapping
from typing import Any

from indexer.gate import METRIC, is_partial
from retriever.artifacts import BEST, SERVED, Artifact
from retriever.errors import StoreError
from retriever.store import Store

FACTS = (
    *("step", "rows", "dim", "factory", "recall_at_10", "recall_at_100"),
    *("dev", "dev_queries", "reranked", "seconds", "space"),
)
COLUMNS = ("number", "created", "checkpoint", "step", "passages", METRIC, "verdict", "names")


def newest_generations(store: Store, limit: int, unreadable: Callable[[int, str], None]) -> list[dict[str, Any]]:
    """Return what is known of the newest ``limit`` generations, newest first.

    One that was removed meanwhile or is damaged is left out, and ``unreadable`` told its number and why. Raises
    CorruptError for a damaged pointer.
    """
    shown, pointers = [], store.generations.pointers()
    for number in sorted(store.generations.numbers(), reverse=True)[:limit]:
        try:
            shown.append(known_of(store.generations.at(number), pointers))
        except StoreError as error:
            unreadable(number, str(error))
    return shown


def known_of(generation: Artifact, pointers: Mapping[str, int]) -> dict[str, Any]:
    """Return what is known of one generation; ``names`` are the ``pointers`` to it, ``gate`` the verdict back then."""
    facts = generation.facts
    names = [name for name, number in pointers.items() if number == generation.number]
    return {
        "number": generation.number,
        "created": generation.manifest["created"],
        "parents": dict(generation.parents),
        "names": names,
        "served": SERVED in names,
        "best": BEST in names,
        "partial": is_partial(facts),
        "facts": {name: facts[name] for name in FACTS if name in facts},
        "gate": facts.get("gate"),
    }


def generations_table(shown: list[dict[str, Any]]) -> list[str]:
    """Return a table of generations, a line each below its head."""
    rows = [COLUMNS, *map(_row, shown)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    facts, dev = one["facts"], (one["facts"].get("dev") or {}).get(METRIC)
    counts = (one["parents"].get("checkpoint", "–"), facts.get("step", "–"), facts.get("rows", "–"))
    figure = "–" if dev is None else f"{dev:.4f}"
    return (str(one["number"]), one["created"], *map(str, counts), figure, _verdict(one), ", ".join(one["names"]))


def _verdict(one: dict[str, Any]) -> str:
    if one["partial"]:
        return "partial"
    gate = one["gate"]
    if gate is None:
        return "–"
    failed = ", ".join(check["name"] for check in gate["checks"] if not check["passed"])
    return "passed" if gate["served"] else f"refused: {failed}"
