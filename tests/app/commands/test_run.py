import json
import subprocess
import sys
from pathlib import Path

import pytest

from retriever.durable import read_lines
from retriever.store import Store
from tests.app.command_line import Hone, write_run
from tests.stand_ins import write_tiny_data
from tests.tiny_ranker import write_tiny_ranker

ROOT = Path(__file__).parent.parent.parent.parent


def test_init_then_a_run(hone: Hone, tiny: Path) -> None:
    made = hone("init", tiny / "data", "--model", tiny / "model", "--json").json
    assert made["run"] == "run.toml" and made["train_queries"] == 20
    path = Path("run.toml")
    for old, new in (("max_steps = 30", "max_steps = 4"), ("warmup_steps = 3", "warmup_steps = 1")):
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))  # what init writes takes minutes
    assert hone("cycle", "run.toml", "--json").json["step"] == 4


def test_init_tells_time_disk_and_what_is_next(hone: Hone, tiny: Path) -> None:
    answer = hone("init", tiny / "data", "--model", tiny / "model", "--out", "deep/my.toml")
    assert "deep/my.toml: 60 passages, 20 training queries." in answer.out
    assert "MB of disk" in answer.out and "Next: hone train deep/my.toml" in answer.out
    assert "deep/my.toml: exists already" in hone("init", tiny / "data", "--out", "deep/my.toml").complaint


def test_a_run_that_gets_no_better_stops_early(hone: Hone, tiny: Path) -> None:
    still = ("learning_rate = 1e-3", "learning_rate = 1e-12\npatience = 1")
    config = write_run(Path("run.toml"), tiny / "data", tiny / "model", still, ("max_steps = 6", "max_steps = 60"))
    answer = hone("cycle", config, "--json").json
    assert (answer["reason"], answer["step"]) == ("stopped early", 3), "the second generation was no better"


def test_cycle_tells_what_it_did_and_what_is_next(hone: Hone, tiny: Path) -> None:
    answer = hone("cycle", tiny / "run.toml", "--store", "here")
    assert answer.code == 0
    first, second, best, store, following = answer.out.splitlines()
    assert first.startswith("finished after 6 steps") and "2 negative sets adopted" in second
    assert best.startswith("best on dev: generation ") and "nDCG@10" in best
    assert (store, following) == ("store: here", "Next: hone serve --store here")
    assert hone("search", "baka", "--store", "here", "--json").json["hits"]


def test_a_run_of_a_ranker_tells_where_that_is(hone: Hone, tiny: Path, tmp_path: Path) -> None:
    """What is best on dev goes by retrieval, which a ranker alone leaves as it is."""
    ranker = f'[ranker]\nname = "{write_tiny_ranker(tmp_path / "ranker")}"\nnum_negatives = 2\nwarmup_steps = 1\n'
    added = ("[negatives]", f"{ranker}[phases]\nretriever = 0\n[negatives]")
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", added, ("steps:3", "once"))
    answer = hone("cycle", config, "--store", "here")
    *_, best, told, _store, _following = answer.out.splitlines()
    assert "of step 0" in best and told.startswith("the ranker, which these figures do not know: here/checkpoints/")
    assert hone("index", tiny / "data", "--model", tiny / "model", "--ranker", told.split(": ")[1]).code == 0


def test_a_longer_run_of_another_configuration(hone: Hone, tiny: Path, trained: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "longer.toml", tiny / "data", tiny / "model", ("seed = 1", "seed = 2"))
    assert "--resume" in hone("cycle", config).complaint
    assert hone("cycle", config, "--new", "--json").json["step"] == 6
    (aside,) = tmp_path.glob("store.old-*")
    assert Store(aside).checkpoints.numbers() == [0, 1, 2]
    configs = {Store(root).checkpoints.at(2).manifest["config_sha256"] for root in (aside, trained)}
    assert len(configs) == 2


def test_what_train_and_refresh_must_be_told_right(hone: Hone, tiny: Path) -> None:
    assert (
        "--refresher nowhere: write child or elsewhere"
        in hone("train", tiny / "run.toml", "--refresher", "nowhere").complaint
    )
    for command in ("train", "cycle", "refresh", "mine"):
        assert "none.toml: cannot be read" in hone(command, "none.toml").complaint
    assert not Path("store").exists()


def test_refresh_does_what_is_left_to_do_and_ends(hone: Hone, tiny: Path, trained: Path) -> None:
    answer = hone("refresh", tiny / "run.toml")
    assert answer.code == 0 and json.loads(answer.err.splitlines()[-1])["event"] == "drained"


def test_a_run_whose_ranker_serves_nobody_says_so(hone: Hone, tiny: Path, tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data", passages=160, queries=160)
    ranker = write_tiny_ranker(tmp_path / "ranker")
    table = f'[ranker]\nname = "{ranker}"\nbatch_size = 4\nnum_negatives = 2\nwarmup_steps = 0\nlearning_rate = 1e-9\n'
    turns = "[phases]\nranker = 1\nretriever = 1\n"
    write_run(tmp_path / "run.toml", data, tiny / "model", ("[negatives]", f"{table}{turns}[negatives]"))
    *_, store, following = hone("cycle", "run.toml", "--store", "here").out.splitlines()
    assert store == "store: here" and following.startswith("Nothing is served: dev nDCG@10 reranked 0.")
    assert following.endswith("hone promote 2 --force --store here serves it all the same")
    assert Store(tmp_path / "here").generations.pointed("SERVED") is None


@pytest.mark.slow
def test_train_with_a_refresher_of_its_own(tiny: Path, tmp_path: Path, hone: Hone) -> None:
    """As a person starts it, from the run.toml that init wrote."""
    store = tmp_path / "store"
    assert hone("init", tiny / "data", "--model", tiny / "model", "--out", "run.toml").code == 0
    train = [sys.executable, "-m", "app.cli", "train", str(tmp_path / "run.toml"), "--store", str(store), "--json"]
    result = json.loads(subprocess.run(train, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert (result["reason"], result["step"]) == ("finished", 30) and result["refresher_pid"] is not None
    events = read_lines(store / "events.jsonl")
    published = [event for event in events if event["event"] == "negatives_published"]
    assert published[-1]["step"] == 30 and published[-1]["source"] == "refresher"
    assert not [event for event in events if event["event"] == "warning"]
    assert "Traceback" not in (store / "refresher.log").read_text()
