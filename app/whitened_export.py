"""Exporting a generation's model with a whitening of its vectors behind it, and what that does to its dev figures.

Does not know how the whitening is fitted.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from app.exporting import check_new, export_model
from app.model_figures import vector_figures
from app.opening import open_generation_encoder
from app.options import warn
from indexer.dev_record import read_record
from indexer.flips import flipped
from indexer.gate import METRIC, is_partial
from indexer.shards import Vectors, open_vectors
from indexer.whitening import Whitening, fit_whitening
from retriever.artifacts import Artifact
from retriever.checkpoint import model_folder
from retriever.data import Corpus
from retriever.durable import appearing
from retriever.encoder import saved_settings
from retriever.errors import InputError
from retriever.store import Store
from retriever.tower import MODULE_TYPES


def export_whitened(
    store: Store, generation: Artifact, out: Path, dimensions: int | None
) -> tuple[str | None, dict[str, Any]]:
    """Write the model of ``generation`` to ``out``, with a Dense module that whitens as fitted on its vectors.

    Returns what ``export_model`` does, and what became of the vectors: ``dimensions``, and by exact search over the dev
    queries that the generation keeps, if any, {measure, queries, before, after, flips}. Raises InputError for a partial
    generation, an existing ``out`` and what ``fit_whitening`` refuses.
    """
    if is_partial(generation.facts):
        raise InputError(f"generation {generation.number} is partial: most of its vectors are not its model's")
    check_new(out)
    vectors = open_vectors(generation.path / "vectors")
    normalize = bool(saved_settings(model_folder(generation)).normalize)
    whitening = fit_whitening(vectors, dimensions, normalize=normalize)
    told = {"dimensions": len(whitening.bias), **_figures(store, generation, vectors, whitening)}
    with appearing(out) as stage:
        note = export_model(generation, stage)
        for tower in [stage] if (stage / "modules.json").is_file() else [stage / "query", stage / "passage"]:
            add_whitening(tower, whitening)
    return note, told


def add_whitening(folder: Path, whitening: Whitening) -> None:
    """Put ``whitening`` behind the sentence-transformers model in ``folder``."""
    modules = json.loads((folder / "modules.json").read_text())
    width, size = whitening.matrix.shape
    names = ["Dense", "Normalize"] if whitening.normalize else ["Dense"]
    for kind in names:
        number = len(modules)
        path = f"{number}_{kind}"
        modules.append({"idx": number, "name": str(number), "path": path, "type": f"{MODULE_TYPES}.{kind}"})
        (folder / path).mkdir()
        config: dict[str, Any] = {}
        if kind == "Dense":
            tensors = {"linear.weight": whitening.matrix, "linear.bias": whitening.bias}
            owned = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
            save_file(owned, folder / path / "model.safetensors")
            identity = "torch.nn.modules.linear.Identity"
            config = {"in_features": size, "out_features": width, "bias": True, "activation_function": identity}
        (folder / path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n")


def _figures(store: Store, generation: Artifact, vectors: Vectors, whitening: Whitening) -> dict[str, Any]:
    record = read_record(generation)
    if record is None:
        return {}
    queries = record.query_set(Corpus(store.corpora.at(generation.parents["corpus"])), warn)
    asked = open_generation_encoder(generation).encode_queries(queries.texts)
    before = vector_figures(queries, asked, vectors, METRIC)
    with tempfile.TemporaryDirectory(prefix="hone-whiten-") as scratch:
        after = vector_figures(queries, whitening(asked), whitening.shards(vectors, Path(scratch) / "v"), METRIC)
    return {
        "measure": METRIC,
        "queries": len(queries),
        "before": float(before.mean()),
        "after": float(after.mean()),
        "flips": int(flipped(after, before).sum()),
    }
