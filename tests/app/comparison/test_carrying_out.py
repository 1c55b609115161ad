import json
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from app.comparison import run_curve
from app.comparison.carrying_out import UNREFRESHED, Bench, Interrupted, carry_out, open_bench
from app.comparison.compared_run import RunFolder
from app.comparison.plan import PlannedRun, read_comparison
from app.comparison.report import html
from app.comparison.run_curve import CURVE, EVALUATIONS
from app.config import read_config
from app.progress import Report
from retriever.artifacts import CURRENT, Artifact
from retriever.errors import HoneError, InputError
from retriever.store import Store
from tests.stand_ins import HashEncoder, OverlapRanker, write_tiny_data

COMPARE = """\
seeds = [1, 2]
baseline = "static"
[budget]
steps = 10
[run.data]
path = "data"
[run.train]
batch_size = 4
warmup_steps = 0
save_every = 5
[run.negatives]
depth = 10
[systems.static.refresh]
trigger = "once"
[systems.refreshed.refresh]
trigger = "steps:5"
"""


class Trainer:
    """Stands for `hone train`: publishes checkpoints whose weights say what they are, and remembers what it did."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.mood: dict[str, str] = {}

    def __call__(self, folder: RunFolder, run: PlannedRun, report: Report, stop: Event) -> str:
        config = read_config(folder.config)
        self.trained.append(run.name)
        mood = self.mood.get(run.name, "final")
        if mood == "fails":
            raise HoneError("hone train ended with exit code 2: the loss is nan")
        store = Store(folder.store, create=True)
        number = len(folder.starts())
        folder.note(started=100.0 * number)
        known = store.checkpoints.get(CURRENT)
        done = -1 if known is None else known.facts["step"]
        last = 5 if mood == "interrupted" else config.train.max_steps
        for step in (0, 5, 10):
            if done < step <= last:
                self.publish(store, run, step, 100.0 * number + step)
        folder.note(ended=100.0 * number + last, reason=mood, peak={"trainer": 7_000_000})
        return mood

    def publish(self, store: Store, run: PlannedRun, step: int, time: float) -> None:
        final = step == run.config.train.max_steps
        with store.checkpoints.stage(parents={}) as draft:
            (draft.path / "weights").write_text(f"{run.name} {step}")
            seed = 0 if step == 0 else 100 * run.seed + step + len(run.config.refresh.trigger)
            draft.facts.update(step=step, final=final, weights_sha256=str(seed), model={"name": "hash"})
        line = {"time": time, "event": "checkpoint", "source": "trainer", "step": step, "number": draft.number}
        with (store.root / "events.jsonl").open("a") as file:
            file.write(json.dumps(line | {"final": final}) + "\n")


class Comparing:
    """A comparison on tiny data that is carried out by stand-ins, in one folder, again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_tiny_data(folder / "data")
        self.trainer = Trainer()
        self.opened: list[str] = []
        self.said: list[str] = []
        self.published: list[dict[str, Any]] = []
        self.ranker: OverlapRanker | None = None

    def bench(self, text: str = COMPARE) -> Bench:
        path = self.folder / "compare.toml"
        path.write_text(text)
        bench = open_bench(read_comparison(path), self.folder / "out", skip_missing=False)
        rankers = replace(bench.rankers, given=self.ranker)
        return replace(bench, open_encoder=self.open_encoder, rankers=rankers)

    def open_encoder(self, checkpoint: Artifact) -> HashEncoder:
        self.opened.append(checkpoint.facts["weights_sha256"])
        return HashEncoder(dimensions=8, seed=int(checkpoint.facts["weights_sha256"]))

    def report(self, event: str, **fields: Any) -> None:
        if event == "warning":
            self.said.append(fields["message"])

    def run(self, text: str = COMPARE, stop: Event | None = None) -> dict[str, Any]:
        for one in (self.trainer.trained, self.opened, self.said, self.published):
            one.clear()
        return carry_out(self.bench(text), self.trainer, self.report, stop or Event(), self.published.append)


@pytest.fixture
def comparing(tmp_path: Path) -> Comparing:
    return Comparing(tmp_path)


EVERY = ["static, seed 1", "refreshed, seed 1", "static, seed 2", "refreshed, seed 2"]


