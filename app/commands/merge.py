"""hone merge: one model of several.

Does not know how weights are averaged.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.found_model import FoundModel, find_model
from app.live import progress_view
from app.merging import Trial, merge_by_trial, merge_models
from app.options import JsonOption, SkipMissing, StoreOption, is_given, print_json, store_path
from indexer.gate import METRIC
from retriever.errors import InputError


def merge(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            help="Two or more: a generation by number or name, checkpoints/N, a folder, hub id or minilm; OLD first.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the merged model.", show_default=False)],
    alpha: Annotated[
        float | None, typer.Option("--alpha", min=0, max=1, help="Of two: the share of the first.")
    ] = None,
    alphas: Annotated[
        str | None, typer.Option("--alphas", help="Say 0,0.25,0.5,0.75,1: keep the share that does best on --data.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="A share each, say 0.5,0.3,0.2. Default: equal.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="For --alphas: a data set in BEIR layout.")] = None,
    split: Annotated[str, typer.Option("--split", help="For --alphas: which qrels to read.")] = "dev",
    measure: Annotated[str, typer.Option("--measure", help="For --alphas: what to choose by.")] = METRIC,
    store: StoreOption = None,
    skip_missing: SkipMissing = False,
    json_output: JsonOption = False,
) -> None:
    """Average the weights of MODELS into one that `hone index` takes; prompts and lengths are those of the last."""
    if sum(given is not None for given in (alpha, alphas, weights)) > 1:
        raise InputError("--alpha, --alphas and --weights exclude each other; give one")
    if len(models) < 2 or (len(models) > 2 and weights is None and (alpha, alphas) != (None, None)):
        raise InputError(f"{len(models)} models: --alpha and --alphas take two, --weights and no option two or more")
    if (alphas is None) != (data is None):
        raise InputError("--alphas and --data go together: the first is chosen by figures on the second")
    if alphas is None and (is_given(context, "split") or is_given(context, "measure")):
        raise InputError("--split and --measure say by what --alphas chooses: give that as well")
    found = [find_model(store_path(store), name) for name in models]
    told: dict[str, Any] = {"out": str(out)}
    if alphas is not None and data is not None:
        told |= _try(found, Trial(_numbers("--alphas", alphas), data, split, measure, skip_missing), out)
    else:
        told["shares"] = _shares(len(found), alpha, weights)
        merge_models(found, told["shares"], out)
    _show(found, told, json_output)


def _try(found: list[FoundModel], trial: Trial, out: Path) -> dict[str, Any]:
    with progress_view() as report:
        best, tried = merge_by_trial(found, trial, out, report)
    lines = [
        {"alpha": one.alpha, trial.measure: one.value, "flips": one.flips, "flip_rate": one.flip_rate} for one in tried
    ]
    return {"shares": [best, 1 - best], "measure": trial.measure, "split": trial.split, "tried": lines}


def _shares(count: int, alpha: float | None, weights: str | None) -> list[float]:
    if alpha is not None:
        return [alpha, 1 - alpha]
    return [1 / count] * count if weights is None else _numbers("--weights", weights)


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text}: give numbers with commas between, say 0.25,0.75") from error
    if not all(0 <= number <= 1 for number in numbers):
        raise InputError(f"{option} {text}: a share lies in 0 … 1")
    return numbers


def _show(found: list[FoundModel], told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({**told, "models": [model.name for model in found]})
        return
    for line in told.get("tried", ()):
        value, flips = line[told["measure"]], f"{line['flips']} flipped ({line['flip_rate']:.1%})"
        print(f"alpha {line['alpha']:<5g} {told['measure']} {value:.4f}  {flips}")
    parts = [f"{share:.4g} × {model.name}" for share, model in zip(told["shares"], found, strict=True)]
    print(f"{told['out']}: {' + '.join(parts)}")
    print(f"Next: hone index DATA --model {told['out']} --store served")
