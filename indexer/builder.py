"""From a checkpoint to a published generation: encode, index, check, evaluate, publish, and judge at the gate.

Does not know models, the training loop, or who asked for the build.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from indexer.dev_record import DevRecord
from indexer.dev_reranking import RerankedDev, rerank_dev
from indexer.encode import encode_corpus
from indexer.evaluation import Evaluation, evaluate
from indexer.factory import IndexConfig, check_config, earlier_choice, make_index
from indexer.faiss_auto import Choice
from indexer.faiss_index import built_on, gpu_copy, is_exact, read_index, write_index
from indexer.gate import METRIC
from indexer.lexical import ANALYSIS, write_lexical
from indexer.partial import Partial, encode_partially
from indexer.promotion import judge_draft, promote_if_good
from indexer.quality import Truth, check_complete, check_self_retrieval
from indexer.searcher import IndexSearcher, search_exactly
from indexer.shards import Vectors, link_vectors
from indexer.slices import check_slices
from indexer.tuning import SERVED_DEPTH
from retriever.artifacts import SERVED, Artifact
from retriever.data import Corpus, QuerySet
from retriever.durable import link_tree
from retriever.errors import CorruptError, StoreError
from retriever.protocols import Encoder, FloatArray, IntArray, Progress, Ranker
from retriever.store import Store

RECALL_DEPTH = 100
PASSAGES_AS_QUERIES = 256
MINING_DEPTH = 200

Ask = Callable[[int], tuple[IntArray, FloatArray]]
"""Depth → what the index finds for the queries that check it, as ``Searcher.search`` returns it."""
BuildProgress = Callable[[str, int, int], None]
"""Called with (phase, units done, units in all); raises to cancel.

