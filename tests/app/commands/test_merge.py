import json
from pathlib import Path

import pytest

from retriever.store import Store
from tests.app.command_line import Hone


def test_two_generations_become_a_model_that_is_indexed_with_its_parents_named(
    trained: Path, tiny: Path, hone: Hone
) -> None:
    made = hone("merge", "0", "2", "--alpha", 0.25, "--out", "both", "--store", trained, "--json").json
    assert (made["shares"], made["models"]) == ([0.25, 0.75], ["generations/0", "generations/2"])
    hone("index", tiny / "data", "--model", "both", "--precision", "fp32", "--store", "served")
    checkpoint = Store(Path("served")).checkpoints.at(0)
    assert checkpoint.facts["merged"] == json.loads(Path("both/merged.json").read_text())
    names = [parent["model"] for parent in checkpoint.facts["merged"]["parents"]]
    assert names == ["generations/0", "generations/2"]


def test_several_are_averaged_alike_unless_told_otherwise(trained: Path, hone: Hone) -> None:
    three = ["checkpoints/0", "checkpoints/1", "checkpoints/2"]
    assert hone("merge", *three, "--out", "mean", "--store", trained, "--json").json["shares"] == [1 / 3] * 3
    said = hone("merge", *three, "--weights", "0.5,0.25,0.25", "--out", "own", "--store", trained).out
    assert said.startswith("own: 0.5 × checkpoints/0 + 0.25 × checkpoints/1 + 0.25 × checkpoints/2\n")
    assert "Next: hone index DATA --model own --store served" in said, "no training could go on behind it"


def test_shares_are_tried_on_data(trained: Path, tiny: Path, hone: Hone) -> None:
    options = ["--alphas", "0,0.5,1", "--data", tiny / "data", "--store", trained]
    told = hone("merge", "0", "2", *options, "--out", "a", "--json").json
    best = max(told["tried"], key=lambda line: (line["nDCG@10"], -line["flips"]))
    assert told["shares"] == [best["alpha"], 1 - best["alpha"]] and told["tried"][-1]["flips"] == 0
    lines = hone("merge", "0", "2", *options, "--out", "b").out.splitlines()
    assert lines[2].startswith("alpha 1     nDCG@10 ") and lines[2].endswith("0 flipped (0.0%)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0"], "1 models: --alpha and --alphas take two"),
        (["0", "1", "2", "--alpha", "0.5"], "3 models: --alpha and --alphas take two"),
        (["0", "1", "--alpha", "0.5", "--weights", "1,0"], "exclude each other"),
        (["0", "1", "--alphas", "0,1"], "--alphas and --data go together"),
        (["0", "1", "--weights", "0.5,half"], "--weights 0.5,half: give numbers"),
        (["0", "1", "--measure", "RR@10"], "--split and --measure say by what --alphas chooses"),
        (["0", "1", "--weights", "2,-1"], "a share lies in 0 … 1"),
        (["0", "1", "--weights", "0.5,0.4"], "sum to 1"),
    ],
)
def test_what_cannot_be_merged(trained: Path, hone: Hone, arguments: list[str], said: str) -> None:
    assert said in hone("merge", *arguments, "--out", "out", "--store", trained).complaint
    assert not Path("out").exists()
