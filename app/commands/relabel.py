"""hone relabel: find false negatives, have them judged, and say what is to become of them.

Does not know how suspects are chosen or judged.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.live import progress_view
from app.options import JsonOption, SkipMissing, StoreOption, print_json, store_path, warn
from app.relabel_config import open_judges, read_relabel_config
from app.relabelled_data import check_out, write_relabelled
from app.relabelling import REPORT, VERDICTS, Relabelling, carry_out, estimate, open_relabelling
from retriever.errors import InputError
from retriever.store import Store


def relabel(
    config: Annotated[Path, typer.Argument(help="A relabel.toml; examples/relabel.toml is one.", show_default=False)],
    store: StoreOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of verdicts and report. Default: beside the file, named like it."),
    ] = None,
    write_data: Annotated[
        Path | None, typer.Option("--write-data", help="Write the corrected data set into this new folder as well.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many pairs the first judge would get; nobody is asked.")
    ] = False,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Have suspect negatives judged and write verdicts that training respects. Run it again to go on."""
    read = read_relabel_config(config)
    if write_data is not None:
        check_out(write_data)
    folder = out or config.with_suffix("")
    if folder == config:
        raise InputError(f"{config}: name a folder with --out")
    judges = open_judges(read, config)
    with progress_view() as report:
        opened = Store(store_path(store))
        work = open_relabelling(read, config, opened, skip_missing=skip_missing, warn=warn)
        if dry_run:
            _show_estimate(estimate(work, folder, judges), judges[0].name, as_json=json_output)
            return
        folder.mkdir(parents=True, exist_ok=True)
        told = carry_out(work, folder, judges, report)
        if write_data is not None:
            told["data"] = _write_data(work, folder, write_data)
    if json_output:
        print_json({"out": str(folder), "verdicts_file": str(folder / VERDICTS), **told})
        return
    for line in _sentences(told):
        print(line)
    print(f"report: {folder / REPORT}")
    print(f'Next: write verdicts = "{(folder / VERDICTS).resolve()}" under [negatives] of the run.toml')


def _write_data(work: Relabelling, folder: Path, out: Path) -> dict[str, Any]:
    changed = write_relabelled(work.run, work.data, out, work.corpus, work.queries, folder / VERDICTS)
    return {"out": str(out), **changed}


def _show_estimate(found: dict[str, Any], judge: str, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print(f"{found['suspects']} suspects, {found['to_ask']} of them not yet judged by {judge}")
    print(f"they are {found['characters']} characters without the prompt, about {found['characters'] // 4} tokens")


def _sentences(told: dict[str, Any]) -> list[str]:
    decided = f"{told['relevant']} relevant, {told['irrelevant']} irrelevant, {told['undecided']} undecided"
    lines = [f"negative set {told['negatives']}: {told['suspects']} suspects of {told['queries']} queries: {decided}"]
    lines.append("verdicts in all: " + ", ".join(f"{count} {action}" for action, count in told["actions"].items()))
    for name, of in told["judges"].items():
        failed = "".join(f", {count} {kind}" for kind, count in of["failures"].items())
        cost = f", cost {of['cost']:.4f}" if of["cost"] else ""
        lines.append(
            f"{name}: asked {of['asked']}: {of['relevant']} relevant, {of['irrelevant']} irrelevant{failed}{cost}"
        )
    for one in told["agreement"]:
        kappa = "not defined: one of them always said the same" if one["kappa"] is None else f"{one['kappa']:.3f}"
        lines.append(f"{one['judges'][0]} and {one['judges'][1]}: {one['pairs']} pairs by both, Cohen's kappa {kappa}")
    for one in told["pruning"]:
        if one["leave_out"]:
            low, high = one["interval"]
            share = f"{one['share']:.0%} of {one['queries']} queries ({low:.0%} to {high:.0%})"
            lines.append(f"leave out {one['group']}? {share} have a false negative")
    if "data" in told:
        of = told["data"]
        lines.append(f"{of['out']}: {of['positives_added']} positives added, {of['queries_dropped']} queries dropped")
    return lines
