"""Mining a snapshot for the queries of a request: the miner's own candidates, verdicts and draws, without its files.

Does not know HTTP, nor how queries become vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.judgements import Judgements
from app.searching import lexical_index
from app.snapshot import Snapshot
from miner.counter_hash import gumbel
from miner.filters import lowest_positive, refused_by
from miner.generations import named_generations
from miner.mining import MiningConfig, MiningTask, mine_queries, most_positives
from miner.quotas import draw_wanted
from miner.samplers import Pool, log_weights
from miner.sources import SOURCES, OpenGeneration, bits_of, generation_of
from miner.verdicts import as_judged
from retriever.artifacts import Artifact
from retriever.counting import the_first
from retriever.data import Corpus, QuerySet, hash64
from retriever.errors import CorruptError, HoneError, InputError, StoreError
from retriever.negatives import NegativeSet, Verdict
from retriever.protocols import BoolArray, FloatArray, IntArray
from retriever.store import Store

Others = Mapping[str, Callable[[IntArray], IntArray]]
"""By the name of a source that is another generation: rows of queries int32 [q] to candidates int32 [q, depth]."""
NO_OTHERS: Others = {}


class NoSourceError(HoneError):
    """A source is another generation that is not there, or that cannot be mined from with the served one."""


@dataclass(frozen=True)
class Asked:
    """A query to mine for: ``positives`` are ids of passages.

    ``grades``: what people say of passages, by the hash of a passage's text; above 0 is relevant.
    """

    id: str
    text: str
    positives: Sequence[str]
    grades: Mapping[int, int] = field(default_factory=dict)


class Mined(NamedTuple):
    """What was mined: {"id", "negatives": [{"id", "score", "rank", "source", "verdict"}]} for each query.

    ``filtered`` counts the candidates that were none, by the miner's reasons.
    """

    results: list[dict[str, Any]]
    filtered: dict[str, int]

    @property
    def negatives(self) -> int:
        """How many negatives there are."""
        return sum(len(one["negatives"]) for one in self.results)


def check_positives(snapshot: Snapshot, queries: Sequence[Asked]) -> None:
    """Raise InputError naming the positives that the corpus lacks."""
    unknown = [one for query in queries for one in query.positives if snapshot.corpus.row_of(one) is None]
    if unknown:
        shown = the_first([*map(repr, unknown)])
        corpus = f"the corpus of generation {snapshot.generation.number}"
        raise InputError(f"queries.positives: {len(unknown)} ids are not in {corpus}: {shown}")


def with_judgements(queries: Sequence[Asked], judgements: Judgements, position: int) -> list[Asked]:
    """Return ``queries`` with the grades that were stored up to ``position``."""
    grades = judgements.on([(query.id, query.text) for query in queries], position)
    return [replace(query, grades=known) for query, known in zip(queries, grades, strict=True)]


def source_generations(store: Store, generation: Artifact, sources: Sequence[str]) -> dict[str, int]:
    """Return the numbers of the generations that ``sources`` name while ``generation`` is mined, by source, unopened.

    Raises NoSourceError naming the source of one that is not there, of another corpus, or that cannot be searched.
    """
    wanted = [name for name in sources if generation_of(name) is not None]
    try:
        found = named_generations(store.generations, generation, wanted)
    except CorruptError:
        raise
    except (InputError, StoreError) as error:
        raise NoSourceError(str(error).replace("[negatives] ", "")) from error
    for name in wanted:
        if name not in found:
            raise NoSourceError(f"sources: {name}: there is no such generation before {generation.number} yet")
    return {name: other.number for name, other in found.items()}


def mined(
    snapshot: Snapshot,
    queries: Sequence[Asked],
    vectors: FloatArray,
    config: MiningConfig,
    num_negatives: int,
    seed: int,
    others: Others = NO_OTHERS,
) -> Mined:
    """Return the negatives of ``queries``.

    ``vectors`` float32 [q, dim] are theirs; ``others`` find the candidates of each source that is another generation.
    A query's negatives depend on the generations, seed, id, text, positives and grades alone, not on its neighbours.
    Raises InputError for a configuration that this corpus does not allow, NoLexicalIndexError for the source bm25 where
    the generation has no index of words.
    """
    if "bm25" in config.sources:
        lexical_index(snapshot)
    task = MiningTask(snapshot.corpus, query_set(snapshot, queries), config, seed, by_text=False)
    found = _pools(snapshot, task, vectors, others)
    found = replace(found, verdicts=_respected(found, queries, snapshot.corpus))
    bits = {**SOURCES, **bits_of(config.sources)}
    columns, mask = _drawn(found, queries, snapshot.generation.number, config, num_negatives, seed)
    limits = config.filters
    filtered = refused_by(found.passages, found.scores, found.verdicts, found.positives, found.positive_scores, limits)
    results = [
        {"id": query.id, "negatives": [_negative(snapshot, found, (line, column), bits) for column in drawn[kept]]}
        for line, (query, drawn, kept) in enumerate(zip(queries, columns, mask, strict=True))
    ]
    return Mined(results, filtered)


def fitted(config: MiningConfig, passages: int) -> MiningConfig:
    """Return ``config`` with at most as many candidates as there are ``passages``.

    Raises InputError for what so few do not allow.
    """
    try:
        return replace(config, depth=min(config.depth, passages))
    except InputError as error:
        raise InputError(str(error).replace("[negatives] ", "")) from error


def query_set(snapshot: Snapshot, queries: Sequence[Asked]) -> QuerySet:
    """Return ``queries`` with the corpus rows of their positives."""
    corpus = snapshot.corpus
    relevant = [{row: 1 for one in query.positives if (row := corpus.row_of(one)) is not None} for query in queries]
    return QuerySet("request", [query.id for query in queries], [query.text for query in queries], relevant)


def _pools(snapshot: Snapshot, task: MiningTask, vectors: FloatArray, others: Others) -> NegativeSet:
    asked, depth = task.queries, task.config.depth
    generation = OpenGeneration(
        snapshot.generation.number,
        lambda texts: vectors,
        snapshot.searcher,
        snapshot.vectors.gather,
        lexical=None if snapshot.lexical is None else lambda rows: _by_words(snapshot, asked, rows, depth),
        others=others,
    )
    rows = np.arange(len(asked), dtype=np.int32)
    return mine_queries(rows, vectors, generation, task, most_positives(asked))


def _respected(found: NegativeSet, queries: Sequence[Asked], corpus: Corpus) -> NDArray[np.uint8]:
    """Return the verdicts of ``found`` as people judged; a judgement holds for each copy of its passage's text."""
    verdicts = found.verdicts.copy()
    for line, query in enumerate(queries):
        if not query.grades:
            continue
        rows = found.passages[line]
        grades = [query.grades.get(one) for one in corpus.text_hash[np.maximum(rows, 0)].tolist()]
        judged = np.array([grade is not None for grade in grades]) & (rows >= 0)
        relevant = np.array([grade is not None and grade > 0 for grade in grades])
        verdicts[line] = as_judged(verdicts[line], judged, relevant)
    return verdicts


