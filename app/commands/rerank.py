"""hone rerank: a run in, the same run in a ranker's order out.

Does not know how pairs are scored.
"""

from pathlib import Path
from typing import Annotated

import typer

from app.candidates import candidates_of_generation, candidates_of_run, check_same_corpus, temporary_corpus
from app.evaluating import write_hits
from app.live import duration, progress_view
from app.opening import reranking_openers
from app.options import (
    GenerationOption,
    JsonOption,
    RankerOption,
    SkipMissing,
    StoreOption,
    check_writable,
    generation_number,
    print_json,
    store_path,
    warn,
)
from app.progress import Meter, Report
from app.rankers import named_ranker
from app.reranking import DEPTH, Candidates, Journal, Reranked, journal_key, reranking_facts, warn_of_cut_pairs
from app.reranking import rerank as rerank_hits
from app.snapshot import load_snapshot
from retriever.counting import counted
from retriever.ingest import load_query_set
from retriever.protocols import TokenRanker
from retriever.store import Store

EVALUATED = "test"
"""The split that `hone evaluate` reads where none is named."""


def rerank(
    data: Annotated[Path, typer.Argument(help="A data set in BEIR layout.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The TREC run to write.", show_default=False)],
    run: Annotated[
        Path | None, typer.Option("--run", help="A TREC run to rerank. Default: the first hits of the generation.")
    ] = None,
    ranker: RankerOption = None,
    store: StoreOption = None,
    generation: GenerationOption = None,
    split: Annotated[str, typer.Option("--split", help="Without --run: whose queries.")] = EVALUATED,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Hits of each query that the ranker reads.")] = DEPTH,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Put the first hits of each query in a ranker's order. Run it again after an interruption: it goes on."""
    check_writable(out)
    given = None if ranker is None else named_ranker(ranker)
    with progress_view() as report:
        if run is not None and given is not None and store is None and generation is None:
            with temporary_corpus(data, warn if skip_missing else None) as corpus:
                done, queries = _written(given, candidates_of_run(run, data, corpus), depth, out, report)
        else:
            opened = Store(store_path(store))
            number = generation_number(opened, generation)
            snapshot = load_snapshot(opened, reranking_openers(given), warn, number=number)
            check_same_corpus(opened, snapshot, data)
            if run is not None:
                candidates = candidates_of_run(run, data, snapshot.corpus)
            else:
                asked = load_query_set(data, split, snapshot.corpus, skip_missing=skip_missing, warn=warn)
                candidates = candidates_of_generation(snapshot, asked, depth)
            assert snapshot.models.ranker is not None  # its opener sees to it
            done, queries = _written(snapshot.models.ranker, candidates, depth, out, report)
    warn_of_cut_pairs(done, warn)
    if json_output:
        print_json({"out": str(out), "queries": queries, **reranking_facts(done)})
        return
    rate = done.pairs / done.seconds if done.seconds else 0.0
    read = f"{counted(queries, 'query', 'queries')}, {counted(done.pairs, 'pair', 'pairs')}"
    print(f"{out}: {read} in {duration(done.seconds)}, {rate:,.0f}/s")
    alike = ("" if split == EVALUATED else f" --split {split}") + (" --skip-missing" if skip_missing else "")
    print(f"Next: hone evaluate --data {data} --from-run {out}{alike}")


def _written(
    ranker: TokenRanker, candidates: Candidates, depth: int, out: Path, report: Report
) -> tuple[Reranked, int]:
    """Rerank and write ``out``; until then the scores lie beside it. Return what was done, and for how many queries."""
    journal = Journal(out.with_name(f".{out.name}.scores.jsonl"), journal_key(ranker, candidates, depth), warn)
    if journal.pairs:
        report("rerank_resumed", scored_pairs=journal.pairs)
    done = rerank_hits(ranker, candidates, depth, Meter(report).phase("rerank"), journal)
    write_hits(out, candidates.ids, candidates.corpus, done.hits, done.scores)
    journal.path.unlink()
    return done, len(candidates.ids)
