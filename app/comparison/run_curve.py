"""The curve of a trained run: its checkpoints evaluated on dev by exact search, and on test those that dev chose.

Does not know how the run was trained, nor how runs are compared.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluating import evaluate_vectors
from indexer.encode import encode_corpus
from indexer.evaluation import Evaluation
from indexer.shards import drop_unused
from retriever.artifacts import BEST, Artifact
from retriever.data import Corpus, QuerySet
from retriever.durable import append_line, read_lines, sha256_json, write_atomic
from retriever.errors import BusyError
from retriever.protocols import Encoder
from retriever.store import Store

METRIC = "nDCG@10"
"""What dev chooses checkpoints by."""

CURVE, EVALUATIONS = "curve.json", "evaluations.jsonl"

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """The queries that every run of a comparison is measured on, over ``corpus``.

    ``settings`` tell how vectors are computed: figures of other settings are not taken for these.
    """

    corpus: Corpus
    dev: QuerySet
    test: QuerySet
    settings: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Digest of all that the figures of a model depend on beside the model."""
        return sha256_json([self.corpus.sha256, self.dev.sha256, self.test.sha256, dict(self.settings)])

    def key(self, checkpoint: Artifact) -> str:
        """Return what identifies the figures of ``checkpoint``: its weights, its use, and what it is measured on."""
        return sha256_json([checkpoint.facts["weights_sha256"], checkpoint.facts["model"], self.sha256])


@dataclass(frozen=True)
class Point:
    """A checkpoint's figures: means on ``dev`` and, where dev chose it, on ``test``, there also query by query.

    ``computed_by`` are the engine and the number format of its vectors.
    """

    step: int
    checkpoint: int
    computed_by: str
    dev: Mapping[str, float]
    test: Mapping[str, float] | None = None
    per_query: Mapping[str, Float64] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Measuring:
    """How checkpoints are measured: on what, by which encoder, and who hears of it.

    ``progress`` takes (phase, done, total) and may raise to stop, ``warn`` takes warnings.
    """

    judged: Judged
    open_encoder: Callable[[Artifact], Encoder]
    progress: Callable[[str, int, int], None]
    warn: Callable[[str], None]


class Evaluations:
    """Figures of a run's checkpoints in an append-only file, found again by key.

    Those of other runs may be borrowed: all share the untrained model.
    """

    def __init__(self, path: Path, others: Iterable[Path] = ()) -> None:
        """Read ``path`` and the files of ``others``."""
        self._path = path
        self._own = {record["key"]: record for record in read_lines(path)}
        self._others = {record["key"]: record for one in others for record in read_lines(one)}

    def find(self, key: str) -> dict[str, Any] | None:
        """Return the figures under ``key``, None where there are none; borrowed ones are copied."""
        if key not in self._own and key in self._others:
            self._append(self._others[key])
        return self._own.get(key)

    def add(self, key: str, computed_by: str, dev: Evaluation, test: Evaluation | None) -> dict[str, Any]:
        """Append figures, rounded to 6 digits, and return them as they are found again."""
        per_query = {} if test is None else test.per_query
        record = {
            "key": key,
            "computed_by": computed_by,
            "dev": rounded(dev.metrics),
            "test": None if test is None else rounded(test.metrics),
            "per_query": {name: np.round(values, 6).tolist() for name, values in per_query.items()},
        }
        self._append(record)
        return record

    def _append(self, record: dict[str, Any]) -> None:
        append_line(self._path, record)
        self._own[record["key"]] = record


def measured_curve(root: Path, judged: Judged) -> list[Point] | None:
    """Return the points that ``measure_curve`` measured below ``root``, None if it did not, or on other queries."""
    path = root / CURVE
    if not path.exists():
        return None
    written = json.loads(path.read_bytes())
    evaluations = Evaluations(root / EVALUATIONS)
    found = [evaluations.find(point["key"]) for point in written["points"]]
    if written["judged"] != judged.sha256 or None in found:
        return None
    pairs = zip(written["points"], found, strict=True)
    return [_point(point["step"], point["checkpoint"], record) for point, record in pairs if record is not None]


