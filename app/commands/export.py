"""hone export: the model or the mined negatives for other tools, people's judgements for training.

Does not know their formats.
"""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.composition import open_run
from app.exporting import as_mined, export_model, export_negatives
from app.judgement_export import VERDICTS, export_judgements
from app.judgements import Judgements
from app.options import ConfigArgument, JsonOption, SkipMissing, StoreOption, print_json, store_path, warn
from app.settings import database_url
from app.whitened_export import export_whitened
from miner.verdicts import ACTIONS, RELABEL
from retriever.artifacts import BEST, CURRENT, SERVED, Artifact
from retriever.counting import counted
from retriever.errors import InputError
from retriever.store import Store

app = typer.Typer(help="Write the best model, mined negatives or people's judgements.", no_args_is_help=True)

OutArgument = Annotated[Path, typer.Argument(help="Where to write.", show_default=False)]


@app.command(short_help="The best model, for sentence-transformers.")
def model(
    out: OutArgument,
    store: StoreOption = None,
    generation: Annotated[
        str | None, typer.Option("--generation", help="Number or name. Default: BEST, else SERVED, else CURRENT.")
    ] = None,
    whiten: Annotated[
        bool, typer.Option("--whiten", help="Put a whitening behind it, fitted on the generation's vectors.")
    ] = False,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", min=1, help="With --whiten: keep this many dimensions. Default: all.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Copy the best model to a folder that sentence-transformers loads."""
    if dimensions is not None and not whiten:
        raise InputError("--dimensions goes with --whiten")
    opened = Store(store_path(store))
    found = _generation(opened, generation)
    note, told = export_whitened(opened, found, out, dimensions) if whiten else (export_model(found, out), {})
    if json_output:
        print_json({"out": str(out), "generation": found.number, "step": found.facts["step"], "note": note, **told})
        return
    print(f"{out}: the model of generation {found.number} (step {found.facts['step']})")
    if told:
        print(f"Whitened: {told['dimensions']} dimensions")
    if "before" in told:
        change = f"{told['before']:.4f} before, {told['after']:.4f} after, {told['flips']} flipped"
        print(f"{told['measure']} of {told['queries']} dev queries: {change}")
    if note is not None:
        print(f"Note: {note}")
    print(f'Next: SentenceTransformer("{out}")')


def _generation(store: Store, name: str | None) -> Artifact:
    if name is not None and name.isdigit():
        return store.generations.at(int(name))
    for pointer in (name,) if name else (BEST, SERVED, CURRENT):
        found = store.generations.get(pointer)
        if found is not None:
            return found
    names = ", ".join(store.generations.pointers()) or "none"
    raise InputError(f"{store.root}: no generation is named {name or SERVED}; there are {names}")


@app.command(short_help="Mined negatives, for other trainers.")
def negatives(
    config: ConfigArgument,
    out: OutArgument,
    store: StoreOption = None,
    file_format: Annotated[
        str, typer.Option("--format", help="sentence-transformers, flagembedding or tevatron.")
    ] = "sentence-transformers",
    count: Annotated[int, typer.Option("--count", min=1, help="Negatives a query.")] = 7,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Write the training queries with hard negatives of the newest set as JSON lines."""
    run = open_run(config, store_path(store), skip_missing=skip_missing, warn=warn)
    newest = run.store.negatives.intact(CURRENT, warn)
    if newest is None:
        raise InputError(
            f"{run.store.root}: no negatives yet; `hone mine {config}` or `hone train {config}` makes them"
        )
    if newest.facts["queries_sha256"] != run.train.sha256:
        run = as_mined(run, config, newest, skip_missing=skip_missing)
        warn(f"negative set {newest.number} was mined with earlier verdicts; `hone mine {config}` respects today's")
    lines = export_negatives(run, newest, out, file_format, count)
    if json_output:
        print_json({"out": str(out), "negatives": newest.number, "lines": lines})
        return
    print(
        f"{out}: {counted(lines, 'line', 'lines')} from negative set {newest.number}; "
        f"{counted(len(run.train), 'training query', 'training queries')} in all"
    )


@app.command(short_help="People's judgements, as verdicts or qrels.")
def judgements(
    data: Annotated[Path, typer.Argument(help="The data set, a folder in BEIR layout.", show_default=False)],
    out: OutArgument,
    store: StoreOption = None,
    form: Annotated[str, typer.Option("--format", help="verdicts, for [negatives] of a run, or qrels.")] = VERDICTS,
    action: Annotated[
        str, typer.Option("--action", help=f"What a relevant passage becomes in training: {', '.join(ACTIONS)}.")
    ] = RELABEL,
    json_output: JsonOption = False,
) -> None:
    """Write what people judged over HTTP, for training: verdicts that a run respects, or qrels."""
    with closing(Judgements(database_url(Store(store_path(store)).root))) as stored:
        done = export_judgements(stored.all(), data, out, form, action)
    if json_output:
        print_json({"out": str(out), **asdict(done)})
        return
    print(f"{out}: {counted(done.lines, 'line', 'lines')} from {counted(done.pairs, 'judged pair', 'judged pairs')}")
    for count, what in ((done.unknown_queries, "such query"), (done.unknown_passages, "passage of such a text")):
        if count:
            warn(f"{counted(count, 'pair is', 'pairs are')} left out: {data} has no {what}")
    if form == VERDICTS and done.lines:
        print(f'Next: write verdicts = "{out.resolve()}" under [negatives] of the run.toml')
