from dataclasses import replace
from pathlib import Path

import pytest

from app.config import read_config
from app.start_warnings import warnings_at_start
from miner.batch_plans import BatchPlanConfig
from miner.per_query import PerQueryConfig
from miner.samplers import SamplerConfig
from retriever.phases import PhasesConfig
from retriever.refresh_policy import RefreshConfig
from retriever.teacher import TeacherConfig
from tests.app.command_line import write_run


@pytest.mark.parametrize(
    ("drawn", "of_ranker", "said"),
    [
        ("num_negatives = 2", 1, "[ranker] draws its num_negatives = 1 by the sampler alone"),
        ("num_negatives = 1", 2, "[train] draws its num_negatives = 1 by the sampler alone"),
        ("num_negatives = 1\ndrawn_negatives = 3", 2, "[train] draws its drawn_negatives = 3 by the sampler alone"),
        ("num_negatives = 2", 2, None),
        ("num_negatives = 0", 2, None),
    ],
)
def test_who_draws_without_the_quotas_is_named(
    tiny: Path, tmp_path: Path, drawn: str, of_ranker: int, said: str | None
) -> None:
    table = (
        f'[ranker]\nname = "none"\nnum_negatives = {of_ranker}\nwarmup_steps = 0\n[phases]\nranker = 2\nretriever = 1\n'
    )
    quotas = 'sources = ["ann", "bm25"]\nquotas = { ann = 1, bm25 = 1 }\n'
    changes = (("batch_size = 4\n", f"batch_size = 4\n{drawn}\n"), ("[negatives]\n", f"{table}[negatives]\n{quotas}"))
    config = read_config(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", *changes))
    told = warnings_at_start(config, 20)
    assert told == ([] if said is None else [f"[negatives] quotas add up to 2 negatives: {said}"])
    assert warnings_at_start(replace(config, negatives=replace(config.negatives, quotas=None)), 20) == []


@pytest.mark.parametrize("own", ["live", "per_query"])
def test_a_ranker_that_does_not_draw_as_its_retriever_does_is_told_of(tiny: Path, tmp_path: Path, own: str) -> None:
    table = '[ranker]\nname = "none"\nwarmup_steps = 0\n[phases]\nranker = 2\nretriever = 1\n[negatives]'
    beside = read_config(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("[negatives]", table)))
    assert warnings_at_start(beside, 20) == []
    plain = beside.negatives
    negatives = replace(plain, live=True) if own == "live" else replace(plain, per_query=PerQueryConfig())
    config = replace(beside, negatives=negatives)
    words = f"[negatives] {own} is the retriever's alone: [ranker] draws from"
    without = replace(config, ranker=None), replace(config, phases=PhasesConfig(ranker=1, retriever=0))
    told = [sum(said.startswith(words) for said in warnings_at_start(one, 20)) for one in (config, *without)]
    assert told == [1, 0, 0]


@pytest.mark.parametrize(
    ("steps", "accumulation", "double_every", "random"),
    [(5, 1, 1, 5), (6, 1, 1, None), (10, 1, 2, 10), (11, 1, 2, None), (2, 2, 1, 5), (3, 2, 1, None)],
)
def test_a_run_that_ends_before_ngame_has_clusters_is_told(
    tiny: Path, tmp_path: Path, steps: int, accumulation: int, double_every: int, random: int | None
) -> None:
    """Of 20 queries in batches of 4 an epoch has 5; up to there it is a run with random batches, to the last digit."""
    changes = (
        ("max_steps = 6", f"max_steps = {steps}\naccumulation = {accumulation}"),
        ("[negatives]\n", f'[batches]\nname = "ngame"\ndouble_every = {double_every}\n[negatives]\n'),
    )
    config = read_config(write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", *changes))
    told = warnings_at_start(config, 20)
    assert [random is not None and f"its first {random} batches are random" in one for one in told] == (
        [] if random is None else [True]
    )
    assert warnings_at_start(replace(config, batches=BatchPlanConfig()), 20) == []


@pytest.mark.parametrize(("steps", "trigger", "said"), [(5, "once", [0]), (6, "once", []), (6, "steps:3", [1])])
def test_per_query_negatives_that_are_never_replaced_are_told_of(
    tiny: Path, steps: int, trigger: str, said: list[int]
) -> None:
    """Of 20 queries in batches of 4 the sixth step is the first to meet one again."""
    config = read_config(tiny / "run.toml")
    config = replace(config, negatives=replace(config.negatives, per_query=PerQueryConfig()))
    config = replace(config, train=replace(config.train, max_steps=steps), refresh=RefreshConfig(trigger))
    told, words = warnings_at_start(config, 20), ("5 steps of this run meet none twice", "anew with each negative set")
    assert len(told) == len(said) and all(words[place] in one for place, one in zip(said, told, strict=True))


def test_sets_that_nobody_draws_from_are_told_of(tiny: Path) -> None:
    config = read_config(tiny / "run.toml")
    alone = replace(config, train=replace(config.train, num_negatives=0))
    (said,) = warnings_at_start(alone, 20)
    assert '"steps:3" mines' in said
    assert warnings_at_start(replace(alone, refresh=RefreshConfig("never")), 20) == []
    assert warnings_at_start(replace(alone, batches=BatchPlanConfig("b3")), 20) == []
    assert warnings_at_start(replace(alone, teacher=TeacherConfig("a-ranker", over="batch")), 20) == []


def test_a_teacher_that_scores_few_of_what_is_drawn_is_warned_of(tiny: Path) -> None:
    config = read_config(tiny / "run.toml")
    taught = replace(config, teacher=TeacherConfig("some-ranker", depth=4))
    (told,) = warnings_at_start(taught, 20)
    assert "[teacher] depth = 4" in told and "are drawn among 10" in told
    first = replace(config.negatives, sampler=SamplerConfig("top"))
    assert warnings_at_start(replace(taught, negatives=first), 20) == [], "the first alone are drawn"
    assert warnings_at_start(replace(taught, negatives=replace(config.negatives, range_max=4)), 20) == []
    assert warnings_at_start(replace(config, teacher=TeacherConfig("some-ranker", depth=10)), 20) == []
    assert warnings_at_start(config, 20) == []
