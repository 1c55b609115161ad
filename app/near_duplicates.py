"""Refuses texts that are nearly the same as one already kept.

Does not know where the texts come from.
"""

import math
import re
import zlib


class NearDuplicates:
    """The texts kept so far; refused is one that shares 4/5 (Jaccard) of its token triples with another.

    Exact, by the prefix filter of Bayardo, Ma and Srikant, "Scaling up all pairs similarity search" (2007):
    in any one order of all triples, two such sets share one of the first n − ⌈4n/5⌉ + 1 of their n.
    """

    def __init__(self) -> None:
        """Start with no text kept."""
        self._kept: list[frozenset[int]] = []
        self._rows: dict[int, list[int]] = {}

    def add(self, text: str) -> bool:
        """Keep ``text`` and return True, or return False where a nearly identical one is kept already."""
        triples = _triples(text)
        prefix = sorted(triples)[: len(triples) - math.ceil(4 * len(triples) / 5) + 1]
        for row in {row for triple in prefix for row in self._rows.get(triple, ())}:
            shared = len(triples & self._kept[row])
            if 5 * shared >= 4 * (len(triples) + len(self._kept[row]) - shared):
                return False
        for triple in prefix:
            self._rows.setdefault(triple, []).append(len(self._kept))
        self._kept.append(triples)
        return True


def _triples(text: str) -> frozenset[int]:
    tokens = re.findall(r"\w+|[^\w\s]", text)
    starts = range(max(len(tokens) - 2, 1))
    return frozenset(zlib.crc32(" ".join(tokens[start : start + 3]).encode()) for start in starts)