def measure_curve(root: Path, store: Store, every: int, measuring: Measuring, others: Iterable[Path]) -> list[Point]:
    """Evaluate the checkpoints of ``store`` at each ``every``-th step and at the last; then keep the best and the last.

    Figures are written below ``root`` and found there again after a kill; ``others`` are files to borrow from. Test is
    read where a checkpoint is better on dev than all before it (dev would choose it at some budget) and at the last.
    """
    evaluations = Evaluations(root / EVALUATIONS, others)
    points: list[Point] = []
    chosen = on_grid(store, every)
    best: Point | None = None
    for checkpoint in chosen:
        measuring.progress("measure checkpoints", len(points), len(chosen))
        floor = -math.inf if best is None or checkpoint is chosen[-1] else best.dev[METRIC]
        point = _point(
            checkpoint.facts["step"], checkpoint.number, _figures(store, checkpoint, floor, measuring, evaluations)
        )
        points.append(point)
        best = point if best is None or point.dev[METRIC] > best.dev[METRIC] else best
    keys = [measuring.judged.key(checkpoint) for checkpoint in chosen]
    named = [{"step": p.step, "checkpoint": p.checkpoint, "key": key} for p, key in zip(points, keys, strict=True)]
    if best is not None:
        store.checkpoints.point(BEST, best.checkpoint)  # first: what is reranked goes by it and by the curve
    write_atomic(root / CURVE, json.dumps({"judged": measuring.judged.sha256, "points": named}, indent=1).encode())
    keep_measured(store)
    return points


def keep_measured(store: Store) -> None:
    """Remove of a measured run all checkpoints but the best and the last, and what its processes left half-written.

    The refresher was stopped at the final checkpoint, whatever it was at.
    """
    if store.checkpoints.pointed(BEST) is not None:
        with suppress(BusyError):  # somebody indexes from it; the next command tidies up
            store.retain("checkpoints", 1, grace_seconds=0)
    store.sweep()


def on_grid(store: Store, every: int) -> list[Artifact]:
    """Return the checkpoints of each ``every``-th step and of the last one; of several of one step the newest."""
    found = [store.checkpoints.at(number) for number in store.checkpoints.numbers()]
    newest = {checkpoint.facts["step"]: checkpoint for checkpoint in found}
    return [newest[step] for step in sorted(newest) if step % every == 0 or step == max(newest)]


def _figures(
    store: Store, checkpoint: Artifact, floor: float, measuring: Measuring, evaluations: Evaluations
) -> dict[str, Any]:
    """Return the figures of ``checkpoint``, with those on test if it is above ``floor`` on dev."""
    judged, progress = measuring.judged, measuring.progress
    key = judged.key(checkpoint)
    known = evaluations.find(key)
    if known is not None and (known["test"] is not None or known["dev"][METRIC] <= floor):
        return known
    encoder = measuring.open_encoder(checkpoint)
    vectors = encode_corpus(encoder, judged.corpus, store.embeddings, partial(progress, "encode"), measuring.warn)
    dev = evaluate_vectors(encoder, vectors, judged.dev)
    wanted = rounded(dev.metrics)[METRIC] > floor  # rounded: the same when the figures are found again
    test = evaluate_vectors(encoder, vectors, judged.test) if wanted else None
    drop_unused(store)
    return evaluations.add(key, encoder.computed_by, dev, test)


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return ``metrics`` to 6 digits."""
    return {name: round(value, 6) for name, value in metrics.items()}


def _point(step: int, checkpoint: int, record: Mapping[str, Any]) -> Point:
    per_query = {name: np.array(values, np.float64) for name, values in record["per_query"].items()}
    return Point(step, checkpoint, record["computed_by"], record["dev"], record["test"], per_query)
