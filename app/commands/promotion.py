"""hone promote, rollback, diff: which generation is served, and what a query gains or loses by it.

Does not know the gate's rule, nor who serves.
"""

from typing import Annotated, Any

import typer

from app.generation_diff import generation_diff
from app.options import JsonOption, StoreOption, print_json, store_path
from indexer.promotion import promote as promote_generation
from indexer.promotion import rollback as roll_back
from retriever.store import Store

SHOWN_QUERIES = 10


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
    new: Annotated[int, typer.Argument(help="A generation.", show_default=False)],
    old: Annotated[int, typer.Argument(help="The generation to compare it with.", show_default=False)],
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show which dev queries generation NEW answers better or worse than OLD, worst first."""
    opened = Store(store_path(store))
    compared = generation_diff(opened, new, old)
    if json_output:
        print_json(compared)
        return
    moved = f"{compared['gained']} gained, {compared['lost']} lost"
    print(f"nDCG@10 of {compared['queries']} dev queries: {compared['mean']:+.4f}, {moved}")
    for line in compared["results"][:SHOWN_QUERIES]:
        print(f"{line['difference']:+.4f} {line['id']}  {line['text']}")


def _show(line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(line)
        return
    before = "nothing" if line["from"] is None else f"generation {line['from']}"
    print(f"serves generation {line['to']} after {before} ({line['by']})")
    for check in line.get("checks", ()):
        print(f"  {check['name']:8} {'passed' if check['passed'] else 'REFUSED'}: {check['reason']}")
