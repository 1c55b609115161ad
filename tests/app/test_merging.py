"""Merging by the figures on a split: the table against the merges one by one, and which of them is kept."""

from pathlib import Path

import pytest

from app.found_model import find_model
from app.generation_diff import measured_diff
from app.merging import Trial, merge_by_trial, merge_models
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from tests.app.command_line import silent
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

ALPHAS = (0.0, 0.5, 1.0)


def test_the_best_share_is_kept_and_each_is_told_with_its_flips(tiny: Path, tmp_path: Path) -> None:
    places = [write_tiny_model(tmp_path / name, seed) for seed, name in enumerate(("old", "new"), 1)]
    models = [find_model(tmp_path, str(place)) for place in places]
    trial = Trial(ALPHAS, tiny / "data", "train", "RR@10")
    best, tried = merge_by_trial(models, trial, tmp_path / "out", silent)
    assert [one.alpha for one in tried] == [*ALPHAS]
    for one in tried:
        merge_models(models, (one.alpha, 1 - one.alpha), tmp_path / f"by-hand-{one.alpha}")
        made = find_model(tmp_path, str(tmp_path / f"by-hand-{one.alpha}"))
        compared = measured_diff(made, models[0], tiny / "data", "train", "RR@10", silent)
        assert one.flips == compared["flips"] and one.flip_rate == pytest.approx(compared["flip_rate"])
        assert one.value - tried[-1].value == pytest.approx(compared["mean"], abs=1e-6)
    assert tried[-1].flips == 0, "the old model flips nothing against itself"
    assert next(one.value for one in tried if one.alpha == best) == max(one.value for one in tried)
    kept, by_hand = (create_encoder(ModelConfig(str(tmp_path / name))) for name in ("out", f"by-hand-{best}"))
    assert kept.weights_sha256() == by_hand.weights_sha256()


def test_rankers_have_no_figures_to_choose_by(tiny: Path, tmp_path: Path) -> None:
    models = [find_model(tmp_path, str(write_tiny_ranker(tmp_path / "ranker")))] * 2
    with pytest.raises(InputError, match=r"is a ranker, which has no figures of its own here; give --alpha"):
        merge_by_trial(models, Trial(ALPHAS, tiny / "data", "dev", "RR@10"), tmp_path / "out", silent)
    merge_models(models, (0.5, 0.5), tmp_path / "out")
    with pytest.raises(InputError, match="out: exists already"):
        merge_models(models, (0.5, 0.5), tmp_path / "out")
