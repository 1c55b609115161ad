"""Claim: hone goes from a corpus and queries to hard negatives faster than mine_hard_negatives, to the same ones.

Does not know how either mines.
"""

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.alternation import WITHOUT_GPU, Entrant, alternate, started
from benchmarks.machine import has_bf16
from benchmarks.options import options_of, parser_for
from benchmarks.report import Answers, last_line, print_rates, ratio, rss_ratio, show
from benchmarks.texts import SEED, hand_over
from retriever.beir import find_file, read_passages, read_queries
from retriever.data import passage_text
from retriever.encoder import model_path
from retriever.trec import read_qrels

KEYS = ("vs_st", "vs_st_best", "fp32_vs_st", "vs_st_unchanged", "vs_st_cached", "rss_ratio", "overlap", "overlap_fp32")
PASSAGES, QUERIES = 400, 200
QUICK_PASSAGES, QUICK_QUERIES = 200, 100
DEPTH, NEGATIVES = 100, 5
DEFAULT, BF16, CACHED = "mine_hard_negatives", "mine_hard_negatives, bf16", "mine_hard_negatives, cache_folder"
OPENVINO = "mine_hard_negatives, OpenVINO"
OURS, FP32 = "hone", "hone, fp32"


def main() -> None:
    """Measure and print."""
    parser = parser_for("mine", "From a corpus and queries to hard negatives, against mine_hard_negatives.")
    parser.add_argument("--pairs", type=int, help="so many queries over as many passages, once: for memory")
    given = parser.parse_args()
    options = options_of(given)
    host = machine.look()
    show(host.sentence)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        passage_count, query_count = (QUICK_PASSAGES, QUICK_QUERIES) if options.quick else (PASSAGES, QUERIES)
        if given.pairs:
            passage_count = query_count = given.pairs
        passages, pairs = _write_data(options.data, passage_count, query_count, Path(scratch) / "data")
        entrants = _entrants(Path(scratch), hand_over(Path(scratch), "texts", {"passages": passages, "pairs": pairs}))
        if given.pairs:
            entrants = [one for one in entrants if one.name in (_settings()[0], OURS)]
        with started(entrants) as contestants:
            for contestant in contestants:
                show(f"{contestant.entrant.name}: {contestant.versions}")
            if given.pairs:
                _report_many(len(passages), len(pairs), alternate(contestants, "work", 1), host.as_facts())
                return
            alternate(contestants, "work", 1)  # warm up, and fill the cache of who has one
            unchanging = [one for one in contestants if one.entrant.name in (OURS, CACHED)]
            mined = alternate([one for one in contestants if one not in unchanging[1:]], "work", options.rounds)
            again = alternate(unchanging, "again", options.rounds)
    _report(len(passages), len(pairs), mined, again, host.as_facts())


