"""Which engine encodes, in which number format, and why: fixed rules, so that the same machine always chooses alike.

Does not know texts, nor what the vectors are for.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from retriever.device import has_fast_bf16
from retriever.engines.onnx_engine import ASKED, INSTEAD, OnnxEngine
from retriever.engines.openvino_engine import HINTS, OpenVinoEngine, PaddedBatch
from retriever.engines.torch_engine import TorchEngine
from retriever.errors import InputError
from retriever.protocols import FloatArray
from retriever.tower import Tower

PRECISIONS = {"torch": ("fp32", "bf16"), "openvino": tuple(HINTS)}


class Engine(Protocol):
    """Turns padded token ids into vectors; several threads may call it at once."""

    least_tokens: int
    """Tokens that are sooner computed in one batch than divided among threads, as docs/encoding-speed.md measured."""

    def vectors(self, ids: NDArray[Any], mask: NDArray[Any], alone: bool = False) -> FloatArray:
        """Return float32 [n, dim] for token ids and mask, int64 [n, length], padded on the right.

        ``alone``: no other batch is computed meanwhile, so this one may take every core.
        """
        ...


@dataclass(frozen=True)
class Choice:
    """An engine and a precision, neither of them "auto", and why they were chosen."""

    engine: str
    precision: str
    reason: str


def choose(engine: str, precision: str, device: torch.device, known: bool) -> Choice:
    """Settle what "auto" means on ``device``; ``known``: the model has a forward pass of our own (``names_of``).

    int8 is never chosen unasked: it is a trade that only a measured loss on the user's own queries can settle. Raises
    InputError for a word that is neither, and for two that do not go together.
    """
    if engine not in ("auto", *PRECISIONS):
        raise InputError(f"[index] engine = {engine!r}: choose one of auto, {', '.join(PRECISIONS)}")
    if precision not in ("auto", *HINTS):
        raise InputError(f"[index] precision = {precision!r}: choose one of auto, {', '.join(HINTS)}")
    fast_bf16 = has_fast_bf16(device)
    if precision == "auto":
        precision, because = ("bf16", "bf16 is in hardware") if fast_bf16 else ("fp32", "bf16 is not in hardware")
    else:
        because = f"{precision} was asked for"
    if engine == "auto":
        engine, why = _engine(precision, device, known, fast_bf16)
        because = f"{because}; {why}"
    if precision not in PRECISIONS[engine]:
        raise InputError(f'[index] precision = {precision!r} needs engine = "openvino", not {engine!r}')
    if engine == "openvino" and device.type != "cpu":
        raise InputError(f'[index] engine = "openvino" computes on the CPU, not on {device}; choose "torch"')
    if engine == "torch" and not known:
        because += "; through transformers, which is slower: this kind of model has no forward pass of hone's own"
    return Choice(engine, precision, because)


def choose_for_queries(precision: str, passages: Choice, device: torch.device, known: bool) -> Choice:
    """Settle what computes queries where ``passages`` computes passages; int8 is for who asks for it by ``precision``.

    Raises InputError for a word that is neither "auto" nor "int8", and for int8 on an accelerator.
    """
    if precision not in ("auto", "int8"):
        raise InputError(f"[index] query_precision = {precision!r}: choose one of auto, int8")
    if precision == "int8":
        if device.type != "cpu":
            raise InputError(f"[index] {ASKED} computes on the CPU, not on {device}; {INSTEAD}")
        return Choice("onnxruntime", "int8", "int8 was asked for queries")
    return passages if passages.precision != "int8" else choose("torch", "auto", device, known)


def _engine(precision: str, device: torch.device, known: bool, fast_bf16: bool) -> tuple[str, str]:
    if precision == "int8":
        return "openvino", "the engine that has int8"
    if device.type != "cpu":
        return "torch", f"the engine of {device.type}"
    if precision == "fp32":
        return "torch", "the engine that is exact"
    if not fast_bf16:
        return "torch", "no engine computes bf16 faster without the hardware"
    if not known:
        return "torch", "the engine of every model"
    if importlib.util.find_spec("openvino") is None:
        return (
            "torch",
            "openvino, whose bf16 is 1.1 to 1.2 × as fast, is not installed "
            "(pip install -e '.[openvino]' in the checkout)",
        )
    return "openvino", "its bf16 is 1.1 to 1.2 × as fast as torch's"


def open_engine(
    tower: Tower, choice: Choice, device: torch.device, streams: int, calibration: Sequence[PaddedBatch] = ()
) -> Engine:
    """Return the engine of ``choice`` over ``tower``, made for ``streams`` threads that call it at once."""
    if choice.engine == "onnxruntime":
        return OnnxEngine(tower)
    if choice.engine == "torch":
        return TorchEngine(tower, choice.precision, device)
    return OpenVinoEngine(tower, choice.precision, streams, calibration)
