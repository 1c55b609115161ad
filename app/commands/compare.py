"""hone compare: which system helps on this data.

Does not know how runs are carried out, measured or drawn.
"""

import json
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from app.comparison.carrying_out import carry_out, child_trainer, open_bench
from app.comparison.plan import read_comparison
from app.comparison.report import html, markdown
from app.comparison.run_curve import METRIC
from app.comparison.tables import headline
from app.live import progress_view
from app.options import SkipMissing, print_json
from app.training import stopping_at_signals
from retriever.durable import exclusive, write_atomic
from retriever.errors import HoneError

RESULTS, REPORT, REPORT_TEXT = "results.json", "report.html", "report.md"


def compare(
    comparison: Annotated[
        Path, typer.Argument(help="A compare.toml; examples/compare.toml is one.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of runs and report. Default: beside the file, named like it."),
    ] = None,
    skip_missing: SkipMissing = False,
) -> None:
    """Train several systems under the same seeds and budget and report which one helps. Run it again to resume."""
    planned = read_comparison(comparison)
    folder = out or comparison.with_suffix("")
    if folder == comparison:
        folder = comparison.with_name(f"{comparison.name}-runs")
    stop = Event()
    with exclusive(folder / "lock", "this comparison"), progress_view() as report, stopping_at_signals(stop, report):
        bench = open_bench(planned, folder, skip_missing=skip_missing)
        trainer = child_trainer(planned, skip_missing=skip_missing)
        told = carry_out(bench, trainer, report, stop, lambda results: _write(folder, results))
    for sentence in headline(told):
        print(sentence)
    print(f"report: {folder / REPORT}")
    print_json(_last_line(folder, told))
    if told["failed"]:
        raise HoneError(f"{len(told['failed'])} of {len(planned.runs)} runs failed; {folder / REPORT} says why")


def _write(folder: Path, results: dict[str, Any]) -> None:
    write_atomic(folder / RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(folder / REPORT, html(results).encode())
    write_atomic(folder / REPORT_TEXT, markdown(results).encode())


def _last_line(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    readings = results["findings"]["readings"]
    means = {
        reading["axis"]: {name: of[METRIC]["mean"] for name, of in reading["systems"].items()} for reading in readings
    }
    pipeline = results["findings"]["pipeline"]
    reranked = {} if pipeline is None else {name: of[METRIC]["mean"] for name, of in pipeline["systems"].items()}
    return {
        "report": str(folder / REPORT),
        "results": str(folder / RESULTS),
        "runs": len(results["runs"]),
        "failed": len(results["failed"]),
        "baseline": results["baseline"],
        METRIC: means,
        **({"reranked": reranked} if reranked else {}),
        "verdicts": {
            reading["axis"]: {
                name: of[METRIC].get("gap", {"verdict": "not told"})["verdict"]
                for name, of in reading["systems"].items()
                if name != results["baseline"]
            }
            for reading in readings
        },
    }