def test_each_run_is_trained_and_measured_once(comparing: Comparing) -> None:
    results = comparing.run()
    assert comparing.trainer.trained == EVERY and comparing.said == []
    assert [(run["system"], run["seed"]) for run in results["runs"]] == [
        (name.partition(",")[0], int(name[-1])) for name in EVERY
    ]
    assert [[one["step"] for one in run["curve"]] for run in results["runs"]] == [[0, 5, 10]] * 4
    assert [one["seconds"] for one in results["runs"][0]["curve"]] == [0, 5, 10]
    assert comparing.opened.count("0") == 1 and len(comparing.opened) == 1 + 4 * 2, "the same model is measured once"
    assert [len(one["runs"]) for one in comparing.published] == [1, 2, 3, 4, 4]
    assert results["data"]["test"] == {"split": "test", "queries": 10, "is_dev": False}
    for run in results["runs"]:
        store = Store(comparing.folder / "out" / run["folder"] / "store")
        assert store.checkpoints.at(run["best"]["checkpoint"]).facts["step"] == run["best"]["step"]
    assert results["runs"][0]["warnings"] == [UNREFRESHED], "the stand-in adopts nothing"
    assert results["runs"][0]["peak"] == {"trainer": 7_000_000}
    again = comparing.run()
    assert comparing.trainer.trained == comparing.opened == [] and again == results, "what is done is not done again"
    assert html(again) == html(results)


def test_a_checkpoint_whose_event_a_kill_took_is_measured_all_the_same(comparing: Comparing) -> None:
    folder = comparing.folder / "out" / comparing.run()["runs"][0]["folder"]
    (folder / "curve.json").unlink()
    events = folder / "store/events.jsonl"
    events.write_text("".join(events.read_text().splitlines(keepends=True)[:-1]))
    run = comparing.run()["runs"][0]
    assert comparing.trainer.trained == [] and run["curve"][-1]["step"] == 10
    assert run["curve"][-1]["seconds"] == 5, "the session's last sign of life"


def test_an_interrupted_run_goes_on_and_no_finished_one_is_lost(comparing: Comparing) -> None:
    comparing.trainer.mood = {"refreshed, seed 1": "interrupted"}
    with pytest.raises(Interrupted, match=r"interrupted in refreshed, seed 1: 1 of 4 runs are done, the same command"):
        comparing.run()
    comparing.trainer.mood = {}
    results = comparing.run()
    assert comparing.trainer.trained == EVERY[1:]
    interrupted = results["runs"][1]
    assert interrupted["sessions"] == 2 and [one["step"] for one in interrupted["curve"]] == [0, 5, 10]


def test_a_stop_while_a_run_is_measured_keeps_what_was_trained(comparing: Comparing) -> None:
    stop = Event()

    def stopping(checkpoint: Artifact) -> HashEncoder:
        stop.set()
        return comparing.open_encoder(checkpoint)

    bench = replace(comparing.bench(), open_encoder=stopping)
    with pytest.raises(Interrupted, match="was measured: 0 of 4 runs are done"):
        carry_out(bench, comparing.trainer, comparing.report, stop, comparing.published.append)
    comparing.run()
    assert comparing.trainer.trained == EVERY[1:]


def test_one_failed_run_does_not_lose_the_others(comparing: Comparing) -> None:
    comparing.trainer.mood = {"static, seed 1": "fails"}
    results = comparing.run()
    assert len(results["runs"]) == 3
    assert results["failed"] == [
        {"system": "static", "seed": 1, "problem": "hone train ended with exit code 2: the loss is nan"}
    ]
    assert comparing.said == ["static, seed 1 failed: hone train ended with exit code 2: the loss is nan"]
    comparing.trainer.mood = {}
    assert comparing.run()["failed"] == [] and comparing.trainer.trained == EVERY[:1]


def test_a_changed_system_runs_anew_alone_and_says_so(comparing: Comparing) -> None:
    comparing.run()
    changed = COMPARE.replace("steps:5", "steps:50")
    comparing.run(changed)
    assert comparing.trainer.trained == ["refreshed, seed 1", "refreshed, seed 2"]
    assert len(comparing.said) == 2
    assert (
        "refreshed, seed 1: its configuration or data changed, it runs anew; before: refreshed-1-" in comparing.said[0]
    )
    comparing.run()
    assert comparing.trainer.trained == comparing.said == [], "the earlier runs are still there"


@pytest.mark.parametrize(
    "change", [("steps = 10", "steps = 5"), ("steps = 10", "steps = 10\nminutes = 9"), ("depth = 10", "depth = 9")]
)
def test_what_all_share_changes_all(comparing: Comparing, change: tuple[str, str]) -> None:
    comparing.run()
    comparing.run(COMPARE.replace(*change))
    assert comparing.trainer.trained == EVERY


