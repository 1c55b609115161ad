"""Judges that answer from a table of truths, with faults on demand. They do not know pytest."""

from collections.abc import Collection, Mapping, Sequence

from retriever.data import hash64
from retriever.protocols import Answered, Judgement, PairText

BATCH = 500
Ids = tuple[str, str]


def pair(query: str, passage: str, positive: str = "the positive") -> PairText:
    """Return a pair whose texts follow from its ids."""
    return PairText(query, f"text of {query}", passage, f"text of {passage}", positive)


class TruthfulJudge:
    """Knows which pairs of ids are relevant; errs on a share of the others and of these, as their ids decide.

    ``misses`` and ``false_alarms`` are the shares. ``fails`` maps pairs to the kind of a failure. Records whom it was
    asked about in ``asked``.
    """

    reads_positive = False

    def __init__(
        self,
        name: str,
        relevant: Collection[Ids],
        misses: float = 0.0,
        false_alarms: float = 0.0,
        fails: Mapping[Ids, Judgement] | None = None,
    ) -> None:
        self.name = self.fingerprint = name
        self.provenance = {"model": f"model of {name}"}
        self.relevant = set(relevant)
        self.asked: list[Ids] = []
        self._misses = misses
        self._false_alarms = false_alarms
        self._fails = fails or {}

    def judge(self, pairs: Sequence[PairText], answered: Answered) -> None:
        """Answer batch by batch, the last first."""
        for end in range(len(pairs), 0, -BATCH):
            places = range(max(0, end - BATCH), end)
            ids = {place: (pairs[place].query_id, pairs[place].passage_id) for place in places}
            self.asked.extend(ids.values())
            answered({place: self._fails.get(one) or Judgement(self.says(one)) for place, one in ids.items()})

    def says(self, ids: Ids) -> bool:
        """Return the answer on a pair of ids."""
        draw = hash64(f"{self.name} {ids}") / 2**64
        return draw >= self._misses if ids in self.relevant else draw < self._false_alarms
