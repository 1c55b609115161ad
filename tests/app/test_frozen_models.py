"""Models that a run asks and does not train: a checkpoint names them, and a run that goes on with others says so."""

import shutil
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from app.composition import make_trainer
from app.refreshing import InlineRefresher
from retriever.errors import InputError
from tests.app.command_line import opened, silent, write_run
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

RANKER = """\
[ranker]
name = "{own}"
loss = {{ name = "margin_mse" }}
teacher = "{frozen}"
num_negatives = 2
warmup_steps = 1
[phases]
ranker = 1
retriever = 1
"""
KINDS = {
    "guide": ("[loss] guide", '[loss]\nguide = "{frozen}"\nguide_max = 0.9\n'),
    "encoder": ("[teacher] name", '[teacher]\nname = "{frozen}"\nkind = "encoder"\nloss = "kl"\n'),
    "live": ("[teacher] name", '[teacher]\nname = "{frozen}"\nlive = true\nloss = "kl"\n'),
    "of the ranker": ("[ranker] teacher", RANKER),
}


def warned(config: Path, store: Path, until: int) -> list[str]:
    """What a run says that is stopped after step ``until``."""
    run, stop, told = opened(config, store), Event(), []

    def report(event: str, **fields: Any) -> None:
        if event == "warning":
            told.append(fields["message"])
        if event == "step" and fields["step"] == until:
            stop.set()

    make_trainer(run, InlineRefresher(run, report), report, stop).run()
    return [text for text in told if "another" in text]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_with_another_frozen_model_says_so(tiny: Path, tmp_path: Path, kind: str) -> None:
    frozen, own, of_ranker = tmp_path / "frozen", write_tiny_ranker(tmp_path / "own"), kind in ("live", "of the ranker")
    _ = write_tiny_ranker(frozen) if of_ranker else write_tiny_model(frozen)
    key, keys = KINDS[kind]
    table = keys.format(frozen=frozen, own=own)
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("[negatives]", f"{table}[negatives]"))
    store = tmp_path / "store"
    assert warned(config, store, 2) == []
    assert warned(config, store, 3) == [], "the same model"
    shutil.rmtree(frozen)
    _ = write_tiny_ranker(frozen, "electra") if of_ranker else write_tiny_model(frozen, seed=5)
    (text,) = warned(config, store, 4)
    assert f"learned from another {key} than this run's" in text and "--new" in text
    assert warned(config, store, 5) == [], "what is named now is the one that it goes on with"


@pytest.mark.parametrize(("most", "times"), [(8, 1), (64, 0)])
@pytest.mark.parametrize("kind", ["live", "of the ranker"])
def test_pairs_that_a_teacher_reads_cut_are_told_once(
    tiny: Path, tmp_path: Path, kind: str, most: int, times: int
) -> None:
    frozen, own = write_tiny_ranker(tmp_path / "frozen"), write_tiny_ranker(tmp_path / "own")
    at, key = {"live": ("live = true", "max_length"), "of the ranker": ("num_negatives = 2", "teacher_max_length")}[
        kind
    ]
    table = KINDS[kind][1].format(frozen=frozen, own=own).replace(at, f"{at}\n{key} = {most}")
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("[negatives]", f"{table}[negatives]"))
    run, told = opened(config, tmp_path / "store"), []

    def report(event: str, **fields: Any) -> None:
        if event == "warning":
            told.append(fields["message"])

    make_trainer(run, InlineRefresher(run, report), report, Event()).run()
    named = KINDS[kind][0].split()[0]
    assert (
        sum(text == f"the teacher reads some pairs of query and passage cut to {named} {key}" for text in told) == times
    )


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("teacher_max_length = 200", r"\[ranker\] teacher_max_length = 200: .* at most 64"),
        ('teacher_label = "gone"', r"\[ranker\] teacher_label: .* has"),
        ("", r"\[ranker\] teacher = .* cannot be loaded"),
    ],
)
def test_a_ranker_s_teacher_that_cannot_be_taken_so_is_named_by_its_keys(
    tiny: Path, tmp_path: Path, keys: str, named: str
) -> None:
    frozen = write_tiny_ranker(tmp_path / "frozen") if keys else tmp_path / "gone"
    table = RANKER.format(own=write_tiny_ranker(tmp_path / "own"), frozen=frozen)
    table = table.replace("num_negatives", f"{keys}\nnum_negatives")
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("[negatives]", f"{table}[negatives]"))
    run = opened(config, tmp_path / "store")
    with pytest.raises(InputError, match=named):
        make_trainer(run, InlineRefresher(run, silent), silent, Event())
