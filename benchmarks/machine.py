"""What the figures were measured on: processor, instructions for small floats, load, and the fastest matrix product.

Does not know models, but for the arithmetic that one of the BERT family needs.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.alternation import Entrant, started
from retriever.device import has_fast_bf16

TELLING_FLAGS = "avx2 avx512f avx512_vnni avx512_bf16 avx_vnni amx_bf16 amx_int8".split()


@dataclass(frozen=True)
class Machine:
    """``fp32`` and ``bf16`` are GFLOP/s of the fastest matrix product that was seen; bf16 None where it is emulated."""

    processor: str
    cores: int
    flags: tuple[str, ...]
    load: float
    fp32: float
    bf16: float | None

    def as_facts(self) -> dict[str, Any]:
        """Return the fields under their names."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """All of it on one line."""
        bf16 = f"bf16 {self.bf16:.0f}" if self.bf16 else "bf16 only emulated"
        return (
            f"{self.cores} × {self.processor} ({' '.join(self.flags)}), load {self.load:.1f}; "
            f"matrix products: fp32 {self.fp32:.0f}, {bf16} GFLOP/s"
        )


def has_bf16(device: str = "cpu") -> bool:
    """Tell whether ``device`` multiplies bfloat16 itself; emulated, it is slower than float32."""
    return has_fast_bf16(torch.device(device))


def present_flags() -> tuple[str, ...]:
    """Return those of TELLING_FLAGS that the processor has."""
    flags = _cpuinfo().get("flags", "").split()
    return tuple(flag for flag in TELLING_FLAGS if flag in flags)


def look(device: str = "cpu") -> Machine:
    """Describe this machine; measures the matrix products of ``device`` for a few seconds."""
    load = os.getloadavg()[0]
    with started([Entrant("gemm", "benchmarks.contestants.gemm")]) as (gemm,):
        fp32 = gemm.ask("peak", dtype="float32", device=device).facts["gflops"]
        bf16 = gemm.ask("peak", dtype="bfloat16", device=device).facts["gflops"] if has_bf16(device) else None
    cores = len(os.sched_getaffinity(0))
    processor = _cpuinfo().get("model name", platform.machine())
    if device == "cuda":
        processor = f"{processor}, {torch.cuda.get_device_name()}"
    return Machine(processor, cores, present_flags(), load, fp32, bf16)


def forward_flops(config: Mapping[str, Any], lengths: Sequence[int]) -> float:
    """Return the floating-point operations of one forward pass of a BERT-like encoder over texts of ``lengths`` tokens.

    ``config`` is its config.json. Counted are the linear layers and both products of attention, two an addition with
    its multiplication; no padding.
    """
    width, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    a_token = 8 * width**2 + 4 * width * inner
    return float(layers * sum(length * a_token + 4 * width * length**2 for length in lengths))


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.partition(":") for line in reversed(lines)]
    return {key.strip(): value.strip() for key, _, value in pairs}
