import json
from pathlib import Path

import pytest

from app.judgements import Judgements, Said
from retriever.data import duplicate_hash, passage_text
from retriever.encoder import ModelConfig, create_encoder
from retriever.store import Store
from tests.app.command_line import Hone


def test_the_best_model_unless_told_otherwise(hone: Hone, trained: Path) -> None:
    Store(trained).generations.point("BEST", 1)
    made = hone("export", "model", "best", "--json").json
    assert (made["out"], made["generation"], made["step"]) == ("best", 1, 3)
    assert hone("export", "model", "third", "--generation", 2, "--json").json["generation"] == 2
    assert hone("export", "model", "named", "--generation", "BASELINE", "--json").json["step"] == 0
    assert {path.name for path in Path("best").iterdir()} >= {"modules.json", "model.safetensors", "tokenizer.json"}
    assert 'SentenceTransformer("again")' in hone("export", "model", "again").out


def test_two_lengths_of_one_model_are_pointed_out(hone: Hone, tiny: Path, trained: Path, tmp_path: Path) -> None:
    assert hone("export", "model", "one", "--json").json["note"] is None
    assert "Note:" not in hone("export", "model", "same").out
    create_encoder(ModelConfig(str(tiny / "model"), query_max_length=32)).save(tmp_path / "two-lengths")
    hone("index", tiny / "data", "--model", "two-lengths", "--precision", "fp32", "--store", "indexed")
    said = hone("export", "model", "two", "--store", "indexed").out
    assert "Note: sentence-transformers cuts both sides" in said and "max_seq_length = 32" in said


def test_a_generation_that_there_is_not(hone: Hone, trained: Path, tmp_path: Path) -> None:
    complaint = hone("export", "model", "out", "--generation", "NONE").complaint
    assert "no generation is named NONE; there are BASELINE, BEST" in complaint
    assert "000009" in hone("export", "model", "out", "--generation", 9).complaint
    Store(tmp_path / "empty", create=True)
    assert str(tmp_path / "empty") in hone("export", "model", "out", "--store", tmp_path / "empty").complaint
    assert not Path("out").exists()


@pytest.mark.parametrize("file_format", ["sentence-transformers", "flagembedding", "tevatron"])
def test_the_newest_negatives(hone: Hone, tiny: Path, trained: Path, file_format: str) -> None:
    options = ["--format", file_format, "--count", 3, "--json"]
    made = hone("export", "negatives", tiny / "run.toml", "out.jsonl", *options).json
    assert (made["negatives"], made["lines"]) == (2, 20)
    assert len([json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]) == 20


def test_negatives_that_cannot_be_had(hone: Hone, tiny: Path, trained: Path, tmp_path: Path) -> None:
    run = tiny / "run.toml"
    assert "--format parquet" in hone("export", "negatives", run, "out", "--format", "parquet").complaint
    assert "--count 11" in hone("export", "negatives", run, "out", "--count", 11).complaint
    Path("there").touch()
    assert "there: exists already" in hone("export", "negatives", run, "there").complaint
    assert "no negatives yet" in hone("export", "negatives", run, "out", "--store", tmp_path / "new").complaint


def test_judgements_that_cannot_be_had_or_are_not_there(hone: Hone, tiny: Path, indexed: Path, tmp_path: Path) -> None:
    said = hone("export", "judgements", tiny / "data", "none.jsonl")
    assert (said.code, said.out) == (0, "none.jsonl: 0 lines from 0 judged pairs\n")
    assert "none.jsonl: exists already" in hone("export", "judgements", tiny / "data", "none.jsonl").complaint
    assert "--format csv" in hone("export", "judgements", tiny / "data", "out", "--format", "csv").complaint
    assert "corpus.jsonl" in hone("export", "judgements", tmp_path, "out").complaint
    assert (
        str(tmp_path / "new")
        in hone("export", "judgements", tiny / "data", "out", "--store", tmp_path / "new").complaint
    )
    assert not Path("out").exists()


def test_judgements_on_other_data_are_said_to_be_left_out(hone: Hone, tiny: Path, indexed: Path) -> None:
    table = Judgements(f"sqlite:///{indexed / 'hone.db'}")
    query = json.loads((tiny / "data/queries.jsonl").read_text().splitlines()[0])["text"]
    table.add([Said(None, query, "p0", 1, 1, "ann", None), Said(None, "never asked", "p0", 1, 1, "ann", None)], 0)
    table.close()
    said = hone("export", "judgements", tiny / "data", "out.jsonl")
    assert "0 lines from 2 judged pairs" in said.out
    assert "1 pair is left out" in said.err and "has no such query" in said.err
    assert "has no passage of such a text" in said.err


def test_the_verdicts_of_people_are_told_where_they_lie(hone: Hone, tiny: Path, indexed: Path, tmp_path: Path) -> None:
    """A run.toml may lie elsewhere than where hone is called, and paths in it start from its own folder."""
    asked, found = (
        json.loads((tiny / f"data/{name}.jsonl").read_text().splitlines()[0]) for name in ("queries", "corpus")
    )
    judged = Said(None, asked["text"], "p0", duplicate_hash(passage_text(found["title"], found["text"])), 1, "a", None)
    table = Judgements(f"sqlite:///{indexed / 'hone.db'}")
    table.add([judged], 0)
    table.close()
    said = hone("export", "judgements", tiny / "data", "out.jsonl").out
    assert said.endswith(f'Next: write verdicts = "{tmp_path / "out.jsonl"}" under [negatives] of the run.toml\n')