def test_more_seeds_and_more_systems_run_what_is_new(comparing: Comparing) -> None:
    comparing.run()
    comparing.run(COMPARE.replace("[1, 2]", "[1, 2, 3]"))
    assert comparing.trainer.trained == ["static, seed 3", "refreshed, seed 3"]
    comparing.run(COMPARE.replace('baseline = "static"', 'baseline = "refreshed"') + "[systems.static-1]\n")
    assert comparing.trainer.trained == ["static-1, seed 1", "static-1, seed 2"] and comparing.said == []


def test_changed_data_run_anew(comparing: Comparing) -> None:
    comparing.run()
    qrels = comparing.folder / "data/qrels/test.tsv"
    qrels.write_text("\n".join(qrels.read_text().splitlines()[:-1]) + "\n")
    results = comparing.run()
    assert comparing.trainer.trained == EVERY and results["data"]["test"]["queries"] == 9


def test_another_model_under_the_same_name_is_another_run(comparing: Comparing) -> None:
    (comparing.folder / "ranker/deep").mkdir(parents=True)
    weights = comparing.folder / "ranker/deep/weights"
    weights.write_text("before")
    teacher = f'[systems.static.teacher]\nname = "{comparing.folder / "ranker"}"\nloss = "kl"\n'
    comparing.run(COMPARE + teacher)
    weights.write_text("after")
    comparing.run(COMPARE + teacher)
    assert comparing.trainer.trained == ["static, seed 1", "static, seed 2"] and "runs anew" in comparing.said[0]


def test_a_model_that_changes_meanwhile_spoils_its_own_run_alone(comparing: Comparing) -> None:
    model = comparing.folder / "model"
    model.mkdir()
    (model / "weights").write_text("1")
    text = COMPARE + f'[systems.refreshed.model]\nname = "{model}"\n'
    train = comparing.trainer.__class__.__call__

    def trained(folder: RunFolder, run: PlannedRun, report: Report, stop: Event) -> str:
        reason = train(comparing.trainer, folder, run, report, stop)
        if run.name == "static, seed 1":
            (model / "weights").write_text("2")
        return reason

    found = carry_out(comparing.bench(text), trained, comparing.report, Event(), lambda _: None)
    assert [(run["system"], run["seed"]) for run in found["runs"]] == [("static", 1), ("static", 2)]
    assert [one["system"] for one in found["failed"]] == ["refreshed"] * 2
    assert "have changed since this comparison began" in found["failed"][0]["problem"]
    assert len([*(comparing.folder / "out/runs").glob("refreshed-*/store")]) == 0, "nothing of it counts later"
    assert len(comparing.run(text)["runs"]) == 4


def test_the_folder_may_be_moved_with_its_data(comparing: Comparing) -> None:
    comparing.run()
    moved = comparing.folder / "moved"
    moved.mkdir()
    for name in ("data", "out"):
        (comparing.folder / name).rename(moved / name)
    comparing.folder = moved
    comparing.run()
    assert comparing.trainer.trained == []


def test_without_a_test_split_dev_is_read_and_it_is_said(comparing: Comparing) -> None:
    (comparing.folder / "data/qrels/test.tsv").unlink()
    results = comparing.run()
    assert results["data"]["test"] == {"split": "dev", "queries": 10, "is_dev": True}
    assert "There is no test split" in html(results)
    with pytest.raises(InputError, match=r"qrels/held\.tsv"):
        comparing.run('test = "held"\n' + COMPARE)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            'trigger = "once"',
            'trigger = "once"\n[systems.static.negatives]\ndepth = 61',
            r"systems\.static: negatives\.d",
        ),
        ("batch_size = 4", "batch_size = 999", r"systems\.static: \[train\] batch_size = 999"),
        ("[run.negatives]", '[run.mix]\nby = "sizes"\n[run.negatives]', r"systems\.static: .*hone dataset join"),
        ("depth = 10", 'depth = 10\nsources = ["ann", "generation:WARMUP"]', r"systems\.static: .*WARMUP"),
        ('path = "data"', 'path = "nowhere"', r"nowhere"),
        ('path = "data"', 'path = "data"\ndev = "none"', r"qrels/none\.tsv"),
        ('path = "data"', 'path = "data"\ntrain = "none"', r"qrels/none\.tsv"),
        (
            'path = "data"',
            'path = "data"\ntrain = "test"',
            r"systems\.static: \d+ relevant pairs of data\.train = 'test' m",
        ),
        (
            'path = "data"',
            'path = "data"\ntrain = "dev"',
            r"systems\.static: \d+ relevant pairs of data\.train = 'dev' m",
        ),
        ("seeds = [1, 2]", 'seeds = [1, 2]\ntest = "train"', r"systems\.static: .*'train' measure it"),
        (
            'path = "data"',
            'path = "data"\ndev = "both"',
            r"of dev 'both' belong to test 'test', too.*name another test",
        ),
        (
            'path = "data"',
            'path = "data"\ndev = "test:0.5"',
            r'would choose what they judge; write test = "test:-0\.5"',
        ),
    ],
)
def test_what_does_not_fit_the_data_is_told_before_anything_runs(
    comparing: Comparing, right: str, wrong: str, message: str
) -> None:
    qrels = comparing.folder / "data/qrels"
    (qrels / "both.tsv").write_text(
        (qrels / "dev.tsv").read_text() + (qrels / "test.tsv").read_text().partition("\n")[2]
    )
    with pytest.raises(InputError, match=message):
        comparing.run(COMPARE.replace(right, wrong))
    assert comparing.trainer.trained == []


