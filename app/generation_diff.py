"""What each query gains or loses from one model or generation to another, in the form that people and clients read.

Does not know who asks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.found_model import FoundModel
from app.model_figures import model_figures, open_split
from app.progress import Meter, Report
from indexer.flips import flipped
from indexer.gate import METRIC
from indexer.promotion import shared_figures
from retriever.protocols import FloatArray
from retriever.store import Store


def generation_diff(store: Store, new: int, old: int) -> dict[str, Any]:
    """Return how each dev query's nDCG@10, as recorded, changed from generation ``old`` to ``new``.

    Raises InputError where one keeps no dev queries.
    """
    record, here, pairs = shared_figures(store.generations.at(new), store.generations.at(old))
    ids, texts = [record.ids[row] for row in here], [record.texts[row] for row in here]
    named = {"new": new, "old": old, "split": record.split, "measure": METRIC}
    return {**named, **figures_diff(ids, texts, pairs.now, pairs.before)}


def measured_diff(
    new: FoundModel,
    old: FoundModel,
    data: Path,
    split: str,
    measure: str,
    report: Report,
    *,
    skip_missing: bool = False,
) -> dict[str, Any]:
    """Return the same of any two models by any measure, on a split of the BEIR folder ``data``, by exact search."""
    meter, found = Meter(report), []
    with open_split(data, split, skip_missing=skip_missing) as opened:
        for model in (new, old):
            progress = meter.phase(f"encoding by {model.name}")
            found.append(model_figures(opened, model.open(), measure, progress))
        named = {"new": new.name, "old": old.name, "split": split, "measure": measure}
        return {**named, **figures_diff(opened.queries.ids, opened.queries.texts, *found)}


def figures_diff(ids: Sequence[str], texts: Sequence[str], now: FloatArray, before: FloatArray) -> dict[str, Any]:
    """Return the changes of the figures [n] of queries: counts, flips, and each query that changed, worst first."""
    changes, flips = now - before, flipped(now, before)
    moved = np.flatnonzero(changes)
    return {
        "queries": len(ids),
        "mean": float(changes.mean()) if len(ids) else 0.0,
        "gained": int((changes > 0).sum()),
        "lost": int((changes < 0).sum()),
        "flips": int(flips.sum()),
        "flip_rate": float(flips.mean()) if len(ids) else 0.0,
        "results": [
            {
                "id": ids[row],
                "text": texts[row],
                "difference": round(float(changes[row]), 6),
                "flipped": bool(flips[row]),
            }
            for row in moved[np.argsort(changes[moved], kind="stable")].tolist()
        ],
    }
