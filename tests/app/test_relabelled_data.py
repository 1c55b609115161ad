import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.config import RunConfig, run_config
from app.relabelled_data import check_out, write_relabelled
from retriever.data import Corpus, QuerySet
from retriever.errors import InputError
from retriever.ingest import load_query_set
from tests.app.command_line import never
from tests.stand_ins import tiny_store, write_json_lines, write_tiny_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny_data(tmp_path / "data")


def opened(tmp_path: Path, data: Path, split: str = "train") -> tuple[Corpus, QuerySet]:
    corpus = tiny_store(tmp_path / "store", data)[1]
    return corpus, load_query_set(data, split, corpus, warn=never)


def verdicts(path: Path, acted: Sequence[tuple[str, str, str]]) -> Path:
    write_json_lines(path, [{"query": q, "passage": p, "relevant": True, "action": a} for q, p, a in acted])
    return path


def config(dev: str = "dev") -> RunConfig:
    return run_config({"data": {"path": "data", "dev": dev}}, "run.toml")


def qrels(folder: Path, split: str) -> list[list[str]]:
    return [line.split("\t") for line in (folder / f"qrels/{split}.tsv").read_text().splitlines()[1:]]


def test_only_the_training_qrels_change(tmp_path: Path, data: Path) -> None:
    path = data / "corpus.jsonl"
    (data / "corpus.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    corpus, queries = opened(tmp_path, data)
    acted = [
        ("q1", "p9", "relabel"),
        ("q2", "p9", "drop_example"),
        ("q2", "p8", "relabel"),
        ("q3", "p9", "drop_negative"),
    ]
    file = verdicts(tmp_path / "verdicts.jsonl", acted)
    told = write_relabelled(config(), data, tmp_path / "new/clean", corpus, queries, file)
    assert told == {"positives_added": 1, "queries_dropped": 1}
    clean = tmp_path / "new/clean"
    for name in ("corpus.jsonl.gz", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv"):
        assert (clean / name).read_bytes() == (data / name).read_bytes()
    assert qrels(clean, "train") == [line for line in qrels(data, "train") if line[0] != "q2"] + [["q1", "p9", "1"]]
    assert (clean / "verdicts.jsonl").read_bytes() == file.read_bytes()
    assert [one.name for one in clean.parent.iterdir()] == ["clean"]


def test_a_carved_dev_is_written_as_it_was_carved(tmp_path: Path, data: Path) -> None:
    (data / "qrels/dev.tsv").unlink()
    corpus, queries = opened(tmp_path, data, "train:-0.3")
    _, dev = opened(tmp_path, data, "train:0.3")
    assert len(dev) > 0 and not set(dev.ids) & set(queries.ids)
    file = verdicts(tmp_path / "v.jsonl", [(queries.ids[0], "p9", "relabel")])
    write_relabelled(config("train:0.3"), data, tmp_path / "clean", corpus, queries, file)
    assert {line[0] for line in qrels(tmp_path / "clean", "dev")} == set(dev.ids)
    assert {line[0] for line in qrels(tmp_path / "clean", "train")} == set(queries.ids)
    assert [queries.ids[0], "p9", "1"] in qrels(tmp_path / "clean", "train")


def test_a_carved_dev_beside_a_dev_split_is_refused(tmp_path: Path, data: Path) -> None:
    corpus, queries = opened(tmp_path, data, "train:-0.3")
    file = verdicts(tmp_path / "v.jsonl", [])
    with pytest.raises(InputError, match=r'has a split dev beside the dev = "train:0.3"'):
        write_relabelled(config("train:0.3"), data, tmp_path / "clean", corpus, queries, file)
    assert not (tmp_path / "clean").exists()


def test_what_the_qrels_judged_stays_as_it_is(tmp_path: Path, data: Path) -> None:
    path = data / "qrels/train.tsv"
    path.write_text(path.read_text() + "q1\tp9\t0\n")
    corpus, queries = opened(tmp_path, data)
    file = verdicts(tmp_path / "v.jsonl", [("q1", "p9", "relabel"), ("q1", "p1", "relabel")])
    told = write_relabelled(config(), data, tmp_path / "clean", corpus, queries, file)
    assert told["positives_added"] == 0 and qrels(tmp_path / "clean", "train") == qrels(data, "train")


def test_a_fault_midway_leaves_nothing(tmp_path: Path, data: Path) -> None:
    corpus, queries = opened(tmp_path, data)
    file = verdicts(tmp_path / "v.jsonl", [])
    (data / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\n")
    with pytest.raises(InputError):
        write_relabelled(config(), data, tmp_path / "clean", corpus, queries, file)
    assert not (tmp_path / "clean").exists() and not list(tmp_path.glob(".tmp-*"))


def test_a_folder_that_holds_something_is_never_written_over(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "a file"
    file.write_text(json.dumps({}))
    for taken in (data, file):
        with pytest.raises(InputError, match="exists already"):
            check_out(taken)
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty")
    check_out(tmp_path / "absent")
