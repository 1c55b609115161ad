"""B3's batches: queries that would be each other's hard negatives, found by communities of a sparse graph.

Does not know encoders, the store or epochs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pymetis
from numpy.typing import NDArray

from indexer.searcher import exact_searcher
from miner.counter_hash import uniform
from miner.filters import known_positives
from miner.sources import SOURCES
from retriever.errors import InputError
from retriever.negatives import NegativeSet
from retriever.protocols import FloatArray, IntArray

CHUNK_QUERIES = 1024


@dataclass(frozen=True)
class B3:
    """Batches of ``batch_size`` made of communities of ``community`` queries; a divisor of it.

    An edge joins a query and another whose positive is among its ranks ``first_rank`` … + ``ranks`` − 1, from 0.
    """

    first_rank: int
    ranks: int
    community: int
    batch_size: int


@dataclass(frozen=True)
class Graph:
    """An undirected graph without loops: node i's neighbours are ``adjacent`` [starts[i] : starts[i + 1]]."""

    starts: IntArray
    adjacent: IntArray

    def __len__(self) -> int:
        return len(self.starts) - 1


def b3_batches(
    b3: B3,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], FloatArray],
    gather: Callable[[IntArray], FloatArray],
    negatives: NegativeSet,
    seed: tuple[int, int],
) -> tuple[IntArray, float]:
    """Return query rows int32 [batches, batch size], and the share of the graph's edges inside communities.

    B3 (Thirukovalluru et al., 2025), over the positives of the training set: of a query with several the one that
    scored best stands for it. ``texts`` are the queries', which ``encode`` turns into float32 [n, dim] chunk by chunk;
    ``gather`` gives passage vectors; ``negatives`` knows the positives. Communities are joined into batches at random,
    by ``seed``. Raises InputError for a query without a positive.
    """
    graph = neighbour_graph(_neighbours(b3, texts, encode, gather, negatives))
    labels = communities(graph, b3.community)
    order, inside = exact_groups(labels, graph, b3.community)
    groups = -(-len(order) // b3.community)
    noise = uniform("b3", *seed, np.arange(groups))
    return batches_of(order, b3.community, b3.batch_size, noise), inside


def _neighbours(
    b3: B3,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], FloatArray],
    gather: Callable[[IntArray], FloatArray],
    negatives: NegativeSet,
) -> IntArray:
    """Return the queries int32 [Q, ranks] whose positives lie in each query's ranks, −1 where that is its own."""
    positives = np.asarray(negatives.positives)
    best = np.where(positives >= 0, negatives.positive_scores, -np.inf).argmax(axis=1)[:, None]
    positive = np.take_along_axis(positives, best, axis=1)[:, 0]
    if (positive < 0).any():
        raise InputError(f"[batches] b3: training query {int(positive.argmin())} has no positive")
    starts = range(0, len(texts), CHUNK_QUERIES)
    depth = min(b3.first_rank + b3.ranks, len(texts))
    ranked, missing = ranks_in_pool(negatives, positive, depth)
    if len(missing):
        dimensions = gather(positive[:1]).shape[1]
        searcher = exact_searcher(dimensions, (gather(positive[start : start + CHUNK_QUERIES]) for start in starts))
        for start in range(0, len(missing), CHUNK_QUERIES):
            rows = missing[start : start + CHUNK_QUERIES]
            ranked[rows] = searcher.search(encode([texts[row] for row in rows]), depth)[0]
    neighbours = np.full((len(texts), b3.ranks), -1, np.int32)
    for start in starts:
        here = slice(start, start + CHUNK_QUERIES)
        found = ranked[here, b3.first_rank :]
        own = known_positives(positive[found], positives[here])
        neighbours[here, : found.shape[1]] = np.where(own, np.int32(-1), found)
    return neighbours


def ranks_in_pool(negatives: NegativeSet, positive: IntArray, depth: int) -> tuple[IntArray, IntArray]:
    """Return the ``depth`` queries int32 [Q, depth] whose ``positive`` int32 [Q] each query's pool ranks first.

    Also the rows int32 of those for which that is not what a search over the positives would give: their pool holds
    fewer that "ann" brought; all, where pools are of several generations. Queries of one positive follow each other,
    the lower row first, as in a search of equal scores. It saves the search where many passages are positives.
    """
    if len(np.unique(negatives.mined_from)) > 1:
        return np.zeros((len(positive), depth), np.int32), np.arange(len(positive), dtype=np.int32)
    missing = np.zeros(len(positive), bool)
    asking = np.argsort(positive, kind="stable").astype(np.int32)  # those of one positive lie together
    nobody = int(max(positive.max(), negatives.passages.max())) + 1
    starts = np.searchsorted(positive[asking], np.arange(nobody + 2))
    ranked = np.zeros((len(positive), depth), np.int32)
    for start in range(0, len(positive), CHUNK_QUERIES):
        here = slice(start, start + CHUNK_QUERIES)
        passages = negatives.passages[here]
        from_ann = (negatives.sources[here] & SOURCES["ann"] > 0) & (passages >= 0)
        found = np.where(from_ann, passages, nobody)
        counts = starts[found + 1] - starts[found]
        taken = np.clip(depth - (counts.cumsum(axis=1) - counts), 0, counts)
        enough = taken.sum(axis=1) == depth
        missing[here] = ~enough
        many, first = taken[enough].ravel(), starts[found[enough]].ravel()
        within = np.arange(many.sum()) - np.repeat(many.cumsum() - many, many)
        ranked[here][enough] = asking[np.repeat(first, many) + within].reshape(-1, depth)
    return ranked, np.flatnonzero(missing).astype(np.int32)


