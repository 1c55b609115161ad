"""hone dataset: make a data set, or turn another format into BEIR layout.

Does not know the formats themselves.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.live import progress_view
from app.options import JsonOption, print_json
from app.progress import Meter
from app.python_dataset import PythonDatasetConfig, write_python_dataset
from app.shortening import shortener
from retriever.document_rows import DocumentColumns
from retriever.errors import InputError
from retriever.imports import ImportSummary, Splits, import_documents, import_pairs, import_trec
from retriever.joining import join_datasets
from retriever.pair_rows import Columns
from retriever.splitting import split_documents
from retriever.tables import open_table

app = typer.Typer(help="Make or convert data sets; everything else reads BEIR layout.", no_args_is_help=True)

SourceArgument = Annotated[
    str, typer.Argument(help="Parquet, JSON lines or CSV; a folder; or a hub id.", show_default=False)
]
OutArgument = Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)]


@app.command(short_help="Docstrings and functions of this environment's packages.")
def python(
    out: OutArgument,
    passages: Annotated[int, typer.Option(help="Passages in all.")] = 3000,
    train: Annotated[int, typer.Option(help="Training queries.")] = 2000,
    dev: Annotated[int, typer.Option(help="Dev queries.")] = 300,
    test: Annotated[int, typer.Option(help="Test queries.")] = 300,
    per_package: Annotated[int, typer.Option(help="Passages of one package, at most.")] = 200,
    seed: Annotated[int, typer.Option(help="Chooses packages and functions.")] = 13,
    smallest: Annotated[int, typer.Option(help="Documented definitions that a package needs to take part.")] = 50,
    tokens: Annotated[int, typer.Option(help="Cut passages to so many of MiniLM's tokens; 0 keeps them whole.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Docstring → function, from the Python packages of this environment. Needs no network."""
    config = PythonDatasetConfig(passages, train, dev, test, per_package, seed, smallest)
    with progress_view() as report:
        shorten = shortener("minilm", tokens) if tokens else None
        summary = write_python_dataset(out, config, None, Meter(report).phase("passages"), shorten)
    if json_output:
        print_json({"out": str(out), "passages": summary.passages, "queries": dict(summary.queries)})
        return
    cut = f", {summary.shortened} of them cut to {tokens} tokens" if tokens else ""
    print(f"{out}: {summary.passages} passages{cut}")
    for split, count in summary.queries.items():
        names = summary.packages[split]
        print(
            f"  {split:5} {count} queries from {len(names)} packages: {', '.join(names[:8])}{' …' * (len(names) > 8)}"
        )
    print("  dropped: " + ", ".join(f"{count} {reason}" for reason, count in summary.dropped.items()))
    print(f"Next: hone init {out}")


