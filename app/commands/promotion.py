"""hone generations, promote, rollback, diff: what there is, what is served, and what a query gains or loses by it.

Does not know the gate's rule, nor who serves.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.found_model import FoundModel, find_model
from app.generation_diff import generation_diff, measured_diff
from app.generation_list import generations_table, newest_generations
from app.live import progress_view
from app.options import JsonOption, SkipMissing, StoreOption, print_json, store_path, warn
from indexer.gate import METRIC
from indexer.promotion import promote as promote_generation
from indexer.promotion import rollback as roll_back
from retriever.errors import InputError
from retriever.store import Store

SHOWN_QUERIES = 10


def generations(
    store: StoreOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, the newest first.")] = 20,
    json_output: JsonOption = False,
) -> None:
    """List the generations: where each comes from, its dev figure, the gate's verdict, and what names it."""
    opened = Store(store_path(store))
    shown = newest_generations(opened, limit, lambda number, reason: warn(f"generation {number} left out: {reason}"))
    if json_output:
        print_json({"generations": shown})
        return
    for line in generations_table(shown):
        print(line)


def promote(
    number: Annotated[int | None, typer.Argument(help="The generation to serve. Default: the newest.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Serve it though the gate refuses; promotions.jsonl says so.")
    ] = False,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Serve a generation if the gate lets it pass; servers take it up by themselves."""
    _show(promote_generation(Store(store_path(store)), number, force=force), json_output)


def rollback(store: StoreOption = None, json_output: JsonOption = False) -> None:
    """Serve the generation again that was served before; repeated, the one before that."""
    _show(roll_back(Store(store_path(store))), json_output)


def diff(
    new: Annotated[
        str,
        typer.Argument(
            help="A generation, by number or name; with --data also checkpoints/N, a folder, hub id or minilm.",
            show_default=False,
        ),
    ],
    old: Annotated[str, typer.Argument(help="What to compare it with.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option("--data", help="Measure both now, on a split of this data set in BEIR layout.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Which qrels of DATA to read. Default: dev.")] = None,
    measure: Annotated[
        str, typer.Option("--measure", help="With --data, say RR@1: a query is right if its first hit is relevant.")
    ] = METRIC,
    store: StoreOption = None,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Show which queries NEW answers better or worse than OLD, worst first, and which flipped from right to wrong."""
    root = store_path(store)
    models = find_model(root, new), find_model(root, old)
    if data is not None:
        with progress_view() as report:
            compared = measured_diff(*models, data, split or "dev", measure, report, skip_missing=skip_missing)
    else:
        compared = _recorded(Store(root), *models, asked=split is not None or measure != METRIC or skip_missing)
    if json_output:
        print_json(compared)
        return
    moved = f"{compared['gained']} gained, {compared['lost']} lost"
    print(
        f"{compared['measure']} of {compared['queries']} {compared['split']} queries: {compared['mean']:+.4f}, {moved}"
    )
    print(
        f"{compared['flips']} flipped ({compared['flip_rate']:.1%}): {compared['measure']} was above 0 and is not now"
    )
    for line in compared["results"][:SHOWN_QUERIES]:
        print(f"{line['difference']:+.4f} {line['id']}  {'flipped  ' if line['flipped'] else ''}{line['text']}")


def _recorded(store: Store, new: FoundModel, old: FoundModel, *, asked: bool) -> dict[str, Any]:
    """Compare what two generations recorded; ``asked`` is whether more than that was wanted."""
    for model in (new, old):
        if model.artifact is None or model.artifact.kind != "generations":
            raise InputError(f"{model.name}: only generations record figures; --data DATA measures any two models")
    if asked:
        raise InputError(f"generations record {METRIC} of their dev queries alone; --data DATA measures anything else")
    assert new.artifact is not None and old.artifact is not None
    return generation_diff(store, new.artifact.number, old.artifact.number)


def _show(line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(line)
        return
    before = "nothing" if line["from"] is None else f"generation {line['from']}"
    moved = f"serves generation {line['to']} after {before} ({line['by']})"
    print(f"generation {line['to']} is served already" if line["from"] == line["to"] else moved)
    for check in line.get("checks", ()):
        print(f"  {check['name']:8} {'passed' if check['passed'] else 'REFUSED'}: {check['reason']}")
        for one in check.get("slices", ()):
            chance = (
                "" if one["probability"] is None else f", probability of such a fall by chance {one['probability']:.4f}"
            )
            figures = f"{METRIC} {one['now']:.4f}, served {one['before']:.4f} over {one['queries']} queries{chance}"
            print(f"    {one['name']:18} {'passed' if one['passed'] else 'FELL'}: {figures}")
