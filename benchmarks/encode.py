"""Claim: hone encodes a corpus, and a single query, faster than sentence-transformers, to the same vectors.

Does not know how either encodes.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.alternation import Entrant, alternate, started
from benchmarks.machine import Machine, forward_flops
from benchmarks.options import parse
from benchmarks.report import Answers, last_line, print_rates, ratio, show
from benchmarks.texts import hand_over, sample_passages, sample_queries
from retriever.encoder import ModelConfig, create_encoder, model_path
from retriever.protocols import FloatArray

KEYS = (
    "vs_st_default",
    "vs_st_bf16",
    "vs_st_openvino",
    "fp32_vs_st_default",
    "int8_vs_st_default",
    "openvino_vs_st_default",
    "query_vs_st",
    "query_openvino_vs_st",
    "query_int8_vs_st",
    "query_vs_st_openvino",
    "cosine_mean",
    "cosine_min",
    "int8_cosine_mean",
    "query_int8_cosine_mean",
)
PASSAGES, QUICK_PASSAGES = 320, 96
QUERIES = 40
CALIBRATION = 128
"""Passages that int8 is calibrated on; they are not among those that are encoded."""
NO_BF16 = "this processor has no bf16 instructions"
NO_OPENVINO = "hone's extra openvino is not installed"
NO_ONNX = "hone's extra onnx is not installed"
DEFAULT, OPENVINO = "sentence-transformers", "sentence-transformers, OpenVINO"
BF16, AUTOCAST = "sentence-transformers, bf16", "sentence-transformers, bf16 by autocast"
TORCH_FP32, TORCH_BF16, OURS_OPENVINO, INT8 = "hone, fp32", "hone, bf16", "hone, OpenVINO", "hone, OpenVINO int8"
INT8_QUERIES = "hone, queries in int8"


def main() -> None:
    """Measure and print."""
    options = parse("encode", "Passages and queries encoded per second against sentence-transformers.")
    host = machine.look()
    show(host.sentence)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        count = QUICK_PASSAGES if options.quick else PASSAGES
        drawn = sample_passages(options.data, count + CALIBRATION)
        passages = hand_over(Path(scratch), "passages", drawn[:count])
        queries = hand_over(Path(scratch), "queries", sample_queries(options.data, QUERIES))
        calibration = hand_over(Path(scratch), "calibration", drawn[count:])
        with started(_entrants(host.bf16 is not None, calibration)) as contestants:
            for contestant in contestants:
                show(f"{contestant.entrant.name}: {contestant.versions}")
            of_passages = [one for one in contestants if one.entrant.name != INT8_QUERIES]
            alternate(of_passages, "work", 1, passages=passages)  # warm up
            answers = alternate(of_passages, "work", options.rounds, passages=passages)
            alternate(contestants, "ask", 1, queries=queries)
            asked = alternate(contestants, "ask", options.rounds, queries=queries)
        _report(host, answers, asked, drawn[:count])


def _entrants(bf16: bool, calibration: str) -> list[Entrant]:
    def peer(name: str, environment: str, backend: str = "torch", autocast: bool = False, **settings: str) -> Entrant:
        told = {"model": model, "backend": backend, "settings": settings, "autocast": autocast}
        return Entrant(name, "benchmarks.contestants.st_encode", environment, told)

    def ours(name: str, engine: str, precision: str, **told: str) -> Entrant:
        settings = {"model": model, "engine": engine, "precision": precision, **told}
        return Entrant(name, "benchmarks.contestants.hone_encode", settings=settings)

    model = model_path("minilm")
    best = "bf16" if bf16 else "fp32"
    entrants = [
        peer(DEFAULT, "sentence-transformers"),
        ours(TORCH_FP32, "torch", "fp32"),
    ]
    if find_spec("openvino") is not None:
        entrants += [peer(OPENVINO, "sentence-transformers-openvino", "openvino")]
        entrants += [ours(OURS_OPENVINO, "openvino", best), ours(INT8, "openvino", "int8", calibration=calibration)]
    if all(map(find_spec, ("onnx", "onnxruntime"))):
        entrants += [ours(INT8_QUERIES, "torch", best, query_precision="int8")]
    if bf16:
        entrants += [peer(BF16, "sentence-transformers", dtype="bfloat16"), ours(TORCH_BF16, "torch", "bf16")]
        entrants += [peer(AUTOCAST, "sentence-transformers", autocast=True)]
    return entrants


def _report(host: Machine, answers: Answers, asked: Answers, passages: list[str]) -> None:
    ours = TORCH_BF16 if host.bf16 else TORCH_FP32
    print_rates(f"Encoding {len(passages)} passages", "passages", len(passages), answers, ours)
    print_rates("Encoding a query", "queries", 1, asked, ours)
    exact = answers[DEFAULT][-1].arrays["vectors"]
    cosines = {name: _cosine(given[-1].arrays["vectors"], exact) for name, given in answers.items()}
    for name, cosine in cosines.items():
        show(f"{name}: cosine to {DEFAULT}, mean {cosine.mean():.6f}, least {cosine.min():.6f}")
    model = create_encoder(ModelConfig())
    lengths = [len(ids) for ids in model.tokenize("passage", passages)[0]]
    flops = forward_flops(model.passage.transformer.config.to_dict(), lengths)
    peaks = {TORCH_FP32: host.fp32, TORCH_BF16: host.bf16, OURS_OPENVINO: host.bf16 or host.fp32}
    shares = {
        name: flops / float(np.median([answer.seconds for answer in answers[name]])) / 1e9 / peak
        for name, peak in peaks.items()
        if name in answers and peak is not None
    }
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    show(f"{np.mean(lengths):.0f} tokens a passage; of the fastest matrix product of the same precision: {told}")
    figures: dict[str, float | None] = dict.fromkeys(KEYS)
    figures |= {
        "vs_st_default": ratio(answers, DEFAULT, ours),
        "fp32_vs_st_default": ratio(answers, DEFAULT, TORCH_FP32),
        "query_vs_st": ratio(asked, DEFAULT, ours),
        "cosine_mean": float(cosines[ours].mean()),
        "cosine_min": float(cosines[ours].min()),
    }
    if BF16 in answers:
        figures["vs_st_bf16"] = min(ratio(answers, peer, ours) for peer in (BF16, AUTOCAST))
    if OURS_OPENVINO in answers:
        figures |= {
            "vs_st_openvino": ratio(answers, OPENVINO, OURS_OPENVINO),
            "openvino_vs_st_default": ratio(answers, DEFAULT, OURS_OPENVINO),
            "query_openvino_vs_st": ratio(asked, DEFAULT, OURS_OPENVINO),
            "int8_vs_st_default": ratio(answers, DEFAULT, INT8),
            "query_vs_st_openvino": ratio(asked, OPENVINO, OURS_OPENVINO),
            "int8_cosine_mean": float(cosines[INT8].mean()),
        }
    if INT8_QUERIES in asked:
        coarse = _cosine(asked[INT8_QUERIES][-1].arrays["vectors"], asked[DEFAULT][-1].arrays["vectors"])
        show(f"{INT8_QUERIES}: cosine to {DEFAULT}, mean {coarse.mean():.6f}, least {coarse.min():.6f}")
        figures |= {
            "query_int8_vs_st": ratio(asked, DEFAULT, INT8_QUERIES),
            "query_int8_cosine_mean": float(coarse.mean()),
        }
    lacking = {"vs_st_bf16": NO_BF16, "query_int8_vs_st": NO_ONNX, "query_int8_cosine_mean": NO_ONNX}
    reasons = {key: lacking.get(key, NO_OPENVINO) for key in KEYS if figures[key] is None}
    last_line(
        KEYS, figures, reasons, passages=len(passages), share_of_peak=round(shares[ours], 3), machine=host.as_facts()
    )


def _cosine(found: FloatArray, exact: FloatArray) -> FloatArray:
    cosine: FloatArray = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    return cosine


if __name__ == "__main__":
    main()
