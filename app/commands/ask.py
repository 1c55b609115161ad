"""hone search, evaluate: ask a generation, or measure it.

Does not know how search or metrics work.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from app.evaluating import Evaluated, Reranking, evaluate_split, indexed_model, scored_run
from app.live import duration, progress_view
from app.opening import ENCODER_ALONE, reranking_openers, warn_of_cuts
from app.options import (
    GenerationOption,
    JsonOption,
    Precision,
    QueryPrecision,
    RankerOption,
    SkipMissing,
    StoreOption,
    check_writable,
    generation_number,
    is_given,
    print_json,
    store_path,
    warn,
)
from app.progress import Meter, Report
from app.rankers import named_ranker, required_ranker
from app.reranking import Candidates, reranking_facts, warn_of_cut_pairs
from app.reranking import rerank as rerank_hits
from app.snapshot import load_snapshot
from indexer.evaluation import Evaluation
from indexer.exact import exact_search
from indexer.factory import IndexConfig
from retriever.errors import InputError
from retriever.store import Store

SHOWN_CHARACTERS = 160
SEARCH_DEPTH = 50


def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    store: StoreOption = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many hits.")] = 5,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector, without the index.")] = False,
    rerank: Annotated[bool, typer.Option("--rerank", help="Let a ranker order the best hits.")] = False,
    rerank_depth: Annotated[
        int, typer.Option("--rerank-depth", min=1, help="Hits that the ranker reads, at least --top-k.")
    ] = SEARCH_DEPTH,
    ranker: RankerOption = None,
    json_output: JsonOption = False,
) -> None:
    """Search the served generation of a store, without a server."""
    if not query.strip():
        raise InputError("the query is empty; write what you look for")
    if ranker is not None and not rerank:
        raise InputError("--ranker orders the hits of --rerank: give both, or neither")
    if is_given(context, "rerank_depth") and not rerank:
        raise InputError("--rerank-depth says how many hits --rerank orders: give both, or neither")
    opened = ENCODER_ALONE if not rerank else reranking_openers(None if ranker is None else named_ranker(ranker))
    snapshot = load_snapshot(Store(store_path(store)), opened, warn)
    if top_k > len(snapshot.corpus):
        raise InputError(f"--top-k {top_k}: the corpus has {len(snapshot.corpus)} passages")
    vectors = snapshot.encoder.encode_queries([query])
    warn_of_cuts(snapshot.encoder, warn)
    depth = min(max(top_k, rerank_depth), len(snapshot.corpus)) if rerank else top_k
    rows, scores = exact_search(vectors, snapshot.vectors, depth) if exact else snapshot.searcher.search(vectors, depth)
    if snapshot.models.ranker is not None:
        again = rerank_hits(snapshot.models.ranker, Candidates([""], [query], snapshot.corpus, rows), depth)
        warn_of_cut_pairs(again, warn)
        rows, scores = again.hits[:, :top_k], again.scores[:, :top_k]
    hits = [
        {"rank": rank, "id": snapshot.corpus.id(row), "score": round(score, 6), "text": snapshot.corpus.text(row)}
        for rank, (row, score) in enumerate(zip(rows[0].tolist(), scores[0].tolist(), strict=True), 1)
        if row >= 0
    ]
    if json_output:
        print_json({"generation": snapshot.generation.number, "query": query, "hits": hits})
        return
    for hit in hits:
        shown = " ".join(str(hit["text"]).split())
        print(f"{hit['rank']:3} {hit['score']:.4f} {hit['id']}\n    {shown[:SHOWN_CHARACTERS]}")


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Option("--data", help="A data set in BEIR layout.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", help="Index DATA with this model for the occasion: minilm, folder, hub id.")
    ] = None,
    store: StoreOption = None,
    generation: GenerationOption = None,
    split: Annotated[str, typer.Option("--split", help="Which qrels to read.")] = "test",
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector, without the index.")] = False,
    factory: Annotated[str, typer.Option("--factory", help="Index for --model: auto or a FAISS factory.")] = "auto",
    precision: Annotated[Precision, typer.Option("--precision", help="For --model.")] = Precision.FP32,
    query_precision: Annotated[
        QueryPrecision, typer.Option("--query-precision", help="For --model: auto (as passages, never int8) or int8.")
    ] = QueryPrecision.AUTO,
    run: Annotated[Path | None, typer.Option("--run", help="Write the hits as a TREC run here.")] = None,
    per_query: Annotated[Path | None, typer.Option("--per-query", help="Write a JSON line a query here.")] = None,
    from_run: Annotated[Path | None, typer.Option("--from-run", help="Measure this TREC run instead.")] = None,
    rerank: Annotated[
        int | None, typer.Option("--rerank", min=1, help="Let a ranker order so many hits of each query, then measure.")
    ] = None,
    ranker: RankerOption = None,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Measure a generation of a store, a model as it is, or a TREC run, on a split; with --rerank also what follows."""
    for out in (run, per_query):
        if out is not None:
            check_writable(out)
    if from_run is not None and (model is not None or store is not None or generation is not None or exact):
        raise InputError("--from-run measures a file; leave out --model, --store, --generation and --exact")
    if model is None and any(is_given(context, name) for name in ("factory", "precision", "query_precision")):
        raise InputError(
            "--factory, --precision and --query-precision are for --model: a generation is measured as it was built"
        )
    if model is not None and (store is not None or generation is not None):
        raise InputError("--model measures a model without a store; leave out --store and --generation")
    with ExitStack() as stack:
        with progress_view() as report:
            wish = _reranking(rerank, ranker, own=from_run is None and model is None, report=report)
            how: dict[str, Any] = {"reranking": wish, "skip_missing": skip_missing}
            if from_run is not None:
                done = stack.enter_context(scored_run(data, split, from_run, **how))
            elif model is not None:
                config = IndexConfig(factory=factory, precision=precision.value, query_precision=query_precision.value)
                indexed = indexed_model(data, split, model, config, report, skip_missing=skip_missing)
                done = evaluate_split(stack.enter_context(indexed), data, split, exact=exact, **how)
            else:
                opened = Store(store_path(store))
                number = generation_number(opened, generation)
                done = evaluate_split(opened, data, split, exact=exact, number=number, **how)
        _show(done, split, as_json=json_output)  # before the files: an id that a run cannot hold costs no figure
        if run is not None:
            done.write_run(run)
        if per_query is not None:
            done.write_report(per_query)


