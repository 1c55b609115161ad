import json
from pathlib import Path

import pytest

from app.admission import AdmissionConfig
from app.commands import ask
from app.serving import ServeOptions
from retriever.store import Store
from retriever.trec import read_run
from tests.app.command_line import Hone, contents


def test_index_then_search_needs_no_training(hone: Hone, tiny: Path) -> None:
    made = hone("index", tiny / "data", "--model", tiny / "model", "--precision", "fp32", "--json").json
    assert (made["kind"], made["number"], made["rows"]) == ("generations", 0, 60)
    first = json.loads((tiny / "data/corpus.jsonl").read_text().splitlines()[0])
    found = hone("search", f"{first['title']} {first['text']}", "--json").json
    assert found["generation"] == 0 and found["hits"][0]["id"] == "p0", "a text is nearest to itself"
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3, 4, 5]


def test_hits_as_a_person_reads_them(hone: Hone, indexed: Path) -> None:
    answer = hone("search", "baka beki", "--store", indexed, "-k", 2)
    first, text, second, _ = answer.out.splitlines()
    assert first.split()[0] == "1" and second.split()[0] == "2"
    assert float(first.split()[1]) >= float(second.split()[1]) and first.split()[2].startswith("p")
    assert text.startswith("    ") and text.strip()


def test_exact_search_and_the_index_agree(hone: Hone, indexed: Path) -> None:
    before = contents(indexed)
    by_index = hone("search", "baka beki", "--store", indexed, "--top-k", 60, "--json").json
    exact = hone("search", "baka beki", "--store", indexed, "--top-k", 60, "--exact", "--json").json
    assert [hit["id"] for hit in by_index["hits"]] == [hit["id"] for hit in exact["hits"]]
    assert contents(indexed) == before, "to ask changes nothing"


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query(hone: Hone, indexed: Path, query: str) -> None:
    assert "the query is empty" in hone("search", query, "--store", indexed).complaint


def test_a_store_that_serves_nothing_yet(hone: Hone, tmp_path: Path) -> None:
    Store(tmp_path / "store", create=True)
    assert "no generation is served yet" in hone("search", "baka").complaint
    assert "not a hone store" in hone("search", "baka", "--store", tmp_path / "nowhere").complaint


def test_evaluate_a_store_and_a_model_as_it_is(hone: Hone, tiny: Path, indexed: Path, tmp_path: Path) -> None:
    files = ["--run", tmp_path / "out.trec", "--per-query", tmp_path / "out.jsonl"]
    stored = hone("evaluate", "--data", tiny / "data", "--store", indexed, *files, "--json").json
    assert {"split": "test", "queries": 10, "generation": 0}.items() <= stored.items()
    assert len(read_run(tmp_path / "out.trec")) == len((tmp_path / "out.jsonl").read_text().splitlines()) == 10
    model = hone("evaluate", "--data", tiny / "data", "--model", tiny / "model", "--exact", "--json").json
    for name in ("nDCG@10", "RR@10", "R@100", "AUC"):
        assert model[name] == pytest.approx(stored[name], abs=1e-6)
    shown = hone("evaluate", "--data", tiny / "data", "--store", indexed).out.splitlines()
    assert shown[0].split() == ["nDCG@10", f"{stored['nDCG@10']:.4f}"]


def test_evaluate_another_split_and_a_named_generation(hone: Hone, tiny: Path, trained: Path) -> None:
    dev = hone("evaluate", "--data", tiny / "data", "--split", "dev", "--generation", "BASELINE", "--json").json
    assert (dev["split"], dev["generation"]) == ("dev", 0)
    facts = Store(trained).generations.at(0).facts["dev"]
    assert dev["nDCG@10"] == pytest.approx(facts["nDCG@10"], abs=1e-5)
    third = hone("evaluate", "--data", tiny / "data", "--generation", 2, "--json").json
    assert third["generation"] == 2


def test_evaluate_tells_at_once_what_it_could_not_do_later(hone: Hone, tiny: Path, indexed: Path) -> None:
    data = ["evaluate", "--data", tiny / "data", "--store", indexed]
    for flag in ("--run", "--per-query"):
        for out in (Path("none/out"), Path()):
            assert str(out) in hone(*data, flag, out).complaint
    assert "leave out --store" in hone(*data, "--model", tiny / "model").complaint
    assert "no generation is named NONE; there are" in hone(*data, "--generation", "NONE").complaint
    assert "qrels/none.tsv" in hone(*data, "--split", "none").complaint


def test_serve_refuses_limits_that_cannot_be_met(hone: Hone, indexed: Path) -> None:
    assert "less than one batch" in hone("serve", "--store", indexed, "--queue-tokens", 100).complaint
    assert "nothing could be answered" in hone("serve", "--store", indexed, "--deadline-seconds", 0).complaint


def test_serve_listens_where_it_is_told(hone: Hone, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Path, str, int, ServeOptions]] = []

    def serve_store(root: Path, host: str, port: int, options: ServeOptions) -> None:
        served.append((root, host, port, options))

    monkeypatch.setattr(ask, "serve_store", serve_store)
    assert "http://127.0.0.1:8000" in hone("serve", "--store", indexed).err
    flags = ("--insecure", "--ranker", "one", "--workers", 2, "--drain-seconds", 1)
    limits = ("--batch-tokens", 256, "--queue-tokens", 9000, "--deadline-seconds", 2.5)
    hone("serve", "--store", indexed, "--port", 0, "--host", "::1", *flags, *limits)
    monkeypatch.setenv("HONE_PORT", "9000")
    monkeypatch.setenv("HONE_STORE", "there")
    monkeypatch.setenv("HONE_RANKER", "other")
    hone("serve")
    assert served == [
        (indexed, "127.0.0.1", 8000, ServeOptions()),
        (indexed, "::1", 0, ServeOptions(True, False, 2, 1, Path("one"), AdmissionConfig(256, 256, 9000, 2.5))),
        (Path("there"), "127.0.0.1", 9000, ServeOptions(ranker=Path("other"))),
    ]
    monkeypatch.setenv("HONE_PORT", "many")
    assert hone("serve").complaint.startswith("HONE_PORT=many: ")
