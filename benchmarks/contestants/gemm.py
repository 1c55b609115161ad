"""The machine's own contestant: the fastest matrix product of torch, through its default library and through oneDNN.

Does not know models; the shapes are those of a small and a base-sized encoder's linear layers.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import compete

SHAPES = [(2048, 384, 1536), (2048, 1536, 384), (2048, 768, 3072), (1024, 1024, 1024)]
LARGE_SHAPES = [(8192, 8192, 8192), (65536, 4096, 1024)]
"""What keeps a GPU busy."""
SECONDS = 0.4
"""Time for one shape and library; the best of the repetitions counts."""


def peak(dtype: str, device: str) -> dict[str, Any]:
    """Return the most GFLOP/s that any shape and library reached in ``dtype`` on ``device``, names of torch."""
    best = 0.0
    with torch.inference_mode():
        for rows, inner, columns in SHAPES if device == "cpu" else LARGE_SHAPES:
            inputs = torch.randn(rows, inner, dtype=getattr(torch, dtype), device=device)
            weight = torch.randn(columns, inner, dtype=getattr(torch, dtype), device=device)
            products = [_default(inputs, weight), *([_onednn(inputs, weight)] if device == "cpu" else [])]
            for product in products:
                best = max(best, 2 * rows * inner * columns / _quickest(product) / 1e9)
    return {"gflops": best}


def _default(inputs: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    def product() -> Tensor:
        found = torch.nn.functional.linear(inputs, weight)
        if found.is_cuda:
            torch.cuda.synchronize()
        return found

    return product


def _onednn(inputs: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(inputs))
    return lambda: torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], "")


def _quickest(product: Callable[[], Tensor]) -> float:
    product()
    quickest, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        product()
        quickest = min(quickest, time.perf_counter() - began)
    return quickest


if __name__ == "__main__":
    compete({"load": dict, "peak": peak}, ["torch"])
