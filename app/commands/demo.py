"""hone demo: the main job on real text, from nothing to a server.

Does not know how the figures come about.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.demonstration import METRICS, Demonstration, run_demo
from app.evaluating import first_hits
from app.live import duration
from app.options import print_json
from app.serving import serve_store
from app.settings import Settings
from retriever.counting import counted


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where data, run.toml and store are written.")] = Path(
        "demo"
    ),
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the result at the end.")] = True,
) -> None:
    """Make a data set from this environment's Python packages, train on it, show before and after, and serve."""
    done = run_demo(folder)
    console = Console()
    console.print(_table(done))
    root = done.store.root
    print(f"data: {folder / 'data'}   run: {folder / 'run.toml'}   store: {root}")
    print(f"for sentence-transformers: hone export model OUT --store {root}")
    if serve:
        settings = Settings()
        serve_store(root, settings.host, settings.port, listening=lambda address: _offer(done, address))
        return
    print(f"Asked: {done.queries[0]}")
    for rank, (name, score, text) in enumerate(first_hits(done.store, done.queries[0], 3), 1):
        print(f"  {rank}. {score:.3f} {name}: {' '.join(text.split())[:100]}")
    print_json(done.as_json())


def _offer(done: Demonstration, address: str) -> None:
    print(f"Serving at {address} (docs at {address}/docs, Ctrl-C stops it). Try:")
    for query in done.queries:
        body = json.dumps({"queries": [query], "top_k": 3, "with_text": True}).replace("'", "'\\''")
        print(f"  curl -s {address}/v1/search -H 'content-type: application/json' -d '{body}'")
    print_json(done.as_json())


def _table(done: Demonstration) -> Table:
    outcome = done.training.outcome
    table = Table(title="Test queries, whole corpus")
    for column in ("", "before (zero-shot)", "after", "change"):
        table.add_column(column, justify="right" if column else "left")
    for name in METRICS:
        before, after = done.before[name], done.after[name]
        table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    table.caption = (
        f"{counted(outcome.step, 'step', 'steps')}, {counted(len(done.generations), 'generation', 'generations')}, "
        f"{counted(outcome.negative_sets_adopted, 'negative set', 'negative sets')} adopted, at most "
        f"{counted(outcome.max_staleness_steps, 'step', 'steps')} stale, {duration(done.seconds)}"
    )
    return table
