import ctypes
import gc
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from retriever.device import has_fast_bf16
from retriever.engines.openvino_engine import OpenVinoEngine, PaddedBatch
from retriever.engines.torch_engine import TorchEngine
from retriever.errors import InputError
from retriever.pooling import POOLINGS
from retriever.tower import Tower, load_tower
from tests.retriever.engines.architectures import FAST, GENERIC, ragged, random_transformer
from tests.tiny_model import write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Tower:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return load_tower(str(folder), pooling=None, normalized=None, dropout=None)


def batch(*lengths: int) -> PaddedBatch:
    ids, mask = ragged(0, lengths)
    return ids.numpy() % 20, mask.numpy()


def of_family(tower: Tower, name: str, pooling: str = "mean") -> Tower:
    return Tower(random_transformer(FAST[name]()), tower.tokenizer, pooling, True)


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "modernbert"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_torch_s(tower: Tower, name: str, pooling: str) -> None:
    other = of_family(tower, name, pooling)
    ours, theirs = OpenVinoEngine(other, "fp32", streams=1), TorchEngine(other, "fp32", CPU)
    for lengths in ((4, 2), (30, 7, 12), (9,)):  # shapes unlike the traced one's
        ids, mask = (tensor.numpy() for tensor in ragged(other.transformer.config.pad_token_id, lengths))
        np.testing.assert_allclose(ours.vectors(ids, mask), theirs.vectors(ids, mask), atol=2e-6)


def test_several_threads_share_it(tower: Tower) -> None:
    engine = OpenVinoEngine(tower, "fp32", streams=2)
    batches = [batch(n, 3) for n in range(4, 24)]
    alone = [engine.vectors(*one) for one in batches]
    with ThreadPoolExecutor(2) as pool:
        together: Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = pool.map(
            lambda one: engine.vectors(*one), batches
        )
        for expected, found in zip(alone, together, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_int8_stays_near(tower: Tower) -> None:
    calibration = [batch(12, 9, 5), batch(20, 18), batch(7, 7, 7)]
    coarse = OpenVinoEngine(tower, "int8", streams=1, calibration=calibration)
    vectors, exact = coarse.vectors(*batch(11, 6)), TorchEngine(tower, "fp32", CPU).vectors(*batch(11, 6))
    assert float((vectors * exact).sum(1).min()) > 0.98
    assert not np.allclose(vectors, exact, atol=1e-5), "it was quantised"


@pytest.mark.skipif(not has_fast_bf16(CPU), reason="this processor has no bf16")
def test_fp32_is_not_silently_bf16(tower: Tower) -> None:
    exact, half = (OpenVinoEngine(tower, precision, streams=1) for precision in ("fp32", "bf16"))
    assert not np.array_equal(exact.vectors(*batch(9)), half.vectors(*batch(9)))


def test_int8_needs_passages_to_calibrate_on(tower: Tower) -> None:
    with pytest.raises(InputError, match="needs passages to calibrate on"):
        OpenVinoEngine(tower, "int8", streams=1)


def test_a_model_of_another_family_is_refused(tower: Tower) -> None:
    other = Tower(random_transformer(GENERIC["deberta-v2"]()), tower.tokenizer, "mean", True)
    with pytest.raises(InputError, match="cannot take a model of type 'deberta-v2'"):
        OpenVinoEngine(other, "fp32", streams=1)


def test_the_error_says_what_to_install(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"openvino is not installed: pip install -e '\.\[openvino\]'"):
        OpenVinoEngine(tower, "fp32", streams=1)


class SignalStack(ctypes.Structure):
    """C's ``stack_t``."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def signal_stack() -> int:
    """Return where this thread's alternate signal stack lies, 0 if it has none."""
    found = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return int(found.start or 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the layout of stack_t is Linux's")
def test_signals_never_arrive_on_a_stack_that_is_gone(tower: Tower) -> None:
    """An engine outlives the one after it or not; the kernel ends a process whose signal stack was freed."""
    own = {signal_stack(), 0}
    engines = [OpenVinoEngine(tower, "fp32", streams=2) for _ in range(2)]
    engines[0].vectors(*batch(4), alone=True)
    assert signal_stack() in own
    for _ in range(2):
        del engines[0]
        gc.collect()
        assert signal_stack() in own


def test_nothing_is_told_to_openvino_s_makers() -> None:
    script = (
        "from retriever.engines.openvino_engine import _import; _import('openvino');"
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "openvino.tools.ovc.telemetry_stub", told.stderr
