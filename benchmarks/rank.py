"""Claim: hone scores pairs faster than sentence-transformers' CrossEncoder, to the same scores.

No weights of a ranker are packaged, so both sides get MiniLM's with a random head. Does not know how either scores.
"""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from benchmarks import machine
from benchmarks.alternation import Entrant, alternate, started
from benchmarks.machine import Machine, forward_flops
from benchmarks.options import Options, parse
from benchmarks.report import Answers, last_line, print_rates, ratio, show
from benchmarks.texts import SEED, hand_over, sample_passages, sample_queries
from retriever.encoder import model_path
from retriever.ranker import RankerConfig, load_ranker

KEYS = ("vs_st_default", "vs_st_bf16", "vs_st_openvino", "correlation")
PASSAGES_A_QUERY = 20
PAIRS, QUICK_PAIRS = 240, 80
OPENVINO = "CrossEncoder, OpenVINO"
NO_BF16 = "this processor has no bf16 instructions"


def main() -> None:
    """Measure and print."""
    options = parse("rank", "Pairs scored per second against CrossEncoder.predict: by default, in bf16, by OpenVINO.")
    host = machine.look()
    show(host.sentence)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        ranker, pairs = _write_ranker(Path(scratch) / "ranker"), _pairs(options)
        with started(_entrants(ranker, host.bf16 is not None)) as contestants:
            for contestant in contestants:
                show(f"{contestant.entrant.name}: {contestant.versions}")
            path = hand_over(Path(scratch), "pairs", pairs)
            alternate(contestants, "work", 1, pairs=path)  # warm up
            answers = alternate(contestants, "work", options.rounds, pairs=path)
        _report(host, answers, ranker, pairs)


def _write_ranker(folder: Path) -> Path:
    """Save MiniLM with one label's random head."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would warn of that head
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it would cut through our own output
    torch.manual_seed(SEED)
    weights = model_path("minilm")
    AutoModelForSequenceClassification.from_pretrained(weights, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights).save_pretrained(folder)
    return folder


def _pairs(options: Options) -> list[tuple[str, str]]:
    """Draw queries, and passages for each: a re-ranker's work by its lengths, whatever the first stage found."""
    count = QUICK_PAIRS if options.quick else PAIRS
    queries = sample_queries(options.data, count // PASSAGES_A_QUERY)
    passages = sample_passages(options.data, min(count, 2000))
    draw = random.Random(SEED)
    return [(query, passage) for query in queries for passage in draw.sample(passages, PASSAGES_A_QUERY)]


def _entrants(ranker: Path, bf16: bool) -> list[Entrant]:
    module, environment = "benchmarks.contestants.st_rank", "sentence-transformers"
    peer, ours = (module, environment), "benchmarks.contestants.hone_rank"
    folder = str(ranker)
    entrants = [
        Entrant("CrossEncoder, default", *peer, {"folder": folder, "settings": {}}),
        Entrant(OPENVINO, module, f"{environment}-openvino", {"folder": folder, "settings": {}, "backend": "openvino"}),
        Entrant("hone, fp32", ours, settings={"folder": folder, "precision": "fp32"}),
    ]
    if bf16:
        entrants += [
            Entrant("CrossEncoder, bf16", *peer, {"folder": folder, "settings": {"dtype": "bfloat16"}}),
            Entrant("hone, bf16", ours, settings={"folder": folder, "precision": "bf16"}),
        ]
    return entrants


def _report(host: Machine, answers: Answers, ranker: Path, pairs: Sequence[tuple[str, str]]) -> None:
    ours = "hone, bf16" if host.bf16 else "hone, fp32"
    print_rates(f"Scoring {len(pairs)} pairs", "pairs", len(pairs), answers, ours)
    model = load_ranker(RankerConfig(str(ranker)))
    tokenized, cut = model.tokenize(*zip(*pairs, strict=True))
    lengths = [len(pair["input_ids"]) for pair in tokenized]
    flops = forward_flops(model.classifier.config.to_dict(), lengths)
    seconds = float(np.median([answer.seconds for answer in answers[ours]]))
    share = flops / seconds / 1e9 / (host.bf16 or host.fp32)
    show(
        f"{np.mean(lengths):.0f} tokens a pair, {cut} pairs cut; {ours}: a whole forward pass's arithmetic at "
        f"{share:.0%} of the fastest matrix product"
    )
    reference, scores = (answers[name][-1].arrays["scores"] for name in ("CrossEncoder, default", ours))
    exact = answers["hone, fp32"][-1].arrays["scores"]
    show(f"largest difference to CrossEncoder's scores, fp32: {np.abs(exact - reference).max():.1e}")
    figures = {
        "vs_st_default": ratio(answers, "CrossEncoder, default", ours),
        "vs_st_bf16": ratio(answers, "CrossEncoder, bf16", ours) if host.bf16 else None,
        "vs_st_openvino": ratio(answers, OPENVINO, ours),
        "correlation": float(np.corrcoef(scores, reference)[0, 1]),
    }
    reasons = {} if host.bf16 else {"vs_st_bf16": NO_BF16}
    last_line(KEYS, figures, reasons, pairs=len(pairs), share_of_peak=round(share, 3), machine=host.as_facts())


if __name__ == "__main__":
    main()
