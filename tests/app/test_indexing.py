import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from app import indexing
from app.indexing import index_data, rebuild, rebuild_or_wait
from app.jobs import Cancelled
from indexer.factory import IndexConfig
from indexer.promotion import promote
from retriever.artifacts import SERVED, Artifact
from retriever.durable import exclusive
from retriever.errors import BusyError, InputError
from retriever.ingest import ingest_corpus
from retriever.store import KINDS, Store
from tests.app.command_line import contents, silent
from tests.app.served import damage, wait_for
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model

EXACT = IndexConfig(precision="fp32")


def index(tiny: Path, store: Path, data: Path | None = None, config: IndexConfig = EXACT) -> Artifact:
    return index_data(store, data or tiny / "data", str(tiny / "model"), asdict(config), silent)


def aged(store: Store) -> Store:
    """Let all that ``store`` holds be an hour old."""
    then = time.time() - 3600
    for kind in KINDS:
        for number in store.series(kind).numbers():
            os.utime(store.series(kind).path(number), (then, then))
    return store


def grown(data: Path, word: str = "baka") -> Path:
    """Give the data set ``data`` one more passage."""
    with (data / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": f"new-{word}", "title": "", "text": word}) + "\n")
    return data


def test_a_data_set_with_a_model_as_it_is(indexed: Path) -> None:
    store = Store(indexed)
    generation = store.generations.at(0)
    assert generation.parents == {"checkpoint": 0, "corpus": 0}
    assert (generation.facts["rows"], generation.facts["step"], generation.facts["dev_queries"]) == (60, 0, 10)
    assert store.generations.pointers().items() >= {"CURRENT": 0, "SERVED": 0, "BEST": 0}.items()
    generation.verify()


def test_again_costs_a_generation_but_no_checkpoint_and_no_encoding(tiny: Path, indexed: Path) -> None:
    shards = contents(indexed / "embeddings")
    index(tiny, indexed)
    store = Store(indexed)
    assert [len(store.series(kind).numbers()) for kind in ("corpora", "checkpoints", "generations")] == [1, 1, 2]
    assert contents(indexed / "embeddings") == shards


def test_without_dev_queries_there_is_no_metric_and_it_is_served(tiny: Path, tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    (data / "qrels/dev.tsv").unlink()
    generation = index(tiny, tmp_path / "store", data)
    assert generation.facts["dev"] == {} and generation.facts["recall_at_100"] == 1.0
    assert Store(tmp_path / "store").generations.pointed("SERVED") == 0


@pytest.mark.parametrize("also_new_data", [False, True])
def test_what_faiss_refuses_is_refused_before_anything_is_published(
    tiny: Path, indexed: Path, tmp_path: Path, also_new_data: bool
) -> None:
    data = write_tiny_data(tmp_path / "data", seed=8) if also_new_data else None
    before = contents(indexed)
    with pytest.raises(InputError, match=r"\[index\] factory = 'Nonsense'"):
        index(tiny, indexed, data, IndexConfig(factory="Nonsense", precision="fp32"))
    assert contents(indexed) == before


def test_dev_queries_that_do_not_fit_are_refused_before_anything_is_published(
    tiny: Path, indexed: Path, tmp_path: Path
) -> None:
    data = write_tiny_data(tmp_path / "data", seed=8)
    (data / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tnix\t1\n")
    before = contents(indexed)
    with pytest.raises(InputError, match=r"dev\.tsv: 1 judgement names an unknown passage: nix"):
        index(tiny, indexed, data)
    assert contents(indexed) == before
    said: list[str] = []

    def report(event: str, **fields: Any) -> None:
        said.append(str(fields.get("message", "")))

    (data / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tnix\t1\nq1\tp1\t1\n")
    made = index_data(indexed, data, str(tiny / "model"), asdict(EXACT), report, skip_missing=True)
    assert made.facts["dev_queries"] == 1 and any("nix" in message for message in said)


@pytest.mark.parametrize("kind", ["checkpoints", "generations"])
def test_beside_another_writer_nothing_is_published(tiny: Path, trained: Path, tmp_path: Path, kind: str) -> None:
    data = write_tiny_data(tmp_path / "data", seed=8)
    before = contents(trained)
    with exclusive(trained / f"locks/{kind}.lock", kind), pytest.raises(BusyError, match=kind):
        index(tiny, trained, data)
    assert contents(trained) == before


def test_a_store_that_was_trained_in_is_not_indexed_with_another_model(tiny: Path, trained: Path) -> None:
    before = contents(trained)
    with pytest.raises(InputError, match=r"holds a training \(checkpoint 2\).*--store names another"):
        index(tiny, trained)
    assert contents(trained) == before
    assert rebuild(Store(trained), {}, silent).number == 3, "what it serves may be indexed again"


def test_new_passages_are_indexed_with_what_was_learned(tiny: Path, trained: Path, tmp_path: Path) -> None:
    store = Store(trained)
    served = store.generations.get("SERVED")
    assert served is not None
    data = grown(write_tiny_data(tmp_path / "data"))
    made = index_data(trained, data, None, asdict(EXACT), silent)
    assert made.parents == {"checkpoint": served.parents["checkpoint"], "corpus": 1}
    assert (made.facts["rows"], made.facts["dev_queries"]) == (61, served.facts["dev_queries"])
    assert store.generations.pointed("SERVED") == made.number and len(store.checkpoints.numbers()) == 3


def test_a_training_that_has_not_ended_keeps_its_corpus(tiny: Path, trained: Path, tmp_path: Path) -> None:
    manifest = trained / "checkpoints/000002/manifest.json"
    manifest.write_text(manifest.read_text().replace('"final": true', '"final": false'))
    before = contents(trained)
    with pytest.raises(InputError, match=r"its training \(checkpoint 2\) has not ended"):
        index_data(trained, grown(write_tiny_data(tmp_path / "data")), None, asdict(EXACT), silent)
    assert contents(trained) == before


def test_old_generations_go_with_their_embeddings(indexed: Path) -> None:
    store, heard = Store(indexed), list[tuple[str, Any]]()
    (store.embeddings / "of nobody").mkdir()
    for _ in range(4):
        rebuild(aged(store), {}, lambda event, **fields: heard.append((event, fields)))
    named = store.generations.pointers()
    assert (named["CURRENT"], named["SERVED"], named["PREVIOUS"], named["BEST"]) == (4, 4, 3, 0)
    assert store.generations.numbers() == [0, 2, 3, 4]
    assert ("removed", {"kind": "generations", "numbers": [1]}) in heard
    assert not (store.embeddings / "of nobody").exists() and len(list(store.embeddings.iterdir())) > 0


def test_what_a_training_may_go_on_with_stays(trained: Path) -> None:
    store = Store(trained)
    for _ in range(4):
        rebuild(aged(store), {}, silent)
    assert set(store.generations.numbers()) == {0, 1, 2, 4, 5, 6}, "a negative set was mined from each of the first"
    assert (store.checkpoints.numbers(), store.negatives.numbers()) == ([0, 1, 2], [0, 1, 2])
    with store.negatives.stage({"checkpoint": 2, "generation": 6, "generation:-1": 4}):
        pass
    rebuild(aged(store), {}, silent)
    rebuild(aged(store), {}, silent)
    assert set(store.generations.numbers()) == {0, 1, 2, *range(4, 9)}, "sources that count back find each"


@pytest.mark.parametrize("kind", ["checkpoints", "negatives", "corpora"])
def test_beside_another_writer_nothing_is_removed(indexed: Path, kind: str) -> None:
    store = Store(indexed)
    with exclusive(indexed / f"locks/{kind}.lock", kind):
        for _ in range(4):
            rebuild(aged(store), {}, silent)
    assert store.generations.numbers() == [0, 1, 2, 3, 4]


def test_a_damaged_manifest_keeps_all_that_is_old(indexed: Path) -> None:
    store, heard = Store(indexed), list[str]()
    for _ in range(3):
        rebuild(aged(store), {}, silent)
    with store.negatives.stage({"generation": 1}) as draft:
        pass
    (store.negatives.path(draft.number) / "manifest.json").write_text("{")
    rebuild(aged(store), {}, lambda event, **fields: heard.append(str(fields.get("message"))))
    assert store.generations.numbers() == [0, 1, 2, 3, 4]
    assert any("nothing old is removed" in message for message in heard)


def test_models_and_corpora_go_with_their_last_generation(tiny: Path, indexed: Path, tmp_path: Path) -> None:
    store, data = Store(indexed), write_tiny_data(tmp_path / "data")
    for week in range(1, 6):
        model = write_tiny_model(tmp_path / f"model-{week}", seed=week)
        index_data(aged(store).root, grown(data, f"word{week}"), str(model), asdict(EXACT), silent)
        promote(store, force=True)
    kept = [store.generations.at(number) for number in store.generations.numbers()]
    for kind, parent in (("checkpoints", "checkpoint"), ("corpora", "corpus")):
        named = {one.parents[parent] for one in kept}
        assert set(store.series(kind).numbers()) == named and len(named) < 6


def test_a_folder_without_data_makes_no_store(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.jsonl: no such file"):
        index(tiny, tmp_path / "store", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"\[model\] name = 'no-model'"):
        index_data(tmp_path / "store", tiny / "data", "no-model", asdict(EXACT), silent)
    assert not (tmp_path / "store").exists()


def test_rebuilding_keeps_the_choices_of_what_is_served(indexed: Path) -> None:
    store = Store(indexed)
    other = IndexConfig(factory="IVF2,Flat", search={"nprobe": 2}, precision="fp32")
    first = rebuild(store, asdict(other), silent)
    again = rebuild(store, {}, silent)
    assert again.facts["index_config"] == first.facts["index_config"] == {**asdict(other), "slices": []}
    assert again.facts["factory"] == "IVF2,Flat" and again.facts["weights_sha256"] == first.facts["weights_sha256"]
    assert again.parents == {"checkpoint": 0, "corpus": 0}
    changed = rebuild(store, {"target_recall": 0.9}, silent).facts["index_config"]
    assert changed == {**first.facts["index_config"], "target_recall": 0.9}
    assert rebuild(store, {"factory": "Flat"}, silent).facts["index_config"]["search"] == {}, "nprobe was the lists'"


def test_a_rebuild_tells_of_passages_that_are_cut(tiny: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny / "data", tmp_path / "data")
    index(tiny, tmp_path / "store", data)
    grown(data, "baka " * 100)
    said: list[str] = []

    def report(event: str, **fields: Any) -> None:
        said.extend([fields["message"]] if event == "warning" else [])

    ingest_corpus(Store(tmp_path / "store"), data)
    rebuild(Store(tmp_path / "store"), {}, report)
    assert said == ["1 passage is longer than passage_max_length = 64 tokens; the rest is not read"]


def test_a_rebuild_mends_a_store_whose_only_generation_is_damaged(indexed: Path) -> None:
    store = Store(indexed)
    damage(store.generations.path(0) / "index.faiss")
    made = rebuild(store, {"precision": "fp32", "engine": "torch"}, silent)
    assert made.number == 1 and store.generations.pointed(SERVED) == 1


def test_a_store_with_nothing_to_rebuild(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to rebuild; begin with `hone index DATA`"):
        rebuild(Store(tmp_path, create=True), {}, silent)


def test_a_rebuild_beside_a_refresher_takes_the_full_generation_that_it_publishes_next(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "POLL_SECONDS", 0.01)
    refresher, heard = Store(indexed), list[tuple[str, int, int]]()

    with ThreadPoolExecutor(1) as pool, refresher.generations.writer():
        asked = pool.submit(rebuild_or_wait, Store(indexed), silent, lambda *place: heard.append(place))
        wait_for(lambda: len(heard) > 2)
        assert set(heard) == {("waiting for the refresher", 0, 1)}
        with refresher.generations.stage({"checkpoint": 0, "corpus": 0}) as draft:
            draft.facts.update(step=0, partial={"turn": 0})
        heard.clear()
        wait_for(lambda: len(heard) > 2)
        assert not asked.done(), "to be mined from alone"
        with refresher.generations.stage({"checkpoint": 0, "corpus": 0}) as draft:
            draft.facts.update(step=0)
        assert asked.result(30).number == draft.number == 2


def test_a_rebuild_is_made_where_the_refresher_ends_without_one_and_stops_when_told(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "POLL_SECONDS", 0.01)
    waits = threading.Event()

    def cancelled(*_: object) -> None:
        raise Cancelled

    with Store(indexed).generations.writer(), pytest.raises(Cancelled):
        rebuild_or_wait(Store(indexed), silent, cancelled)
    with ThreadPoolExecutor(1) as pool:
        with Store(indexed).generations.writer():
            asked = pool.submit(rebuild_or_wait, Store(indexed), silent, lambda *_: waits.set())
            assert waits.wait(30)
        made = asked.result(60)
    assert (made.number, made.facts["rows"]) == (1, Store(indexed).generations.at(0).facts["rows"])
