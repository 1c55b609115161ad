"""hone dataset: make a data set, or turn another format into BEIR layout.

Does not know the formats themselves.
"""

from pathlib import Path
from typing import Annotated

import typer

from app.live import progress_view
from app.options import JsonOption, print_json
from app.progress import Meter
from app.python_dataset import PythonDatasetConfig, write_python_dataset

app = typer.Typer(help="Make or convert data sets; everything else reads BEIR layout.", no_args_is_help=True)

OutArgument = Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)]


@app.command()
def python(
    out: OutArgument,
    passages: Annotated[int, typer.Option(help="Passages in all.")] = 3000,
    train: Annotated[int, typer.Option(help="Training queries.")] = 2000,
    dev: Annotated[int, typer.Option(help="Dev queries.")] = 300,
    test: Annotated[int, typer.Option(help="Test queries.")] = 300,
    per_package: Annotated[int, typer.Option(help="Passages of one package, at most.")] = 200,
    seed: Annotated[int, typer.Option(help="Chooses packages and functions.")] = 13,
    json_output: JsonOption = False,
) -> None:
    """Docstring → function, from the Python packages of this environment. Needs no network."""
    config = PythonDatasetConfig(passages, train, dev, test, per_package, seed)
    with progress_view() as report:
        summary = write_python_dataset(out, config, progress=Meter(report).phase("passages"))
    if json_output:
        print_json({"out": str(out), "passages": summary.passages, "queries": dict(summary.queries)})
        return
    print(f"{out}: {summary.passages} passages")
    for split, count in summary.queries.items():
        names = summary.packages[split]
        print(
            f"  {split:5} {count} queries from {len(names)} packages: {', '.join(names[:8])}{' …' * (len(names) > 8)}"
        )
    print("  dropped: " + ", ".join(f"{count} {reason}" for reason, count in summary.dropped.items()))
    print(f"Next: hone init {out}")