def test_half_of_test_may_choose_where_the_other_half_judges(comparing: Comparing) -> None:
    text = 'test = "test:-0.5"\n' + COMPARE.replace('path = "data"', 'path = "data"\ndev = "test:0.5"')
    data = comparing.run(text)["data"]
    assert data["dev"]["split"] == "test:0.5" and data["test"]["split"] == "test:-0.5"
    assert data["dev"]["queries"] > 0 < data["test"]["queries"] and not data["test"]["is_dev"]


def test_the_run_file_of_each_run_is_whole(comparing: Comparing) -> None:
    bench = comparing.bench()
    comparing.run()
    folder = bench.run_folder(bench.comparison.runs[3])
    assert folder.root.name.startswith("refreshed-2-")
    config = read_config(folder.config)
    assert (config.seed, config.refresh.trigger, config.train.max_steps) == (2, "steps:5", 10)
    assert (folder.root / config.data.path).resolve() == comparing.folder / "data"
    assert {CURVE, EVALUATIONS, "run.toml", "sessions.jsonl"} <= {path.name for path in folder.root.iterdir()}


def test_a_kill_before_old_checkpoints_were_removed_leaves_them_until_the_next_command(
    comparing: Comparing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(store: Store) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_curve, "keep_measured", killed)
        with pytest.raises(KeyboardInterrupt):
            comparing.run()
    (first,) = (comparing.folder / "out/runs").iterdir()
    assert len(Store(first / "store").checkpoints.numbers()) == 3
    comparing.run()
    assert len(Store(first / "store").checkpoints.numbers()) <= 2, "the best and the last"
    assert comparing.trainer.trained == EVERY[1:], "it was measured"


def test_with_a_ranker_measured_runs_are_reranked_but_not_trained_or_measured_again(comparing: Comparing) -> None:
    plain = comparing.run()
    assert plain["findings"]["pipeline"] is None and plain["runs"][0]["reranked"] is None
    comparing.ranker = OverlapRanker()
    results = comparing.run("rerank = 5\n" + COMPARE)
    assert comparing.trainer.trained == [] and [run["curve"] for run in results["runs"]] == [
        run["curve"] for run in plain["runs"]
    ]
    pipeline = results["findings"]["pipeline"]
    assert (pipeline["depth"], pipeline["against"], list(pipeline["systems"])) == (
        5,
        "reranked",
        ["static", "refreshed"],
    )
    for run in results["runs"]:
        assert run["reranked"]["pairs"] == 50 and run["reranked"]["test"]["nDCG@10"] > 0
        assert run["reranked"]["step"] in (run["best"]["step"], run["last"]["step"])
    comparing.run("rerank = 5\n" + COMPARE)
    assert comparing.opened == [], "all is found again"
    comparing.run("rerank = 6\n" + COMPARE)
    assert comparing.opened and comparing.trainer.trained == []


def test_a_named_ranker_is_opened_before_anything_runs(comparing: Comparing) -> None:
    with pytest.raises(InputError, match="'nobody/ranker': cannot be loaded"):
        comparing.run('ranker = "nobody/ranker"\n' + COMPARE)
    assert comparing.trainer.trained == []
