"""What the drawn negatives of each source did in a step: how many they were, how they score, how much they pull.

Does not know which sources there are, nor how a loss is made of scores.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.examples import Batch
from retriever.protocols import FloatArray, Negatives

Bits = NDArray[np.uint8]


def several_sources(facts: Mapping[str, Any]) -> dict[str, int]:
    """Return the bit of each source by its name, from the facts of a negative set; empty where there are not two."""
    sources: dict[str, int] = facts.get("sources") or {}
    return sources if len(sources) > 1 else {}


def brought(batch: Batch, drawn: Negatives) -> Bits:
    """Return the bits [b, n] of who brought each negative that was drawn for a query; 0 where none was."""
    bits = np.zeros(batch.hard.shape, np.uint8)
    if drawn.sources is None:
        return bits
    order = np.argsort(batch.passage_rows)
    lines, _ = np.nonzero(drawn.mask)
    columns = order[np.searchsorted(batch.passage_rows, drawn.rows[drawn.mask], sorter=order)]
    np.bitwise_or.at(bits, (lines, columns), drawn.sources[drawn.mask])
    return np.where(batch.hard, bits, np.uint8(0))


class SourceTally:
    """Sums over the batches of one step, by source; a negative of several sources counts for each of them."""

    def __init__(self, bits: Mapping[str, int]) -> None:
        """``bits`` as ``several_sources`` returns them."""
        self._bits = bits
        self._drawn = dict.fromkeys(bits, 0)
        self._scores: dict[str, float] = {}
        self._pulls = dict.fromkeys(bits, 0.0)
        self._pull = 0.0

    def add(self, sources: Bits, gradients: FloatArray, scores: FloatArray | None = None) -> None:
        """Take the bits [m] of drawn negatives, the loss's gradient by each one's score [m], and these scores [m]."""
        pulls = np.abs(gradients)
        self._pull += float(pulls.sum(dtype=np.float64))
        for name, bit in self._bits.items():
            own = (sources & np.uint8(bit)) > 0
            self._drawn[name] += int(own.sum())
            self._pulls[name] += float(pulls.sum(where=own, dtype=np.float64))
            if scores is not None:
                self._scores[name] = self._scores.get(name, 0.0) + float(scores.sum(where=own, dtype=np.float64))

    def gather(self, total: Callable[[float], float]) -> None:
        """Replace each sum by what ``total`` makes of it, as where each process has taken a share of the negatives."""
        self._pull = total(self._pull)
        for name in self._bits:
            self._drawn[name] = round(total(self._drawn[name]))
            self._pulls[name] = total(self._pulls[name])

    def facts(self) -> dict[str, dict[str, float | None]]:
        """Return by source ``drawn``, ``gradient``, its share of Σ |∂loss/∂score|, and the mean ``score`` if known.

        The sum is over all drawn negatives. A mean or share of nothing is None.
        """
        return {
            name: {
                "drawn": drawn,
                "gradient": self._pulls[name] / self._pull if self._pull else None,
                **({"score": self._scores[name] / drawn if drawn else None} if name in self._scores else {}),
            }
            for name, drawn in self._drawn.items()
        }
