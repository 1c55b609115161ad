"""The engine of processors on which OpenVINO is fastest: the model's graph, compiled once, one request a thread.

Does not know texts, nor which engine is chosen when.
"""

import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retriever.engines.traced_graph import traced_graph
from retriever.errors import InputError
from retriever.protocols import FloatArray
from retriever.tower import Tower

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What OpenVINO must compute in where the graph does not say otherwise; left alone it takes bf16 silently."""

PaddedBatch = tuple[NDArray[Any], NDArray[Any]]


class OpenVinoEngine:
    """Implements retriever.engines.choice.Engine on the CPU; calls may come from several threads at once."""

    least_tokens = 128

    def __init__(self, tower: Tower, precision: str, streams: int, calibration: Sequence[PaddedBatch] = ()) -> None:
        """``precision`` is a key of HINTS; "int8" quantises by what passes through the layers in ``calibration``.

        Raises InputError if OpenVINO is not installed, if the model is of a family that it is not given here, or if
        int8 lacks its calibration.
        """
        openvino = _import("openvino")
        graph, example = traced_graph(tower, 'engine = "openvino"', 'choose "torch"')
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it traces by a way that torch deprecates
            model = openvino.convert_model(graph, example_input=example)
        if precision == "int8":
            model = _aside(_quantized, model, calibration)
        self._core, self._model, self._hint, self._threads = openvino.Core(), model, HINTS[precision], streams
        self._streaming = self._compiled(streams)
        self._requests = threading.local()

    @cached_property
    def _alone(self) -> Any:
        """The same graph once more, for batches that have every thread to themselves; most runs never need it."""
        return self._compiled(1) if self._threads > 1 else self._streaming

    def _compiled(self, streams: int) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(self._threads),
        }
        return _aside(self._core.compile_model, self._model, "CPU", settings)

    def vectors(self, ids: NDArray[Any], mask: NDArray[Any], alone: bool = False) -> FloatArray:
        """Return float32 [n, dim] for token ids and mask, int64 [n, length], padded on the right.

        ``alone``: no other batch is computed meanwhile; the first such call compiles the graph once more.
        """
        name = "alone" if alone else "streaming"
        if not hasattr(self._requests, name):
            compiled = self._alone if alone else self._streaming
            setattr(self._requests, name, compiled.create_infer_request())
        found = getattr(self._requests, name).infer([ids, mask], share_inputs=True)[0]
        return np.array(found, np.float32)


def _aside(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what ``work`` gives on a thread of its own.

    The thread that compiles gets a signal stack from OpenVINO, which is freed with the engine, on any thread and in any
    order: the next signal to a thread that still has it would end the process.
    """
    with ThreadPoolExecutor(1, "openvino") as thread:
        return thread.submit(work, *arguments).result()


def _quantized(model: Any, calibration: Sequence[PaddedBatch]) -> Any:
    """Return ``model`` with static int8 weights and activations (post-training quantisation of NNCF)."""
    if not calibration:
        raise InputError('[index] precision = "int8" needs passages to calibrate on; index a corpus with it')
    nncf = _import("nncf")
    nncf.set_log_level(40)  # its bars and notes would cut through our own progress
    return nncf.quantize(
        model,
        nncf.Dataset(list(calibration), list),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
    )


def _import(name: str) -> Any:
    # Its converter counts each use to a server, from a process that it forks; without this module it counts nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: cannot be imported
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name} is not installed: pip install -e '.[openvino]' in the checkout, or [index] engine = \"torch\""
        ) from error
