"""Whose turn it is: the steps of a run dealt out to the ranker and the retriever, a phase each in turn.

Does not know models.
"""

from dataclasses import dataclass
from typing import Literal

LearnerName = Literal["ranker", "retriever"]


@dataclass(frozen=True)
class PhasesConfig:
    """[phases]: optimiser steps of the ranker, then of the retriever, and so on; 0 leaves one of them as it is.

    AR2 (Zhang et al., ICLR 2022) has 500 and 1500, for GPUs.
    """

    ranker: int = 20
    retriever: int = 60

    def learner_at(self, step: int) -> LearnerName:
        """Return whose weights optimiser step ``step`` of the run, from 0, changes."""
        return "ranker" if step % (self.ranker + self.retriever) < self.ranker else "retriever"

    def taken(self, name: LearnerName, steps: int) -> int:
        """Return how many of the first ``steps`` steps of the run are those of ``name``."""
        cycles, rest = divmod(steps, self.ranker + self.retriever)
        of_ranker = cycles * self.ranker + min(rest, self.ranker)
        return of_ranker if name == "ranker" else steps - of_ranker


RETRIEVER_ALONE = PhasesConfig(0, 1)
