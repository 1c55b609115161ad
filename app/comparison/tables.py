"""The results of a comparison as sentences and tables of text, the same for HTML and Markdown.

Does not know either format.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.comparison.findings import LEVEL, ROUNDS
from app.comparison.reranked_run import MEASURES
from app.comparison.run_curve import METRIC
from app.comparison.significance import CONFIDENCE
from app.live import duration
from retriever.counting import counted

NOTHING = "–"
MEGABYTE = 1_000_000

COSTS = """\
Means over seeds. In all = training + waiting, up to the last checkpoint. Encoding, indexing and mining are the \
refresher's seconds beside that. CPU: what both computed on all cores, start-up included. Age: steps from a \
checkpoint to the adoption of its negatives. MB: peak resident memory. Seconds compare only if nothing else ran on the \
machine; the CPU's suffer less."""

AGED = """\
Probes of the negatives in use, [refresh] probe_every steps apart. Overlap@10: of a query's ten best candidates as \
mined and as the weights of the moment rank them, so 1 is fresh. Drift: change of their scores. Easy: share of the ten \
that teach next to nothing any more. In brackets the worst probe."""

RERANKED = """\
{split}: the first {depth} hits of a run's best checkpoint or its last, put in order by a ranker; of the two the one \
that is better on {dev} once reranked. Retrieved: the same checkpoint alone, which the gain is over. Seconds: a run's, \
of scoring all pairs. Cut: pairs longer than the ranker reads."""

SESSIONS = "More than one session: it was interrupted; steps that were trained again cost seconds again."

CHOICE = f"""\
Dev chooses the checkpoint by {METRIC}; test is read for checkpoints that dev chose at some budget, and for the last."""

TESTS = f"""\
Intervals over seeds are Student's, {CONFIDENCE:.0%}. p is that of a paired randomisation test over queries (Smucker \
et al., 2007): differences averaged over seeds, {ROUNDS:,} random flips of sign, two-sided; Holm's method corrects \
it for the number of systems. It speaks of other queries, the interval of other seeds: better or worse is said only \
where p (Holm) < {LEVEL} and the interval leaves 0 out. AUC is pooled over all pairs: no query has one, and it is not \
tested."""

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of text under ``header``; the first column names the row. ``words``: the cells are no figures."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


def headline(results: Results) -> list[str]:
    """Return a sentence a system: how far from the baseline, and whether that is more than chance."""
    sentences = []
    baseline = results["baseline"]
    readings = results["findings"]["readings"]
    for name in results["systems"]:
        told = [_told(results, reading, name) for reading in readings]
        said = "; ".join(text for text in told if text)
        if name != baseline and said:
            sentences.append(f"{name} against {baseline}: {said}.")
    pipeline = results["findings"]["pipeline"]
    for name, of in ({} if pipeline is None else pipeline["systems"]).items():
        gain = of[METRIC]["gain"]
        sentences.append(
            f"{name}, reranked: {gain['mean']:+.4f} {METRIC} over its retrieval alone "
            f"({gain['verdict']}{_p_text(gain['holm'])})."
        )
    missing = [name for name in results["systems"] if not any(name in reading["systems"] for reading in readings)]
    sentences += [f"{name}: no finished run." for name in missing]
    if results["failed"]:
        one, many = "run failed; it is listed below and counts", "runs failed; they are listed below and count"
        sentences.append(f"{counted(len(results['failed']), one, many)} nowhere.")
    if warnings(results):
        sentences.append("Some runs warned: read that first, at the end.")
    return sentences


def _told(results: Results, reading: Mapping[str, Any], name: str) -> str:
    late = [one for one in (name, results["baseline"]) if one in reading["late"]]
    if late and name in reading["systems"]:
        kept = f"{late[0]} keeps no trained checkpoint within {limit_text(reading)}"
        return f"not told at equal {reading['axis']}: {kept}, write a smaller [train] save_every"
    gap = reading["systems"].get(name, {}).get(METRIC, {}).get("gap")
    if gap is None:
        return ""
    return f"{gap['mean']:+.4f} {METRIC} at equal {reading['axis']} ({gap['verdict']}{_p_text(gap['holm'])})"


def _p_text(p: float | None) -> str:
    return "" if p is None else f", p {'<' if p < 0.001 else '='} {max(p, 0.001):.3f}"


def tables(results: Results) -> list[Table]:
    """Return all tables in the order of the report."""
    readings = results["findings"]["readings"]
    shown = [_reading(results, reading) for reading in readings]
    shown += [_gaps(results, reading) for reading in readings]
    return [
        *shown,
        *_reranked(results),
        _costs(results),
        *_aged(results),
        _systems(results),
        _runs(results),
        *_failed(results),
    ]


def limit_text(reading: Mapping[str, Any]) -> str:
    """Return where a reading is taken."""
    return f"{reading['limit']:g} steps" if reading["axis"] == "steps" else duration(reading["limit"])


def _measures(reading: Mapping[str, Any]) -> list[str]:
    """Return all measures of a reading, the main one first."""
    return list({METRIC: None} | {measure: None for of in reading["systems"].values() for measure in of})


