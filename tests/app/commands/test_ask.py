import json
import re
import shutil
from pathlib import Path

import pytest

from app.rankers import named_ranker
from retriever.store import Store
from retriever.trec import read_run
from tests.app.command_line import Hone, contents
from tests.tiny_ranker import write_tiny_ranker


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


def test_a_query_that_is_cut_is_told(hone: Hone, tiny: Path, indexed: Path, tmp_path: Path) -> None:
    said = "1 query is longer than query_max_length = 64 tokens; the rest is not read"
    assert said in hone("search", "baka " * 100, "--store", indexed).err
    assert said not in hone("search", "baka", "--store", indexed).err
    data = shutil.copytree(tiny / "data", tmp_path / "data")
    lines = [json.loads(line) for line in (data / "queries.jsonl").read_text().splitlines()]
    asked = (data / "qrels/test.tsv").read_text().split()[3]
    long = [{**line, "text": "baka " * 100} if line["_id"] == asked else line for line in lines]
    (data / "queries.jsonl").write_text("\n".join(map(json.dumps, long)) + "\n")
    assert said in hone("evaluate", "--data", data, "--store", indexed).err


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


def test_figures_come_before_a_run_that_an_id_with_white_space_forbids(hone: Hone, tiny: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny / "data", tmp_path / "data")
    for file in (data / "corpus.jsonl", *(data / "qrels").iterdir()):
        file.write_text(re.sub(r"\bp(\d+)\b", r"p \1", file.read_text()))
    answer = hone("evaluate", "--data", data, "--model", tiny / "model", "--run", tmp_path / "out.trec", "--json")
    assert "has white space, which a TREC file cannot hold" in answer.complaint
    assert 0 < json.loads(answer.out)["nDCG@10"] <= 1 and not (tmp_path / "out.trec").exists()


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
    unknown = hone("evaluate", "--data", tiny / "data", "--model", tiny / "model", "--split", "none")
    assert "in qrels/ there are dev.tsv, test.tsv, train.tsv" in unknown.complaint and '"phase"' not in unknown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "baka", "--rerank-depth", 9], "--rerank-depth says how many hits --rerank orders"),
        (["evaluate", "--data", ".", "--factory", "Flat"], "--factory, --precision and --query-precision are for"),
        (["evaluate", "--data", ".", "--precision", "fp32"], "--factory, --precision and --query-precision are for"),
        (["evaluate", "--data", ".", "--query-precision", "int8"], "are for --model: a generation is measured"),
        (
            ["evaluate", "--data", ".", "--from-run", "a.trec", "--exact"],
            "leave out --model, --store, --generation and",
        ),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(hone: Hone, arguments: list[str], said: str) -> None:
    assert said in hone(*arguments).complaint


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ranker(tmp_path_factory.mktemp("ranker"))


def test_search_in_the_order_of_a_ranker(hone: Hone, indexed: Path, ranker: Path) -> None:
    asked = ("search", "baka beki", "--store", indexed, "-k", 3, "--json", "--rerank")
    plain = hone("search", "baka beki", "--store", indexed, "-k", 60, "--json").json["hits"]
    found = hone(*asked, "--rerank-depth", 60, "--ranker", ranker).json["hits"]
    scores = named_ranker(str(ranker)).score(["baka beki"] * 60, [hit["text"] for hit in plain])
    best = [plain[place]["id"] for place in (-scores).argsort(kind="stable")[:3]]
    assert [hit["id"] for hit in found] == best and [hit["rank"] for hit in found] == [1, 2, 3]
    assert found[0]["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    few = hone(*asked, "--rerank-depth", 1, "--ranker", ranker).json["hits"]
    assert {hit["id"] for hit in few} == {hit["id"] for hit in plain[:3]}, "at least --top-k are read"
    assert "generation 0 holds no ranker; --ranker FOLDER names one" in hone(*asked).complaint
    assert "--ranker orders the hits of --rerank" in hone(*asked[:-1], "--ranker", ranker).complaint
    hone("index", "--store", indexed, "--precision", "fp32", "--ranker", ranker)
    own = hone(*asked, "--rerank-depth", 60).json
    assert own["generation"] == 1 and [hit["id"] for hit in own["hits"]] == best


def test_evaluate_before_and_after_reranking(
    hone: Hone, tiny: Path, indexed: Path, ranker: Path, tmp_path: Path
) -> None:
    data = ("evaluate", "--data", tiny / "data", "--json")
    files = ("--run", tmp_path / "out.trec", "--per-query", tmp_path / "out.jsonl")
    plain = hone(*data, "--store", indexed).json
    done = hone(*data, "--store", indexed, "--rerank", 20, "--ranker", ranker, *files).json
    reranked = done.pop("reranked")
    assert reranked["before"] == {name: plain[name] for name in reranked["before"]} and "AUC" not in done
    assert (reranked["depth"], reranked["pairs"], reranked["cut_pairs"]) == (20, 200, 0)
    assert done["nDCG@10"] != plain["nDCG@10"] and done["R@100"] == plain["R@100"]
    from_run = hone(*data, "--from-run", tmp_path / "out.trec").json
    assert {name: from_run[name] for name in ("nDCG@10", "RR@10", "R@100")} == {
        name: done[name] for name in ("nDCG@10", "RR@10", "R@100")
    }
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for kind, expected in (("nDCG@10", done), ("before", plain)):
        values = [line[kind]["nDCG@10"] if kind == "before" else line[kind] for line in lines]
        assert sum(values) / 10 == pytest.approx(expected["nDCG@10"], abs=1e-5)
    hone("evaluate", "--data", tiny / "data", "--store", indexed, "--run", tmp_path / "plain.trec")
    later = hone(*data, "--from-run", tmp_path / "plain.trec", "--rerank", 20, "--ranker", ranker).json
    assert later["nDCG@10"] == done["nDCG@10"]
    shown = hone("evaluate", "--data", tiny / "data", "--store", indexed, "--rerank", 20, "--ranker", ranker)
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[1] == ["nDCG@10", f"{plain['nDCG@10']:.4f}", f"{done['nDCG@10']:.4f}"] and rows[-1][:2] == [
        "200",
        "pairs",
    ]
    assert ["AUC", f"{plain['AUC']:.4f}"] in rows


def test_evaluate_deeper_than_a_run_goes(hone: Hone, tiny: Path, indexed: Path, ranker: Path) -> None:
    data = ("evaluate", "--data", tiny / "data", "--store", indexed, "--ranker", ranker, "--json")
    deep = hone(*data, "--rerank", 150).json
    assert deep["R@150"] == deep["reranked"]["before"]["R@150"] == 1 and deep["reranked"]["pairs"] == 600


def test_evaluate_without_a_ranker_says_so_first(hone: Hone, tiny: Path, indexed: Path, tmp_path: Path) -> None:
    data = ("evaluate", "--data", tiny / "data", "--rerank", 10)
    assert "generation 0 holds no ranker; --ranker" in hone(*data, "--store", indexed).complaint
    for place in (("--model", "nothing"), ("--from-run", tmp_path / "nothing")):
        assert "there is no ranker; --ranker FOLDER names one" in hone(*data, *place).complaint
    assert "cannot be loaded" in hone(*data, "--ranker", tmp_path / "nothing").complaint
    assert "write how many, e.g. --rerank 100" in hone(*data[:-2], "--ranker", "x").complaint
