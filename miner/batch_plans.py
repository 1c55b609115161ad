"""Orders of the training queries: which queries make up each batch of an epoch.

Does not know positives, negatives or the model.
"""

from dataclasses import dataclass

import numpy as np

from miner.clusters import balanced_clusters
from miner.communities import B3, batches_of
from miner.counter_hash import uniform
from miner.knobs import knobs
from retriever.errors import InputError
from retriever.protocols import FloatArray, IntArray

PLANS: dict[str, dict[str, int]] = {
    "random": {},
    "b3": {"first_rank": 30, "ranks": 100, "community": 32},
    "ngame": {"double_every": 1},
}
"""The knobs of each plan. B3's are its paper's; NGAME's authors re-cluster every 5 of 300 epochs."""


@dataclass(frozen=True)
class BatchPlanConfig:
    """[batches]: the plan and its knobs; a knob that is None has its default in PLANS.

    Of b3: ``first_rank`` p, ``ranks`` m, ``community`` K, queries that always share a batch. Of ngame:
    ``double_every`` so many epochs the clusters grow from 1 query to 2, 4 … a batch.
    """

    name: str = "random"
    first_rank: int | None = None
    ranks: int | None = None
    community: int | None = None
    double_every: int | None = None

    def __post_init__(self) -> None:
        """Raise InputError naming a plan that there is not, or a knob that does not fit."""
        least = {"first_rank": 0, "ranks": 1, "community": 2, "double_every": 1}
        for knob, value in self.knobs.items():
            if value < least[knob]:
                raise InputError(f"[batches] {knob} = {value}: write {least[knob]} or more")

    @property
    def knobs(self) -> dict[str, int]:
        """The plan's knobs, defaults included."""
        return knobs("[batches] ", self, PLANS)

    def b3(self, batch_size: int) -> B3 | None:
        """Return what mining plans batches by, None if it plans none."""
        return B3(**self.knobs, batch_size=batch_size) if self.name == "b3" else None

    def check(self, queries: int, batch_size: int, *, in_batch: bool) -> None:
        """Raise InputError for a plan that ``queries`` training queries in batches of ``batch_size`` cannot have.

        ``in_batch``: whether the queries of a batch meet each other's passages.
        """
        if self.name == "random":
            return
        if not in_batch:
            raise InputError(
                f"[batches] name = {self.name!r} chooses in-batch negatives; [loss] in_batch = false has none"
            )
        if self.name == "ngame":
            if batch_size % 2:
                raise InputError(f"[train] batch_size = {batch_size}: ngame fills batches with clusters of 2, 4, 8 …")
            return
        community, first_rank = self.knobs["community"], self.knobs["first_rank"]
        if batch_size % community:
            raise InputError(
                f"[batches] community = {community}: does not divide [train] batch_size = {batch_size}; "
                "a batch is made of whole communities"
            )
        if queries < community:
            raise InputError(f"[batches] community = {community}: there are only {queries} training queries")
        if queries <= first_rank:
            raise InputError(
                f"[batches] first_rank = {first_rank}: only {queries} training queries have ranks; lower it"
            )


class RandomPlan:
    """A BatchPlanner that shuffles the queries anew for each epoch, as a function of seed and epoch alone."""

    def __init__(self, queries: int, batch_size: int, seed: int, table: str = "train") -> None:
        """Raise InputError, naming the ``table`` of the run, if ``queries`` do not fill one batch of ``batch_size``."""
        if not 0 < batch_size <= queries:
            raise InputError(
                f"[{table}] batch_size = {batch_size}: write 1 to {queries}, the number of training queries"
            )
        self._queries = queries
        self._batch_size = batch_size
        self._seed = seed

    def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
        """Return query rows int32 [batches, batch size]: every query once, none twice in a batch.

        Where the last batch is not full, the first queries of the epoch come again in it.
        """
        noise = uniform("random plan", self._seed, epoch, np.arange(self._queries))
        order = np.argsort(noise, kind="stable").astype(np.int32)
        batches = -(-self._queries // self._batch_size)
        return np.resize(order, (batches, self._batch_size))


class StoredPlan:
    """A BatchPlanner over the ``batches`` of a negative set, which come in another order in each epoch."""

    def __init__(self, batches: IntArray, number: int, seed: int) -> None:
        """Take ``batches`` int32 [batches, batch size] of negative set ``number``."""
        self._batches = batches
        self._number = number
        self._seed = seed

    def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
        """Return the batches in the epoch's order."""
        noise = uniform("stored plan", self._seed, self._number, epoch, np.arange(len(self._batches)))
        return self._batches[np.argsort(noise, kind="stable")]


class ClusterPlan:
    """A BatchPlanner that fills batches with clusters of a bank of embeddings: NGAME (Dahiya et al., WSDM 2023).

    Clusters have 1 query in the first epochs and twice as many after each ``double_every``, up to the largest power of
    2 that divides the batch: random batches become hard ones as the embeddings get worth trusting.
    """

    def __init__(self, queries: int, batch_size: int, double_every: int, seed: int) -> None:
        """Raise InputError like RandomPlan."""
        self._random = RandomPlan(queries, batch_size, seed)
        self._queries = queries
        self._batch_size = batch_size
        self._double_every = double_every
        self._seed = seed

    def cluster_size(self, epoch: int) -> int:
        """Return how many queries a cluster of ``epoch`` has."""
        largest = self._batch_size & -self._batch_size
        return int(min(largest, 1 << min(62, epoch // self._double_every)))

    def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
        """Return query rows int32 [batches, batch size] like RandomPlan.

        ``bank`` float32 [queries, dim] holds the newest embedding of each query, as training made it. Without one, or
        with clusters of 1, the plan is random.
        """
        size = self.cluster_size(epoch)
        if bank is None or size == 1:
            return self._random.plan(epoch)
        if len(bank) != self._queries:
            raise ValueError(f"a bank of {len(bank)} embeddings where {self._queries} queries are")
        noise = uniform("cluster plan", self._seed, epoch, np.arange(-(-self._queries // size)))
        return batches_of(balanced_clusters(bank, size, self._seed), size, self._batch_size, noise)
