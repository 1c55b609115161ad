from pathlib import Path

import pytest

from app.comparison.plan import Budget, Comparison, flat, merged, read_comparison, run_table
from app.config import read_config
from app.toml_text import toml_text
from retriever.errors import InputError

ROOT = Path(__file__).parents[3]
RUN = """\
seed = 7
[data]
path = "data"
dev = "train:0.2"
[train]
max_steps = 600
num_negatives = 2
warmup_steps = 10
save_every = 20
[negatives]
depth = 100
sampler = { name = "top" }
"""
COMPARE = """\
base = "run.toml"
seeds = [13, 14]
baseline = "static"
[budget]
steps = 250
minutes = 20
[systems.in-batch]
train.num_negatives = 0
refresh.trigger = "never"
[systems.static.refresh]
trigger = "once"
[systems.refreshed]
negatives.sampler = { name = "uniform" }
[systems.refreshed.refresh]
trigger = "steps:50"
"""


def read(folder: Path, text: str = COMPARE, run: str = RUN) -> Comparison:
    (folder / "run.toml").write_text(run)
    path = folder / "compare.toml"
    path.write_text(text)
    return read_comparison(path)


def refused(folder: Path, text: str, run: str = RUN) -> str:
    with pytest.raises(InputError) as error:
        read(folder, text, run)
    return str(error.value).replace(f"{folder}/", "")


def test_every_system_runs_with_every_seed_seed_by_seed(tmp_path: Path) -> None:
    comparison = read(tmp_path)
    assert [(run.system, run.seed) for run in comparison.runs] == [
        (system, seed) for seed in (13, 14) for system in ("in-batch", "static", "refreshed")
    ]
    for run in comparison.runs:
        assert run.config.seed == run.table["seed"] == run.seed
        assert (run.config.train.max_steps, run.config.train.save_every) == (250, 20)
        assert run.config.train.keep_checkpoints >= 250, "each is measured when the training is over"
        assert run.config.index.rerank_depth == 0, "nothing is served, so that nobody waits for a gate's ranker"
    in_batch, static, refreshed = (run.config for run in comparison.runs[:3])
    assert (in_batch.train.num_negatives, static.train.num_negatives) == (0, 2)
    assert (static.refresh.trigger, refreshed.refresh.trigger) == ("once", "steps:50")
    assert (static.negatives.sampler.name, refreshed.negatives.sampler.name) == ("top", "uniform")
    assert static.negatives.depth == refreshed.negatives.depth == 100


def test_the_comparison_says_what_all_share_and_what_each_changes(tmp_path: Path) -> None:
    comparison = read(tmp_path)
    assert comparison.budget == Budget(250, 20) and comparison.baseline == "static" and comparison.test is None
    assert comparison.data == tmp_path / "data"
    assert comparison.changes["in-batch"] == {"train.num_negatives": 0, "refresh.trigger": "never"}
    assert comparison.changes["refreshed"] == {"negatives.sampler.name": "uniform", "refresh.trigger": "steps:50"}


def test_the_run_may_stand_in_the_same_file(tmp_path: Path) -> None:
    inner = RUN.replace("[", "[run.").replace("seed = 7\n", "")
    text = COMPARE.replace('base = "run.toml"', 'test = "held"') + inner
    comparison = read(tmp_path, text, run="not = toml at all: never read")
    assert comparison.runs[1].config.negatives.depth == 100
    assert (comparison.data, comparison.test) == (tmp_path / "data", "held")


def test_a_ranker_is_a_folder_beside_the_file_or_a_hub_id(tmp_path: Path) -> None:
    assert (read(tmp_path).rerank, read(tmp_path).ranker) == (100, None)
    text = 'rerank = 20\nranker = "ours/ranker"\n' + COMPARE
    assert (read(tmp_path, text).rerank, read(tmp_path, text).ranker) == (20, "ours/ranker")
    (tmp_path / "ours/ranker").mkdir(parents=True)
    assert read(tmp_path, text).ranker == str(tmp_path / "ours/ranker")
    assert "rerank must be at least 1" in refused(tmp_path, "rerank = 0\n" + COMPARE)


def test_minutes_alone_leave_the_steps_to_the_run(tmp_path: Path) -> None:
    comparison = read(tmp_path, COMPARE.replace("steps = 250\n", ""))
    assert comparison.budget == Budget(600, 20)
    assert read(tmp_path, COMPARE.replace("minutes = 20\n", "")).budget == Budget(250, None)