Phases: encode, index, check, evaluate, publish, and rerank where a ranker is judged.
"""


@dataclass(frozen=True)
class RankerFiles:
    """A saved ranker: its folder, and what its maker says of it (weights_sha256 …)."""

    folder: Path
    facts: Mapping[str, Any]


def ranker_of(artifact: Artifact) -> RankerFiles | None:
    """Return the ranker that a checkpoint or generation holds, None if it holds none."""
    facts = artifact.facts.get("ranker")
    return None if facts is None else RankerFiles(artifact.path / "ranker", facts)


@dataclass(frozen=True)
class BuildInputs:
    """What a generation is built from besides the checkpoint.

    ``dev`` None: recall is measured over passages, and no dev metric is. ``partial``: most vectors follow from an
    earlier generation's; such a generation is to be mined from alone, and dev is not measured on it. ``ranker`` None:
    the generation holds that of its checkpoint, if any. ``open_ranker`` opens whichever it holds, so that the gate
    judges it on dev; None: the gate judges retrieval alone.
    """

    open_encoder: Callable[[Artifact], Encoder]
    corpus: Corpus
    dev: QuerySet | None
    config: IndexConfig
    mining_depth: int = MINING_DEPTH
    partial: Partial | None = None
    ranker: RankerFiles | None = None
    open_ranker: Callable[[RankerFiles], Ranker] | None = None


def build_generation(
    store: Store,
    checkpoint: Artifact,
    inputs: BuildInputs,
    progress: BuildProgress,
    warn: Callable[[str], None],
) -> Artifact:
    """Publish the generation of ``checkpoint`` over the corpus, let the gate judge it, and return it.

    Whatever ``progress`` raises cancels the build: the finished embedding shards stay, nothing else does. Raises
    InputError for an index that FAISS refuses (before anything is encoded), StoreError for vectors or an index that
    fail the checks, BusyError if another process builds.
    """
    seconds: dict[str, float] = {}
    corpus, config = inputs.corpus, inputs.config
    with store.generations.writer():
        encoder = inputs.open_encoder(checkpoint)
        _check_inputs(inputs, encoder)
        with _timed(seconds, "encode"):
            vectors, made = _encode(store, encoder, inputs, partial(progress, "encode"), warn)
            check_complete(vectors, len(corpus))
        queries = _query_vectors(encoder, vectors, inputs)
        with store.generations.stage(_parents(checkpoint, inputs)) as draft:
            with _timed(seconds, "index"):
                earlier = _earlier(store, inputs, warn)
                phase = partial(progress, "index")
                phase(0, len(vectors))
                index, choice = make_index(vectors, queries, config, earlier, phase, warn, inputs.mining_depth)
                write_index(index, draft.path / "index.faiss")
                draft.facts["built_on"] = built_on(index)
                del index  # its memory is free again before the written file is mapped
            searcher = _opened(draft.path / "index.faiss", choice)
            ask = cache(partial(searcher.search, queries))
            draft.facts.update(_origin(checkpoint, encoder, inputs), **_description(vectors, choice), **made)
            with _timed(seconds, "check"):
                progress("check", 0, 1)
                draft.facts.update(_checked(searcher, ask, vectors, queries, inputs))
            with _timed(seconds, "evaluate"):
                progress("evaluate", 0, 1)
                evaluation = _evaluated(ask, vectors, queries, inputs)
                progress("evaluate", 1, 1)
            ranker = inputs.ranker or ranker_of(checkpoint)
            reranked = None
            if evaluation is not None and ranker is not None:
                reranked = _reranked(evaluation, ranker, inputs, partial(progress, "rerank"), seconds)
            draft.facts.update(_dev_facts(evaluation, reranked, inputs, draft.path), seconds=seconds)
            judge_draft(store, draft)
            link_vectors(vectors, draft.path / "vectors")
            link_tree(checkpoint.path / "model", draft.path / "model")
            if ranker is not None:
                link_tree(ranker.folder, draft.path / "ranker")
                draft.facts["ranker"] = dict(ranker.facts)
            if config.lexical and inputs.partial is None:
                with _timed(seconds, "lexical"):
                    write_lexical(corpus, draft.path / "lexical", _earlier_lexical(store, corpus))
                draft.facts["lexical"] = ANALYSIS
            progress("publish", 1, 1)
        generation = store.generations.at(draft.number)
        promote_if_good(store, generation)
    return generation


def _check_inputs(inputs: BuildInputs, encoder: Encoder) -> None:
    check_config(inputs.config, encoder.dimensions, len(inputs.corpus))
    check_slices(inputs.config.slices, inputs.dev)


def _encode(
    store: Store, encoder: Encoder, inputs: BuildInputs, progress: Progress, warn: Callable[[str], None]
) -> tuple[Vectors, dict[str, Any]]:
    """Return the vectors, and the facts that only a partial generation has, its own fingerprint among them."""
    corpus, part = inputs.corpus, inputs.partial
    if part is None:
        return encode_corpus(encoder, corpus, store.embeddings, progress, warn), {}
    vectors, made = encode_partially(encoder, corpus, part, store.embeddings, progress, warn)
    return vectors, {"passage_fingerprint": part.fingerprint(encoder.fingerprints.passage), "partial": made}


def _parents(checkpoint: Artifact, inputs: BuildInputs) -> dict[str, int]:
    part = inputs.partial
    followed = {} if part is None else {"generation": part.parent.number}
    if part is not None and part.pools is not None:
        followed["negatives"] = part.pools[0].number
    return {"checkpoint": checkpoint.number, "corpus": inputs.corpus.number, **followed}


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _query_vectors(encoder: Encoder, vectors: Vectors, inputs: BuildInputs) -> FloatArray:
    if inputs.dev is not None:
        return encoder.encode_queries(inputs.dev.texts)
    generator = np.random.default_rng(inputs.config.seed)
    sample = generator.choice(len(vectors), min(PASSAGES_AS_QUERIES, len(vectors)), replace=False)
    return vectors.gather(np.sort(sample))


def _earlier(store: Store, inputs: BuildInputs, warn: Callable[[str], None]) -> Choice | None:
    try:
        previous = store.generations.get()
    except CorruptError as error:
        warn(f"{error}; its choice of index is not taken over")
        return None
    if previous is None:
        return None
    return earlier_choice(previous.facts, inputs.config, inputs.corpus.sha256)


def _earlier_lexical(store: Store, corpus: Corpus) -> Path | None:
    """Return the BM25 index of the served generation, if that is of the same corpus and intact."""
    try:
        served = store.generations.get(SERVED)
        made_of = ("corpus_sha256", "lexical")
        if served is None or tuple(map(served.facts.get, made_of)) != (corpus.sha256, ANALYSIS):
            return None
        served.verify("lexical/")
    except StoreError:  # its readers report it
        return None
    return served.path / "lexical"


def _origin(checkpoint: Artifact, encoder: Encoder, inputs: BuildInputs) -> dict[str, Any]:
    copied = {name: checkpoint.facts[name] for name in ("final", "refresh") if name in checkpoint.facts}
    return {
        "step": checkpoint.facts["step"],
        **copied,
        "weights_sha256": checkpoint.facts["weights_sha256"],
        **encoder.fingerprints.as_facts(),
        "computed_by": encoder.computed_by,
        "corpus_sha256": inputs.corpus.sha256,
        "index_config": asdict(inputs.config),
    }


def _description(vectors: Vectors, choice: Choice) -> dict[str, Any]:
    return {
        "rows": len(vectors),
        "dim": vectors.dimensions,
        "metric": "ip",
        "factory": choice.factory,
        "search": dict(choice.parameters),
        "search_deep": choice.deep,
        "front": list(choice.front),
    }


def _opened(path: Path, choice: Choice) -> IndexSearcher:
    """Open the written index; if it is exact, a GPU answers the queries that check it, where one is."""
    index = read_index(path)
    return IndexSearcher(index, choice.parameters, choice.deep, copy=gpu_copy(index) if is_exact(index) else None)


def _checked(
    searcher: IndexSearcher, ask: Ask, vectors: Vectors, queries: FloatArray, inputs: BuildInputs
) -> dict[str, Any]:
    corpus, seed = inputs.corpus, inputs.config.seed
    check_complete(vectors, len(corpus), searcher.rows)
    check_self_retrieval(searcher.search, vectors, corpus, exact=searcher.exact, seed=seed)
    truth = Truth(queries, vectors, *search_exactly(queries, vectors, RECALL_DEPTH))
    deep, _ = ask(RECALL_DEPTH)
    served = deep if searcher.exact else ask(SERVED_DEPTH)[0]
    recall, error = truth.recall(served, SERVED_DEPTH)
    return {
        "recall_at_10": recall,
        "recall_at_10_error": error,
        "recall_at_100": truth.recall(deep, RECALL_DEPTH)[0],
        "recall_queries": {"from": "passages" if inputs.dev is None else "dev", "count": len(queries)},
    }


def _evaluated(ask: Ask, vectors: Vectors, queries: FloatArray, inputs: BuildInputs) -> Evaluation | None:
    # The vectors of a partial generation say too little of its model.
    dev = inputs.dev if inputs.partial is None else None
    return None if dev is None else evaluate(dev, queries, vectors, lambda _, depth: ask(depth))


def _reranked(
    evaluation: Evaluation, ranker: RankerFiles, inputs: BuildInputs, progress: Progress, seconds: dict[str, float]
) -> RerankedDev | None:
    depth, seed = inputs.config.rerank_depth, inputs.config.seed
    if inputs.open_ranker is None or inputs.dev is None or not depth:
        return None
    with _timed(seconds, "rerank"):
        opened = inputs.open_ranker(ranker)
        return rerank_dev(opened, inputs.dev, inputs.corpus, evaluation, depth, seed, progress)


def _dev_facts(
    evaluation: Evaluation | None, reranked: RerankedDev | None, inputs: BuildInputs, folder: Path
) -> dict[str, Any]:
    """Return the dev facts, and write each query's figures below ``folder``."""
    dev = inputs.dev
    if evaluation is None or dev is None:
        return {"dev": {}, "dev_queries": 0, "dev_sha256": None}
    figures = evaluation.per_query[METRIC].astype(np.float32)
    DevRecord.of(dev, inputs.corpus, figures, None if reranked is None else reranked.figures).write(folder)
    facts = {"dev": evaluation.metrics, "dev_queries": len(dev), "dev_sha256": dev.sha256}
    return facts if reranked is None else {**facts, "reranked": reranked.facts}
