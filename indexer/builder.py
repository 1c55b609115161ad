"""From a checkpoint to a published generation: encode, index, check, evaluate, publish, and judge at the gate.

Does not know models, the training loop, or who asked for the build.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from indexer.encode import encode_corpus
from indexer.evaluation import evaluate
from indexer.exact import exact_search
from indexer.factory import IndexConfig as IndexConfig
from indexer.factory import check_config, earlier_choice, make_index
from indexer.faiss_auto import Choice
from indexer.faiss_index import read_index, write_index
from indexer.lexical import ANALYSIS, write_lexical
from indexer.partial import Partial as Partial
from indexer.partial import encode_partially
from indexer.promotion import promote_if_good as promote_if_good
from indexer.quality import check_complete, check_self_retrieval, recall_at
from indexer.searcher import IndexSearcher
from indexer.shards import Vectors, link_vectors
from retriever.artifacts import SERVED, Artifact
from retriever.data import Corpus, QuerySet
from retriever.durable import link_tree
from retriever.errors import CorruptError, StoreError
from retriever.protocols import Encoder, FloatArray, Progress
from retriever.store import Store

RECALL_DEPTH = 100
PASSAGES_AS_QUERIES = 256
MINING_DEPTH = 200

BuildProgress = Callable[[str, int, int], None]
"""Called with (phase, units done, units in all); phases: encode, index, check, evaluate, publish; raises to cancel."""


@dataclass(frozen=True)
class BuildInputs:
    """What a generation is built from besides the checkpoint.

    ``dev`` None: recall is measured over passages, and the dev facts are taken from ``same``, an earlier generation's
    facts, if that has the same weights and corpus. ``partial``: most vectors are mapped from an earlier generation's;
    such a generation is to be mined from alone, and dev is not measured on it.
    """

    open_encoder: Callable[[Artifact], Encoder]
    corpus: Corpus
    dev: QuerySet | None
    config: IndexConfig
    same: Mapping[str, Any] | None = None
    mining_depth: int = MINING_DEPTH
    partial: Partial | None = None


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
        check_config(config, encoder.dimensions, len(corpus))
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
                del index  # its memory is free again before the written file is mapped
            searcher = IndexSearcher(read_index(draft.path / "index.faiss"), choice.parameters, choice.deep)
            draft.facts.update(_origin(checkpoint, encoder, inputs), **_description(vectors, choice))
            draft.facts.update(made)
            draft.facts.update(_measured(searcher, vectors, queries, inputs, progress, seconds))
            draft.facts.update(_known_dev(draft.facts, inputs))
            draft.facts["seconds"] = seconds
            link_vectors(vectors, draft.path / "vectors")
            link_tree(checkpoint.path / "model", draft.path / "model")
            if config.lexical and inputs.partial is None:
                with _timed(seconds, "lexical"):
                    write_lexical(corpus, draft.path / "lexical", _earlier_lexical(store, corpus))
                draft.facts["lexical"] = ANALYSIS
            progress("publish", 1, 1)
        generation = store.generations.at(draft.number)
        promote_if_good(store, generation)
    return generation


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
    followed = {} if inputs.partial is None else {"generation": inputs.partial.parent.number}
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


def _known_dev(facts: Mapping[str, Any], inputs: BuildInputs) -> dict[str, Any]:
    """Return the dev facts of the earlier generation where they hold for this one: they depend on these alone."""
    earlier = inputs.same
    if inputs.dev is not None or earlier is None:
        return {}
    if any(earlier.get(key) != facts[key] for key in ("weights_sha256", "corpus_sha256", "query_fingerprint")):
        return {}
    return {key: earlier[key] for key in ("dev", "dev_queries", "dev_sha256")}


def _measured(
    searcher: IndexSearcher,
    vectors: Vectors,
    queries: FloatArray,
    inputs: BuildInputs,
    progress: BuildProgress,
    seconds: dict[str, float],
) -> dict[str, Any]:
    corpus, dev = inputs.corpus, inputs.dev
    progress("check", 0, 1)
    with _timed(seconds, "check"):
        check_complete(vectors, len(corpus), searcher.rows)
        check_self_retrieval(searcher.search, vectors, corpus, exact=searcher.exact, seed=inputs.config.seed)
        found, _ = searcher.search(queries, RECALL_DEPTH)
        exact, _ = exact_search(queries, vectors, RECALL_DEPTH)
        recall = recall_at(found, exact, RECALL_DEPTH)
    progress("evaluate", 0, 1)
    with _timed(seconds, "evaluate"):
        judged = dev if inputs.partial is None else None  # mapped vectors say too little of the model
        figures = evaluate(judged, queries, vectors, searcher.search).metrics if judged is not None else {}
    progress("evaluate", 1, 1)
    return {
        "recall_at_100": recall,
        "recall_queries": {"from": "passages" if dev is None else "dev", "count": len(queries)},
        "dev": figures,
        "dev_queries": 0 if judged is None else len(judged),
        "dev_sha256": None if judged is None else judged.sha256,
    }