def _reading(results: Results, reading: Mapping[str, Any]) -> Table:
    """Return means with their intervals over seeds, and beside them the gap to the baseline in the main measure."""
    first, *others = _measures(reading)
    rows = []
    for name, figures in reading["systems"].items():
        rows.append(
            [
                name + (" (baseline)" if name == results["baseline"] else ""),
                _mean(figures.get(first)),
                *_gap_cells(figures[first].get("gap")),
                *(_mean(figures.get(measure)) for measure in others),
                _span(reading["steps"][name]),
            ]
        )
    base = results["findings"]["zero_shot"].get(results["baseline"], {})
    if base:
        shown = [f"{base[measure]:.4f}" if measure in base else NOTHING for measure in (first, *others)]
        rows.append(["zero-shot", shown[0], *[NOTHING] * 3, *shown[1:], "0"])
    test = results["data"]["test"]
    note = (
        f"{test['split']}, {test['queries']} queries, exact search; per run the checkpoint that is best on "
        f"{results['data']['dev']['split']} within {limit_text(reading)}."
    )
    return Table(
        f"At equal {reading['axis']}",
        note,
        ["system", first, f"gap to {results['baseline']}", "p (Holm)", "verdict", *others, "steps"],
        rows,
    )


def _mean(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return NOTHING
    return f"{figure['mean']:.4f}{_interval(figure['interval'])}"


def _interval(interval: Sequence[float] | None, form: str = ".4f") -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def _gap_cells(gap: Mapping[str, Any] | None) -> list[str]:
    if gap is None:
        return [NOTHING] * 3
    p = NOTHING if gap["holm"] is None else f"{gap['holm']:.4f}"
    return [f"{gap['mean']:+.4f}{_interval(gap['interval'], '+.4f')}", p, gap["verdict"]]


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} – {high:g}"


def _gaps(results: Results, reading: Mapping[str, Any]) -> Table:
    rows = []
    for name, figures in reading["systems"].items():
        for measure, figure in figures.items():
            gap = figure.get("gap")
            if gap is None:
                continue
            queries = _interval(gap["over_queries"], "+.4f").strip() or NOTHING
            by_seed = ", ".join(f"{value:.4f}" for value in figure["by_seed"].values())
            p = NOTHING if gap["p"] is None else f"{gap['p']:.4f}"
            spread = NOTHING if figure["spread"] is None else f"{figure['spread']:.4f}"
            rows.append([name, measure, *_gap_cells(gap)[:1], queries, p, *_gap_cells(gap)[1:], by_seed, spread])
    return Table(
        f"Gaps to {results['baseline']} at equal {reading['axis']}, every measure",
        "[…]: Student's 95 % intervals, of the gap over the seeds, and over the queries (gaps averaged over seeds).",
        ["system", "measure", "gap", "over queries", "p", "p (Holm)", "verdict", "each seed", "seeds' sd"],
        rows,
    )


def _reranked(results: Results) -> list[Table]:
    """Return what a ranker adds to each system that has one, and how far that is from the baseline; none without."""
    pipeline = results["findings"]["pipeline"]
    if pipeline is None:
        return []
    (first, other), baseline = MEASURES, results["baseline"]
    rows = []
    for name, of in pipeline["systems"].items():
        runs = [run["reranked"] for run in results["runs"] if run["system"] == name and run["reranked"] is not None]
        seconds, pairs = (sum(run[part] for run in runs) for part in ("seconds", "pairs"))
        rows.append(
            [
                name,
                _mean(of[first]),
                _mean(of[first]["before"]),
                *_gap_cells(of[first]["gain"]),
                *_gap_cells(of[first].get("gap")),
                _mean(of[other]),
                _span([run["step"] for run in runs]),
                duration(seconds / len(runs)),
                f"{pairs / seconds:,.0f}" if seconds else NOTHING,
                f"{sum(run['cut_pairs'] for run in runs) / pairs:.1%}" if pairs else NOTHING,
            ]
        )
    ours = f"{baseline} reranked" if pipeline["against"] == "reranked" else f"{baseline} alone"
    gained, against = ["gain", "p (Holm)", "verdict"], [f"gap to {ours}", "p (Holm)", "verdict"]
    header = ["system", first, "retrieved", *gained, *against, other, "step", "seconds", "pairs/s", "cut"]
    test = results["data"]["test"]
    note = RERANKED.format(depth=pipeline["depth"], split=test["split"], dev=results["data"]["dev"]["split"])
    return [Table(f"Retrieve, then rerank {pipeline['depth']}", note, header, rows)]


