"""LoRA (Hu et al., ICLR 2022): training low-rank additions to a model's weights, which are merged wherever it is used.

A product's weight W [out, in] stays, and W + α/r·B·A is computed with, of which A [r, in] and B [out, r] are learned.
peft puts the layers in place and defines the files. Does not know towers, rankers or checkpoints.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retriever.errors import InputError

ADAPTER = "default"
"""peft's name of a model's only adapter."""
PREFIX = "base_model.model."
"""Before each weight's name in peft's files."""
POOLER = "pooler"


@dataclass(frozen=True)
class LoraConfig:
    """[model.lora], [ranker.lora]: train rank-``rank`` additions instead of all weights; ``alpha`` / rank scales them.

    ``target_modules`` are the ends of the names of the products that get one, None: all up to the last hidden state.
    ``dropout`` is of an addition's input.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise InputError("lora: rank must be at least 1, alpha above 0, dropout in [0, 1)")


@dataclass(frozen=True)
class Adapted:
    """What a model with adapters was: its ``name`` and the digest of its weights, and how it is trained now."""

    lora: LoraConfig
    name: str
    weights_sha256: str

    def check(self, saved: Any, place: Path, table: str) -> None:
        """Raise InputError if what a checkpoint at ``place`` saved of itself, ``asdict`` or None, is of another model.

        That is other weights beneath, or another rank, alpha or target modules than ``table`` of the run has.
        """
        if saved is None:
            raise InputError(f"{place}: trained without [{table}]; take it out, or start afresh with --new")
        before = saved["weights_sha256"]
        if before != self.weights_sha256:
            raise InputError(
                f"{place}: its adapters belong to other weights of the model {self.name!r} ({before[:12]}, now "
                f"{self.weights_sha256[:12]}); put those back, or train into another store"
            )
        was, now = _shape(saved["lora"]), _shape(asdict(self.lora))
        for key in (key for key in now if was[key] != now[key]):
            raise InputError(
                f"{place}: its adapters have [{table}] {key} = {was[key]}, here it is {now[key]}; put that back, or "
                "start afresh with --new"
            )


def _shape(lora: dict[str, Any]) -> dict[str, Any]:
    """Return what decides, of a LoraConfig ``asdict``, what the same A and B add to a model."""
    targets = lora["target_modules"]
    return {
        "rank": lora["rank"],
        "alpha": lora["alpha"],
        "target_modules": None if targets is None else sorted(targets),
    }


def adapt(model: Any, config: LoraConfig, seed: int) -> None:
    """Put adapters into a transformer or sequence classifier, A drawn from ``seed`` and B 0; they alone will learn.

    Of a classifier what lies behind the last hidden state (pooler and head) is trained in full. Raises InputError if
    peft is not installed and for target modules that the model has not.
    """
    try:
        from peft import inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise InputError("lora needs peft: pip install -e '.[lora]' in the checkout") from error
    full = trained_in_full(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(config, _targets(model, config, full)), model)
    for name in full:
        model.get_submodule(name).requires_grad_(True)


def trained_in_full(model: Any) -> list[str]:
    """Return the names of a classifier's modules behind the last hidden state; none of a bare transformer."""
    inner = getattr(model, "base_model_prefix", "")
    if not isinstance(getattr(model, inner, None), nn.Module):
        return []
    heads = [
        name for name, module in model.named_children() if name != inner and any(True for _ in module.parameters())
    ]
    return [*heads, *([f"{inner}.{POOLER}"] if getattr(getattr(model, inner), POOLER, None) is not None else [])]


def _targets(model: Any, config: LoraConfig, full: list[str]) -> list[str]:
    """Return the names of the products that get an adapter."""
    left_out = [*full, POOLER]
    products = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    products = [name for name in products if not any(f"{name}.".startswith(f"{one}.") for one in left_out)]
    if config.target_modules is None:
        return products
    found = []
    for target in config.target_modules:
        matching = [name for name in products if f".{name}".endswith(f".{target}")]
        if not matching:
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in products}))
            raise InputError(f"lora.target_modules: the model has no product {target!r}; there are {ends}")
        found += [name for name in matching if name not in found]
    return found


def _peft_config(config: LoraConfig, targets: list[str], **more: Any) -> Any:
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it, so it need not be whole
        lora_dropout=config.dropout,
        target_modules=targets,
        **more,
    )


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def plain(module: Any) -> Any:
    """Return the product below an adapter, or ``module`` itself where it has none."""
    return module.base_layer if hasattr(module, "lora_A") else module


def drops(module: Any) -> bool:
    """Tell whether ``module`` is an adapter with dropout, so that it is no one product."""
    return hasattr(module, "lora_A") and not isinstance(module.lora_dropout[ADAPTER], nn.Identity)


def merged_weight(module: Any) -> Tensor:
    """Return the weight that ``module`` multiplies by, its adapter's part added, float32 with its graph."""
    if not hasattr(module, "lora_A"):
        weight: Tensor = module.weight
        return weight
    addition = module.lora_B[ADAPTER].weight @ module.lora_A[ADAPTER].weight
    return torch.add(module.base_layer.weight, addition, alpha=module.scaling[ADAPTER])


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that ``model`` would have without adapters, with their parts added to its weights."""
    state = model.state_dict()
    for name, layer in _layers(model):
        for kind in ("weight", "bias"):
            if f"{name}.base_layer.{kind}" in state:
                state[f"{name}.{kind}"] = state.pop(f"{name}.base_layer.{kind}")
        state[f"{name}.weight"] = merged_weight(layer)
    return {name: tensor for name, tensor in state.items() if ".lora_" not in name}


def _learned(model: Any) -> dict[str, Tensor]:
    """Return what is trained of an adapted model by peft's names, sharing memory with the model."""
    full = tuple(f"{name}." for name in trained_in_full(model))
    state = model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if ".lora_" in name or name.startswith(full)}
    return {PREFIX + name.replace(f".{ADAPTER}.", "."): tensor for name, tensor in kept.items()}


def save_adapter(model: Any, config: LoraConfig, name: str, folder: Path) -> None:
    """Write what is trained of an adapted model to ``folder``, in peft's layout; ``name`` is the model beneath it.

    ``PeftModel.from_pretrained(AutoModel.from_pretrained(name), folder)`` computes the same.
    """
    folder.mkdir(parents=True)
    targets = [layer for layer, _ in _layers(model)]
    whole = [one.rpartition(".")[2] for one in trained_in_full(model)] or None
    written = _peft_config(config, targets, base_model_name_or_path=name, modules_to_save=whole)
    written.save_pretrained(str(folder))
    save_file({key: one.contiguous() for key, one in _learned(model).items()}, folder / "adapter_model.safetensors")


def load_adapter(model: Any, folder: Path) -> None:
    """Give an adapted model the values that ``save_adapter`` wrote.

    Raises ValueError, OSError or SafetensorError if the files are not of such an adapter.
    """
    saved, own = load_file(folder / "adapter_model.safetensors"), _learned(model)
    for name in sorted({*saved} ^ {*own}):
        raise ValueError(f"{folder}: the adapter differs from the run's in {name}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
