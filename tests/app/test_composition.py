from pathlib import Path
from threading import Event
from typing import Any

import pytest

from app.composition import Run, make_trainer, open_run, with_positives
from app.refreshing import InlineRefresher
from retriever.data import QuerySet
from retriever.errors import InputError
from tests.app.command_line import contents, never, opened, silent, write_run
from tests.stand_ins import write_tiny_data


def test_a_run_is_its_configuration_with_store_and_data(tiny: Path, tmp_path: Path) -> None:
    run = opened(tiny / "run.toml", tmp_path / "store")
    assert (len(run.corpus), len(run.train)) == (60, 20)
    assert run.dev is not None and len(run.dev) == 10
    assert run.store.corpora.at(0).manifest["config_sha256"] == run.config.sha256
    assert opened(tiny / "run.toml", tmp_path / "store").corpus.number == 0, "the same corpus is not ingested again"


def test_dev_carved_off_train_shares_nothing_with_it(tiny: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model", ("[model]", 'dev = "train:0.3"\n[model]'))
    run = opened(config, tmp_path / "store")
    assert run.dev is not None and 0 < len(run.dev) < len(run.train)
    assert sorted([*run.train.ids, *run.dev.ids]) == sorted(f"q{n}" for n in range(20))


def test_queries_without_a_positive_are_counted_and_not_trained_on() -> None:
    said: list[str] = []
    queries = QuerySet("train", ["a", "b", "c"], ["x", "y", "z"], [{0: 1}, {1: 0}, {2: 2}])
    assert with_positives(queries, said.append).ids == ["a", "c"]
    assert said == ["split train: 1 queries have no relevant passage and are not trained on"]
    assert with_positives(queries.subset([0, 2]), never).ids == ["a", "c"]


@pytest.mark.parametrize("depth", [10, 31])
def test_a_corpus_that_does_not_fit_the_run_is_not_published(
    tiny: Path, tmp_path: Path, trained: Path, depth: int
) -> None:
    """Else the newest corpus of the store would be one that nothing in it belongs to."""
    data = write_tiny_data(tmp_path / "data", passages=30, queries=28)
    config = write_run(tmp_path / "run.toml", data, tiny / "model", ("depth = 10", f"depth = {depth}"))
    if depth == 10:
        (data / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp55\t1\n")
    before = contents(trained)
    with pytest.raises(InputError, match="p55" if depth == 10 else r"negatives\.depth = 31, but the corpus has 30"):
        opened(config, trained)
    assert contents(trained) == before


def test_skip_missing_counts_what_it_leaves_out(tiny: Path, tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    with (data / "qrels/train.tsv").open("a") as file:
        file.write("q1\tnix\t1\nnobody\tp1\t1\n")
    config = write_run(tmp_path / "run.toml", data, tiny / "model")
    said: list[str] = []
    run = open_run(config, tmp_path / "store", skip_missing=True, warn=said.append)
    assert len(run.train) == 20
    assert len(said) == 2 and "1 judgements name an unknown passage: nix" in said[0] and "nobody" in said[1]


def trainer_events(run: Run, stop: Event) -> list[str]:
    events: list[str] = []

    def report(event: str, **fields: Any) -> None:
        events.append(event)

    outcome = make_trainer(run, InlineRefresher(run, silent), report, stop).run()
    assert outcome.reason == ("interrupted" if stop.is_set() else "finished")
    return events


def test_the_trainer_of_a_run_draws_from_its_negative_sets(tiny: Path, tmp_path: Path) -> None:
    run = opened(tiny / "run.toml", tmp_path / "store")
    events = trainer_events(run, Event())
    assert events.count("step") == 6 and events.count("adopted") == 2
    stopped = Event()
    stopped.set()
    assert "step" not in trainer_events(opened(tiny / "run.toml", tmp_path / "other"), stopped)
