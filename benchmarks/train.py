"""Claim: hone steps faster than sentence-transformers' trainer in bf16, and in less memory, at the same loss.

Both train the packaged MiniLM on the same triplets in the same order. Does not know how either steps.
"""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.alternation import Answer, Entrant, alternate, started
from benchmarks.machine import forward_flops
from benchmarks.options import Options, options_of, parser_for
from benchmarks.report import Answers, last_line, print_rates, ratio, rss_ratio, show
from benchmarks.texts import hand_over
from retriever.beir import find_file, read_passages, read_queries
from retriever.beir_writer import new_dataset
from retriever.data import passage_text
from retriever.encoder import ModelConfig, create_encoder, model_path
from retriever.trec import read_qrels

PEER, EAGER, OURS = "sentence-transformers", "sentence-transformers, eager attention", "hone"
BATCH, CACHED_BATCH, QUICK_CACHED_BATCH = 32, 512, 128
STEPS, QUICK_STEPS = 10, 4
"""Steps a round; with a cached loss one."""
MAX_LENGTH = 128
MINI_BATCH = 32
DROPOUT = 0.1
NO_BF16 = "this device has no bf16 instructions; --precision fp32 compares without"


@dataclass(frozen=True)
class Part:
    """One comparison; ``suffix`` marks its keys."""

    suffix: str
    dropout: float
    cached: bool


PARTS = {
    "dropout": Part("", DROPOUT, False),
    "plain": Part("_no_dropout", 0.0, False),
    "cached": Part("_cached", DROPOUT, True),
    "cached-plain": Part("_cached_no_dropout", 0.0, True),
}
CLAIMS = ("vs_st", "vs_st_best", "memory_ratio", "loss_gap", "share_of_peak")
KEYS = tuple(f"{claim}{part.suffix}" for part in PARTS.values() for claim in CLAIMS)


@dataclass(frozen=True)
class Triplets:
    """Queries with a positive and a negative each, as texts, and as a BEIR folder with the negatives' rows."""

    texts: list[tuple[str, str, str]]
    path: str
    data: Path
    negatives: str


def main() -> None:
    """Measure and print."""
    parser = parser_for("train", "Triplets a second of the training step, and its memory.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--part", choices=tuple(PARTS), help="measure this alone")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of both; the aims are of bf16")
    given = parser.parse_args()
    options = options_of(given)
    host = machine.look(given.device)
    show(host.sentence)
    figures: dict[str, Any] = dict.fromkeys(KEYS)
    reasons = dict.fromkeys(
        KEYS, NO_BF16 if host.bf16 is None and given.precision == "bf16" else "its part was not asked for"
    )
    peak = host.bf16 if given.precision == "bf16" else host.fp32
    for name, part in PARTS.items():
        if peak is not None and given.part in (None, name):
            found = _measure(peak, options, part, {"device": given.device, "precision": given.precision})
            figures.update(found)
            reasons = {key: reason for key, reason in reasons.items() if key not in found}
    last_line(KEYS, figures, reasons, precision=given.precision, machine=host.as_facts())


def _measure(peak: float, options: Options, part: Part, where: Mapping[str, str]) -> dict[str, float]:
    batch = BATCH if not part.cached else QUICK_CACHED_BATCH if options.quick else CACHED_BATCH
    steps = 1 if part.cached else QUICK_STEPS if options.quick else STEPS
    rounds = options.rounds + 1  # the first is not counted: both make what they keep for later steps
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        triplets = _triplets(options.data, batch, rounds * steps, Path(scratch))
        settings = {
            "dropout": part.dropout,
            "cached": part.cached,
            "batch_size": batch,
            "steps": rounds * steps,
            "warmup": rounds * steps // 10,
            "learning_rate": 5e-5,
            "temperature": 0.05,
            "max_length": MAX_LENGTH,
            **where,
        }
        with started(_entrants(settings, triplets)) as contestants:
            for contestant in contestants:
                show(f"{contestant.entrant.name}: {contestant.versions}")
            stepped = alternate(contestants, "work", rounds, steps=steps)
    answers = {name: given[1:] for name, given in stepped.items()}
    what = f"{steps} steps of {batch} triplets, dropout {part.dropout}{', cached' if part.cached else ''}"
    print_rates(what, "triplets", steps * batch, answers, OURS)
    losses = {name: _losses(given) for name, given in stepped.items()}
    gap = float(np.mean(losses[OURS]) - np.mean(losses[PEER]))
    for name, found in losses.items():
        show(f"{name}: loss {', '.join(f'{loss:.3f}' for loss in found)}")
    show(f"mean loss of all {len(losses[OURS])} steps: {np.mean(losses[OURS]):.4f}, {gap:+.4f} against {PEER}")
    figures = {
        "vs_st": ratio(answers, PEER, OURS),
        "vs_st_best": min(ratio(answers, peer, OURS) for peer in (PEER, EAGER) if peer in answers),
        "memory_ratio": _gpu_ratio(answers) if where["device"] == "cuda" else rss_ratio(answers, PEER, OURS),
        "loss_gap": abs(gap),
        "share_of_peak": _share(peak, triplets, stepped[OURS], part.cached),
    }
    return {f"{claim}{part.suffix}": figure for claim, figure in figures.items()}


