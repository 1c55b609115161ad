"""Keeps each text and each judgement of a data set once, counting what falls away.

Does not know where texts come from or where they are written.
"""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from retriever.data import hash64
from retriever.errors import InputError
from retriever.protocols import BoolArray


@dataclass
class UniqueTexts:
    """Texts of one kind (``what``): each is written once and known by its 64-bit hash from then on.

    ``write`` takes id, title and text; ``ids`` maps hashes to ids. A text takes some 250 bytes of memory.
    """

    what: str
    write: Callable[[str, str, str], None]
    dropped: Counter[str]
    ids: dict[int, str] = field(default_factory=dict)
    _key_of: dict[int, int] = field(default_factory=dict)

    def add(self, place: str, text: str, given_id: str | None = None, title: str = "") -> int:
        """Return the hash of ``text``, writing it if it is new, under ``given_id`` or else its hash as an id.

        Raises InputError naming ``place`` if ``given_id`` stood for another text before.
        """
        key = hash64(text)
        name = f"{key:016x}" if given_id is None else given_id
        if given_id is not None and self._key_of.setdefault(hash64(name), key) != key:
            raise InputError(f"{place}: {self.what} id {name!r} stands for another text as well; give each its own")
        if key not in self.ids:
            self.ids[key] = name
            self.write(name, title, text)
        elif given_id is not None and self.ids[key] != given_id:
            self.dropped[f"{self.what} id of a text that has another"] += 1
        return key


@dataclass
class Judgements:
    """(query, passage, relevance) by the hashes of the texts, in the order in which they were added."""

    _queries: "array[int]" = field(default_factory=lambda: array("Q"))
    _passages: "array[int]" = field(default_factory=lambda: array("Q"))
    _relevances: "array[int]" = field(default_factory=lambda: array("b"))

    def __len__(self) -> int:
        return len(self._queries)

    def add(self, query: int, passage: int, relevance: int) -> None:
        """Append one judgement; 17 bytes of memory."""
        self._queries.append(query)
        self._passages.append(passage)
        self._relevances.append(relevance)

    def settled(self, dropped: Counter[str]) -> list[tuple[int, int, int]]:
        """Return each (query, passage) once, at its first place, with the highest relevance that it was given."""
        if not len(self):
            return []
        queries, passages = np.frombuffer(self._queries, np.uint64), np.frombuffer(self._passages, np.uint64)
        relevances = np.frombuffer(self._relevances, np.int8)
        order = np.lexsort((passages, queries))  # stable: equal pairs stay in the order of their places
        q, p, r = queries[order], passages[order], relevances[order]
        first: BoolArray = np.append(True, (q[1:] != q[:-1]) | (p[1:] != p[:-1]))
        highest = np.maximum.reduceat(r, np.flatnonzero(first))
        outranked = r < np.repeat(highest, np.diff(np.append(np.flatnonzero(first), len(r))))
        dropped["negative that is a positive of its query"] += int(outranked.sum())
        dropped["pair that is there already"] += len(r) - len(highest) - int(outranked.sum())
        ranked = sorted(zip(order[first].tolist(), highest.tolist(), strict=True))
        return [(self._queries[at], self._passages[at], relevance) for at, relevance in ranked]
