"""Which device to compute on, and in which number format it is fastest.

Does not know models.
"""

from typing import Literal

import torch

from retriever.errors import InputError

Precision = Literal["auto", "fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(device: str) -> torch.device:
    """Return the device that ``device`` names; "auto" is the first accelerator, else the CPU.

    Raises InputError for "cuda" where torch sees no such GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        build = (
            "has none built in" if torch.version.cuda is None else "sees none; nvidia-smi tells whether its driver does"
        )
        raise InputError(f'device = "cuda": torch {torch.__version__} {build}. "auto" takes what there is')
    if device != "auto":
        return torch.device(device)
    if not torch.accelerator.is_available():  # a CUDA build names its accelerator where there is none
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``tensor`` on ``device``; from the CPU to a GPU through pinned memory, so that the caller goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether ``device`` multiplies bfloat16 matrices in hardware; without that it is ten times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    x86 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    arm = not torch.cpu._is_avx2_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(x86 or arm)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the key of DTYPES that ``precision`` means on ``device``: "auto" is bf16 where that is in hardware.

    Raises InputError for a word that is neither.
    """
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if precision not in DTYPES:
        raise InputError(f"precision {precision!r}: choose one of auto, {', '.join(DTYPES)}")
    return precision
