import json
import re
import tomllib
from pathlib import Path

import pytest

from app.config import RunConfig, check_keys, data_folder, read_config
from app.run_file import write_run_file
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.phases import PhasesConfig
from retriever.ranker_learner import RankerTrainConfig
from tests.stand_ins import write_json_lines, write_tiny_data


def written(tiny: Path, data: Path, out: Path) -> RunConfig:
    write_run_file(data, out, str(tiny / "model"))
    return read_config(out)


def test_what_it_writes_is_a_run_that_fits_data_and_model(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run.toml"
    estimate = write_run_file(tiny / "data", out, str(tiny / "model"))
    config = read_config(out)
    assert data_folder(config, out).resolve() == tiny / "data"
    assert (config.data.train, config.data.dev) == ("train", "dev")
    assert config.negatives.depth <= 60 and config.train.batch_size <= 20
    assert config.model.passage_max_length == config.model.query_max_length == 64, "the model reads no more"
    assert 0 < config.train.warmup_steps < config.train.max_steps
    assert {"passages": 60, "train_queries": 20}.items() <= estimate.items()
    assert estimate["seconds"] >= 0 and estimate["disk_mb"] > 0
    assert f"{estimate['disk_mb']} MB" in out.read_text()


def test_a_folder_with_the_model_is_found_from_anywhere(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny)
    write_run_file(Path("data"), tmp_path / "run.toml", "model")
    config = read_config(tmp_path / "run.toml")
    assert config.model.name == str(tiny / "model")
    assert data_folder(config, tmp_path / "run.toml").resolve() == tiny / "data"


def test_a_path_that_toml_would_misread_is_quoted(tiny: Path, tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / 'so "called"\\data')
    assert data_folder(written(tiny, data, tmp_path / "run.toml"), tmp_path / "run.toml") == data


@pytest.mark.parametrize(("queries", "share"), [(40, "train:0.3"), (240, "train:0.1")])
def test_without_dev_queries_some_are_carved_off_train(tiny: Path, tmp_path: Path, queries: int, share: str) -> None:
    data = write_tiny_data(tmp_path / "data", passages=240, queries=queries)
    (data / "qrels/dev.tsv").unlink()
    config = written(tiny, data, tmp_path / "run.toml")
    assert config.data.dev == share
    assert config.train.batch_size <= queries // 4, "what remains of train must fill a batch"


def test_an_existing_file_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.toml"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"run\.toml: exists already.*--out"):
        write_run_file(tiny / "data", out, str(tiny / "model"))
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("file", "content", "wrong"),
    [
        ("corpus.jsonl", None, "corpus.jsonl: no such file"),
        ("corpus.jsonl", "", "corpus.jsonl: no passages"),
        ("corpus.jsonl", "{", "corpus.jsonl:1: malformed JSON"),
        ("qrels/train.tsv", None, "train.tsv: no such file"),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\nq0\tp0\t0\n", "train.tsv: no relevant pair"),
    ],
)
def test_data_that_cannot_be_trained_on(tiny: Path, tmp_path: Path, file: str, content: str | None, wrong: str) -> None:
    data = write_tiny_data(tmp_path / "data")
    (data / file).unlink() if content is None else (data / file).write_text(content)
    with pytest.raises(InputError, match=wrong):
        write_run_file(data, tmp_path / "run.toml", str(tiny / "model"))
    assert not (tmp_path / "run.toml").exists()


def test_more_data_is_estimated_to_take_longer(tiny: Path, tmp_path: Path) -> None:
    """The estimate of disk is arithmetic; that of time is measured, and only its order can be told here."""
    small = write_run_file(tiny / "data", tmp_path / "small.toml", str(tiny / "model"))
    data = write_tiny_data(tmp_path / "data")
    lines = [{"_id": f"p{n}", "text": "baka beki bodu"} for n in range(20_000)]
    write_json_lines(data / "corpus.jsonl", lines)
    large = write_run_file(data, tmp_path / "large.toml", str(tiny / "model"))
    assert large["passages"] == 20_000
    assert large["disk_mb"] - small["disk_mb"] == pytest.approx((20_000 - 60) * 32 * 4 * 8 / 1e6, abs=1)
    model = create_encoder(ModelConfig(name=str(tiny / "model")))
    weights = sum(one.numel() for one in model.passage.parameters())
    assert small["disk_mb"] == round((60 * 32 * 4 * 8 + weights * 4 * 13) / 1e6)
    assert large["seconds"] > small["seconds"]
    assert json.loads(json.dumps(large)) == large


def test_what_it_has_in_reserve_are_keys_of_a_run(tiny: Path, tmp_path: Path) -> None:
    written(tiny, tiny / "data", tmp_path / "run.toml")
    text = (tmp_path / "run.toml").read_text()
    reserve = re.compile(r"^# (?=\[\w+\]|\w+ = )", re.MULTILINE)
    table = tomllib.loads(reserve.sub("", text))
    check_keys(table, RunConfig, "run.toml")
    assert {"ranker", "phases", "teacher", "audit", "batches"} <= table.keys()
    assert {"drawn_negatives", "grad_cache", "device"} <= table["train"].keys()


def test_the_ranker_that_it_shows_is_one_that_can_be_switched_on(tiny: Path, tmp_path: Path) -> None:
    written(tiny, tiny / "data", tmp_path / "run.toml")
    text = (tmp_path / "run.toml").read_text()
    lines = text[text.index("# [ranker]") : text.index("[negatives]")].splitlines()
    (tmp_path / "on.toml").write_text(text + "\n".join(line.removeprefix("# ") for line in lines))
    config = read_config(tmp_path / "on.toml")
    assert config.ranker is not None and config.phases is not None
    defaults = RankerTrainConfig("minilm", max_length=config.ranker.max_length)
    assert (config.ranker, config.phases) == (defaults, PhasesConfig())