def _write_data(
    data: Path, passage_count: int, query_count: int, folder: Path
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Write some training queries, their passages and others as a BEIR folder; return texts by id, and pairs."""
    draw = random.Random(SEED)
    judged = read_qrels(find_file(data, "qrels/train.tsv"))
    positive = {query: passage for _, query, passage, score in judged if score > 0}
    queries = {name: text for _, name, text in read_queries(data)}
    chosen = draw.sample(sorted(positive), query_count)
    everything = {name: (title, text) for _, name, title, text in read_passages(data)}
    wanted = dict.fromkeys(positive[query] for query in chosen)
    others = draw.sample(sorted(everything.keys() - wanted.keys()), max(0, passage_count - len(wanted)))
    kept = {name: everything[name] for name in (*wanted, *others)}
    (folder / "qrels").mkdir(parents=True)
    _write_lines(
        folder / "corpus.jsonl", [{"_id": n, "title": title, "text": text} for n, (title, text) in kept.items()]
    )
    _write_lines(folder / "queries.jsonl", [{"_id": name, "text": queries[name]} for name in chosen])
    lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{positive[query]}\t1" for query in chosen)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")
    texts = {name: passage_text(title, text) for name, (title, text) in kept.items()}
    return texts, [{"query": name, "text": queries[name], "positive": positive[name]} for name in chosen]


def _write_lines(path: Path, records: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _entrants(scratch: Path, texts: str) -> list[Entrant]:
    depth = {"depth": DEPTH, "negatives": NEGATIVES}

    def peer(name: str, backend: str = "torch", cache: str | None = None, **settings: str) -> Entrant:
        shared = {"model": model_path("minilm"), "texts": texts, "backend": backend, "cache": cache}
        environment = "sentence-transformers" if backend == "torch" else f"sentence-transformers-{backend}"
        return Entrant(name, "benchmarks.contestants.st_mine", environment, {**shared, "settings": settings, **depth})

    def ours(name: str, **settings: str) -> Entrant:
        place = scratch / name.replace(", ", "-")
        given = {"data": str(scratch / "data"), "settings": settings, "scratch": str(place), **depth}
        return Entrant(name, "benchmarks.contestants.hone_mine", settings=given, variables=WITHOUT_GPU)

    better = [peer(OPENVINO, "openvino")] if OPENVINO in _settings() else []
    better += [peer(BF16, dtype="bfloat16")] if BF16 in _settings() else []
    cached = peer(CACHED, cache=str(scratch / "cache"))
    return [peer(DEFAULT), *better, ours(FP32, precision="fp32"), ours(OURS), cached]


def _settings() -> list[str]:
    """Return the names of the peer's settings on this machine: OpenVINO where hone has it, too, bf16, its default."""
    better = {OPENVINO: find_spec("openvino") is not None, BF16: has_bf16(), DEFAULT: True}
    return [name for name, there in better.items() if there]


def _report(passages: int, queries: int, mined: Answers, again: Answers, host: Mapping[str, Any]) -> None:
    amount = passages + queries
    print_rates(f"Mining {queries} queries over {passages} passages, all from the start", "texts", amount, mined, OURS)
    print_rates("The same again, the encoder unchanged", "texts", amount, again, OURS)
    show(f"hone encoded by {mined[OURS][-1].facts['computed_by']}")
    unchanged = {DEFAULT: mined[DEFAULT], OURS: again[OURS]}
    figures = {
        "vs_st": ratio(mined, DEFAULT, OURS),
        "vs_st_best": min(ratio(mined, peer, OURS) for peer in _settings()),
        "fp32_vs_st": ratio(mined, DEFAULT, FP32),
        "vs_st_unchanged": ratio(unchanged, DEFAULT, OURS),
        "vs_st_cached": ratio(again, CACHED, OURS),
        "rss_ratio": rss_ratio(mined, DEFAULT, OURS),
        "overlap": _overlap(mined, OURS),
        "overlap_fp32": _overlap(mined, FP32),
    }
    last_line(KEYS, figures, {}, passages=passages, queries=queries, machine=dict(host))


def _report_many(passages: int, queries: int, mined: Answers, host: Mapping[str, Any]) -> None:
    print_rates(f"Mining {queries} queries over {passages} passages, once", "texts", passages + queries, mined, OURS)
    figures: dict[str, float | None] = dict.fromkeys(KEYS)
    best = _settings()[0]
    figures |= {
        "vs_st_best": ratio(mined, best, OURS),
        "rss_ratio": rss_ratio(mined, best, OURS),
        "overlap": _overlap(mined, OURS, best),
    }
    reasons = {key: "--pairs leaves it out" for key, figure in figures.items() if figure is None}
    last_line(KEYS, figures, reasons, passages=passages, queries=queries, machine=dict(host))


def _overlap(mined: Answers, name: str, peer: str = DEFAULT) -> float:
    """Return the share of the ``peer``'s negatives that ``name`` has mined, too."""
    theirs, mine = (mined[one][-1].facts["negatives"] for one in (peer, name))
    return float(np.mean([len({*theirs[query]} & {*mine[query]}) / NEGATIVES for query in theirs]))


if __name__ == "__main__":
    main()
