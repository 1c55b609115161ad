from dataclasses import replace

from app.comparison.findings import find
from app.comparison.tables import headline, notes, tables
from tests.app.comparison.results_stand_ins import MACHINE, point, reranked, results_of, run_of, some_runs


def test_the_headline_says_how_much_and_how_sure() -> None:
    (sentence,) = headline(results_of(some_runs()))
    assert sentence.startswith("refreshed against static: +0.0500 nDCG@10 at equal steps (better, p < 0.001); +0.0100 ")
    runs = [run for run in some_runs() if run.seed == 1]
    assert "(one seed, p" in headline(results_of(runs))[0]


def test_an_untrained_model_stands_for_no_system_at_equal_seconds() -> None:
    late = run_of("refreshed", 1, [point(0, 0.3, 0.28), point(100, 0.46, 0.47)], [1.0, 81.0])
    runs = [run for run in some_runs() if run.seed == 1 and run.system == "static"]
    (sentence,) = headline(results_of([*runs, late]))
    assert sentence.startswith("refreshed against static: +") and "at equal steps" in sentence
    assert sentence.endswith(
        "not told at equal seconds: refreshed keeps no trained checkpoint within 42 s, "
        "write a smaller [train] save_every."
    )
    found = find([*runs, late], ["static", "refreshed"], "static")
    steps, seconds = found.readings
    assert (list(steps.late), list(seconds.late)) == ([], ["refreshed"])
    assert seconds.gaps == {} and "refreshed" in steps.gaps, "neither a table nor results.json has a verdict"


def test_a_run_that_sets_the_limit_is_within_it() -> None:
    """The limit that is shown has fewer digits."""
    runs = [run_of(name, 1, [point(0, 0.3, 0.28), point(100, 0.46, 0.47)], [1.0, 60.449]) for name in ("static", "b")]
    assert "not told" not in headline(results_of(runs))[0]
    assert find(runs, ["static", "b"], "static").readings[1].late == []


def test_runs_of_different_machines_are_said_not_to_compare_in_seconds() -> None:
    assert "Machine: a processor, 2 cores." in notes(results_of(some_runs()))
    faster = {**MACHINE, "processor": "a faster one", "cpus": 1}
    (told,) = [note for note in notes(results_of(some_runs(), machines=[MACHINE, faster])) if "machine" in note]
    assert told.endswith("so seconds do not compare: a processor, 2 cores; a faster one, 1 core.")
    assert not any("achine" in note for note in notes(results_of(some_runs(), machines=[]))), "nobody told"


def test_what_has_no_figures_is_said() -> None:
    failed = [{"system": "refreshed", "seed": 1, "problem": "the loss is nan"}]
    runs = [run for run in some_runs() if run.system == "static"]
    told = headline(results_of(runs, failed=failed))
    assert told == ["refreshed: no finished run.", "1 run failed; it is listed below and counts nowhere."]
    assert tables(results_of(runs, failed=failed))[-1].rows == [["refreshed", "1", "the loss is nan"]]
    assert "Failed runs" not in [table.title for table in tables(results_of(runs))]
    assert headline(results_of([], failed=failed))[0] == "static: no finished run."


def test_every_row_has_a_cell_a_column() -> None:
    for results in (results_of(some_runs()), results_of(some_runs()[:1]), results_of([])):
        for table in tables(results):
            assert {len(row) for row in table.rows} <= {len(table.header)}, table.title


def test_the_first_table_reads_all_systems_and_the_untrained_model() -> None:
    first = tables(results_of(some_runs()))[0]
    assert first.title == "At equal steps" and "best on dev within 100 steps" in first.note
    assert first.header == ["system", "nDCG@10", "gap to static", "p (Holm)", "verdict", "RR@10", "AUC", "steps"]
    static, refreshed, zero = first.rows
    assert static[:3] == ["static (baseline)", "0.4240 [0.4190, 0.4290]", "–"] and static[-1] == "50"
    assert refreshed[2] == "+0.0500 [+0.0500, +0.0500]" and refreshed[4] == "better" and refreshed[-1] == "100"
    assert zero == ["zero-shot", "0.2800", "–", "–", "–", "0.1800", "0.9000", "0"]


