"""What training saw of each pair of query and positive: running margin and loss, and which pairs are bad.

Does not know torch, where batches come from, nor who reads the memory afterwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from retriever.data import QuerySet
from retriever.errors import CorruptError, InputError, require
from retriever.examples import Batch
from retriever.protocols import FloatArray, IntArray

FILE = "pairs.safetensors"
"""Name of the memory in the folder ``training`` of a checkpoint."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class AuditConfig:
    """[audit]: keep a memory of every training pair, for `hone audit`.

    ``planted`` is the share of queries that learn a wrong positive, whose margins give the threshold of AUM at their
    ``percentile``: it changes training. A pair is bad where the mean of its losses, each standardised in its batch,
    lies more than ``beta`` standard deviations from that of all. After ``warmup_epochs``, ``exclude`` "drop" leaves bad
    pairs out of batches, "thin" lets them take part with probability exp(−z²/2); never more than half of a batch is
    left out.
    """

    planted: float = 0.0
    percentile: float = 99.0
    beta: float = 2.0
    warmup_epochs: int = 1
    exclude: Literal["off", "drop", "thin"] = "off"

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        rules = {
            "planted must lie in 0 … 0.5": 0 <= self.planted <= 0.5,
            "percentile must lie in (0, 100]": 0 < self.percentile <= 100,
            "beta must be above 0": self.beta > 0,
            "warmup_epochs must be at least 1: before, nothing is known of a pair": self.warmup_epochs >= 1,
            "planted measures wrong pairs, and exclude would leave them out: choose one of the two": self.planted == 0
            or self.exclude == "off",
        }
        require(rules, "[audit] ")


@dataclass(frozen=True)
class PairTable:
    """The memory of n pairs: ``queries`` and ``passages`` int32 [n], rows; ``seen`` int32 [n], how often in a batch.

    ``margins``, ``losses`` and ``beside``, losses in standard deviations from the mean of their batch, float64 [n], are
    means over these times; nan for a pair never seen.
    """

    queries: IntArray
    passages: IntArray
    seen: IntArray
    margins: Float64
    losses: Float64
    beside: Float64


