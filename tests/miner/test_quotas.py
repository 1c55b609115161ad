"""Draws by quota against a plain loop over one query, and what they promise of every pool."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from miner.quotas import Quotas, draw_wanted, drawn_by_source, total
from miner.samplers import draw

BITS = (1, 8, 16)
QUERIES, DEPTH = 3, 9

pools = st.tuples(
    st.lists(st.sampled_from([0, 1, 8, 9, 16, 17, 24, 25]), min_size=QUERIES * DEPTH, max_size=QUERIES * DEPTH),
    st.lists(st.booleans(), min_size=QUERIES * DEPTH, max_size=QUERIES * DEPTH),
    st.integers(0, 100),
)
quotas = st.tuples(st.permutations(BITS), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, *BITS])).map(
    lambda made: Quotas(((made[0][0], made[1]), (made[0][1], made[2])), made[3])
)


def weights_of(pool: tuple[list[int], list[bool], int]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    bits, eligible, seed = pool
    scores = np.random.default_rng(seed).standard_normal((QUERIES, DEPTH))
    return (
        np.where(np.array(eligible).reshape(QUERIES, DEPTH), scores, -np.inf),
        np.array(bits, np.uint8).reshape(QUERIES, DEPTH),
    )


def by_hand(weights: list[float], bits: list[int], wanted: Quotas) -> list[int | None]:
    """Draw for one query: best weight first from each source in turn, then the empty places from the source to fill."""
    left = {place for place, weight in enumerate(weights) if weight > -np.inf}
    places: list[int | None] = []
    for bit, quota in wanted.counts:
        for _ in range(quota):
            best = max((place for place in left if bits[place] & bit), key=lambda place: weights[place], default=None)
            places.append(best)
            left -= {best}
    for number, place in enumerate(places):
        if place is None and wanted.fill:
            best = max((p for p in left if bits[p] & wanted.fill), key=lambda p: weights[p], default=None)
            places[number] = best
            left -= {best}
    return places


@given(pools, quotas)
def test_a_draw_is_that_of_a_plain_loop(pool: tuple[list[int], list[bool], int], wanted: Quotas) -> None:
    weights, bits = weights_of(pool)
    columns, mask = draw_wanted(weights, bits, wanted, 0.0)
    assert columns.shape == mask.shape == (QUERIES, wanted.total)
    for query in range(QUERIES):
        expected = by_hand(weights[query].tolist(), bits[query].tolist(), wanted)
        drawn = [int(column) if kept else None for column, kept in zip(columns[query], mask[query], strict=True)]
        assert drawn == expected


@given(pools, quotas)
def test_quotas_are_met_wherever_a_source_has_enough_of_its_own(
    pool: tuple[list[int], list[bool], int], wanted: Quotas
) -> None:
    weights, bits = weights_of(pool)
    noise = np.random.default_rng(1).gumbel(size=weights.shape)
    columns, mask = draw_wanted(weights, bits, wanted, noise)
    for query in range(QUERIES):
        drawn = columns[query][mask[query]].tolist()
        assert len(set(drawn)) == len(drawn), "none twice"
        assert (weights[query][drawn] > -np.inf).all(), "only what may be drawn"
        for bit, quota in wanted.counts:
            own = (bits[query] & sum(bit for bit, _ in wanted.counts)) == bit
            if (own & (weights[query] > -np.inf)).sum() >= quota:
                assert np.count_nonzero(bits[query][drawn] & bit) >= quota


@given(pools, quotas)
def test_what_each_source_gives_is_told_before_places_are_filled(
    pool: tuple[list[int], list[bool], int], wanted: Quotas
) -> None:
    weights, bits = weights_of(pool)
    empty = Quotas(wanted.counts)
    columns, mask = draw_wanted(weights, bits, empty, 0.0)
    given_by = drawn_by_source(weights, bits, wanted, 0.0)
    np.testing.assert_array_equal(np.concatenate([part for part, _ in given_by], axis=1), columns)
    np.testing.assert_array_equal(np.concatenate([part for _, part in given_by], axis=1), mask)
    for (bit, quota), (part, kept) in zip(wanted.counts, given_by, strict=True):
        assert part.shape == (QUERIES, quota)
        assert (np.take_along_axis(bits, part, axis=1)[kept] & bit).all()


def test_a_number_is_drawn_as_without_quotas() -> None:
    generator = np.random.default_rng(3)
    weights, noise = generator.standard_normal((4, 7)), generator.gumbel(size=(4, 7))
    expected = draw(weights, 3, noise)
    for found, one in zip(draw_wanted(weights, np.ones((4, 7), np.uint8), 3, noise), expected, strict=True):
        np.testing.assert_array_equal(found, one)


@pytest.mark.parametrize(("wanted", "count"), [(5, 5), (Quotas(((1, 2), (8, 4))), 6)])
def test_the_total_is_what_a_query_gets_at_most(wanted: int | Quotas, count: int) -> None:
    assert total(wanted) == count
