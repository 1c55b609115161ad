from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import miner.communities
from miner.communities import (
    B3,
    Graph,
    _neighbours,
    b3_batches,
    batches_of,
    communities,
    exact_groups,
    neighbour_graph,
    ranks_in_pool,
)
from retriever.errors import InputError
from retriever.negatives import NegativeSet, create_negative_set
from retriever.protocols import FloatArray, IntArray

QUERIES, TOPICS, DIM = 96, 12, 16


class Topics:
    """Queries and their positives around a few topics, interleaved: query i is of topic i modulo TOPICS."""

    def __init__(self, folder: Path, several: bool = False) -> None:
        generator = np.random.default_rng(3)
        topics = generator.standard_normal((TOPICS, DIM))
        of = np.arange(QUERIES) % TOPICS
        self.queries = _unit(topics[of] + 0.3 * generator.standard_normal((QUERIES, DIM)))
        self.passages = _unit(topics[of] + 0.3 * generator.standard_normal((QUERIES, DIM)))
        self.texts = [str(row) for row in range(QUERIES)]
        self.negatives: NegativeSet = create_negative_set(folder, QUERIES, 1, 2)
        self.negatives.positives[:, 0] = np.arange(QUERIES)
        if several:  # the neighbour in the topic is a positive, too
            self.negatives.positives[:, 1] = (np.arange(QUERIES) + TOPICS) % QUERIES
        known = self.negatives.positives >= 0
        scores = np.einsum("qd,qpd->qp", self.queries, self.passages[self.negatives.positives])
        self.negatives.positive_scores[:] = np.where(known, scores, 0)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        found: FloatArray = self.queries[[int(text) for text in texts]]
        return found

    def gather(self, rows: IntArray) -> FloatArray:
        found: FloatArray = self.passages[rows]
        return found

    def plan(self, b3: B3, seed: int = 1) -> tuple[IntArray, float]:
        return b3_batches(b3, self.texts, self.encode, self.gather, self.negatives, (seed, 0))

    def similarity_in_batches(self, batches: IntArray) -> float:
        """Return the mean score of each query with the positives of the others in its batch."""
        scores = self.queries @ self.passages.T
        pairs = [scores[one, other] for batch in batches for one in batch for other in batch if one != other]
        return float(np.mean(pairs))


def _unit(vectors: np.ndarray) -> FloatArray:
    unit: FloatArray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_a_batch_holds_queries_that_are_hard_for_each_other(tmp_path: Path) -> None:
    """B3's observable: the similarity in its batches is above a random batch's."""
    topics = Topics(tmp_path)
    batches, inside = topics.plan(B3(first_rank=1, ranks=7, community=8, batch_size=16))
    assert batches.shape == (6, 16) and batches.dtype == np.int32
    assert sorted(batches.ravel().tolist()) == list(range(QUERIES))
    shuffled = np.random.default_rng(1).permutation(QUERIES).astype(np.int32).reshape(6, 16)
    assert topics.similarity_in_batches(batches) > topics.similarity_in_batches(shuffled) + 0.25
    assert inside > 0.8
    communities_of = [set((batch[half : half + 8] % TOPICS).tolist()) for batch in batches for half in (0, 8)]
    assert sum(len(topics) == 1 for topics in communities_of) >= 10


def test_a_plan_is_a_function_of_its_seed(tmp_path: Path) -> None:
    topics, b3 = Topics(tmp_path), B3(1, 7, 8, 16)
    np.testing.assert_array_equal(topics.plan(b3)[0], topics.plan(b3)[0])
    one, other = ({frozenset(batch) for batch in topics.plan(b3, seed)[0].tolist()} for seed in (1, 2))
    assert one != other, "communities are joined anew"


def ranks_by_hand(topics: Topics, query: int, b3: B3) -> list[int]:
    """Rank the positives of all queries for one query, in plain Python."""
    positives = [[int(row) for row in line if row >= 0] for line in topics.negatives.positives]

    def dot(one: int, passage: int) -> float:
        return sum(float(a) * float(b) for a, b in zip(topics.queries[one], topics.passages[passage], strict=True))

    standing = [max(known, key=lambda passage: dot(other, passage)) for other, known in enumerate(positives)]
    order = sorted(range(QUERIES), key=lambda other: -dot(query, standing[other]))
    kept = order[b3.first_rank : b3.first_rank + b3.ranks]
    return [-1 if standing[other] in positives[query] else other for other in kept]


