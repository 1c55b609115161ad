import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import miner.mining
from miner.mining import MiningConfig, MiningTask, mine, queries_due
from miner.quotas import Quotas
from miner.samplers import SamplerConfig
from miner.sources import SOURCES, OpenGeneration, bits_of
from miner.stored_pool import StoredPool
from miner.verdicts import StoredVerdicts
from retriever.data import Corpus, QuerySet
from retriever.errors import InputError
from retriever.negatives import NegativeSet, Verdict, create_negative_set, open_negative_set
from retriever.protocols import FloatArray
from tests.miner.searchers import BruteForce
from tests.stand_ins import HashEncoder, tiny_store, write_json_lines

PASSAGES, QUERIES = 36, 10
TEXTS = ["ba ka li", "bo ku", "da la", "du lu ka", "de li la", "di ko", "bi ki bo", "be ke da la", "ba ka"]


def varied(text: str, place: int) -> str:
    """Write ``text`` otherwise without making another text of it."""
    return (text, text.upper(), text.replace(" ", "  "), f" {text.title()} ")[place % 4]


def same(one: str, other: str) -> bool:
    return one.lower().split() == other.lower().split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus in which each text occurs four times, in other cases and spacings."""
    folder = tmp_path_factory.mktemp("data")
    texts = [varied(TEXTS[row % len(TEXTS)], row // len(TEXTS)) for row in range(PASSAGES)]
    write_json_lines(folder / "corpus.jsonl", [{"_id": f"p{i}", "text": text} for i, text in enumerate(texts)])
    return tiny_store(tmp_path_factory.mktemp("store"), folder)[1]


def query_set(judgements: Sequence[dict[int, int]]) -> QuerySet:
    """Return queries of one or two words, of which some are the whole text of a passage."""
    texts = [varied(TEXTS[-1 - place % 4], place) for place in range(len(judgements))]
    return QuerySet("train", [f"q{place}" for place in range(len(texts))], texts, judgements)


@pytest.fixture
def queries() -> QuerySet:
    return query_set([{place: 1, place + 20: 1, 35: 0} for place in range(QUERIES)])


def opened(corpus: Corpus, number: int = 1, seed: int = 0) -> OpenGeneration:
    """Open a generation of a HashEncoder, other seeds being other weights."""
    encoder = HashEncoder(dimensions=16, seed=seed)
    vectors = encoder.encode_passages(corpus.texts(range(len(corpus))))
    return OpenGeneration(number, encoder.encode_queries, BruteForce(vectors), lambda rows: vectors[rows])


JUDGED = st.lists(
    st.dictionaries(st.integers(0, PASSAGES - 1), st.integers(0, 2), max_size=4), min_size=1, max_size=QUERIES
)


@given(JUDGED, st.integers(1, PASSAGES), st.sampled_from([0.0, 0.2, -0.5]), st.integers(0, 50))
@settings(max_examples=60)
def test_a_known_positive_or_duplicate_is_never_mined_nor_drawn(
    corpus: Corpus, judged: list[dict[int, int]], depth: int, margin: float, step: int
) -> None:
    queries = query_set(judged)
    task = MiningTask(corpus, queries, MiningConfig(depth=depth, relative_margin=margin), seed=1)
    with tempfile.TemporaryDirectory() as folder:
        found = mine(Path(folder), opened(corpus), task)
        k = min(depth, 5)
        drawn = StoredPool(found, 1, SamplerConfig(), k, 1, 10).draw(found.queries, step)
        chosen = [
            {
                *found.passages[query][found.verdicts[query] == Verdict.ELIGIBLE].tolist(),
                *drawn.rows[query][mask].tolist(),
            }
            for query, mask in enumerate(drawn.mask)
        ]
        dropped = found.dropped.tolist()
    for query, rows in enumerate(chosen):
        alike = [row for row in range(len(queries)) if same(queries.texts[row], queries.texts[query])]
        known = [corpus.text(row) for one in alike for row, relevance in judged[one].items() if relevance > 0]
        forbidden = {" ".join(text.lower().split()) for text in [queries.texts[query], *known]}
        assert not [row for row in rows if " ".join(corpus.text(row).lower().split()) in forbidden]
        assert dropped[query] == (not rows)


def test_a_set_holds_what_was_found_best_first(corpus: Corpus, queries: QuerySet, tmp_path: Path) -> None:
    generation = opened(corpus, number=7)
    mine(tmp_path, generation, MiningTask(corpus, queries, MiningConfig(depth=30), seed=1))
    found = open_negative_set(tmp_path)
    rows, scores = generation.searcher.search(generation.encode(queries.texts), 30)
    np.testing.assert_array_equal(found.passages, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert (found.sources == 1).all() and (found.mined_from == 7).all()
    assert found.positives.tolist() == [[place, place + 20] for place in range(QUERIES)]
    assert (found.verdicts[found.passages == found.queries[:, None]] == Verdict.POSITIVE).all()


def test_a_place_that_the_index_left_empty_is_a_pad(corpus: Corpus, queries: QuerySet, tmp_path: Path) -> None:
    generation = opened(corpus)
    assert isinstance(generation.searcher, BruteForce)
    generation.searcher.missing = 2
    found = mine(tmp_path, generation, MiningTask(corpus, queries, MiningConfig(depth=6), seed=1))
    assert (found.passages[:, 4:] == -1).all() and (found.verdicts[:, 4:] == Verdict.FILTERED).all()
    assert not found.sources[:, 4:].any() and not found.scores[:, 4:].any()
    assert (found.sources[:, :4] == 1).all()


def test_a_positive_that_was_not_retrieved_is_scored(corpus: Corpus, queries: QuerySet, tmp_path: Path) -> None:
    generation = opened(corpus)
    found = mine(tmp_path, generation, MiningTask(corpus, queries, MiningConfig(depth=1), seed=1))
    vectors = generation.encode(queries.texts).astype(np.float64)
    for query in range(QUERIES):
        expected = generation.gather(queries.positives(query)).astype(np.float64) @ vectors[query]
        np.testing.assert_allclose(found.positive_scores[query], expected, atol=1e-6)


def test_chunks_bound_the_work_and_do_not_change_it(
    corpus: Corpus, queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = MiningTask(corpus, queries, MiningConfig(depth=12), seed=1)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = mine(tmp_path / "whole", opened(corpus), task)
    monkeypatch.setattr(miner.mining, "CHUNK_QUERIES", 3)
    generation, encoded, done = opened(corpus), [], []

    def encode(texts: Sequence[str]) -> FloatArray:
        encoded.append(len(texts))
        return generation.encode(texts)

    counted = replace(generation, encode=encode)
    parts = mine(tmp_path / "parts", counted, task, progress=lambda *place: done.append(place))
    assert encoded == [3, 3, 3, 1]
    assert done == [(3, 10), (6, 10), (9, 10), (10, 10)]
    for array in fields(NegativeSet):
        np.testing.assert_allclose(getattr(parts, array.name), getattr(whole, array.name), atol=1e-6)


EVERY_SOURCE = tuple(SOURCES)


@given(JUDGED, st.integers(1, 8), st.integers(0, 5))
@settings(max_examples=30)
def test_no_source_makes_a_negative_of_a_positive_a_duplicate_or_the_query_s_own_text(
    corpus: Corpus, judged: list[dict[int, int]], depth: int, seed: int
) -> None:
    queries = query_set(judged)
    task = MiningTask(corpus, queries, MiningConfig(EVERY_SOURCE, depth), seed=1)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before", Path(folder) / "after"
        before.mkdir()
        after.mkdir()
        lexical = np.random.default_rng(seed).integers(-1, PASSAGES, (len(judged), depth)).astype(np.int32)
        first = replace(opened(corpus, 1, seed), lexical=lambda rows: lexical[rows])
        last = mine(before, first, task)
        last.verdicts[:] = Verdict.ELIGIBLE  # a set that knew nothing: momentum brings positives, too
        found = mine(after, replace(first, number=2, last=last), task)
        assert found.passages.shape == (len(judged), 4 * depth)
        kept = [found.passages[query][found.verdicts[query] == Verdict.ELIGIBLE].tolist() for query in found.queries]
        scores, rows = found.scores.copy(), found.passages.copy()
    for query, eligible in enumerate(kept):
        alike = [row for row in range(len(queries)) if same(queries.texts[row], queries.texts[query])]
        known = [corpus.text(row) for one in alike for row, relevance in judged[one].items() if relevance > 0]
        forbidden = {" ".join(text.lower().split()) for text in [queries.texts[query], *known]}
        assert not [row for row in eligible if " ".join(corpus.text(row).lower().split()) in forbidden]
        real = rows[query][rows[query] >= 0]
        assert len(set(real.tolist())) == len(real)
        assert (np.diff(scores[query][: len(real)]) <= 0).all() and (rows[query][len(real) :] == -1).all()


def test_stored_verdicts_are_respected_and_count_as_left_over(corpus: Corpus, tmp_path: Path) -> None:
    queries = query_set([{0: 1}] * 2)
    everything = MiningConfig(depth=20, max_score=-2.0)  # a filter that lets nothing pass
    (tmp_path / "before").mkdir()
    before = mine(tmp_path / "before", opened(corpus), MiningTask(corpus, queries, everything, 1))
    assert before.dropped.all()
    row = int(before.passages[1][before.verdicts[1] == Verdict.FILTERED][0])
    judged = StoredVerdicts(np.array([PASSAGES + row]), np.array([False]), PASSAGES, "digest")
    (tmp_path / "after").mkdir()
    after = mine(tmp_path / "after", opened(corpus), MiningTask(corpus, queries, everything, 1, judged=judged))
    assert after.dropped.tolist() == [True, False]
    drawn = StoredPool(after, 1, SamplerConfig(), 2, 1, 10).draw(after.queries, 0)
    assert drawn.rows.tolist() == [[-1, -1], [row, -1]]


def test_a_query_of_which_nothing_is_left_is_dropped(corpus: Corpus, tmp_path: Path) -> None:
    everything = dict.fromkeys(range(PASSAGES), 1)
    found = mine(
        tmp_path, opened(corpus), MiningTask(corpus, query_set([{0: 1}, everything]), MiningConfig(depth=20), 1)
    )
    assert found.dropped.tolist() == [False, True]


def previous_set(folder: Path, mined_from: Sequence[int], depth: int) -> NegativeSet:
    """Return a set whose every number tells that it comes from the set before."""
    folder.mkdir()
    before = create_negative_set(folder, len(mined_from), depth, 2)
    before.passages[:] = 5
    before.scores[:] = 0.125
    before.verdicts[:] = Verdict.JUDGED_IRRELEVANT
    before.mined_from[:] = mined_from
    return before


def test_queries_that_are_not_due_are_carried_over(corpus: Corpus, queries: QuerySet, tmp_path: Path) -> None:
    before = previous_set(tmp_path / "before", [1] * QUERIES, depth=8)
    task = MiningTask(corpus, queries, MiningConfig(depth=8), seed=1, query_fraction=0.25)
    whole = mine(tmp_path, opened(corpus, number=2), task)  # without a set before, all are mined
    (tmp_path / "after").mkdir()
    after = mine(tmp_path / "after", opened(corpus, number=2), task, before)
    due = after.mined_from == 2
    assert due.sum() == 3  # a quarter of ten, rounded up
    for array in fields(NegativeSet):
        np.testing.assert_array_equal(getattr(after, array.name)[~due], getattr(before, array.name)[~due])
        np.testing.assert_allclose(getattr(after, array.name)[due], getattr(whole, array.name)[due], atol=1e-6)


@given(st.floats(0.05, 1), st.integers(0, 5), st.integers(0, 100))
def test_every_query_is_mined_within_one_over_the_fraction(
    corpus: Corpus, fraction: float, seed: int, first: int
) -> None:
    task = MiningTask(corpus, query_set([{0: 1}] * QUERIES), MiningConfig(), seed, fraction)
    refreshes = int(np.ceil(1 / fraction))
    with tempfile.TemporaryDirectory() as folder:
        before = previous_set(Path(folder) / "before", [-1] * QUERIES, depth=1)
        for generation in range(first, first + refreshes):
            due = queries_due(task, generation, before)
            assert len(due) == np.ceil(fraction * QUERIES)
            before.mined_from[due] = generation
        assert before.mined_from.min() >= first


def test_the_queries_due_differ_by_seed_and_generation(corpus: Corpus, tmp_path: Path) -> None:
    before = previous_set(tmp_path / "before", [1] * 200, depth=1)
    many = query_set([{0: 1}] * 200)
    chosen = {
        tuple(queries_due(MiningTask(corpus, many, MiningConfig(), seed, 0.2), generation, before).tolist())
        for seed, generation in [(1, 2), (1, 3), (2, 2), (1, 2)]
    }
    assert len(chosen) == 3


def test_a_cancelled_run_stops_at_once(corpus: Corpus, queries: QuerySet, tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine(tmp_path, opened(corpus), MiningTask(corpus, queries, MiningConfig(depth=4), 1), progress=cancel)


def test_a_depth_beyond_the_corpus_is_refused(corpus: Corpus, queries: QuerySet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"depth = 200 is larger than the corpus \(36 passages\)"):
        mine(tmp_path, opened(corpus), MiningTask(corpus, queries, MiningConfig(), seed=1))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        (r"sources = \['anm'\]: choose from ann", lambda: MiningConfig(sources=("anm",))),
        (r"sources = \[\]", lambda: MiningConfig(sources=())),
        (r"sources = \['ann', 'ann'\]: name each source once", lambda: MiningConfig(sources=("ann", "ann"))),
        (r"the first set may have none; add \"ann\"", lambda: MiningConfig(sources=("momentum",))),
        (r"the first set may have none", lambda: MiningConfig(sources=("momentum", "generation:-1"))),
        (r"the first set may have none", lambda: MiningConfig(sources=("generation:SERVED",))),
        (r"'generation:': write \"generation:NAME\"", lambda: MiningConfig(sources=("generation:",))),
        (r"'generation:-0': write", lambda: MiningConfig(sources=("ann", "generation:-0"))),
        (r"at most 4 other generations", lambda: MiningConfig(tuple(f"generation:{name}" for name in "ABCDE"))),
        (r"quotas = \{'ann': 2\}: give each of sources", lambda: MiningConfig(("ann", "bm25"), quotas={"ann": 2})),
        (r"quotas = \{'ann': 0\}: give each", lambda: MiningConfig(quotas={"ann": 0})),
        (r"none may exceed depth = 3", lambda: MiningConfig(depth=3, quotas={"ann": 4})),
        (r'fill = "ann": it needs quotas', lambda: MiningConfig(fill="ann")),
        (r'fill = "bm25": name one of', lambda: MiningConfig(quotas={"ann": 2}, fill="bm25")),
        (r"take live, per_query out", lambda: MiningConfig(live=True, quotas={"ann": 2})),
        (r"quotas add up to 2 negatives, but 3 are drawn", lambda: MiningConfig(quotas={"ann": 2}).check_drawn(3)),
        (r"depth = 0", lambda: MiningConfig(depth=0)),
        (r"range_min = 200 leaves nothing of depth = 200", lambda: MiningConfig(range_min=200)),
        (r"on_relevant = 'drop': choose written, drop_negative", lambda: MiningConfig(on_relevant="drop")),
        (r"on_relevant = 'relabel' needs verdicts", lambda: MiningConfig(on_relevant="relabel")),
        (r"range_max = 3", lambda: MiningConfig(range_min=3, range_max=3)),
        (r'range_max = 9: .* "ann", so nothing of bm25', lambda: MiningConfig(("bm25", "ann"), depth=9, range_max=9)),
    ],
)
def test_a_key_that_cannot_be_mined_with_is_named(message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_range_beyond_those_of_the_index_alone_is_taken() -> None:
    assert MiningConfig(("ann", "bm25"), depth=9, range_max=10).width == 18


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_that_is_none_is_named(corpus: Corpus, queries: QuerySet, fraction: float) -> None:
    with pytest.raises(InputError, match=r"\[refresh\] query_fraction = "):
        MiningTask(corpus, queries, MiningConfig(), seed=1, query_fraction=fraction)


def test_quotas_go_by_the_bits_of_the_set_that_is_drawn_from() -> None:
    config = MiningConfig(
        ("ann", "generation:WARMUP", "generation:-1"), quotas={"ann": 2, "generation:WARMUP": 1, "generation:-1": 3}
    )
    before = bits_of(("ann", "generation:-1"))
    assert before["generation:-1"] == bits_of(config.sources)["generation:WARMUP"]
    found = config.wanted(6, before)
    assert isinstance(found, Quotas) and found.total == 6
    assert dict(zip(config.quotas or {}, found.counts, strict=True)) == {
        "ann": (before["ann"], 2),
        "generation:WARMUP": (0, 1),
        "generation:-1": (before["generation:-1"], 3),
    }
