from pathlib import Path

import pytest

from app.commands import rerank
from app.reranking import Journal
from retriever.trec import read_run
from tests.app.command_line import Hone
from tests.tiny_ranker import write_tiny_ranker


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ranker(tmp_path_factory.mktemp("ranker"))


def test_a_run_and_the_stores_own_hits_come_out_alike(
    hone: Hone, tiny: Path, indexed: Path, ranker: Path, tmp_path: Path
) -> None:
    data = tiny / "data"
    hone("evaluate", "--data", data, "--store", indexed, "--run", tmp_path / "in.trec")
    asked = ("rerank", data, tmp_path / "out.trec", "--run", tmp_path / "in.trec", "--depth", 20, "--ranker", ranker)
    told = hone(*asked, "--json").json
    assert (told["queries"], told["pairs"], told["depth"], told["cut_pairs"]) == (10, 200, 20, 0)
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"
    before, after = read_run(tmp_path / "in.trec"), read_run(tmp_path / "out.trec")
    for query, hits in before.items():
        names, again = [name for name, _ in hits], [name for name, _ in after[query]]
        assert sorted(names[:20]) == sorted(again[:20]) and names[20:] == again[20:]
    assert before != after
    hone("index", "--store", indexed, "--precision", "fp32", "--ranker", ranker)
    shown = hone("rerank", data, tmp_path / "own.trec", "--store", indexed, "--depth", 20).out
    assert "10 queries, 200 pairs in" in shown and shown.endswith("own.trec\n"), "test is what is read anyway"
    own = read_run(tmp_path / "own.trec")
    for query, hits in own.items():
        assert [name for name, _ in hits] == [name for name, _ in after[query][:20]]
    hone("rerank", data, tmp_path / "own.trec", "--store", indexed, "--depth", 20, "--run", tmp_path / "in.trec")
    assert read_run(tmp_path / "own.trec") == after, "the generation's ranker, somebody's run"
    assert len(read_run(_split(hone, data, indexed, tmp_path))) == 20


def _split(hone: Hone, data: Path, store: Path, folder: Path) -> Path:
    answer = hone("rerank", data, folder / "train.trec", "--store", store, "--split", "train", "--depth", 2)
    assert answer.out.endswith(f"Next: hone evaluate --data {data} --from-run {folder / 'train.trec'} --split train\n")
    return folder / "train.trec"


def test_an_interrupted_reranking_goes_on(
    hone: Hone, tiny: Path, indexed: Path, ranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("rerank", tiny / "data", tmp_path / "out.trec", "--store", indexed, "--ranker", ranker, "--depth", 60)

    class Interrupting(Journal):
        def add(self, record: dict[str, object]) -> None:
            super().add(record)
            raise KeyboardInterrupt

    monkeypatch.setattr("app.reranking.CHUNK_PAIRS", 120)
    monkeypatch.setattr(rerank, "Journal", Interrupting)
    assert "interrupted" in hone(*asked).complaint and not (tmp_path / "out.trec").exists()
    monkeypatch.setattr(rerank, "Journal", Journal)
    again = hone(*asked)
    assert '"scored_pairs": 120' in again.err and '"total": 480' in again.err and again.code == 0
    hone(*asked[:2], tmp_path / "whole.trec", *asked[3:])
    assert (tmp_path / "whole.trec").read_bytes() == (tmp_path / "out.trec").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_what_is_missing_is_said(hone: Hone, tiny: Path, indexed: Path, ranker: Path, tmp_path: Path) -> None:
    data, out = tiny / "data", tmp_path / "out.trec"
    assert "holds no ranker; --ranker" in hone("rerank", data, out, "--store", indexed).complaint
    assert "cannot be loaded" in hone("rerank", data, out, "--store", indexed, "--ranker", tmp_path / "no").complaint
    assert "cannot be written" in hone("rerank", data, tmp_path / "no/out", "--ranker", ranker).complaint
    asked = ("rerank", data, out, "--ranker", ranker, "--run", tmp_path / "no.trec")
    assert "no.trec: cannot be read" in hone(*asked).complaint
    assert not out.exists()