@app.command(short_help="Pairs or triplets: Parquet, JSON lines, CSV, hub.")
def pairs(
    source: SourceArgument,
    out: OutArgument,
    query: Annotated[str | None, typer.Option(help="Column of the queries. Default: guessed.")] = None,
    positive: Annotated[str | None, typer.Option(help="Column of the relevant passages.")] = None,
    negative: Annotated[str | None, typer.Option(help="Column of judged irrelevant passages.")] = None,
    query_id: Annotated[str | None, typer.Option(help="Column of the queries' ids. Default: made of texts.")] = None,
    passage_id: Annotated[str | None, typer.Option(help="Column of the relevant passages' ids.")] = None,
    title: Annotated[str | None, typer.Option(help="Column of the relevant passages' titles.")] = None,
    train: Annotated[str, typer.Option(help="Name of the source's training split.")] = "train",
    dev: Annotated[str, typer.Option(help="A split of the source, or a fraction of train to carve off.")] = "0.1",
    test: Annotated[str, typer.Option(help="A split of the source, or a fraction of train to carve off.")] = "0.1",
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    documents: Annotated[
        Path | None, typer.Option(help="All that is to be searched, as lines of corpus.jsonl. Default: the pairs' own.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Pairs or triplets of texts, e.g. sentence-transformers' and FlagEmbedding's files, or a hub data set."""
    columns = None
    if query is not None and positive is not None:
        columns = Columns(query, positive, negative, query_id, passage_id, title)
    elif any(name is not None for name in (query, positive, negative, query_id, passage_id, title)):
        raise InputError(
            "--query and --positive belong together, and the other columns to them: name both columns, or none at all"
        )
    splits = Splits(train, _split_or_fraction(dev), _split_or_fraction(test))
    _show(out, import_pairs(source, out, columns, splits, subset, documents), json_output)


@app.command(short_help="Documents without queries: the same formats.")
def documents(
    source: SourceArgument,
    out: OutArgument,
    text: Annotated[str | None, typer.Option(help="Column of the texts. Default: guessed.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column of the ids. Default: guessed, or made.")] = None,
    title: Annotated[str | None, typer.Option(help="Column of the titles. Default: guessed.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="A column to keep as metadata, for filters; may be given again.")
    ] = None,
    split_name: Annotated[str, typer.Option("--split", help="Which split of the source.")] = "train",
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Documents without any queries: enough for `hone index`, and for --documents of `hone dataset pairs`."""
    columns = DocumentColumns(text, id_column, title, tuple(metadata or ()))
    summary = import_documents(open_table(source, split_name, subset), out, columns)
    _show(out, summary, json_output, next_step=f"hone index {out} --model minilm")


@app.command(short_help="TREC files.")
def trec(
    corpus: Annotated[Path, typer.Argument(help="Lines of id, tab, text.", show_default=False)],
    queries: Annotated[Path, typer.Argument(help="Lines of id, tab, text.", show_default=False)],
    out: OutArgument,
    qrels: Annotated[list[str], typer.Option("--qrels", help="SPLIT=FILE, once a split.")],
    json_output: JsonOption = False,
) -> None:
    """TREC files: tab-separated texts and qrels."""
    files = [_named_file(one) for one in qrels]
    named = dict(files)
    if len(named) < len(files):
        raise InputError("--qrels names a split twice; put its judgements into one file")
    _show(out, import_trec(corpus, queries, named, out), json_output)


@app.command(short_help="Long documents into passages.")
def split(
    data: Annotated[Path, typer.Argument(help="A data set in BEIR layout.", show_default=False)],
    out: OutArgument,
    words: Annotated[int, typer.Option(help="Words of a passage, at most.")] = 120,
    overlap: Annotated[int, typer.Option(help="Words that a passage repeats of the one before, at most.")] = 20,
    json_output: JsonOption = False,
) -> None:
    """Split long documents into passages; judgements go to every passage of a document."""
    summary = split_documents(data, out, words, overlap)
    if json_output:
        print_json({"out": str(out), **asdict(summary)})
        return
    print(f"{out}: " + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in asdict(summary).items()))


@app.command(short_help="Several data sets into one.")
def join(
    out: OutArgument,
    folders: Annotated[list[str], typer.Argument(help="Data sets in BEIR layout: FOLDER or NAME=FOLDER.")],
    json_output: JsonOption = False,
) -> None:
    """Join several data sets into one to train on; `[mix]` says how their queries share the steps."""
    named = [_named_folder(one) for one in folders]
    if len({name for name, _ in named}) < len(named):
        raise InputError("two data sets have the same name; write NAME=FOLDER")
    summary = join_datasets(dict(named), out)
    if json_output:
        print_json({"out": str(out), **asdict(summary)})
        return
    splits = ", ".join(f"{count} {split}" for split, count in summary.judgements.items())
    print(f"{out}: {summary.passages} passages, {summary.queries} queries; judgements: {splits}")


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals else (Path(text).name, Path(text))


def _split_or_fraction(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(f"--qrels {text}: write SPLIT=FILE, e.g. --qrels train=qrels.train.txt")
    return name, Path(path)


def _show(out: Path, summary: ImportSummary, as_json: bool, next_step: str | None = None) -> None:
    if as_json:
        print_json({"out": str(out), **asdict(summary)})
        return
    queries = ", ".join(f"{count} {split}" for split, count in summary.queries.items()) or "none"
    print(f"{out}: {summary.passages} passages; queries: {queries}")
    for reason, count in summary.dropped.items():
        print(f"  dropped: {count} {reason}")
    print(f"Next: {next_step or f'hone init {out}'}")