def test_a_written_run_is_the_planned_one_and_finds_its_data(tmp_path: Path) -> None:
    comparison = read(tmp_path, run=RUN + 'verdicts = "judged.jsonl"\n')
    run = comparison.runs[2]
    folder = tmp_path / "compare/runs/one"
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(toml_text(run_table(run, comparison, folder)))
    again = read_config(folder / "run.toml")
    assert (folder / again.data.path).resolve() == (tmp_path / "data").resolve()
    assert (folder / (again.negatives.verdicts or "")).resolve() == (tmp_path / "judged.jsonl").resolve()
    assert again.train == run.config.train and again.loss == run.config.loss and again.seed == run.seed


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("seeds", "seed", "compare.toml: unknown key seed; did you mean seeds?"),
        ("minutes", "minute", "compare.toml: unknown key budget.minute; did you mean budget.minutes?"),
        (
            "train.num_negatives",
            "train.num_negative",
            "compare.toml: unknown key systems.in-batch.train.num_negative; "
            "did you mean systems.in-batch.train.num_negatives?",
        ),
        (
            "[systems.static.refresh]",
            "[systems.static.refreshh]",
            "compare.toml: unknown key systems.static.refreshh; did you mean systems.static.refresh?",
        ),
        (
            '"once"',
            '"onec"',
            "compare.toml: systems.static: [refresh] trigger = 'onec'",
        ),
        (
            "num_negatives = 0",
            'num_negatives = "0"',
            "compare.toml: systems.in-batch: train.num_negatives: ",
        ),
        ('trigger = "never"', 'trigger = "never"\ntrain.num_negatives = 1', "compare.toml: not TOML"),
        ('baseline = "static"', 'baseline = "statc"', "compare.toml: baseline = 'statc' is no system; did you mean st"),
        ('baseline = "static"', 'baseline = "x"', "compare.toml: baseline = 'x' is no system; there are in-batch, "),
        ("[13, 14]", "[13, 13]", "compare.toml: seeds must be"),
        ("[13, 14]", "[]", "compare.toml: seeds must be"),
        ("[13, 14]", "[-1]", "compare.toml: seeds must be"),
        ("[13, 14]", "[1.5]", "compare.toml: seeds.0: "),
        ("seeds = [13, 14]\n", "", "compare.toml: seeds must be"),
        ("steps = 250\nminutes = 20", "", "compare.toml: write steps or minutes in [budget]"),
        ("steps = 250", "steps = 0", "compare.toml: budget.steps must"),
        ("minutes = 20", "minutes = 0.0", "compare.toml: budget.minutes must"),
        ("steps = 250", "steps = 9", "compare.toml: systems.in-batch: train.warmup_steps must lie in 0 … max_steps"),
        ('base = "run.toml"\n', "", "compare.toml: write either base"),
        ('base = "run.toml"', 'base = "no.toml"', "no.toml: cannot be read"),
        ("in-batch", '"in batch"', "compare.toml: systems.in batch: a name has"),
        (
            "train.num_negatives = 0",
            "train.max_steps = 9",
            "compare.toml: systems.in-batch.train.max_steps: the budget is the same for all: write steps in [budget]",
        ),
        ("train.num_negatives = 0", "seed = 9", "compare.toml: systems.in-batch.seed: the seeds are the same for all"),
        ("train.num_negatives = 0", 'data.dev = "x"', "compare.toml: systems.in-batch.data.dev: all systems are"),
        ("train.num_negatives = 0", "train.save_every = 5", "compare.toml: systems.in-batch.train.save_every: all cur"),
    ],
)
def test_what_is_wrong_names_file_and_key(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    assert right in COMPARE
    assert refused(tmp_path, COMPARE.replace(right, wrong, 1)).startswith(message)


def test_one_system_is_no_comparison(tmp_path: Path) -> None:
    head, _, _ = COMPARE.partition("[systems.in-batch]")
    assert "at least two tables" in refused(tmp_path, f"{head}[systems.static]\n")
    assert "at least two tables" in refused(tmp_path, head)


def test_the_run_is_checked_by_itself(tmp_path: Path) -> None:
    assert refused(tmp_path, COMPARE, RUN.replace("depth", "dpth")).startswith("run.toml: unknown key negatives.dpth")
    inner = RUN.replace("[", "[run.").replace("seed = 7\n", "").replace("depth", "dpth")
    assert "compare.toml: unknown key run.negatives.dpth; did you mean run.negatives.depth?" in refused(
        tmp_path, COMPARE.replace('base = "run.toml"', "") + inner
    )


def test_tables_are_merged_and_everything_else_is_replaced() -> None:
    one = {"a": {"x": 1, "list": [1, 2], "deep": {"p": 1}}, "b": 1}
    assert merged(one, {"a": {"list": [3], "deep": {"q": 2}}, "c": 2}) == {
        "a": {"x": 1, "list": [3], "deep": {"p": 1, "q": 2}},
        "b": 1,
        "c": 2,
    }
    assert one["a"] == {"x": 1, "list": [1, 2], "deep": {"p": 1}}, "it stays as it was"
    assert dict(flat({"a": {"x": 1, "deep": {"p": 2}}, "b": [1]})) == {"a.x": 1, "a.deep.p": 2, "b": [1]}


def test_the_example_is_a_comparison(tmp_path: Path) -> None:
    comparison = read(tmp_path, (ROOT / "examples/compare.toml").read_text())
    plan = {run.system: run.config for run in comparison.runs}
    assert list(plan) == ["in-batch", "static", "refreshed"] and comparison.baseline == "static"
    assert len(comparison.seeds) == 3
    assert (plan["in-batch"].train.num_negatives, plan["in-batch"].refresh.trigger) == (0, "never")
    assert plan["static"].train.num_negatives == plan["refreshed"].train.num_negatives > 0
    assert plan["static"].refresh.trigger == "once" and plan["refreshed"].refresh.trigger == "steps:50"