class PairMemory:
    """The memory of a run: what AUM (Pleiss et al., NeurIPS 2020) and bad-pair mining (Lan et al., ICLR 2024) need.

    Here the margin of a pair is the score of the positive minus the highest of its negatives of that batch, and its
    loss −log of the softmax over both at the temperature of the batch, whatever loss is minimised.
    """

    def __init__(
        self,
        queries: QuerySet,
        passages: int,
        config: AuditConfig,
        seed: int,
        positive_of: Callable[[int, int], int],
    ) -> None:
        """Know all pairs of ``queries`` over a corpus of ``passages`` rows.

        ``positive_of``: query row and turn → the corpus row of the positive that is learned from.
        """
        rows = [queries.positives(row).astype(np.int64) + row * passages for row in range(len(queries))]
        self._keys: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *rows])  # ascending
        self._passages, self._config, self._seed, self._positive_of = passages, config, seed, positive_of
        self._seen = np.zeros(len(self._keys), np.int32)
        self._margin, self._loss = np.zeros(len(self._keys)), np.zeros(len(self._keys))
        self._beside, self._distance = np.zeros(len(self._keys)), np.zeros(len(self._keys))
        self._epoch = -1

    def observe(self, batch: Batch, scores: FloatArray, temperature: float) -> None:
        """Take the scores float32 [b, n] of ``batch`` by the present weights; a query without negatives tells nothing.

        Raises ValueError for a positive that is not known.
        """
        every = np.arange(len(batch.query_rows))
        negatives = batch.allowed.copy()
        negatives[every, batch.positive] = False
        found = negatives.any(axis=1)
        positive = scores[every, batch.positive].astype(np.float64)
        highest = np.where(negatives, scores, -np.inf).max(axis=1, initial=-np.inf).astype(np.float64)
        top = np.maximum(positive, highest)
        exponents = np.where(batch.allowed, (scores - top[:, None]) / temperature, -np.inf)
        loss = np.log(np.exp(exponents).sum(axis=1)) + (top - positive) / temperature
        places = self._places(batch.query_rows, batch.passage_rows[batch.positive])[found]
        np.add.at(self._seen, places, 1)
        beside = np.zeros(len(loss))
        beside[found] = standardised(loss[found])
        for total, value in ((self._margin, positive - highest), (self._loss, loss), (self._beside, beside)):
            np.add.at(total, places, value[found])

    def _places(self, query_rows: IntArray, passage_rows: IntArray) -> NDArray[np.intp]:
        wanted = query_rows.astype(np.int64) * self._passages + passage_rows
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        if not np.array_equal(self._keys[places], wanted):
            raise ValueError("a batch has a positive that the memory does not know")
        return places

    def kept(self, query_rows: IntArray, epoch: int, turn: int) -> IntArray:
        """Return those of a batch's ``query_rows`` int32 [b] whose pair takes part in this ``turn``, in their order.

        Which pairs are bad is decided at the start of an epoch, from all that was seen before: by how many deviations
        of its batch a pair's loss lay from the mean there. Losses of all batches together, as in the paper, would leave
        out whatever was seen first, while the loss still fell, and a data set that is harder than others of the run.
        """
        if epoch != self._epoch:
            self._epoch, self._distance = epoch, np.nan_to_num(standardised(self.table().beside))
        config = self._config
        if config.exclude == "off" or epoch < config.warmup_epochs:
            return query_rows
        positives = np.array([self._positive_of(int(row), turn) for row in query_rows], np.int32)
        far = np.abs(self._distance[self._places(query_rows, positives)])
        bad = far > config.beta
        chance = np.exp(-(far**2) / 2) if config.exclude == "thin" else np.zeros(len(far))
        drawn = np.array([np.random.default_rng((self._seed, turn, int(row), 1)).random() for row in query_rows])
        out = np.flatnonzero(bad & (drawn >= chance))
        out = out[np.argsort(-far[out], kind="stable")][: len(query_rows) // 2]
        kept: IntArray = np.delete(query_rows, out)
        return kept

    def least_kept(self, size: int) -> int:
        """Return how many queries of a batch of ``size`` take part at least."""
        return size if self._config.exclude == "off" else size - size // 2

    def table(self) -> PairTable:
        """Return what is known of each pair."""
        return _table(self._arrays())

    def save(self, folder: Path) -> None:
        """Write the memory into ``folder``."""
        save_file(self._arrays(), folder / FILE)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "keys": self._keys,
            "passages": np.array([self._passages]),
            "seen": self._seen,
            "margin": self._margin,
            "loss": self._loss,
            "beside": self._beside,
            "distance": self._distance,
            "epoch": np.array([self._epoch]),
        }

    def restore(self, folder: Path) -> bool:
        """Take up what ``save`` wrote of the same pairs; False where there is nothing of them, and it begins anew."""
        if not (folder / FILE).exists():
            return False
        saved = load_file(folder / FILE)
        if not np.array_equal(saved["keys"], self._keys) or "beside" not in saved:
            return False
        self._beside = saved["beside"]
        self._seen, self._margin, self._loss = saved["seen"], saved["margin"], saved["loss"]
        self._distance = saved["distance"]
        self._epoch = int(saved["epoch"][0])
        return True


def read_pairs(folder: Path) -> PairTable | None:
    """Return the memory that a checkpoint's ``folder`` training/ holds, None if there is none.

    Raises CorruptError for a torn file, InputError for one of an earlier version.
    """
    if not (folder / FILE).exists():
        return None
    try:
        arrays = load_file(folder / FILE)
        if "beside" in arrays:
            return _table(arrays)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CorruptError(f"{folder / FILE}: unreadable ({error})") from error
    raise InputError(f"{folder / FILE}: an earlier version of hone wrote it; train on, or audit another run")


def _table(arrays: Mapping[str, NDArray[Any]]) -> PairTable:
    queries, passages = np.divmod(arrays["keys"], max(arrays["passages"][0], 1))
    seen = arrays["seen"]
    times = np.where(seen > 0, seen, np.nan)
    means = (arrays[name] / times for name in ("margin", "loss", "beside"))
    return PairTable(queries.astype(np.int32), passages.astype(np.int32), seen.copy(), *means)


def standardised(values: Float64) -> Float64:
    """Return ``values`` float64 [n] in standard deviations from their mean; nan stays, equal values are 0."""
    known = values[~np.isnan(values)]
    spread = float(known.std()) if len(known) else 0.0
    if spread == 0:
        return np.where(np.isnan(values), np.nan, 0.0)
    distances: Float64 = (values - known.mean()) / spread
    return distances
