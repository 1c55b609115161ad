import pytest
import torch

from retriever.device import has_fast_bf16, pick_device, resolve_precision
from retriever.errors import InputError
from retriever.inference import TOKEN_BUDGETS

CPU = torch.device("cpu")


def test_a_named_device_is_taken() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in TOKEN_BUDGETS


def test_a_build_for_a_gpu_computes_on_the_cpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pick_device("auto") == CPU


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r'device = "cuda": torch .*"auto" takes what there is'):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cuda").type == "cuda"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_named_precision_is_taken(precision: str) -> None:
    assert resolve_precision(precision, CPU) == precision


@pytest.mark.parametrize(
    ("bf16", "amx", "precision"), [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")]
)
def test_auto_is_bf16_where_the_hardware_has_it(
    bf16: bool, amx: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", CPU) == precision


def test_auto_is_fp32_on_a_device_that_nobody_vouches_for() -> None:
    assert not has_fast_bf16(torch.device("mps"))


def test_an_unknown_precision_names_those_there_are() -> None:
    with pytest.raises(InputError, match="'fp8': choose one of auto, fp32, bf16"):
        resolve_precision("fp8", CPU)