def test_every_gap_stands_beside_the_spread_of_the_seeds() -> None:
    gaps = next(
        table for table in tables(results_of(some_runs())) if table.title.startswith("Gaps to static at equal s")
    )
    assert [row[:2] for row in gaps.rows] == [["refreshed", measure] for measure in ("nDCG@10", "RR@10", "AUC")]
    assert gaps.rows[0][-2:] == ["0.4720, 0.4740, 0.4760", "0.0020"]
    assert gaps.rows[2][3:5] == ["–", "–"], "no query has an AUC"


def test_costs_and_runs_are_shown_as_people_say_them() -> None:
    results = results_of(some_runs())
    costs = next(table for table in tables(results) if table.title == "What a run costs")
    assert costs.rows[1] == "refreshed|100|1 min 23 s|1 min 22 s|1 s|3 s|0 s|0 s|1 min 33 s|1.22|2|20|500|400".split(
        "|"
    )
    runs = next(table for table in tables(results) if table.title == "The runs")
    assert runs.rows[0] == "static|1|all steps|100|42 s|50|0.4220|0.4120|1".split("|")
    systems = next(table for table in tables(results) if table.title == "The systems")
    assert systems.rows == [["static", 'refresh.trigger = "once"'], ["refreshed", "the run as it is"]]


def test_staleness_is_told_of_each_system_that_measured_it() -> None:
    runs = [replace(run, aged=()) if run.system == "static" else run for run in some_runs()]
    title = "How stale negatives became"
    table = next(table for table in tables(results_of(runs)) if table.title == title)
    assert table.rows == [["refreshed", "6", "0.60 (0.60)", "-0.050 (-0.050)", "18.8% (25.0%)"]]
    assert title not in {table.title for table in tables(results_of([replace(run, aged=()) for run in runs]))}


def test_notes_name_what_limits_the_figures() -> None:
    plain = notes(results_of(some_runs()))
    assert any("randomisation test" in note for note in plain) and not any("good" in note for note in plain)
    data = results_of([])["data"]
    data["test"] = {"split": "dev", "queries": 40, "is_dev": True}
    assert any("no test split" in note for note in notes(results_of(some_runs(), data=data)))
    runs = some_runs()
    runs[0] = replace(runs[0], code_version="0.2+def", warnings=["the refresher is gone"])
    told = notes(results_of(runs))
    assert any("different versions of hone: 0.1+abc, 0.2+def" in note for note in told)
    assert told[-1] == "Warning of static 1: the refresher is gone."
    told = notes(results_of([replace(run, warnings=["long texts are cut"]) for run in runs]))
    assert told[-1] == "Warning of all runs: long texts are cut."
    assert headline(results_of(runs))[-1].startswith("Some runs warned")


def test_systems_that_start_from_different_models_are_told_apart() -> None:
    other = run_of("refreshed", 1, [point(0, 0.2, 0.19), point(100, 0.4, 0.4)], [1.0, 50.0])
    told = notes(results_of([some_runs()[0], other]))
    assert any("static 0.2800, refreshed 0.1900" in note for note in told)


def test_what_a_ranker_adds_stands_in_a_table_of_its_own() -> None:
    assert not any("rerank" in table.title for table in tables(results_of(some_runs())))
    runs = [replace(run, reranked=reranked(run.seed, 0.42, 0.47)) for run in some_runs()]
    results = results_of(runs)
    table = next(table for table in tables(results) if table.title == "Retrieve, then rerank 100")
    assert "test: the first 100 hits" in table.note and "better on dev" in table.note
    static, refreshed = table.rows
    assert static[:4] == ["static", "0.4700 [0.4700, 0.4700]", "0.4200 [0.4200, 0.4200]", "+0.0500 [+0.0500, +0.0500]"]
    assert static[5:9] == ["better", "–", "–", "–"] and table.header[6] == "gap to static reranked"
    assert refreshed[8:] == ["not told apart", "0.3700 [0.3700, 0.3700]", "50", "30 s", "200", "10.0%"]
    assert any(
        "refreshed, reranked: +0.0500 nDCG@10 over its retrieval alone (better" in one for one in headline(results)
    )
    alone = [run if run.system == "refreshed" else replace(run, reranked=None) for run in runs]
    (other,) = [table for table in tables(results_of(alone)) if "rerank" in table.title]
    assert other.header[6] == "gap to static alone" and len(other.rows) == 1
