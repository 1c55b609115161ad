import importlib.util

import pytest
import torch

from retriever.engines import choice
from retriever.engines.choice import Choice, choose, choose_for_queries
from retriever.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A processor with or without bf16, and openvino installed or not."""
    bf16, openvino = request.param
    monkeypatch.setattr(choice, "has_fast_bf16", lambda device: bf16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if openvino else None)


def chosen(engine: str, precision: str, known: bool = True) -> tuple[str, str]:
    found = choose(engine, precision, CPU, known)
    assert found.reason
    return found.engine, found.precision


@pytest.mark.parametrize("hardware", [(False, True), (False, False)], indirect=True)
@pytest.mark.usefixtures("hardware")
def test_without_bf16_auto_is_exact() -> None:
    assert chosen("auto", "auto") == ("torch", "fp32")
    assert chosen("auto", "bf16") == ("torch", "bf16"), "what is asked for is done"
    assert chosen("auto", "int8") == ("openvino", "int8")


@pytest.mark.parametrize("hardware", [(True, True)], indirect=True)
@pytest.mark.usefixtures("hardware")
def test_with_bf16_auto_is_the_fastest_engine() -> None:
    assert chosen("auto", "auto") == ("openvino", "bf16")
    assert chosen("torch", "auto") == ("torch", "bf16")
    assert chosen("auto", "auto", known=False) == ("torch", "bf16"), "a model that openvino is not given"


@pytest.mark.parametrize("hardware", [(True, False)], indirect=True)
@pytest.mark.usefixtures("hardware")
def test_the_reason_says_what_would_be_faster() -> None:
    found = choose("auto", "auto", CPU, known=True)
    assert found == Choice("torch", "bf16", found.reason)
    assert "pip install -e '.[openvino]'" in found.reason


def test_an_accelerator_computes_with_torch() -> None:
    assert choose("auto", "fp32", torch.device("mps"), known=True).engine == "torch"


@pytest.mark.parametrize(
    ("engine", "precision", "message"),
    [
        ("tpu", "auto", "'tpu': choose one of auto, torch, openvino"),
        ("auto", "fp8", "'fp8': choose one of auto, fp32, bf16, int8"),
        ("torch", "int8", "'int8' needs engine = \"openvino\""),
    ],
)
def test_bad_words_are_named(engine: str, precision: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(engine, precision, CPU, known=True)


def test_openvino_is_refused_on_an_accelerator() -> None:
    with pytest.raises(InputError, match="computes on the CPU, not on cuda"):
        choose("openvino", "fp32", torch.device("cuda"), known=True)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_model_that_runs_through_transformers_is_told_of(engine: str) -> None:
    assert "through transformers" in choose(engine, "fp32", CPU, known=False).reason
    assert "through transformers" not in choose(engine, "fp32", CPU, known=True).reason


def test_queries_are_computed_as_passages_but_in_int8_only_where_it_is_asked_for() -> None:
    passages = Choice("openvino", "bf16", "")
    assert choose_for_queries("auto", passages, CPU, known=True) is passages
    coarse = choose_for_queries("auto", Choice("openvino", "int8", ""), CPU, known=True)
    assert coarse.engine == "torch" and coarse.precision != "int8"
    assert choose_for_queries("int8", passages, CPU, known=True).engine == "onnxruntime"


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("fp32", "cpu", "query_precision = 'fp32': choose one of auto, int8"),
        ("int8", "cuda", 'query_precision = "int8" computes on the CPU, not on cuda'),
    ],
)
def test_a_query_precision_that_cannot_be_is_refused(precision: str, device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_for_queries(precision, Choice("torch", "fp32", ""), torch.device(device), known=True)