def _gpu_ratio(answers: Answers) -> float:
    peer, ours = (answers[name][-1].facts["gpu_peak"] for name in (PEER, OURS))
    ratio: float = ours / peer
    return ratio


def _losses(answers: Sequence[Answer]) -> list[float]:
    return [loss for answer in answers for loss in answer.facts["losses"]]


def _share(peak: float, triplets: Triplets, answers: Sequence[Answer], cached: bool) -> float:
    """Return the arithmetic of forward and backward passes as a share of the fastest matrix product."""
    model = create_encoder(ModelConfig(query_max_length=MAX_LENGTH, passage_max_length=MAX_LENGTH))
    texts = [text for triplet in triplets.texts for text in triplet]
    lengths = [len(ids) for ids in model.tokenize("passage", texts)[0]]
    show(f"{3 * np.mean(lengths):.0f} tokens a triplet")
    flops = forward_flops(model.passage.transformer.config.to_dict(), lengths) * (4 if cached else 3) / len(answers)
    return flops / statistics.median(answer.seconds for answer in answers[1:]) / 1e9 / peak


def _entrants(settings: Mapping[str, Any], triplets: Triplets) -> list[Entrant]:
    theirs = {"model": model_path("minilm"), "triplets": triplets.path, "mini_batch": MINI_BATCH}
    ours = {"data": str(triplets.data), "negatives": triplets.negatives}
    peer = ("benchmarks.contestants.st_train", "sentence-transformers")
    # on a CPU torch's fused attention, its default, is the slower one for texts as short as these
    attentions = {PEER: None, EAGER: "eager"} if settings["device"] == "cpu" else {PEER: None}
    return [
        *(Entrant(name, *peer, {**settings, **theirs, "attention": kind}) for name, kind in attentions.items()),
        Entrant(OURS, "benchmarks.contestants.hone_train", settings={**settings, **ours}),
    ]


def _triplets(data: Path, batch: int, batches: int, scratch: Path) -> Triplets:
    """Take training queries in order, over and over; a positive's neighbour in the corpus is the negative.

    No passage comes twice in a batch, so that both sides' losses compare the same candidates.
    """
    passages = [(name, title, text) for _, name, title, text in read_passages(data)]
    rows = distinct(data, passages, batch, batches)
    used = {row: place for place, row in enumerate(sorted({row for _, *pair in rows for row in pair}))}
    folder = scratch / "data"
    with new_dataset(folder) as writer:
        for row in used:
            writer.add_passage(*passages[row])
        for number, (query, _, _) in enumerate(rows):
            writer.add_query(f"q{number}", query)
        writer.write_qrels("train", ((f"q{n}", passages[positive][0], 1) for n, (_, positive, _) in enumerate(rows)))
    texts = [
        (query, passage_text(*passages[positive][1:]), passage_text(*passages[negative][1:]))
        for query, positive, negative in rows
    ]
    negatives = hand_over(scratch, "negatives", [used[negative] for _, _, negative in rows])
    return Triplets(texts, hand_over(scratch, "triplets", texts), folder, negatives)


def distinct(
    data: Path, passages: Sequence[tuple[str, str, str]], batch: int, batches: int
) -> list[tuple[str, int, int]]:
    """Return (query, row of the positive, row of the negative). Raises ValueError if no batch can be filled."""
    row_of = {name: row for row, (name, _, _) in enumerate(passages)}
    queries = {name: text for _, name, text in read_queries(data)}
    qrels = read_qrels(find_file(data, "qrels/train.tsv"))
    judged = [(queries[query], row_of[passage]) for _, query, passage, grade in qrels if grade > 0]
    found: list[tuple[str, int, int]] = []
    seen: set[str] = set()
    while len(found) < batch * batches:
        before = len(found)
        for query, positive in judged:
            negative = (positive + 1) % len(passages)
            texts = {query, passages[positive][2], passages[negative][2]}
            if len(found) % batch == 0:
                seen = set()
            if len(texts) == 3 and not texts & seen:
                found.append((query, positive, negative))
                seen |= texts
        if len(found) == before:
            raise ValueError(f"{data}: {before % batch} triplets without a text in common, but a batch takes {batch}")
    return found[: batch * batches]


if __name__ == "__main__":
    main()
