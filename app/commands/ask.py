"""hone search, evaluate, serve: ask a generation, measure it, or put it on a port.

Does not know how search, metrics or HTTP work.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.admission import AdmissionConfig
from app.evaluating import Evaluated, evaluate_split, indexed_model, scored_run
from app.live import progress_view
from app.opening import openers
from app.options import JsonOption, Precision, SkipMissing, StoreOption, print_json, store_path, warn
from app.serving import ServeOptions, serve_store
from app.settings import Settings
from app.snapshot import load_snapshot
from indexer.builder import IndexConfig
from indexer.exact import exact_search
from retriever.errors import InputError
from retriever.store import Store

SHOWN_CHARACTERS = 160


def search(
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    store: StoreOption = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many hits.")] = 5,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector, without the index.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Search the served generation of a store, without a server."""
    if not query.strip():
        raise InputError("the query is empty; write what you look for")
    snapshot = load_snapshot(Store(store_path(store)), openers(), warn)
    if top_k > len(snapshot.corpus):
        raise InputError(f"--top-k {top_k}: the corpus has {len(snapshot.corpus)} passages")
    vectors = snapshot.encoder.encode_queries([query])
    rows, scores = exact_search(vectors, snapshot.vectors, top_k) if exact else snapshot.searcher.search(vectors, top_k)
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
    data: Annotated[Path, typer.Option("--data", help="A data set in BEIR layout.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", help="Index DATA with this model for the occasion: minilm, folder, hub id.")
    ] = None,
    store: StoreOption = None,
    generation: Annotated[str | None, typer.Option("--generation", help="Number or name. Default: SERVED.")] = None,
    split: Annotated[str, typer.Option("--split", help="Which qrels to read.")] = "test",
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector, without the index.")] = False,
    factory: Annotated[str, typer.Option("--factory", help="Index for --model: auto or a FAISS factory.")] = "auto",
    precision: Annotated[Precision, typer.Option("--precision", help="For --model.")] = Precision.FP32,
    run: Annotated[Path | None, typer.Option("--run", help="Write the hits as a TREC run here.")] = None,
    per_query: Annotated[Path | None, typer.Option("--per-query", help="Write a JSON line a query here.")] = None,
    from_run: Annotated[Path | None, typer.Option("--from-run", help="Measure this TREC run instead.")] = None,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Measure a generation of a store, a model as it is, or a TREC run, on a split."""
    for out in (run, per_query):
        if out is not None and (out.is_dir() or not out.parent.is_dir()):
            raise InputError(f"{out}: cannot be written; name a file in a folder that exists")
    if from_run is not None:
        if model is not None or store is not None or generation is not None:
            raise InputError("--from-run measures a file; leave out --model, --store and --generation")
        with scored_run(data, split, from_run, skip_missing=skip_missing) as done:
            _write(done, run, per_query)
    elif model is not None:
        if store is not None or generation is not None:
            raise InputError("--model measures a model without a store; leave out --store and --generation")
        config = IndexConfig(factory=factory, precision=precision.value)
        with progress_view() as report, indexed_model(data, model, config, report) as made:
            done = evaluate_split(made, data, split, exact=exact, skip_missing=skip_missing)
            _write(done, run, per_query)
    else:
        opened = Store(store_path(store))
        number = _number(opened, generation)
        done = evaluate_split(opened, data, split, exact=exact, number=number, skip_missing=skip_missing)
        _write(done, run, per_query)
    metrics: dict[str, Any] = {name: round(value, 6) for name, value in done.evaluation.metrics.items()}
    if json_output:
        print_json({**metrics, "split": split, "queries": len(done.queries), "generation": done.generation})
        return
    for name, value in metrics.items():
        print(f"{name:8} {value:.4f}")


def _number(store: Store, generation: str | None) -> int | None:
    if generation is None or generation.isdigit():
        return None if generation is None else int(generation)
    number = store.generations.pointed(generation)
    if number is None:
        raise InputError(f"no generation is named {generation}; there are {', '.join(store.generations.pointers())}")
    return number


def _write(done: Evaluated, run: Path | None, per_query: Path | None) -> None:
    if run is not None:
        done.write_run(run)
    if per_query is not None:
        done.write_report(per_query)


def serve(
    store: StoreOption = None,
    host: Annotated[str | None, typer.Option("--host", help="Default: $HONE_HOST, else 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default: $HONE_PORT, else 8000.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Ask for no keys, wherever it listens.")] = False,
    require_keys: Annotated[bool, typer.Option("--require-keys", help="Ask for keys on 127.0.0.1, too.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; they share index and cores.")] = 1,
    drain_seconds: Annotated[
        float, typer.Option("--drain-seconds", min=0, help="After SIGTERM, answer this long though not ready.")
    ] = 5.0,
    ranker: Annotated[
        Path | None, typer.Option("--ranker", help="Folder of a ranker; default: $HONE_RANKER, else the generation's.")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", min=1, help="Tokens that the model computes at once.")
    ] = AdmissionConfig.batch_tokens,
    queue_tokens: Annotated[
        int, typer.Option("--queue-tokens", min=1, help="Tokens that may wait; beyond, clients get 429.")
    ] = AdmissionConfig.queue_tokens,
    deadline_seconds: Annotated[
        float, typer.Option("--deadline-seconds", help="What waits longer gets 503 and is not computed.")
    ] = AdmissionConfig.deadline_seconds,
) -> None:
    """Serve a store over HTTP; follows SERVED, so a new generation is taken up without a restart."""
    settings = Settings()
    root = store_path(store)
    address = host or settings.host
    port = settings.port if port is None else port
    print(f"http://{address}:{port}  (docs at /docs; Ctrl-C stops it)", file=sys.stderr)
    limits = AdmissionConfig(
        batch_tokens=batch_tokens,
        patient_batch_tokens=min(batch_tokens, AdmissionConfig.patient_batch_tokens),
        queue_tokens=queue_tokens,
        deadline_seconds=deadline_seconds,
    )
    options = ServeOptions(insecure, require_keys, workers, drain_seconds, ranker or settings.ranker, limits)
    serve_store(root, address, port, options)