def _costs(results: Results) -> Table:
    rows = []
    for name, of in results["findings"]["costs"].items():
        rate = of["steps"] / of["training"] if of["training"] else 0.0
        rows.append(
            [
                name,
                f"{of['steps']:g}",
                *(duration(of[key]) for key in ("seconds", "training", "waiting", "encoding", "indexing", "mining")),
                duration(of["cpu"]) if "cpu" in of else NOTHING,
                f"{rate:.2f}",
                f"{of['refreshes']:g}",
                f"{of['age_at_adoption']:.0f}" if "age_at_adoption" in of else NOTHING,
                *(_megabytes(of.get(f"peak_{role}")) for role in ("trainer", "refresher")),
            ]
        )
    seconds = ("in all", "training", "waiting", "encoding", "indexing", "mining")
    return Table(
        "What a run costs",
        COSTS,
        ["system", "steps", *seconds, "CPU", "steps/s", "refreshes", "age", "trainer MB", "refresher MB"],
        rows,
    )


def _aged(results: Results) -> list[Table]:
    rows = []
    for name in results["systems"]:
        told = [one for run in results["runs"] if run["system"] == name for one in run["aged"]]
        if told:
            overlap, drift, easy = ([one[key] for one in told] for key in ("overlap", "drift", "easy"))
            rows.append(
                [
                    name,
                    str(len(told)),
                    f"{statistics.fmean(overlap):.2f} ({min(overlap):.2f})",
                    f"{statistics.fmean(drift):+.3f} ({max(drift, key=abs):+.3f})",
                    f"{statistics.fmean(easy):.1%} ({max(easy):.1%})",
                ]
            )
    table = Table("How stale negatives became", AGED, ["system", "probes", "overlap@10", "drift", "easy"], rows)
    return [table] if rows else []


def _megabytes(size: float | None) -> str:
    return NOTHING if size is None else f"{size / MEGABYTE:,.0f}"


def _systems(results: Results) -> Table:
    rows = [
        [name, ", ".join(f"{key} = {_toml(value)}" for key, value in changes.items()) or "the run as it is"]
        for name, changes in results["systems"].items()
    ]
    return Table("The systems", "What each changes in the run that all start from.", ["system", "changes"], rows, True)


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value}"


ENDS = {"steps": "all steps", "minutes": "minutes were over", "early": "stopped early"}


def _runs(results: Results) -> Table:
    rows = []
    for run in results["runs"]:
        best, last = run["best"], run["last"]
        rows.append(
            [
                run["system"],
                str(run["seed"]),
                ENDS[run["ended"]],
                f"{last['step']}",
                duration(run["curve"][-1]["seconds"]),
                f"{best['step']}",
                f"{best['test'][METRIC]:.4f}",
                f"{last['test'][METRIC]:.4f}",
                str(run["sessions"]),
            ]
        )
    return Table(
        "The runs",
        f"{METRIC} on {results['data']['test']['split']} of the checkpoint that dev chose, and of the last. {SESSIONS}",
        ["system", "seed", "ended", "steps", "in all", "best step", "best", "last", "sessions"],
        rows,
    )


def _failed(results: Results) -> list[Table]:
    rows = [[one["system"], str(one["seed"]), one["problem"]] for one in results["failed"]]
    table = Table("Failed runs", "The same command tries them again.", ["system", "seed", "why"], rows, True)
    return [table] if rows else []


def notes(results: Results) -> list[str]:
    """Return what a reader must know to judge the figures."""
    budget, data = results["budget"], results["data"]
    limits = [f"{budget['steps']} steps"] + ([f"{budget['minutes']:g} minutes"] if budget["minutes"] else [])
    told = [
        f"Data: {data['path']}, {data['passages']:,} passages, trained on {data['train']}. Budget of a run: "
        f"{' or '.join(limits)}; seeds {', '.join(map(str, results['seeds']))}.",
        f"The checkpoints of every {results['every']} steps and the last one are encoded alike (by "
        f"{' and '.join(results['computed_by'])}) and searched exactly. {CHOICE}",
        TESTS,
        *_machines(results),
    ]
    if data["test"]["is_dev"]:
        told.append("There is no test split: figures are of dev, which also chose the checkpoints, and so too good.")
    zero = results["findings"]["zero_shot"]
    if len({str(of) for of in zero.values()}) > 1:
        others = ", ".join(f"{name} {of[METRIC]:.4f}" for name, of in zero.items() if METRIC in of)
        told.append(f"The systems start from different models; {METRIC} before training: {others}.")
    versions = sorted({run["code_version"] for run in results["runs"]})
    if len(versions) > 1:
        told.append(f"The runs come from different versions of hone: {', '.join(versions)}.")
    return told + warnings(results)


def _machines(results: Results) -> list[str]:
    named = [f"{one['processor']}, {counted(one['cpus'], 'core', 'cores')}" for one in results["machines"]]
    if len(named) < 2:
        return [f"Machine: {named[0]}."] if named else []
    return [f"The runs were trained on different machines, so seconds do not compare: {'; '.join(named)}."]


def warnings(results: Results) -> list[str]:
    """Return what the runs warned of, each text once with the runs that said it."""
    said: dict[str, list[str]] = {}
    for run in results["runs"]:
        for text in run["warnings"]:
            said.setdefault(text, []).append(f"{run['system']} {run['seed']}")
    of_all = len(results["runs"])
    return [f"Warning of {'all runs' if len(by) == of_all else ', '.join(by)}: {text}." for text, by in said.items()]
