"""The report of sources against sums over one candidate after another."""

from pathlib import Path

import numpy as np
import pytest

import miner.source_report
from miner.quotas import Quotas, draw_wanted
from miner.samplers import SamplerConfig
from miner.source_report import report_sources
from miner.stored_pool import weighed
from retriever.negatives import MAY_BE_DRAWN, NegativeSet, Verdict, create_negative_set

BITS = {"ann": 1, "bm25": 8, "generation:A": 16}
QUOTAS = Quotas(((8, 3), (1, 2)), fill=1)


@pytest.fixture
def pool(tmp_path: Path) -> NegativeSet:
    made = create_negative_set(tmp_path, 11, 12, 1)
    generator = np.random.default_rng(5)
    made.passages[:] = np.arange(132).reshape(11, 12)
    made.passages[3, 8:] = -1
    made.sources[:] = generator.choice([1, 8, 9], (11, 12))
    made.sources[3, 8:] = 0
    made.scores[:] = -np.sort(-generator.standard_normal((11, 12)), axis=1)
    made.verdicts[:] = generator.choice([0, 0, 0, 1, 3, 5], (11, 12))
    return made


def test_it_is_what_counting_by_hand_gives(pool: NegativeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miner.source_report, "CHUNK_QUERIES", 4)
    told = report_sources(pool, BITS, SamplerConfig(), QUOTAS, seed=2)
    weights, noise = weighed(pool, pool.queries, SamplerConfig(), (2, 0, 0))
    columns, mask = draw_wanted(weights, pool.sources, Quotas(QUOTAS.counts), noise)
    for name, first, quota in (("bm25", 0, 3), ("ann", 3, 2)):
        bit, here = BITS[name], slice(first, first + quota)
        verdicts = [
            Verdict(int(v)) for v, s in zip(pool.verdicts.ravel(), pool.sources.ravel(), strict=True) if s & bit
        ]
        scores = [
            float(score)
            for score, v, s in zip(pool.scores.ravel(), pool.verdicts.ravel(), pool.sources.ravel(), strict=True)
            if s & bit and v in MAY_BE_DRAWN
        ]
        drawn = [
            float(pool.scores[query, column])
            for query in range(11)
            for column, kept in zip(columns[query, here], mask[query, here], strict=True)
            if kept
        ]
        one = told[name]
        assert (one["candidates"], one["quota"], one["drawn"]) == (len(verdicts), quota, len(drawn))
        assert one["verdicts"] == {
            verdict.name.lower(): verdicts.count(verdict) / len(verdicts) for verdict in Verdict if verdict in verdicts
        }
        assert one["score_mean"] == pytest.approx(np.mean(scores), abs=1e-6)
        assert one["drawn_score_mean"] == pytest.approx(np.mean(drawn), abs=1e-6)
        assert one["short"] == sum(not mask[query, here].all() for query in range(11))


def test_a_source_that_brought_nothing_has_no_mean(pool: NegativeSet) -> None:
    told = report_sources(pool, BITS, SamplerConfig(), None, seed=2)
    assert told["generation:A"] == {"candidates": 0, "verdicts": {}, "score_mean": None}
