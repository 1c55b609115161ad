"""Claim: on a GPU hone encodes a corpus faster than sentence-transformers, nearer to the fastest bf16 product.

Models of three sizes: the packaged MiniLM, and BERT's base and large shapes with random weights and MiniLM's words.
Does not know how either encodes.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks import machine
from benchmarks.alternation import Contestant, Entrant, alternate, started
from benchmarks.machine import forward_flops
from benchmarks.options import Options, options_of, parser_for
from benchmarks.report import last_line, print_rates, ratio, show
from benchmarks.texts import hand_over, sample_passages
from retriever.encoder import ModelConfig, create_encoder, model_path

SHAPES = {"base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads of the models that are made here."""
PASSAGES = {"minilm": 10_000, "base": 4_000, "large": 2_000}
SIZES = tuple(PASSAGES)
QUICK = 10
"""A quick run takes a tenth of the passages."""
MAX_LENGTH = 256
BATCH = 256
"""Texts of a batch that fills a GPU; sentence-transformers' default is 32."""
CLAIMS = ("vs_st_default", "vs_st_bf16", "share_of_peak", "cosine_mean")
KEYS = tuple(f"{claim}_{size}" for size in SIZES for claim in CLAIMS)
DEFAULT, BF16, OURS = "sentence-transformers", "sentence-transformers, bf16, batches of 256", "hone"
THREADS = 8


def main() -> None:
    """Measure and print."""
    parser = parser_for("encode_gpu", "Passages encoded per second on a GPU against sentence-transformers.")
    parser.add_argument("--size", choices=SIZES, help="measure this alone")
    given = parser.parse_args()
    options = options_of(given)
    if not torch.cuda.is_available() or not machine.has_bf16("cuda"):
        last_line(KEYS, dict.fromkeys(KEYS), dict.fromkeys(KEYS, "this machine has no GPU with bf16 in hardware"))
        return
    host = machine.look("cuda")
    show(host.sentence)
    assert host.bf16
    figures: dict[str, float | None] = dict.fromkeys(KEYS)
    sizes = [given.size] if given.size else list(SIZES)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
        started(_entrants(model_path("minilm")), THREADS) as all_,
    ):
        for contestant in all_:
            show(f"{contestant.entrant.name}: {contestant.versions}")
        for size in sizes:
            figures |= _measure(size, all_, options, host.bf16, Path(scratch))
    reasons = {key: "its size was not asked for" for key in KEYS if figures[key] is None}
    last_line(KEYS, figures, reasons, machine=host.as_facts())


def _measure(
    size: str, contestants: list[Contestant], options: Options, bf16: float, scratch: Path
) -> dict[str, float]:
    texts = sample_passages(options.data, PASSAGES[size] // (QUICK if options.quick else 1))
    passages = hand_over(scratch, "passages", texts)
    model = _model(size, scratch / size)
    for contestant, entrant in zip(contestants, _entrants(model), strict=True):
        contestant.ask("load", **entrant.settings)
    alternate(contestants, "work", 1, passages=passages)  # warm up
    answers = alternate(contestants, "work", options.rounds, passages=passages)
    found = create_encoder(ModelConfig(model, passage_max_length=MAX_LENGTH))
    lengths = [len(ids) for ids in found.tokenize("passage", texts)[0]]
    flops = forward_flops(found.passage.transformer.config.to_dict(), lengths)
    print_rates(f"{size}: {np.mean(lengths):.0f} tokens a passage", "tokens", sum(lengths), answers, OURS)
    shares = {
        name: flops / statistics.median(one.seconds for one in given) / 1e9 / bf16 for name, given in answers.items()
    }
    show(", ".join(f"{name}: {share:.1%}" for name, share in shares.items()) + " of the fastest bf16 product")
    ours, exact = answers[OURS][-1].arrays["vectors"], answers[DEFAULT][-1].arrays["vectors"]
    exact = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return {
        f"vs_st_default_{size}": ratio(answers, DEFAULT, OURS),
        f"vs_st_bf16_{size}": ratio(answers, BF16, OURS),
        f"share_of_peak_{size}": shares[OURS],
        f"cosine_mean_{size}": float((ours * exact).sum(1).mean()),
    }


def _model(size: str, folder: Path) -> str:
    if size not in SHAPES:
        return model_path("minilm")
    tokenizer = AutoTokenizer.from_pretrained(model_path("minilm"))
    width, layers, heads = SHAPES[size]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _entrants(model: str) -> list[Entrant]:
    def peer(name: str, settings: dict[str, str], batch_size: int) -> Entrant:
        given = {**shared, "backend": "torch", "settings": settings, "batch_size": batch_size}
        return Entrant(name, "benchmarks.contestants.st_encode", "sentence-transformers", given)

    shared = {"model": model, "device": "cuda", "max_length": MAX_LENGTH}
    ours = {**shared, "engine": "auto", "precision": "auto", "calibration": ""}
    hone = Entrant(OURS, "benchmarks.contestants.hone_encode", settings=ours)
    return [peer(DEFAULT, {}, 32), peer(BF16, {"dtype": "bfloat16"}, BATCH), hone]


if __name__ == "__main__":
    main()
