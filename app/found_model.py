"""What a person calls a model on the command line, and where it lies: an artifact of the store, a folder, a hub id.

Does not know what is done with it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from app.opening import open_generation_encoder
from retriever.artifacts import Artifact
from retriever.checkpoint import model_folder
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.inference import ModelEncoder
from retriever.store import Store

IN_STORE = re.compile(r"(?:(checkpoints|generations)/)?(\d+|[A-Z][A-Z0-9_-]*)")


@dataclass(frozen=True)
class FoundModel:
    """A model as it was called: ``place`` is its folder, hub id or "minilm"; ``artifact`` is what holds it, if any."""

    name: str
    place: str
    artifact: Artifact | None = None

    def open(self) -> ModelEncoder:
        """Open a generation's encoder as it made its vectors, any other in float32."""
        if self.artifact is not None and self.artifact.kind == "generations":
            return open_generation_encoder(self.artifact)
        return ModelEncoder(create_encoder(ModelConfig(name=self.place)), "fp32")


def find_model(store_root: Path, name: str) -> FoundModel:
    """Return the model that ``name`` calls.

    That is a folder if there is one (a model's, or an artifact's with model/ in it); "7" or "BEST" is a generation of
    the store at ``store_root``, "checkpoints/12" and "checkpoints/BEST" a checkpoint; all else is a hub id or "minilm".
    Raises InputError or StoreError for an artifact that is not there or is damaged.
    """
    folder = Path(name)
    if folder.is_dir():
        inner = folder / "model"
        return FoundModel(name, str(inner if (folder / "manifest.json").is_file() else folder))
    asked = IN_STORE.fullmatch(name)
    if asked is None:
        return FoundModel(name, name)
    kind, called = asked[1] or "generations", asked[2]
    series = Store(store_root).series(kind)
    number = int(called) if called.isdigit() else series.pointed(called)
    if number is None:
        known = ", ".join(series.pointers()) or "none"
        raise InputError(f"{series.folder}: nothing is named {called}; there are {known}")
    artifact = series.at(number)
    artifact.verify("model/")
    return FoundModel(f"{kind}/{number}", str(model_folder(artifact)), artifact)
