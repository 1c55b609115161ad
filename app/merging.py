"""Merging models that a person named, by shares or by the share of the old one that does best on a split.

Does not know how weights are averaged or figures measured.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.found_model import FoundModel
from app.model_figures import Split, model_figures, open_split
from app.progress import Meter, Report
from indexer.flips import flipped
from retriever.durable import appearing
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.inference import ModelEncoder
from retriever.merging import Parent, check_alike, merge, read_parent
from retriever.protocols import FloatArray


@dataclass(frozen=True)
class Tried:
    """A share ``alpha`` of the old model: the mean figure of the merge, and the queries that flip against the old."""

    alpha: float
    value: float
    flips: int
    flip_rate: float


@dataclass(frozen=True)
class Trial:
    """Which shares of the old model to try, on which split of which data set, by which measure."""

    alphas: Sequence[float]
    data: Path
    split: str
    measure: str
    skip_missing: bool = False


def merge_models(models: Sequence[FoundModel], shares: Sequence[float], out: Path) -> None:
    """Write the weighted mean of ``models`` to ``out``. Raises InputError for what does not fit."""
    _refuse_existing(out)
    with tempfile.TemporaryDirectory(prefix="hone-merge-") as scratch:
        _write(_parents(models, Path(scratch)), shares, out)


def merge_by_trial(models: Sequence[FoundModel], trial: Trial, out: Path, report: Report) -> tuple[float, list[Tried]]:
    """Write the best merge of the old and the new model to ``out``; return the old one's share in it, and all figures.

    Best is the highest mean, then the fewest flips. Raises InputError for what does not fit.
    """
    _refuse_existing(out)
    with tempfile.TemporaryDirectory(prefix="hone-merge-") as scratch:
        parents = _parents(models, Path(scratch))
        if parents[0].is_ranker:
            raise InputError(f"{models[0].name} is a ranker, which has no figures of its own here; give --alpha")
        check_alike(parents)
        meter = Meter(report)
        with open_split(trial.data, trial.split, skip_missing=trial.skip_missing) as split:
            progress = meter.phase(f"encoding by {models[0].name}")
            before = model_figures(split, _opened(parents[0].folder), trial.measure, progress)
            tried = [_tried(parents, alpha, before, split, trial.measure, meter) for alpha in trial.alphas]
        best = max(tried, key=lambda one: (one.value, -one.flips))
        _write(parents, (best.alpha, 1 - best.alpha), out)
    return best.alpha, tried


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise InputError(f"{out}: exists already; choose another folder")


def _parents(models: Sequence[FoundModel], scratch: Path) -> list[Parent]:
    return [read_parent(model.name, model.place, scratch / str(place)) for place, model in enumerate(models)]


def _write(parents: Sequence[Parent], shares: Sequence[float], out: Path) -> None:
    with appearing(out) as temporary:
        merge(parents, shares, temporary)


def _tried(
    parents: Sequence[Parent], alpha: float, before: FloatArray, split: Split, measure: str, meter: Meter
) -> Tried:
    with tempfile.TemporaryDirectory(prefix="hone-merge-") as folder:
        merge(parents, (alpha, 1 - alpha), Path(folder) / "model")
        own = replace(split, cache=Path(folder))  # its vectors go with it
        figures = model_figures(
            own, _opened(Path(folder) / "model"), measure, meter.phase(f"encoding by the merge of alpha {alpha:g}")
        )
    flips = flipped(figures, before)
    return Tried(alpha, float(figures.mean()), int(flips.sum()), float(flips.mean()))


def _opened(folder: Path) -> ModelEncoder:
    """Open a model in float32, so that merges differ by their weights alone."""
    return ModelEncoder(create_encoder(ModelConfig(name=str(folder))), "fp32")
