"""Texts as a tokenizer left them: ids laid end to end, and which texts were cut.

Does not know tokenizers, files or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

TokenIds = Sequence[int] | NDArray[Any]
"""Token ids of one text."""
NARROW = 1 << 16
"""Ids below it are kept in two bytes, as those of most vocabularies are."""


@dataclass(frozen=True)
class Tokens:
    """Of n texts: ``ids`` uint16 or uint32 [tokens in all], ``lengths`` uint32 [n], ``cut`` bool [n].

    ``cut``: the text was longer than the model reads.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.uint32]
    cut: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, token_ids: Sequence[Sequence[int]], cut: Sequence[bool]) -> "Tokens":
        """Return what a tokenizer gave, in the fewest bytes."""
        lengths = np.array([len(ids) for ids in token_ids], np.uint32)
        ids = np.fromiter(chain.from_iterable(token_ids), np.uint32, int(lengths.sum()))
        narrow = ids.max(initial=0) < NARROW
        return cls(ids.astype(np.uint16) if narrow else ids, lengths, np.array(cut, np.bool_))

    def split(self) -> list[NDArray[Any]]:
        """Return each text's ids, as views."""
        return np.split(self.ids, np.cumsum(self.lengths, dtype=np.int64)[:-1])[: len(self)]

    def take(self, rows: NDArray[np.integer]) -> "Tokens":
        """Return the texts at ``rows``, ascending."""
        picked = np.zeros(len(self), np.bool_)
        picked[rows] = True
        return Tokens(self.ids[np.repeat(picked, self.lengths)], self.lengths[picked], self.cut[picked])


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Return the texts of all ``parts``, at least one, in their order."""
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.cut for part in parts]),
    )
