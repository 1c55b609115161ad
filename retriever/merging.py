"""One model of several: a weighted mean of their weights, tensor by tensor, beside the files of the last.

BCWI (Schumann et al. 2023) is that of an old and a new model, θ = α·θ_old + (1 − α)·θ_new; a model soup (Wortsman et
al., ICML 2022) that of many. Does not know which mean answers better.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from retriever.encoder import SETTINGS, ModelConfig, create_encoder, model_path
from retriever.errors import InputError
from retriever.ranker import RankerConfig, load_ranker
from retriever.tower import DROPOUT_KEYS, saved_json, tokenizer_sha256, weights_sha256

MERGED = "merged.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHER_WEIGHTS = ("*.safetensors", INDEX, "*.bin", "*.h5", "*.msgpack", "*.onnx", "onnx", "openvino")
NO_MATTER = {
    *DROPOUT_KEYS,
    "_name_or_path",
    "architectures",
    "classifier_dropout",
    "dtype",
    "gradient_checkpointing",
    "initializer_range",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "seq_classif_dropout",
    "transformers_version",
    "use_cache",
}
"""Keys of a model's configuration that do not change what its weights compute once it is trained."""


@dataclass(frozen=True)
class Parent:
    """A model that is to be merged: an encoder's or a ranker's ``folder``, whose weights are in ``towers`` below it.

    ``traits`` are what all parents must have in common.
    """

    name: str
    folder: Path
    towers: tuple[str, ...]
    traits: Mapping[str, Any]
    weights_sha256: str
    is_ranker: bool


def read_parent(name: str, place: str, scratch: Path) -> Parent:
    """Load the model at ``place`` (a folder, hub id or "minilm"; errors say ``name``) and return what merging needs.

    A model that was not saved by hone is saved anew below ``scratch``. Raises InputError if it cannot be loaded.
    """
    path = model_path(place)
    kinds = (saved_json(path, "config.json") or {}).get("architectures") or [""]
    return (_ranker if kinds[0].endswith("ForSequenceClassification") else _encoder)(name, path, scratch)


def _encoder(name: str, path: str, scratch: Path) -> Parent:
    model = create_encoder(ModelConfig(name=path))
    folder = Path(path)
    if not (folder / SETTINGS).is_file():
        folder = scratch / "parent"
        model.save(folder)
    passage = model.passage
    traits = {
        "towers": "one" if model.config.tied else "two",
        "tokenizer": passage.tokenizer_sha256(),
        "pooling": passage.pooling,
        "normalize": passage.normalize_output,
        **_architecture(passage.transformer),
    }
    towers = ("",) if model.config.tied else ("query", "passage")
    return Parent(name, folder, towers, traits, model.weights_sha256(), is_ranker=False)


def _ranker(name: str, path: str, scratch: Path) -> Parent:
    if not Path(path).is_dir():
        raise InputError(f"{name}: a ranker is merged from its folder; download it first")
    model = load_ranker(RankerConfig(path))
    traits = {
        "towers": "none: it is a ranker",
        "tokenizer": tokenizer_sha256(model.tokenizer),
        "activation": model.config.activation,
        "label": model.config.label,
        **_architecture(model.classifier),
    }
    return Parent(name, Path(path), ("",), traits, weights_sha256(model.classifier), is_ranker=True)


def _architecture(model: Any) -> dict[str, Any]:
    return {key: value for key, value in model.config.to_dict().items() if key not in NO_MATTER}


def check_alike(parents: Sequence[Parent]) -> None:
    """Raise InputError saying what differs where ``parents`` do not share architecture, tokenizer and pooling."""
    first = parents[0]
    for other in parents[1:]:
        keys = [*first.traits, *(key for key in other.traits if key not in first.traits)]
        differing = [key for key in keys if first.traits.get(key) != other.traits.get(key)]
        if differing:
            key = differing[0]
            shown = "" if key == "tokenizer" else f" ({first.traits.get(key)} and {other.traits.get(key)})"
            more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise InputError(f"{first.name} and {other.name} cannot be merged: they differ in {key}{shown}{more}")


def merge(parents: Sequence[Parent], shares: Sequence[float], out: Path) -> None:
    """Write the model Σ share·parent, in float32, to the new folder ``out``; all but the weights is the last parent's.

    No more than one tensor of two models is in memory. merged.json there names parents and shares. Raises InputError
    for parents that do not fit, and shares that are not of [0, 1] or do not sum to 1.
    """
    if len(shares) != len(parents) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"shares {', '.join(map(str, shares))}: {len(parents)} of 0 to 1 that sum to 1 are needed")
    check_alike(parents)
    last = parents[-1]
    shutil.copytree(last.folder, out, ignore=shutil.ignore_patterns(*OTHER_WEIGHTS))
    for tower in last.towers:
        used = [(parent.folder / tower, share) for parent, share in zip(parents, shares, strict=True) if share]
        _merge_tensors([folder for folder, _ in used], [share for _, share in used], out / tower / WEIGHTS)
        config = json.loads((out / tower / "config.json").read_text())
        config.pop("torch_dtype", None)
        (out / tower / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    (out / MERGED).write_text(json.dumps(_record(parents, shares), indent=1) + "\n")


def _record(parents: Sequence[Parent], shares: Sequence[float]) -> dict[str, Any]:
    named = [{"model": parent.name, "weights_sha256": parent.weights_sha256} for parent in parents]
    return {"parents": named, "shares": [float(share) for share in shares]}


def merged_facts(name: str) -> dict[str, Any]:
    """Return {"merged": {parents, shares}} for a model that ``merge`` made, {} for any other."""
    path = Path(name) / MERGED
    return {"merged": json.loads(path.read_text())} if path.is_file() else {}


def _merge_tensors(folders: Sequence[Path], shares: Sequence[float], out: Path) -> None:
    with ExitStack() as stack:
        models = [_open_tensors(folder, stack) for folder in folders]
        names = sorted(models[0])
        for folder, model in zip(folders, models, strict=True):
            if other := {*names} ^ {*model}:
                raise InputError(f"{folder}: its weights and those of {folders[0]} differ in {min(other)}")
        shapes = {name: models[0][name].get_slice(name).get_shape() for name in names}

        def mean(name: str) -> Tensor:
            total: Tensor = shares[0] * models[0][name].get_tensor(name).float()
            for share, model in zip(shares[1:], models[1:], strict=True):
                total.add_(model[name].get_tensor(name).float(), alpha=share)
            return total

        write_tensors(out, shapes, mean)


def _open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Return which open file each float tensor of the model in ``folder`` lies in."""
    index = folder / INDEX
    names = sorted({*json.loads(index.read_text())["weight_map"].values()}) if index.is_file() else [WEIGHTS]
    if not (folder / names[0]).is_file():
        raise InputError(f"{folder}: holds no {names[0]}; save the model in safetensors")
    files = [stack.enter_context(safe_open(str(folder / name), framework="pt")) for name in names]
    tensors = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # it is no mapping
    return {name: file for name, file in tensors.items() if file.get_slice(name).get_dtype().startswith(("F", "BF"))}


def write_tensors(path: Path, shapes: Mapping[str, Sequence[int]], tensor: Callable[[str], Tensor]) -> None:
    """Write a safetensors file of float32 tensors, each asked for when its turn comes.

    The library's own writer wants them all at once. The format: 8 bytes of length, a JSON header, the numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            file.write(tensor(name).contiguous().numpy().data)