def _by_words(snapshot: Snapshot, asked: QuerySet, rows: IntArray, depth: int) -> IntArray:
    assert snapshot.lexical is not None
    return snapshot.lexical.search([asked.texts[row] for row in rows], depth)[0]


def _drawn(
    found: NegativeSet,
    queries: Sequence[Asked],
    generation: int,
    config: MiningConfig,
    num_negatives: int,
    seed: int,
) -> tuple[NDArray[np.intp], BoolArray]:
    """Draw columns of the eligible candidates; the noise of a query comes from its own id."""
    noise: NDArray[np.float64] | float = 0.0
    if config.sampler.random:
        query_keys = np.array([hash64(query.id) for query in queries], np.uint64)
        noise = gumbel("mine", seed, generation, query_keys[:, None], found.passages)
    pool = Pool(found.scores, found.may_be_drawn, lowest_positive(found.positives, found.positive_scores))
    return draw_wanted(log_weights(pool, config.sampler), found.sources, config.wanted(num_negatives), noise)


def _negative(
    snapshot: Snapshot, found: NegativeSet, place: tuple[int, np.intp], bits: Mapping[str, int]
) -> dict[str, Any]:
    mask = int(found.sources[place])
    return {
        "id": snapshot.corpus.id(found.passages[place]),
        "score": found.scores[place],
        "rank": int(place[1]) + 1,
        "source": "+".join(name for name, bit in bits.items() if mask & bit),
        "verdict": Verdict(found.verdicts[place]).name.lower(),
    }
