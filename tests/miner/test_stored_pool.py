from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.samplers import SamplerConfig
from miner.stored_pool import StoredPool
from retriever.errors import InputError
from retriever.negatives import NegativeSet, Verdict, create_negative_set, open_negative_set
from retriever.protocols import NegativeSource

QUERIES, DEPTH = 12, 6


@pytest.fixture(scope="module")
def negatives(tmp_path_factory: pytest.TempPathFactory) -> NegativeSet:
    """A set in which query q has q eligible candidates (at most all), the others of every other verdict in turn."""
    folder: Path = tmp_path_factory.mktemp("set")
    found = create_negative_set(folder, QUERIES, DEPTH, 1)
    others = [verdict for verdict in Verdict if verdict != Verdict.ELIGIBLE]
    for query in range(QUERIES):
        found.passages[query] = np.arange(DEPTH) + 100 * query
        found.scores[query] = 1 - np.arange(DEPTH) / 10
        found.verdicts[query] = [
            Verdict.ELIGIBLE if column < query else others[(query + column) % len(others)] for column in range(DEPTH)
        ]
    found.passages[6, 4:] = -1  # pads that some fault has called eligible
    found.dropped[7] = True
    found.flush()
    return open_negative_set(folder)


def pool(negatives: NegativeSet, sampler: str = "uniform", k: int = 3, number: int = 1, seed: int = 13) -> StoredPool:
    return StoredPool(negatives, number, SamplerConfig(sampler), k, seed, steps_per_turn=10)


def test_it_is_a_source_of_negatives(negatives: NegativeSet) -> None:
    source: NegativeSource = pool(negatives)
    drawn = source.draw(np.array([8, 9], np.int32), 0)
    assert drawn.rows.dtype == np.int32 and drawn.scores.dtype == np.float32 and drawn.mask.dtype == np.bool_
    assert drawn.rows.shape == drawn.scores.shape == drawn.mask.shape == (2, 3)


@given(
    st.lists(st.integers(0, QUERIES - 1), min_size=1, max_size=8),
    st.integers(0, 10_000),
    st.sampled_from(["top", "uniform"]),
)
def test_only_what_may_be_a_negative_is_drawn(
    negatives: NegativeSet, batch: list[int], step: int, sampler: str
) -> None:
    drawn = pool(negatives, sampler, k=4).draw(np.array(batch, np.int32), step)
    for line, query in enumerate(batch):
        allowed = {
            int(row): float(score)
            for row, score, verdict in zip(
                negatives.passages[query], negatives.scores[query], negatives.verdicts[query], strict=True
            )
            if verdict in (Verdict.ELIGIBLE, Verdict.JUDGED_IRRELEVANT) and row >= 0 and query != 7
        }
        rows = drawn.rows[line][drawn.mask[line]].tolist()
        assert len(set(rows)) == len(rows) == min(4, len(allowed))
        assert {row: allowed[row] for row in rows} == dict(
            zip(rows, drawn.scores[line][drawn.mask[line]].tolist(), strict=True)
        )
    assert (drawn.rows[~drawn.mask] == -1).all() and not drawn.scores[~drawn.mask].any()


@given(st.permutations(range(QUERIES)), st.integers(1, QUERIES), st.integers(0, 1000))
def test_a_draw_depends_on_its_query_alone(negatives: NegativeSet, order: list[int], size: int, step: int) -> None:
    batch = np.array(order[:size], np.int32)
    together, everyone = (
        pool(negatives).draw(batch, step),
        pool(negatives).draw(np.arange(QUERIES, dtype=np.int32), step),
    )
    np.testing.assert_array_equal(together.rows, everyone.rows[batch])
    np.testing.assert_array_equal(together.mask, everyone.mask[batch])


def test_each_epoch_set_and_seed_draws_anew(negatives: NegativeSet) -> None:
    batch = np.array([6, 8, 9, 10, 11], np.int32)
    draws = [
        pool(negatives).draw(batch, 0),
        pool(negatives).draw(batch, 10),
        pool(negatives, number=2).draw(batch, 0),
        pool(negatives, seed=14).draw(batch, 0),
    ]
    assert len({drawn.rows.tobytes() for drawn in draws}) == len(draws)
    assert pool(negatives).draw(batch, 9).rows.tolist() == draws[0].rows.tolist()  # the same epoch


def test_uniform_gives_every_eligible_candidate_the_same_chance(negatives: NegativeSet) -> None:
    source = pool(negatives, k=1)
    epochs = 6000
    first = [int(source.draw(np.array([9], np.int32), 10 * epoch).rows[0, 0]) - 900 for epoch in range(epochs)]
    counts = np.bincount(first, minlength=DEPTH)
    assert np.abs(counts - epochs / DEPTH).max() < 4 * np.sqrt(epochs / DEPTH * (1 - 1 / DEPTH))


def test_top_is_the_same_in_every_epoch(negatives: NegativeSet) -> None:
    source = pool(negatives, "top", k=2)
    for step in (0, 10, 500):
        assert source.draw(np.array([9, 10], np.int32), step).rows.tolist() == [[900, 901], [1000, 1001]]


def test_more_negatives_than_the_pool_is_deep_are_refused(negatives: NegativeSet) -> None:
    with pytest.raises(InputError, match=r"num_negatives = 7 is larger than the pool of negative set 1"):
        pool(negatives, k=7)
