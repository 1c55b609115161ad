"""What each dev query gains or loses from one generation to another, in the form that people and clients read.

Does not know who asks.
"""

from typing import Any

import numpy as np

from indexer.promotion import differences
from retriever.store import Store


def generation_diff(store: Store, new: int, old: int) -> dict[str, Any]:
    """Return how each dev query's nDCG@10 changed from generation ``old`` to ``new``: unchanged ones left out."""
    record, changes = differences(store.generations.at(new), store.generations.at(old))
    common = np.flatnonzero(~np.isnan(changes))
    moved = common[changes[common] != 0]
    return {
        "new": new,
        "old": old,
        "queries": len(common),
        "mean": float(changes[common].mean()) if len(common) else 0.0,
        "gained": int((changes[common] > 0).sum()),
        "lost": int((changes[common] < 0).sum()),
        "results": [
            {"id": record.ids[row], "text": record.texts[row], "difference": round(float(changes[row]), 6)}
            for row in moved[np.argsort(changes[moved], kind="stable")].tolist()
        ],
    }
