"""Carves queries off a split so that no passage is a positive on both sides.

Does not know files, corpora or the names of splits.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Query = TypeVar("Query", bound=Hashable)


def places(positives: Mapping[Query, Sequence[int]]) -> dict[Query, float]:
    """Give each query a place in [0, 1): those below a fraction are the part that is carved off.

    ``positives`` are the numbers of a query's relevant passages. Queries linked by shared positives, directly or
    through others, form a group and share its place, a hash of its smallest number: the same each time. A query
    without a positive is given 1, so that it always stays with the rest.
    """
    leader: dict[int, int] = {}

    def find(passage: int) -> int:
        while leader.setdefault(passage, passage) != passage:
            leader[passage] = leader[leader[passage]]
            passage = leader[passage]
        return passage

    for passages in positives.values():
        for passage in passages[1:]:
            first, second = sorted((find(passages[0]), find(passage)))
            leader[second] = first
    return {query: _share(find(passages[0])) if passages else 1.0 for query, passages in positives.items()}


def _share(passage: int) -> float:
    return int(hashlib.sha256(str(passage).encode()).hexdigest()[:8], 16) / 0x100000000
