"""How many hidden positives a relabelling brings back, and how many wrong ones come along.

A share of the positives of a data set is hidden from the qrels, which leaves each query one. Does not know how suspects
are judged: the judge is a local model's score, whose threshold is varied afterwards over what it scored.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import last_line
from retriever.beir import find_file, read_json_lines
from retriever.durable import read_lines
from retriever.trec import read_qrels

Pair = tuple[str, str]
RUN = """\
[data]
path = "data"
[model]
name = "{model}"
[negatives]
depth = {depth}
"""
RELABEL = """\
run = "run.toml"
[suspects]
top = {top}
[[judges]]
kind = "{kind}"
model = "{judge}"
threshold = 0.0
"""


def main() -> None:
    """Hide, index, mine, relabel, count."""
    given = _options()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        hidden, positives = hide(given.data, folder / "data", given.share, given.queries, given.passages)
        if not hidden:
            raise SystemExit(f"{given.data}: no training query has two positives, so nothing can be hidden")
        scored = judge(folder, given)
    reachable = sum(pair in scored for pair in hidden)
    print(f"{positives} positives, {len(hidden)} hidden, {reachable} of them among {len(scored)} suspects")
    rows = [{"threshold": t, **recovered(hidden, scored, t)} for t in given.thresholds]
    print("threshold  come back  of hidden  others called relevant")
    for row in rows:
        print(f"{row['threshold']:9.2f}  {row['back']:9d}  {row['recall']:9.3f}  {row['along']:22d}")
    figures = {"hidden": len(hidden), "reachable": reachable, "suspects": len(scored), "thresholds": rows}
    last_line([*figures], figures, {})


def _options() -> Namespace:
    parser = ArgumentParser(prog="python -m benchmarks.relabel", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a data set in BEIR layout")
    parser.add_argument("--share", type=float, default=0.1, help="the share of positives to hide")
    parser.add_argument("--queries", type=int, help="training queries, those with several positives first")
    parser.add_argument("--passages", type=int, help="passages beside the positives")
    parser.add_argument("--model", default="minilm", help="what finds the suspects")
    parser.add_argument("--judge", help="the model that judges them; without it the one that finds them")
    parser.add_argument("--kind", choices=["encoder", "ranker"], default="encoder", help="what the judge is")
    parser.add_argument("--top", type=int, default=5, help="suspects a query")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8])
    return parser.parse_args()


def hide(data: Path, out: Path, share: float, queries: int | None, passages: int | None) -> tuple[set[Pair], int]:
    """Write a part of ``data`` with ``share`` of its training positives hidden, as far as queries have several.

    Returns the hidden pairs and the number of positives before. The same arguments give the same data.
    """
    generator = random.Random(13)
    relevant: dict[str, list[str]] = {}
    for _, query, passage, relevance in read_qrels(find_file(data, "qrels/train.tsv")):
        if relevance > 0:
            relevant.setdefault(query, []).append(passage)
    names = sorted(relevant, key=lambda name: (len(relevant[name]) < 2, generator.random()))[:queries]
    total = sum(len(relevant[name]) for name in names)
    spare = [(name, passage) for name in names for passage in generator.sample(relevant[name], len(relevant[name]))[1:]]
    hidden = set(generator.sample(spare, min(len(spare), round(share * total))))
    kept_passages = {passage for name in names for passage in relevant[name]}
    (out / "qrels").mkdir(parents=True)
    lines = [line for _, line in read_json_lines(find_file(data, "corpus.jsonl"))]
    others = [str(line["_id"]) for line in lines if str(line["_id"]) not in kept_passages]
    kept_passages |= set(others if passages is None else generator.sample(others, min(passages, len(others))))
    _write(out / "corpus.jsonl", [line for line in lines if str(line["_id"]) in kept_passages])
    asked = [line for _, line in read_json_lines(find_file(data, "queries.jsonl"))]
    _write(out / "queries.jsonl", [line for line in asked if str(line["_id"]) in set(names)])
    shown = [(name, passage) for name in names for passage in relevant[name] if (name, passage) not in hidden]
    for split, pairs in (("train", shown), ("dev", shown[:1])):  # a run has a dev split; nothing is read of it
        qrels = "".join(f"{query}\t{passage}\t1\n" for query, passage in pairs)
        (out / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}")
    return hidden, total


def _write(path: Path, lines: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def judge(folder: Path, given: Namespace) -> dict[Pair, float]:
    """Index, mine and relabel the data in ``folder``; return the judge's score of each suspect."""
    (folder / "run.toml").write_text(RUN.format(model=given.model, depth=given.depth))
    judge_model = given.judge or given.model
    named = Path(judge_model).resolve() if Path(judge_model).exists() else judge_model
    (folder / "relabel.toml").write_text(RELABEL.format(top=given.top, kind=given.kind, judge=named))
    store = ("--store", str(folder / "store"))
    _hone("index", str(folder / "data"), "--model", given.model, *store)
    _hone("mine", str(folder / "run.toml"), *store)
    _hone("relabel", str(folder / "relabel.toml"), *store)
    found = read_lines(folder / "relabel/judgements.jsonl")
    shutil.rmtree(folder / "store")
    return {(line["query"], line["passage"]): line.get("score", 0.0) for line in found}


def _hone(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "app.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def recovered(hidden: set[Pair], scored: dict[Pair, float], threshold: float) -> dict[str, Any]:
    """Return how many hidden pairs score at least ``threshold``, their share, and how many others do."""
    called = {pair for pair, score in scored.items() if score >= threshold}
    back = len(called & hidden)
    return {"back": back, "recall": round(back / len(hidden), 3), "along": len(called - hidden)}


if __name__ == "__main__":
    main()
