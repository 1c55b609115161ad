import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss

from app.composition import Run
from app.exporting import _respected, export_model, export_negatives
from app.opening import open_generation_encoder
from app.rankers import teaching_ranker
from app.trainer_formats import FORMATS
from app.training import run_training
from miner.verdicts import StoredVerdicts
from retriever.artifacts import Artifact
from retriever.checkpoint import publish_model
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import CorruptError, InputError
from retriever.inference import ModelEncoder
from retriever.negatives import Verdict, create_negative_set
from retriever.store import Store
from tests.app.command_line import opened, write_run
from tests.app.served import damage
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

TEXTS = ["baka beki bodu", "duku", "bilo " * 40]


@pytest.fixture
def run(tiny: Path, trained: Path) -> Run:
    return opened(tiny / "run.toml", trained)


def newest(run: Run) -> Artifact:
    negatives = run.store.negatives.get()
    assert negatives is not None
    return negatives


def exported(run: Run, folder: Path, file_format: str, count: int = 3) -> list[dict[str, Any]]:
    out = folder / file_format / "out.jsonl"
    lines = export_negatives(run, newest(run), out, file_format, count)
    records: list[dict[str, Any]] = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == lines and [path.name for path in out.parent.iterdir()] == [out.name]
    return records


def test_sentence_transformers_loads_the_model_with_the_same_vectors(trained: Path, tmp_path: Path) -> None:
    generation = Store(trained).generations.at(2)
    export_model(generation, tmp_path / "deep" / "model")
    theirs = SentenceTransformer(str(tmp_path / "deep" / "model"), device="cpu").encode(TEXTS)
    ours = open_generation_encoder(generation).encode_passages(TEXTS)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize(("query", "passage"), [(6, 16), (16, 6)])
def test_two_lengths_of_one_tower_are_said_and_can_be_had_there(
    tiny: Path, tmp_path: Path, query: int, passage: int
) -> None:
    """sentence-transformers knows one length a model; what the note says gives the vectors of both sides."""
    config = ModelConfig(str(tiny / "model"), query_max_length=query, passage_max_length=passage)
    model, store = create_encoder(config), Store(tmp_path / "store", create=True)
    note = export_model(publish_model(store, model, {}), tmp_path / "out")
    assert note is not None and f"({passage} tokens)" in note and f"max_seq_length = {query} to encode queries" in note
    ours = ModelEncoder(model, device="cpu")
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(theirs.encode_document(TEXTS), ours.encode_passages(TEXTS), atol=1e-5)
    assert not np.allclose(theirs.encode_query(TEXTS), ours.encode_queries(TEXTS), atol=1e-3)
    theirs.max_seq_length = query
    np.testing.assert_allclose(theirs.encode_query(TEXTS), ours.encode_queries(TEXTS), atol=1e-5)


def test_towers_apart_and_one_length_need_no_word(tiny: Path, trained: Path, tmp_path: Path) -> None:
    assert export_model(Store(trained).generations.at(0), tmp_path / "one") is None
    config = ModelConfig(str(tiny / "model"), tied=False, query_max_length=6, passage_max_length=16)
    store = Store(tmp_path / "apart", create=True)
    assert export_model(publish_model(store, create_encoder(config), {}), tmp_path / "two") is None
    sides = [SentenceTransformer(str(tmp_path / "two" / side), device="cpu") for side in ("query", "passage")]
    assert [side.max_seq_length for side in sides] == [6, 16]


def test_a_model_is_exported_whole_or_not_at_all(trained: Path, tmp_path: Path) -> None:
    generation = Store(trained).generations.at(2)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there: exists already"):
        export_model(generation, tmp_path / "there")
    damage(generation.path / "model/model.safetensors")
    with pytest.raises(CorruptError, match=r"model\.safetensors"):
        export_model(generation, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "there"]


