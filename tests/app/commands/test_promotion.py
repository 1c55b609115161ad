import json
from pathlib import Path

import pytest

from app.generation_list import generations_table
from retriever.artifacts import SERVED
from retriever.store import Store
from tests.app.command_line import Hone
from tests.stand_ins import write_json_lines, write_tiny_data


def test_a_generation_is_promoted_compared_and_rolled_back(trained: Path, hone: Hone) -> None:
    """Of the steps 0, 3 and 6 the newest is asked for, by force if the gate does not want it."""
    generations = Store(trained).generations
    generations.point(SERVED, 0)
    assert hone("promote", "0", "--store", trained).out.startswith("generation 0 is served already\n")
    line = hone("promote", "2", "--force", "--store", trained, "--json").json
    assert (line["from"], line["to"]) == (0, 2) and line["by"] in ("force", "promote")
    assert {"recall", "rows", "step", "dev", "flips"} == {check["name"] for check in line["checks"]}
    assert generations.pointed(SERVED) == 2
    shown = hone("rollback", "--store", trained).out
    assert shown.startswith("serves generation 0 after generation 2 (rollback)")
    compared = hone("diff", "2", "0", "--store", trained, "--json").json
    assert compared["queries"] == 10 and len(compared["results"]) == compared["gained"] + compared["lost"]
    changes = [line["difference"] for line in compared["results"]]
    assert changes == sorted(changes) and sum(changes) / 10 == pytest.approx(compared["mean"], abs=1e-5)
    assert f"{compared['gained']} gained, {compared['lost']} lost" in hone("diff", "2", "0", "--store", trained).out
    assert compared["flips"] == sum(line["flipped"] for line in compared["results"])


def test_generations_are_listed_with_figure_verdict_and_names(trained: Path, hone: Hone) -> None:
    hone("pin", "generations", "0", "WARMUP", "--store", trained)
    series = Store(trained).generations
    series.point(SERVED, 1)
    listed = hone("generations", "--store", trained, "--json").json["generations"]
    assert [one["number"] for one in listed] == [2, 1, 0]
    assert [one["facts"]["step"] for one in listed] == [6, 3, 0]
    assert "WARMUP" in listed[2]["names"] and "SERVED" in listed[1]["names"] and listed[1]["served"]
    head, *_, oldest = hone("generations", "--store", trained).out.splitlines()
    assert head.split() == ["number", "created", "checkpoint", "step", "passages", "nDCG@10", "verdict", "names"]
    created, dev = listed[2]["created"], listed[2]["facts"]["dev"]["nDCG@10"]
    assert oldest.split() == ["0", created, "0", "0", "60", f"{dev:.4f}", "passed", "BASELINE,", "WARMUP"]
    assert len(hone("generations", "--store", trained, "--limit", 1).out.splitlines()) == 2
    (series.path(1) / "manifest.json").write_text("{")
    left = hone("generations", "--store", trained)
    assert len(left.out.splitlines()) == 3 and "generation 1 left out" in left.err


def test_a_refusal_names_the_checks_that_failed() -> None:
    checks = [{"name": "step", "passed": False}, {"name": "rows", "passed": True}, {"name": "dev", "passed": False}]
    one = {"number": 3, "created": "then", "parents": {}, "names": [], "partial": False, "facts": {}}
    gate = {"served": False, "checks": checks}
    _, refused, partial, unjudged = generations_table(
        [{**one, "gate": gate}, {**one, "partial": True, "gate": gate}, {**one, "gate": None}]
    )
    assert refused.endswith("refused: step, dev") and partial.endswith("partial") and unjudged.endswith("–")


def test_any_two_models_are_compared_where_data_are_given(trained: Path, tiny: Path, hone: Hone) -> None:
    options = ["--data", tiny / "data", "--split", "train", "--measure", "RR@1", "--store", trained]
    compared = hone("diff", "BEST", tiny / "model", *options, "--json").json
    assert (compared["split"], compared["measure"], compared["queries"]) == ("train", "RR@1", 20)
    shown = hone("diff", "BEST", tiny / "model", *options).out
    assert f"{compared['flips']} flipped ({compared['flip_rate']:.1%}): RR@1 was above 0 and is not now" in shown


def test_without_data_only_recorded_figures_compare(trained: Path, tiny: Path, hone: Hone) -> None:
    said = hone("diff", "2", "checkpoints/0", "--store", trained).complaint
    assert said == "checkpoints/0: only generations record figures; --data DATA measures any two models"
    assert "record nDCG@10 of their dev queries alone" in hone("diff", "2", "0", "--split", "train").complaint


def test_a_first_rollback_has_nowhere_to_go(indexed: Path, hone: Hone) -> None:
    said = hone("rollback", "--store", indexed).complaint
    assert "no intact generation was served before" in said


def test_a_verdict_shows_each_slice_that_was_asked_for(tiny: Path, tmp_path: Path, hone: Hone) -> None:
    data = write_tiny_data(tmp_path / "data", passages=160, queries=160)
    lines = [json.loads(line) for line in (data / "queries.jsonl").read_text().splitlines()]
    asked = [{**line, "metadata": {"lang": ("de", "fi")[row % 2]}} for row, line in enumerate(lines)]
    write_json_lines(data / "queries.jsonl", asked)
    index = ["index", data, "--model", tiny / "model", "--precision", "fp32", "--store", "here", "--slice"]
    said = "[index] slices: no dev query has 'lnag' in its metadata; there are: lang"
    assert hone(*index, "lnag").complaint == said and not Store(Path("here")).generations.numbers()
    hone(*index, "lang")
    (check,) = [one for one in hone(*index, "lang", "--json").json["gate"]["checks"] if one["name"] == "slices"]
    assert [(one["name"], one["queries"], one["passed"]) for one in check["slices"]] == [
        ("lang=de", 20, True),
        ("lang=fi", 20, True),
    ]
    shown = hone("promote", "1", "--store", "here").out
    assert "  slices   passed: of 2 slices" in shown
    for one in check["slices"]:
        figures = f"nDCG@10 {one['now']:.4f}, served {one['now']:.4f} over 20 queries"
        assert f"    {one['name']}            passed: {figures}" in shown