@pytest.mark.parametrize("several", [False, True])
def test_neighbours_are_the_ranks_from_p_on_without_known_positives(
    tmp_path: Path, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miner.communities, "CHUNK_QUERIES", 20)
    topics, b3 = Topics(tmp_path, several), B3(first_rank=2, ranks=5, community=8, batch_size=16)
    found = _neighbours(b3, topics.texts, topics.encode, topics.gather, topics.negatives)
    for query in range(0, QUERIES, 7):
        if several:  # two queries may stand for themselves by the same passage, at equal scores
            assert sorted(found[query] < 0) == sorted(row < 0 for row in ranks_by_hand(topics, query, b3))
        else:
            assert found[query].tolist() == ranks_by_hand(topics, query, b3)


def test_a_pool_that_ranks_enough_positives_saves_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topics, b3 = Topics(tmp_path), B3(first_rank=2, ranks=5, community=8, batch_size=16)
    searched = _neighbours(b3, topics.texts, topics.encode, topics.gather, topics.negatives)
    (tmp_path / "mined").mkdir()
    mined = create_negative_set(tmp_path / "mined", QUERIES, QUERIES + 3, 2)
    mined.positives[:], mined.positive_scores[:] = topics.negatives.positives, topics.negatives.positive_scores
    order = np.argsort(-(topics.queries @ topics.passages.T), axis=1, kind="stable")
    # Behind a passage that is nobody's positive, and with one that another source brought.
    mined.passages[:, 0], mined.passages[:, 1:-2], mined.passages[:, -2] = QUERIES + 9, order, order[:, 0]
    mined.sources[:, :-2] = 1
    mined.sources[:, -2] = 8

    def encode(texts: Sequence[str]) -> FloatArray:
        raise AssertionError("searched")

    monkeypatch.setattr(miner.communities, "CHUNK_QUERIES", 20)
    np.testing.assert_array_equal(_neighbours(b3, topics.texts, encode, topics.gather, mined), searched)
    positive = np.arange(QUERIES, dtype=np.int32)
    for spoil in ("too few", "carried"):
        if spoil == "too few":
            assert len(ranks_in_pool(topics.negatives, positive, 7)[1]) == QUERIES
            mined.sources[5, 8:] = 2
        else:
            mined.mined_from[7] = 1
        missing = ranks_in_pool(mined, positive, 8)[1].tolist()
        assert missing == ([5] if spoil == "too few" else [*range(QUERIES)])
        found = _neighbours(b3, topics.texts, topics.encode, topics.gather, mined)
        np.testing.assert_array_equal(found, searched)
        mined.sources[5, 8:-2] = 1


@pytest.mark.parametrize("shared", [2, 5, QUERIES])
@pytest.mark.parametrize("depth", [1, 7, 23])
def test_a_pool_ranks_queries_that_share_a_positive_as_a_search_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: int, depth: int
) -> None:
    monkeypatch.setattr(miner.communities, "CHUNK_QUERIES", 20)
    topics = Topics(tmp_path)
    (tmp_path / "mined").mkdir()
    mined = create_negative_set(tmp_path / "mined", QUERIES, QUERIES, 1)
    scores = topics.queries @ topics.passages.T
    mined.passages[:] = np.argsort(-scores, axis=1, kind="stable")
    mined.sources[:] = 1
    mined.passages[:] = np.insert(mined.passages[:, :-1], 3, -1, axis=1)  # a place that holds nothing
    positive = (np.arange(QUERIES, dtype=np.int32) * 7 % QUERIES) // shared * shared
    expected = np.argsort(-scores[:, positive], axis=1, kind="stable")[:, :depth]
    ranked, missing = ranks_in_pool(mined, positive, depth)
    assert len(missing) == 0 and ranked.tolist() == expected.tolist()


