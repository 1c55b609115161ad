import statistics
from dataclasses import replace

import numpy as np
import pytest

from app.comparison.findings import Gap, as_json, find
from app.comparison.run_curve import Point
from tests.app.comparison.results_stand_ins import point, reranked, run_of, some_runs

SYSTEMS = ["static", "refreshed"]


def test_dev_chooses_the_checkpoint_and_test_is_what_counts() -> None:
    steps, _ = find(some_runs(), SYSTEMS, "static").readings
    assert (steps.axis, steps.limit) == ("steps", 100)
    assert steps.steps == {"static": [50, 50, 50], "refreshed": [100, 100, 100]}
    figure = steps.figures["static"]["nDCG@10"]
    assert figure.by_seed == pytest.approx({1: 0.422, 2: 0.424, 3: 0.426})
    assert figure.mean == pytest.approx(0.424) and figure.spread == pytest.approx(0.002)
    assert figure.interval == pytest.approx((0.424 - 0.004968, 0.424 + 0.004968), abs=1e-5)


def test_equal_seconds_are_those_of_the_fastest_run() -> None:
    _, seconds = find(some_runs(), SYSTEMS, "static").readings
    assert (seconds.axis, seconds.limit) == ("seconds", 42.0)
    assert seconds.steps == {"static": [50, 50, 50], "refreshed": [50, 50, 50]}
    assert seconds.gaps["refreshed"]["nDCG@10"].mean == pytest.approx(0.01)


def test_of_two_equal_on_dev_the_earlier_is_chosen_and_the_untrained_model_is_always_there() -> None:
    run = run_of("static", 1, [point(0, 0.4, 0.4), point(50, 0.5, 0.5), point(100, 0.5, 0.6)], [9.0, 20.0, 30.0])
    assert [run.chosen(limit, run.steps) for limit in (0, 49, 50, 100)] == [0, 0, 1, 1]
    assert run.chosen(5.0, run.seconds) == 0


def test_a_run_that_stopped_early_sets_no_limit_to_the_others() -> None:
    early = run_of("refreshed", 1, [point(0, 0.3, 0.3), point(30, 0.4, 0.4)], [1.0, 9.0], ended="early")
    runs = [run for run in some_runs() if run.system == "static"] + [early]
    steps, seconds = find(runs, SYSTEMS, "static").readings
    assert (steps.limit, seconds.limit) == (100, 42.0)
    assert steps.steps["refreshed"] == [30]
    assert [reading.limit for reading in find([early], SYSTEMS, "refreshed").readings] == [30, 9.0]


def test_the_gap_pairs_seeds_and_queries() -> None:
    runs = some_runs()
    gap = find(runs, SYSTEMS, "static").readings[0].gaps["refreshed"]["nDCG@10"]
    chosen = {(run.system, run.seed): run.points[run.chosen(100, run.steps)] for run in runs}
    by_seed, by_query = [], [0.0] * 60
    for seed in (1, 2, 3):
        ours, theirs = chosen["refreshed", seed], chosen["static", seed]
        assert ours.test is not None and theirs.test is not None
        by_seed.append(ours.test["nDCG@10"] - theirs.test["nDCG@10"])
        for query in range(60):
            by_query[query] += (ours.per_query["nDCG@10"][query] - theirs.per_query["nDCG@10"][query]) / 3
    assert gap.mean == pytest.approx(statistics.fmean(by_seed)) == pytest.approx(statistics.fmean(by_query))
    assert gap.interval == pytest.approx((0.05, 0.05)), "each seed has the same gap"
    assert gap.over_queries is not None and gap.over_queries[0] <= 0.05 + 1e-9 and gap.p is not None and gap.p < 0.001
    assert gap.verdict == "better"


def test_auc_has_no_queries_and_is_not_tested() -> None:
    gap = find(some_runs(), SYSTEMS, "static").readings[0].gaps["refreshed"]["AUC"]
    assert (gap.p, gap.holm, gap.over_queries, gap.verdict) == (None, None, None, "not tested")
    assert gap.interval == (0.0, 0.0)


def test_p_values_are_corrected_for_the_number_of_systems() -> None:
    runs = some_runs()
    more = [replace(run, system="also") for run in runs if run.system == "refreshed"]
    alone = find(runs, SYSTEMS, "static").readings[0].gaps["refreshed"]["RR@10"]
    both = find([*runs, *more], [*SYSTEMS, "also"], "static").readings[0].gaps
    assert alone.p is not None and alone.holm == alone.p
    assert both["refreshed"]["RR@10"].holm == both["also"]["RR@10"].holm == pytest.approx(2 * alone.p)


def test_a_verdict_needs_both_queries_and_seeds() -> None:
    gap = Gap(0.05, (0.01, 0.09), (0.02, 0.08), 0.001, 0.002)
    assert gap.verdict == "better"
    assert replace(gap, mean=-0.05, interval=(-0.09, -0.01)).verdict == "worse"
    assert replace(gap, interval=(-0.01, 0.11)).verdict == "not told apart"
    assert replace(gap, holm=0.06).verdict == "not told apart"
    assert replace(gap, interval=None).verdict == "one seed"