def test_nothing_half_written_is_left_where_the_disk_fills_up(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space"):
        export_model(run.store.generations.at(2), tmp_path / "model")
    monkeypatch.setitem(FORMATS, "tevatron", full)
    with pytest.raises(OSError, match="No space"):
        export_negatives(run, newest(run), tmp_path / "out.jsonl", "tevatron", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_sentence_transformers_gets_equal_columns(run: Run, tmp_path: Path) -> None:
    records = exported(run, tmp_path, "sentence-transformers")
    columns = ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert len(records) == 20 and all(list(record) == columns for record in records), "its losses go by the order"
    assert [record["anchor"] for record in records] == list(run.train.texts)


def test_flag_embedding_gets_lists_of_texts(run: Run, tmp_path: Path) -> None:
    for record in exported(run, tmp_path, "flagembedding"):
        assert list(record) == ["query", "pos", "neg"]
        assert len(record["pos"]) == 1 and len(record["neg"]) == 3
        assert all(isinstance(text, str) for text in [record["query"], *record["pos"], *record["neg"]])


def test_tevatron_gets_passages_with_their_ids(run: Run, tmp_path: Path) -> None:
    for record in exported(run, tmp_path, "tevatron"):
        assert list(record) == ["query_id", "query", "positive_passages", "negative_passages"]
        assert [passage["docid"] for passage in record["positive_passages"]] == [record["query_id"].replace("q", "p")]
        for passage in record["positive_passages"] + record["negative_passages"]:
            assert list(passage) == ["docid", "title", "text"]
            row = run.corpus.row_of(passage["docid"])
            assert row is not None and f"{passage['title']} {passage['text']}".strip() == run.corpus.text(row)


def test_the_formats_hold_the_same_negatives_and_none_of_them_is_known_to_be_relevant(
    tiny: Path, trained: Path, tmp_path: Path
) -> None:
    """Several positives a query, and passages with the text of one."""
    data = write_tiny_data(tmp_path / "data")
    lines = (data / "corpus.jsonl").read_text().splitlines()
    twins = [{**json.loads(line), "_id": f"twin{n}"} for n, line in enumerate(lines[:20])]
    with (data / "corpus.jsonl").open("a") as file:
        file.writelines(json.dumps(twin) + "\n" for twin in twins)
    with (data / "qrels/train.tsv").open("a") as file:
        file.writelines(f"q{n}\tp{n + 20}\t1\n" for n in range(20))
    config = write_run(tmp_path / "run.toml", data, tiny / "model", ("depth = 10", "depth = 70"))
    run = opened(config, tmp_path / "twins")
    run_training(run, config, "inline")
    tevatron = exported(run, tmp_path, "tevatron", 70)
    flag = exported(run, tmp_path, "flagembedding", 70)
    assert len(tevatron) == len(flag) == 20
    for theirs, other in zip(tevatron, flag, strict=True):
        positives = [passage["text"] for passage in theirs["positive_passages"]]
        negatives = [passage["text"] for passage in theirs["negative_passages"]]
        assert len(positives) == 2 and len(negatives) > 30
        assert not {*positives} & {*negatives}
        assert (other["pos"], other["neg"]) == (positives, negatives)
    assert exported(run, tmp_path, "sentence-transformers", 70) == [], "no query has 70, and columns must be equal"
    assert len(exported(run, tmp_path / "five", "sentence-transformers", 5)) == 40, "a line a positive"


def test_what_was_judged_relevant_since_the_set_was_mined_is_no_negative(run: Run, tmp_path: Path) -> None:
    before = [record["neg"] for record in exported(run, tmp_path / "before", "flagembedding")]
    wrong = next(row for row in range(len(run.corpus)) if run.corpus.text(row) == before[0][0])
    judged = StoredVerdicts(np.array([wrong], np.int64), np.ones(1, np.bool_), len(run.corpus), "now")
    after = [record["neg"] for record in exported(replace(run, judged=judged), tmp_path / "after", "flagembedding")]
    assert run.corpus.text(wrong) not in after[0] and len(after[0]) == 3
    assert after[1:] == before[1:]


def test_what_is_judged_irrelevant_since_is_drawn_no_more_than_training_draws_it(tmp_path: Path) -> None:
    pool = create_negative_set(tmp_path, queries=1, depth=3, positives=1)
    pool.queries[:], pool.passages[:] = 0, [[5, 6, 7]]
    pool.verdicts[:] = [[Verdict.FILTERED, Verdict.FILTERED, Verdict.ELIGIBLE]]
    judged = StoredVerdicts(np.array([5, 7], np.int64), np.array([False, True]), 10, "now")
    assert _respected(judged, pool).tolist() == [[Verdict.FILTERED, Verdict.FILTERED, Verdict.JUDGED_RELEVANT]]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose sets have a teacher's scores of their best five candidates."""
    folder = tmp_path_factory.mktemp("taught")
    data, model = write_tiny_data(folder / "data"), write_tiny_model(folder / "model")
    teacher = f'[teacher]\nname = "{write_tiny_ranker(folder / "ranker")}"\ndepth = 5\n[negatives]'
    run = opened(write_run(folder / "run.toml", data, model, ("[negatives]", teacher)), folder / "store")
    run_training(run, folder / "run.toml", "inline")
    return run


def test_scores_of_a_teacher_go_along_and_all_negatives_have_one(taught: Run, tmp_path: Path) -> None:
    assert taught.config.teacher is not None
    ranker = teaching_ranker(taught.config.teacher, "fp32")
    for record in exported(taught, tmp_path, "flagembedding", 5):
        assert list(record) == ["query", "pos", "neg", "pos_scores", "neg_scores"]
        texts = record["pos"] + record["neg"]
        scores = ranker.score([record["query"]] * len(texts), texts)
        np.testing.assert_allclose(record["pos_scores"] + record["neg_scores"], scores, atol=1e-4)
        assert len(record["neg"]) == 5
    for record in exported(taught, tmp_path, "sentence-transformers", 5):
        assert list(record)[-2:] == ["negative_5", "label"] and len(record["label"]) == 6
        texts = [record["positive"], *(record[f"negative_{place}"] for place in range(1, 6))]
        np.testing.assert_allclose(record["label"], ranker.score([record["anchor"]] * 6, texts), atol=1e-4)
    assert "label" not in exported(taught, tmp_path, "tevatron", 5)[0]
    assert exported(taught, tmp_path / "six", "sentence-transformers", 6) == [], "no query has six with a score"


def test_sentence_transformers_learns_from_the_exported_scores(taught: Run, tmp_path: Path) -> None:
    export_model(taught.store.generations.at(0), tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    records = exported(taught, tmp_path, "sentence-transformers", 5)[:4]
    features = [model.preprocess([record[name] for record in records]) for name in list(records[0])[:-1]]
    labels = torch.tensor([record["label"] for record in records])
    for loss in (MarginMSELoss(model), DistillKLDivLoss(model)):
        assert torch.isfinite(loss(features, labels))


def test_what_cannot_be_exported(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--format parquet: choose one of sentence-transformers, flagembedding, tev"):
        export_negatives(run, newest(run), tmp_path / "out", "parquet", 3)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(InputError, match="there: exists already"):
        export_negatives(run, newest(run), tmp_path / "there", "tevatron", 3)
    with pytest.raises(InputError, match="--count 11: negative set 2 holds 10 candidates"):
        export_negatives(run, newest(run), tmp_path / "out", "tevatron", 11)
    assert (tmp_path / "there").read_text() == "mine" and not (tmp_path / "out").exists()
