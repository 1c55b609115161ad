import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch

from retriever.engines import onnx_engine
from retriever.engines.onnx_engine import OnnxEngine
from retriever.engines.openvino_engine import PaddedBatch
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


def batch(pad_id: int, *lengths: int) -> PaddedBatch:
    ids, mask = ragged(pad_id, lengths)
    return ids.numpy(), mask.numpy()


@pytest.mark.parametrize("name", [*FAST])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_family_and_pooling_stays_near_torch_s_vectors(tower: Tower, name: str, pooling: str) -> None:
    other = Tower(random_transformer(FAST[name]()), tower.tokenizer, pooling, True)
    ours, theirs = OnnxEngine(other), TorchEngine(other, "fp32", CPU)
    for lengths in ((4, 2), (30, 7, 12), (9,), (1,)):  # shapes unlike the traced one's
        ids, mask = batch(other.transformer.config.pad_token_id, *lengths)
        found, exact = ours.vectors(ids, mask), theirs.vectors(ids, mask)
        assert found.dtype == np.float32 and found.shape == exact.shape
        assert float((found * exact).sum(1).min()) > 0.99
        assert not np.allclose(found, exact, atol=1e-6)


def test_a_text_s_vector_does_not_hang_on_its_neighbours(tower: Tower) -> None:
    """Search asks one query at a time, evaluation hundreds: both must compare the same vectors."""
    engine = OnnxEngine(tower)
    ids, mask = batch(0, 12, 3, 7, 1)
    together = engine.vectors(ids % 20, mask)
    for row, length in enumerate((12, 3, 7, 1)):
        alone = engine.vectors(ids[row : row + 1, :length] % 20, mask[row : row + 1, :length])
        np.testing.assert_array_equal(together[row], alone[0])


def test_every_product_with_weights_is_computed_in_int8(tower: Tower) -> None:
    """One that stayed in float32 would be as slow as before, and nothing else would tell."""
    model = onnx.load_from_string(onnx_engine._quantized(tower))
    kinds = Counter(node.op_type for node in model.graph.node)
    layers = tower.transformer.config.num_hidden_layers
    assert (kinds["MatMulInteger"], kinds["MatMul"]) == (4 * layers, 2 * layers), "the two of attention have no weights"


def test_several_threads_share_it(tower: Tower) -> None:
    engine = OnnxEngine(tower)
    batches = [batch(0, n, 3) for n in range(4, 24)]
    batches = [(ids % 20, mask) for ids, mask in batches]
    alone = [engine.vectors(*one) for one in batches]
    with ThreadPoolExecutor(2) as pool:
        together: Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = pool.map(
            lambda one: engine.vectors(*one), batches
        )
        for expected, found in zip(alone, together, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_model_of_another_family_is_refused(tower: Tower) -> None:
    other = Tower(random_transformer(GENERIC["deberta-v2"]()), tower.tokenizer, "mean", True)
    with pytest.raises(InputError, match=r'query_precision = "int8" cannot take a model of type \'deberta-v2\''):
        OnnxEngine(other)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_the_error_says_what_to_install(tower: Tower, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=rf"{missing} is not installed; pip install -e '\.\[onnx\]'"):
        OnnxEngine(tower)


def test_nothing_is_imported_until_it_is_asked_for() -> None:
    script = "import sys, retriever.engines.choice; print({'onnx', 'onnxruntime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("avx2", "vnni", "expected"), [(True, True, 8), (True, False, 7), (False, False, 8)])
def test_weights_have_a_bit_less_where_sums_would_overflow(
    monkeypatch: pytest.MonkeyPatch, avx2: bool, vnni: bool, expected: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: avx2)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert onnx_engine.bits() == expected
