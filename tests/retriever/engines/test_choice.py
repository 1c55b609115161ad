import importlib.util

import pytest
import torch

from retriever.engines import choice
from retriever.engines.choice import Choice, choose
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