def _reranking(depth: int | None, ranker: str | None, *, own: bool, report: Report) -> Reranking | None:
    """Return what the flags ask for; ``own``: a generation may hold a ranker. A named ranker is opened now."""
    if depth is None:
        if ranker is not None:
            raise InputError("--ranker orders the hits of --rerank: write how many, e.g. --rerank 100")
        return None
    given = None if own and ranker is None else required_ranker(ranker, None)
    return Reranking(depth, given, Meter(report).phase("rerank"))


def _show(done: Evaluated, split: str, *, as_json: bool) -> None:
    """Print the figures; of hits that were reranked those before and after."""
    after, again = _rounded(done.evaluation), done.reranked
    before = after if done.before is None else _rounded(done.before)
    if again is not None:
        warn_of_cut_pairs(again, warn)
    if as_json:
        cost = {} if again is None else {"before": before, **reranking_facts(again)}
        told = {} if again is None else {"reranked": cost}
        print_json({**after, **told, "split": split, "queries": len(done.queries), "generation": done.generation})
        return
    if again is None:
        for name, value in after.items():
            print(f"{name:8} {value:.4f}")
        return
    print(f"{'':10} before   first {again.depth} reranked")
    for name, value in before.items():
        print(f"{name:10} {value:.4f}   {after[name]:.4f}" if name in after else f"{name:10} {value:.4f}")
    rate = again.pairs / again.seconds if again.seconds else 0.0
    print(f"{again.pairs:,} pairs in {duration(again.seconds)}, {rate:,.0f}/s")


def _rounded(evaluation: Evaluation) -> dict[str, float]:
    return {name: round(value, 6) for name, value in evaluation.metrics.items()}
