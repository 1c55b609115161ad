"""The engine of single queries: ONNX Runtime over int8 weights, activations quantised as they come, no calibration.

Does not know texts, nor which engine is chosen when.
"""

import importlib
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retriever.engines.traced_graph import traced_graph
from retriever.errors import InputError
from retriever.protocols import FloatArray
from retriever.tower import Tower

ASKED = 'query_precision = "int8"'
INSTEAD = "take it out, or `hone index --query-precision auto` where a generation has it"
EXPORTING = threading.Lock()
"""torch's exporter allows one export at a time in a process."""
INPUTS = ("input_ids", "attention_mask")


def bits() -> int:
    """Return how many bits a weight has here, which the query fingerprint tells.

    Sums of 8-bit products overflow, silently, on x86 without VNNI.
    """
    return 7 if torch.cpu._is_avx2_supported() and not torch.cpu._is_vnni_supported() else 8


class OnnxEngine:
    """Implements retriever.engines.choice.Engine on the CPU; each call computes on its caller's thread.

    A batch's texts are computed one by one: the activations of a layer share one scale, by which a text's vector would
    hang on its neighbours.
    """

    least_tokens = 16

    def __init__(self, tower: Tower) -> None:
        """Quantise ``tower``: weights by output channel, activations as they come.

        Raises InputError if ONNX Runtime is not installed, or for a model of a family that it is not given here.
        """
        runtime = _import("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(_quantized(tower), options, ["CPUExecutionProvider"])

    def vectors(self, ids: NDArray[Any], mask: NDArray[Any], alone: bool = False) -> FloatArray:
        """Return float32 [n, dim] for token ids and mask, int64 [n, length], padded on the right.

        ``alone`` changes nothing: a query's products are too small to be divided.
        """
        ends = mask.sum(1)
        texts = [(ids[row : row + 1, :end], mask[row : row + 1, :end]) for row, end in enumerate(ends)]
        found: list[FloatArray] = [self._session.run(None, dict(zip(INPUTS, one, strict=True)))[0] for one in texts]
        return np.concatenate(found)


def _quantized(tower: Tower) -> bytes:
    """Return the model of ``tower`` as ONNX, its products' weights in int8."""
    onnx, quantization = _import("onnx"), _import("onnxruntime.quantization")
    with tempfile.TemporaryDirectory(prefix="hone-onnx-") as folder:
        exact, coarse = Path(folder) / "exact.onnx", Path(folder) / "coarse.onnx"
        _export(tower, exact)
        onnx.save(_weights_named(onnx.load(exact)), exact)  # by its path it is quantised without another copy
        quantization.quantize_dynamic(
            exact,
            coarse,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=bits() == 7,
            weight_type=quantization.QuantType.QInt8,
        )
        return coarse.read_bytes()


def _export(tower: Tower, file: Path) -> None:
    graph, example = traced_graph(tower, ASKED, INSTEAD)
    free = {0: "texts", 1: "length"}
    with EXPORTING, torch.no_grad(), warnings.catch_warnings():
        # The exporter that takes this one's place refuses branches on values, and pooling has one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            example,
            str(file),
            input_names=[*INPUTS],
            output_names=["vectors"],
            dynamic_axes=dict.fromkeys(INPUTS, free),
            dynamo=False,
        )


def _weights_named(model: Any) -> Any:
    """Return ``model`` with its constants as initializers: weights that are constants would stay in float32."""
    constants = [node for node in model.graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # else it logs that it was not
    return model


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"[index] {ASKED}: {error.name} is not installed; pip install -e '.[onnx]' in the checkout, or {INSTEAD}"
        ) from error
