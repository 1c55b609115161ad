"""Which training queries make up a batch: the plan of the epoch, made anew where a set or a bank of embeddings asks it.

Does not know positives, negatives or losses.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from retriever.artifacts import Artifact
from retriever.pair_memory import PairMemory
from retriever.protocols import BatchPlanner, FloatArray, IntArray

OpenPlanner = Callable[[Artifact | None], BatchPlanner]
"""The negative set in use, None before the first → what plans batches meanwhile."""
BANK = "bank.safetensors"


class BatchOrder:
    """The batches of a run by position: position // batches_per_epoch is the epoch.

    What a query meets in a batch is drawn anew in each turn: an epoch, or a batch where queries repeat within an epoch.
    With ``dimensions`` it keeps a bank of each query's newest embedding as training made it, and hands it to the
    planner at the start of an epoch, once every query has one (NGAME: nothing is encoded for it).
    """

    def __init__(
        self,
        open_planner: OpenPlanner,
        queries: int,
        dimensions: int | None = None,
        memory: PairMemory | None = None,
        *,
        repeats: bool = False,
    ) -> None:
        """Plan as ``open_planner`` says before the first negative set; ``memory`` may leave bad pairs out.

        ``repeats``: a query may come several times an epoch, as where small data sets are mixed with large ones.
        """
        self._memory = memory
        self._open_planner = open_planner
        self._planner = open_planner(None)
        self._bank = None if dimensions is None else np.full((queries, dimensions), np.nan, np.float32)
        plan = self._planner.plan(0)
        self.batches_per_epoch = len(plan)
        self.batches_per_turn = 1 if repeats else len(plan)
        self._epoch, self._plan = 0, plan

    def at(self, position: int) -> tuple[IntArray, int]:
        """Return the query rows int32 [at most batch size] of the batch at ``position``, and its turn."""
        epoch, place = divmod(position, self.batches_per_epoch)
        if epoch != self._epoch:
            self._make(epoch)
        rows = self._plan[place]
        turn = position // self.batches_per_turn
        return (rows if self._memory is None else self._memory.kept(rows, epoch, turn)), turn

    def adopt(self, negatives: Artifact) -> None:
        """Go on in the plan that belongs to ``negatives``, at the place of the epoch that was reached.

        A plan made by the bank of embeddings stays until the next epoch.
        """
        self._planner = self._open_planner(negatives)
        if self._bank is None:
            self._epoch = -1

    def _make(self, epoch: int) -> None:
        whole = self._bank is not None and bool(np.isfinite(self._bank[:, 0]).all())
        self._epoch, self._plan = epoch, self._planner.plan(epoch, self._bank if whole else None)

    def note(self, query_rows: IntArray, vectors: FloatArray) -> None:
        """Keep the embeddings float32 [n, dim] that training has just made of ``query_rows``."""
        if self._bank is not None:
            self._bank[query_rows] = vectors

    @property
    def keeps_bank(self) -> bool:
        """Whether embeddings are kept."""
        return self._bank is not None

    def save(self, folder: Path) -> None:
        """Write the bank with the plan that an earlier bank made, so that a resumed epoch goes on as it began.

        The memory of pairs is written beside it.
        """
        if self._memory is not None:
            self._memory.save(folder)
        if self._bank is not None:
            tensors = {"bank": self._bank, "plan": self._plan, "epoch": np.array([self._epoch])}
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / BANK)

    def restore(self, folder: Path, negatives: Artifact | None) -> bool:
        """Take up what ``save`` wrote, while ``negatives`` are in use; False if bank or memory is to be begun anew."""
        self._planner = self._open_planner(negatives)
        self._epoch = -1
        remembered = self._memory is None or self._memory.restore(folder)
        if self._bank is None:
            return remembered
        if not (folder / BANK).exists():
            return False
        saved = load_file(folder / BANK)
        self._bank[:] = saved["bank"]
        if saved["plan"].shape == self._planner.plan(0).shape:  # else the run goes on with other batches
            self._epoch, self._plan = int(saved["epoch"][0]), saved["plan"]
        return remembered