def test_ranks_beyond_the_queries_are_none(tmp_path: Path) -> None:
    topics = Topics(tmp_path)
    found = _neighbours(B3(90, 10, 8, 16), topics.texts, topics.encode, topics.gather, topics.negatives)
    assert (found[:, 6:] == -1).all() and (found[:, :6] >= 0).all()


def test_a_query_without_a_positive_is_named(tmp_path: Path) -> None:
    topics = Topics(tmp_path)
    topics.negatives.positives[5] = -1
    with pytest.raises(InputError, match="training query 5 has no positive"):
        topics.plan(B3(1, 7, 8, 16))


NEIGHBOURS = st.integers(1, 12).flatmap(
    lambda nodes: st.lists(st.lists(st.integers(-1, nodes - 1), min_size=3, max_size=3), min_size=nodes, max_size=nodes)
)


@given(NEIGHBOURS)
def test_a_graph_is_undirected_without_loops_or_double_edges(listed: list[list[int]]) -> None:
    graph = neighbour_graph(np.array(listed, np.int32))
    expected: list[set[int]] = [set() for _ in listed]
    for node, others in enumerate(listed):
        for other in others:
            if other >= 0 and other != node:
                expected[node].add(other)
                expected[other].add(node)
    found = [graph.adjacent[graph.starts[n] : graph.starts[n + 1]].tolist() for n in range(len(graph))]
    assert found == [sorted(others) for others in expected]


@given(NEIGHBOURS, st.integers(1, 5))
def test_communities_are_rebalanced_to_exactly_their_size(listed: list[list[int]], size: int) -> None:
    graph = neighbour_graph(np.array(listed, np.int32))
    labels = communities(graph, size)
    order, inside = exact_groups(labels, graph, size)
    assert sorted(order.tolist()) == list(range(len(listed)))
    group = {node: place // size for place, node in enumerate(order.tolist())}
    edges = [(a, b) for a in range(len(graph)) for b in graph.adjacent[graph.starts[a] : graph.starts[a + 1]].tolist()]
    assert inside == pytest.approx(sum(group[a] == group[b] for a, b in edges) / max(1, len(edges)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=13), st.integers(1, 5))
def test_whatever_the_labels_groups_are_exact_and_keep_who_has_room(labels: list[int], size: int) -> None:
    groups = -(-len(labels) // size)
    labels = [label % groups for label in labels]
    empty = Graph(np.zeros(len(labels) + 1, np.int32), np.empty(0, np.int32))
    order, inside = exact_groups(np.array(labels), empty, size)
    assert sorted(order.tolist()) == list(range(len(labels))) and inside == 0
    if all(labels.count(label) == size for label in range(groups)):
        runs = [{labels[node] for node in order[place : place + size]} for place in range(0, len(labels), size)]
        assert all(len(run) == 1 for run in runs)


def test_who_has_the_fewest_neighbours_inside_leaves() -> None:
    # 0, 1, 2 know each other, 3 knows 4 alone, yet all but 4 and 5 have one label.
    graph = neighbour_graph(np.array([[1, 2], [2, 0], [0, 1], [4, -1], [3, -1], [-1, -1]], np.int32))
    order, _ = exact_groups(np.array([0, 0, 0, 0, 1, 1]), graph, 3)
    assert [set(order[:3].tolist()), set(order[3:].tolist())] == [{0, 1, 2}, {3, 4, 5}]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
def test_batches_are_whole_groups(queries: int, size: int, groups_a_batch: int, seed: int) -> None:
    batch_size = min(queries, size * groups_a_batch)
    noise = np.random.default_rng(seed).random(-(-queries // size))
    batches = batches_of(np.arange(queries, dtype=np.int32), size, batch_size, noise)
    assert batches.shape == (-(-queries // batch_size), batch_size)
    flat = batches.ravel()[:queries].tolist()
    assert sorted(flat) == list(range(queries))
    runs = [flat[place : place + size] for place in range(0, queries - queries % size, size)]
    assert all(run == list(range(run[0], run[0] + size)) and run[0] % size == 0 for run in runs)
    assert all(len(set(batch)) == batch_size for batch in batches.tolist())
