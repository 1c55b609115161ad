"""The keys of [loss]: what is refused by name, and that each loss is changed by the keys that it reads."""

import math
from typing import Any

import pytest
import torch

from retriever.errors import InputError
from retriever.losses import contrastive
from retriever.losses.contrastive import READS, LossConfig, contrastive_loss
from retriever.losses.terms import Candidates

NAMES = ("infonce", "decoupled", "gce", "mw", "lambdarank", "ccl", "multi_similarity")

BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("temperature must", {"temperature": 0.0}),
    ("temperature must", {"temperature": -0.1}),
    ("temperature_max must", {"temperature_schedule": "cosine", "temperature_max": 0.05}),
    ("temperature_period must", {"temperature_schedule": "cosine", "temperature_period": 1}),
    ("temperature_max and temperature_period", {"temperature_max": 0.3}),
    ("temperature_max and temperature_period", {"temperature_period": 100, "temperature_schedule": "learned"}),
    ("temperature_rate must", {"temperature_schedule": "learned", "temperature_rate": 0.0}),
    ("temperature_rate belongs", {"temperature_rate": 10.0}),
    *(("debias must", {"debias": value}) for value in (0.0, 1.0, -0.1)),
    ("hardness must", {"hardness": 0.0}),
    ("pseudo_positives must", {"pseudo_positives": 0.0}),
    ("guide_decay must", {"guide": "start", "guide_decay": 0.0}),
    *(("gce_q must", {"name": "gce", "gce_q": value}) for value in (0.0, 1.1)),
    ("ccl_weight, ms_alpha and ms_beta", {"name": "ccl", "ccl_weight": 0.0}),
    *(("ms_alpha and ms_beta", {"name": "multi_similarity", key: 0.0}) for key in ("ms_alpha", "ms_beta")),
    *(("need a guide", {key: 0.5}) for key in ("guide_max", "guide_decay")),
    ("guide does nothing", {"guide": "start"}),
    ("must start above", {"temperature": 0.01, "temperature_schedule": "learned"}),
    *(("margin must", {"margin": value}) for value in (-0.1, math.nan)),
    ("pseudo_positives and hardness", {"pseudo_positives": 0.1, "hardness": 1.0}),
    ("symmetric needs in_batch", {"symmetric": True, "in_batch": False}),
    ("pseudo_positives and debias", {"pseudo_positives": 0.1, "debias": 0.1}),
    ("in_batch = false", {"name": "mw", "in_batch": False}),
]
ANOTHER: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.1},
    "temperature_schedule": {"temperature_schedule": "learned"},
    "symmetric": {"symmetric": True},
    "margin": {"margin": 0.1},
    "debias": {"debias": 0.1},
    "hardness": {"hardness": 1.0},
    "pseudo_positives": {"pseudo_positives": 0.1},
    "guide_max": {"guide": "start", "guide_max": 0.2},
    "guide_decay": {"guide": "start", "guide_decay": 0.5},
    "gce_q": {"gce_q": 0.5},
    "ccl_margin": {"ccl_margin": 0.2},
    "ccl_weight": {"ccl_weight": 2.0},
    "ms_alpha": {"ms_alpha": 1.0},
    "ms_beta": {"ms_beta": 10.0},
    "ms_threshold": {"ms_threshold": 1.0},
    "ms_epsilon": {"ms_epsilon": 1.0},
}


@pytest.mark.parametrize(("words", "keys"), BROKEN, ids=str)
def test_a_key_out_of_range_is_named(words: str, keys: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"\[loss\] .*{words}"):
        LossConfig(**keys)


def test_every_rule_is_tried() -> None:
    found = set()
    for _, keys in BROKEN:
        with pytest.raises(InputError) as raised:
            LossConfig(**keys)
        found.add(str(raised.value).removeprefix("[loss] "))
    assert found == {*contrastive._rules(LossConfig())}


@pytest.mark.parametrize("key", ANOTHER)
@pytest.mark.parametrize("name", NAMES)
def test_a_key_changes_the_loss_or_is_refused(name: Any, key: str) -> None:
    if key not in READS[name]:
        with pytest.raises(InputError, match=rf"\[loss\] {key}: name = \"{name}\" does not read it"):
            LossConfig(name, **ANOTHER[key])
        return
    generator = torch.Generator().manual_seed(1)
    scores, guide = torch.rand(2, 6, 12, dtype=torch.float64, generator=generator)
    scores[0, 0] = 1.5  # one positive is far ahead
    everything = torch.ones(6, 12, dtype=torch.bool)
    candidates, other = Candidates(torch.arange(6), everything, everything), LossConfig(name, **ANOTHER[key])
    usual = contrastive_loss(scores, candidates, LossConfig(name))
    changed = contrastive_loss(scores, candidates, other, None, guide if other.guide else None)
    # A schedule makes the temperature that the loss is given.
    assert torch.equal(changed, usual) if key == "temperature_schedule" else (changed - usual).abs() > 1e-6


@pytest.mark.parametrize(
    "keys",
    [
        {"in_batch": False},
        {"margin": 0.1, "symmetric": True, "debias": 0.1, "hardness": 1.0},
        {"guide": "start", "guide_max": 0.9, "guide_decay": 0.1, "pseudo_positives": 0.1, "symmetric": True},
        {"name": "mw", "hardness": 1.0, "temperature_schedule": "cosine", "temperature_max": 0.3},
        {"name": "gce", "gce_q": 1.0, "temperature_schedule": "cosine", "temperature_period": 2},
        {"name": "ccl", "guide": "start", "guide_decay": 0.1, "ccl_margin": 0.0, "in_batch": False},
        {"name": "multi_similarity", "guide": "start", "guide_max": 0.9, "ms_epsilon": 0.0},
    ],
    ids=str,
)
def test_keys_that_can_be_joined_are_taken(keys: dict[str, Any]) -> None:
    config = LossConfig(**keys)
    assert {key: getattr(config, key) for key in keys} == keys
