"""The promise of a judgement's whole way: found, judged over HTTP, no negative any more, a positive of the next run."""

import json
from pathlib import Path

from app.opening import openers
from retriever.artifacts import CURRENT
from retriever.negatives import Verdict, open_negative_set
from retriever.store import Store
from tests.app.command_line import Hone, opened, write_run
from tests.app.served import serving


def test_from_a_search_to_the_next_training(hone: Hone, tiny: Path, indexed: Path, tmp_path: Path) -> None:
    lines = (tiny / "data/queries.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines[:2])
    asked = [
        {"id": one["_id"], "text": one["text"], "positives": [own]} for one, own in ((first, "p0"), (second, "p1"))
    ]
    body = {"queries": asked, "num_negatives": 10, "depth": 10, "sampler": {"name": "top"}}
    with serving(Store(indexed), openers=openers(None)) as server:
        hits = server.post("/v1/search", {"queries": [first["text"]], "top_k": 10})["results"][0]
        yes, no = [hit["id"] for hit in hits if hit["id"] != "p0"][:2]
        before, untouched = server.post("/v1/mine", body)["results"]
        assert {yes, no} <= {one["id"] for one in before["negatives"]}
        query = {"text": first["text"]}
        said = [{"query": query, "passage": yes, "relevant": True}, {"query": query, "passage": no, "relevant": False}]
        assert server.post("/v1/judgements", {"judgements": said})["stored"] == 2
        after, other = server.post("/v1/mine", body)["results"]
    verdicts = {one["id"]: one["verdict"] for one in after["negatives"]}
    assert yes not in verdicts and verdicts[no] == "judged_irrelevant" and other == untouched

    exported = hone("export", "judgements", tiny / "data", "judged.jsonl", "--store", indexed, "--json").json
    assert (exported["lines"], exported["unknown_queries"], exported["unknown_passages"]) == (2, 0, 0)
    shown = hone("export", "judgements", tiny / "data", "judged.tsv", "--format", "qrels", "--store", indexed)
    assert "2 lines from 2 judged pairs" in shown.out and f"q0\t{yes}\t1\n" in Path("judged.tsv").read_text()

    without = write_run(tmp_path / "without.toml", tiny / "data", tiny / "model")
    judged = ("depth = 10", 'depth = 10\nverdicts = "judged.jsonl"')
    with_them = write_run(tmp_path / "with.toml", tiny / "data", tiny / "model", judged)
    assert verdict_after(hone, without, yes, no) == (Verdict.ELIGIBLE, Verdict.ELIGIBLE)
    assert verdict_after(hone, with_them, yes, no) == (Verdict.POSITIVE, Verdict.JUDGED_IRRELEVANT)


def verdict_after(hone: Hone, run_file: Path, *passages: str) -> tuple[Verdict, ...]:
    """Train as ``run_file`` says and return what became of each of ``passages`` for q0 in the first mined set."""
    store = run_file.with_suffix("")
    assert hone("cycle", run_file, "--store", store).code == 0
    run = opened(run_file, store)
    row = run.train.ids.index("q0")
    assert run.store.negatives.get(CURRENT) is not None
    mined = open_negative_set(run.store.negatives.at(0).path)
    found = dict(zip(mined.passages[row].tolist(), mined.verdicts[row].tolist(), strict=True))
    rows = [run.corpus.row_of(passage) for passage in passages]
    for place in rows:
        assert (found[place] == Verdict.POSITIVE) == (place in run.train.positives(row))
    return tuple(Verdict(found[place]) for place in rows)