def neighbour_graph(neighbours: IntArray) -> Graph:
    """Return the graph in which i and j are joined if j is among the ``neighbours`` int32 [Q, m] of i or i of j's.

    −1 is no neighbour, and neither is a node of itself. Takes about 32 bytes a place of ``neighbours``.
    """
    nodes = len(neighbours)
    one = np.repeat(np.arange(nodes, dtype=np.int64), neighbours.shape[1])
    other = neighbours.ravel().astype(np.int64)
    real = (other >= 0) & (one != other)
    one, other = one[real], other[real]
    edges = np.concatenate([one * nodes + other, other * nodes + one])
    edges.sort()
    edges = edges[np.concatenate([[True], edges[1:] != edges[:-1]])] if len(edges) else edges
    source, target = np.divmod(edges, nodes)
    starts = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=nodes))])
    return Graph(starts.astype(np.int32), target.astype(np.int32))


def communities(graph: Graph, size: int) -> NDArray[np.int64]:
    """Return the community int64 [nodes] of each node: as many as groups of ``size`` need, few edges between them.

    METIS's multilevel recursive bisection (Karypis and Kumar, SIAM J. Sci. Comput., 1998), with its default seed. Its
    k-way partition, meant for fewer and larger parts, takes ten times as long here and keeps fewer edges inside.
    """
    if not len(graph.adjacent):
        return np.arange(len(graph)) // size
    csr = pymetis.CSRAdjacency(graph.starts, graph.adjacent)
    return np.array(pymetis.part_graph(-(-len(graph) // size), csr, recursive=True).vertex_part, np.int64)


def exact_groups(labels: NDArray[np.int64], graph: Graph, size: int) -> tuple[IntArray, float]:
    """Return nodes int32 in an order whose runs of ``size`` are the communities, and the share of edges inside these.

    The last run may be short. Communities that are too large give away the members with the fewest neighbours inside,
    too small ones take them.
    """
    nodes = len(labels)
    groups = -(-nodes // size)
    inside = _neighbours_inside(labels, graph)
    by_label = np.lexsort((np.arange(nodes), -inside, labels))
    counts = np.bincount(labels, minlength=groups)
    room = np.full(groups, size)
    short = int(counts.argmin())
    room[short] -= groups * size - nodes
    rank = np.arange(nodes) - np.repeat(np.cumsum(counts) - counts, counts)
    stays = rank < room[labels[by_label]]
    final = labels[by_label]
    final[~stays] = np.repeat(np.arange(groups), room - np.minimum(counts, room))
    place = np.where(final == short, groups, final)  # the short group comes last
    order = by_label[np.argsort(place, kind="stable")].astype(np.int32)
    settled = np.empty(nodes, np.int64)
    settled[by_label] = final
    edges = max(1, len(graph.adjacent))
    return order, float(_neighbours_inside(settled, graph).sum() / edges)


def _neighbours_inside(labels: NDArray[np.int64], graph: Graph) -> NDArray[np.int64]:
    """Count the neighbours of each node that share its label, int64 [nodes]."""
    same = labels[graph.adjacent] == np.repeat(labels, np.diff(graph.starts))
    total = np.concatenate([[0], np.cumsum(same)])
    counts: NDArray[np.int64] = total[graph.starts[1:]] - total[graph.starts[:-1]]
    return counts


def batches_of(order: IntArray, size: int, batch_size: int, noise: NDArray[np.float64]) -> IntArray:
    """Return batches int32 [⌈Q / batch size⌉, batch size] of whole groups: runs of ``size`` of ``order`` int32 [Q].

    Groups come in the order of their ``noise`` [groups]; a short last one stays last. Where the last batch is not full,
    the first queries come again in it.
    """
    whole = len(order) // size
    groups = order[: whole * size].reshape(whole, size)[np.argsort(noise[:whole], kind="stable")]
    shuffled = np.concatenate([groups.ravel(), order[whole * size :]])
    return np.resize(shuffled, (-(-len(order) // batch_size), batch_size))