def test_only_seeds_that_both_have_are_paired() -> None:
    runs = [run for run in some_runs() if (run.system, run.seed) != ("static", 2)]
    reading = find(runs, SYSTEMS, "static").readings[0]
    assert [*reading.figures["static"]["nDCG@10"].by_seed] == [1, 3]
    assert [*reading.figures["refreshed"]["nDCG@10"].by_seed] == [1, 2, 3]
    assert reading.gaps["refreshed"]["nDCG@10"].mean == pytest.approx(0.05)
    without = find([run for run in runs if run.system == "refreshed"], SYSTEMS, "static").readings[0]
    assert [*without.figures] == ["refreshed"] and without.gaps == {}
    assert find([], SYSTEMS, "static").readings == ()


def test_costs_are_means_and_what_is_unknown_is_left_out() -> None:
    runs = some_runs()
    found = find(runs, SYSTEMS, "static").costs["refreshed"]
    assert (found["seconds"], found["training"], found["waiting"]) == (83.0, 82.0, 1.0)
    assert found["cpu"] == 93.0
    assert (found["refreshes"], found["age_at_adoption"], found["peak_trainer"]) == (2.0, 20.0, 500_000_000)
    bare = [replace(run, peak={}, cpu={}, refreshes=()) for run in runs]
    assert not {"peak_trainer", "cpu", "age_at_adoption"} & {*find(bare, SYSTEMS, "static").costs["static"]}


def test_zero_shot_is_the_first_point() -> None:
    findings = find(some_runs(), SYSTEMS, "static")
    assert findings.zero_shot["static"]["nDCG@10"] == 0.28
    told = as_json(findings)
    assert told["readings"][0]["systems"]["refreshed"]["nDCG@10"]["gap"]["verdict"] == "better"
    assert told["readings"][0]["systems"]["static"]["nDCG@10"]["by_seed"].keys() == {"1", "2", "3"}
    assert told == as_json(find(some_runs(), SYSTEMS, "static")), "the tests draw the same each time"


def test_a_measure_that_one_seed_lacks_is_left_out() -> None:
    def without_auc(one: Point) -> Point:
        return replace(one, test=None if one.test is None else {k: v for k, v in one.test.items() if k != "AUC"})

    runs = some_runs()
    runs[0] = replace(runs[0], points=[without_auc(one) for one in runs[0].points])
    reading = find(runs, SYSTEMS, "static").readings[0]
    assert "AUC" not in reading.figures["static"] and "AUC" in reading.figures["refreshed"]
    assert np.isfinite(reading.gaps["refreshed"]["nDCG@10"].mean)


def test_a_ranker_is_measured_by_what_it_adds_and_against_the_baselines_pipeline() -> None:
    assert find(some_runs(), SYSTEMS, "static").pipeline is None
    lift = {"static": 0.04, "refreshed": 0.06}
    runs = [replace(run, reranked=reranked(run.seed, 0.42, 0.42 + lift[run.system])) for run in some_runs()]
    pipeline = find(runs, SYSTEMS, "static").pipeline
    assert pipeline is not None and (pipeline.depth, pipeline.against) == (100, "reranked")
    for name, by in lift.items():
        gain = pipeline.gains[name]["nDCG@10"]
        assert gain.mean == pytest.approx(by) and gain.verdict == "better" and gain.holm is not None
        assert pipeline.figures[name]["RR@10"].mean == pytest.approx(0.32 + by)
        assert pipeline.before[name]["nDCG@10"].mean == pytest.approx(0.42)
    assert pipeline.gains["static"]["nDCG@10"].holm == pytest.approx(2 * (pipeline.gains["static"]["nDCG@10"].p or 0))
    assert list(pipeline.gaps) == ["refreshed"] and pipeline.gaps["refreshed"]["RR@10"].mean == pytest.approx(0.02)


def test_against_a_baseline_without_a_ranker_its_retrieval_stands() -> None:
    runs = [
        run if run.system == "static" else replace(run, reranked=reranked(run.seed, 0.42, 0.5)) for run in some_runs()
    ]
    findings = find(runs, SYSTEMS, "static")
    pipeline = findings.pipeline
    assert pipeline is not None and pipeline.against == "retrieved" and list(pipeline.figures) == ["refreshed"]
    gap = pipeline.gaps["refreshed"]["nDCG@10"]
    assert gap.mean == pytest.approx(0.5 - findings.readings[0].figures["static"]["nDCG@10"].mean)
    told = as_json(findings)["pipeline"]["systems"]["refreshed"]["nDCG@10"]
    assert told["gain"]["mean"] == pytest.approx(0.08) and told["gap"]["verdict"] and told["before"]["mean"] == 0.42
    costs = findings.costs
    assert costs["refreshed"]["reranking"] == 30.0 and "reranking" not in costs["static"]
