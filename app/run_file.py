"""A commented run.toml for a data set, with settings and estimates that fit the data and this machine.

Does not know how a run is carried out.
"""

import json
import os
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from retriever.beir import find_file, pass_over, read_passages
from retriever.data import passage_text
from retriever.durable import write_atomic
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.inference import ModelEncoder
from retriever.trec import read_qrels

SAMPLE_PASSAGES = 64
STEP_FACTOR = 3.0
"""A training step costs about this many times the forward pass of its texts."""
GENERATIONS_KEPT, CHECKPOINTS_KEPT = 4, 3
BATCH = 32
QUERY_LENGTH, PASSAGE_LENGTH = 64, 256
MANY_QUERIES = 100

TEMPLATE = """\
# A run of hone. Every key but data.path has a default; `hone train {name}` runs it.
# Estimate on this machine: {rate:.0f} passages/s encoded, {step_seconds:.1f} s a step;
# in all {minutes:.0f} min and {disk_mb} MB of disk.
seed = 13

[data]                      # a BEIR folder, relative to this file: corpus.jsonl, queries.jsonl, qrels/<split>.tsv
path = {path}
train = "train"
dev = "{dev}"{dev_note}

[model]
name = {model}             # minilm (packaged), a hub id, or a folder; folders of models start from where you call hone
tied = true                 # one tower for queries and passages
query_max_length = {query_max_length}       # tokens; longer texts are cut, and counted
passage_max_length = {passage_max_length}
# query_prompt = "query: "       # default: the model's own
# passage_prompt = "passage: "
# pooling = "mean"          # or "cls", "last"; default, as of normalize: the model's own
dropout = 0.0

[train]
max_steps = {max_steps}
batch_size = {batch}
num_negatives = 1           # hard negatives a query, beside those of its batch
# drawn_negatives = 8       # of so many drawn, learn from the num_negatives that score highest now (max loss)
learning_rate = 5e-5
warmup_steps = {warmup}
precision = "auto"          # bf16 where the hardware has it, else fp32
save_every = {every}
# grad_cache = true         # a batch of any size in the memory of a micro-batch, for twice the forward passes
# patience = 3              # stop after so many generations without a better dev metric
# device = "cpu"            # or "cuda"; default "auto": a GPU where torch sees one

[loss]
name = "infonce"            # or decoupled, gce, mw, lambdarank, ccl, multi_similarity: see docs/systems.md
temperature = 0.05
in_batch = true

# [ranker]                  # a cross-encoder that learns from the same negatives, saved with each checkpoint
# name = "minilm"           # a ranker, or an encoder that gets a fresh head; a folder or a hub id
# max_length = 256          # tokens of query and passage together
# loss = {{ name = "listwise" }}    # or gce, ranknet, lambdarank, margin_mse, asymmetric, em, cet
# batch_size = 16           # queries a step, each with its positive and num_negatives
# num_negatives = 7
# learning_rate = 5e-5
# warmup_steps = 20
# [phases]                  # steps of the ranker, then of the retriever, in turn; both count in max_steps
# ranker = 20
# retriever = 60            # 0 trains the ranker alone, and needs [refresh] trigger = "once"

# [teacher]                 # learn from a stronger model, too
# name = "path/to/ranker"   # a cross-encoder, which scores each mined pair once; or "anchor", against forgetting
# loss = "kl"               # or margin_mse, soft_infonce, cosent, embedding, ar2: see docs/systems.md

[negatives]                 # what is mined of each generation
sources = ["ann"]           # and "bm25", "lookahead" (near the positive), "momentum" (of the set before): their union
depth = {depth}                 # candidates a query from each source
range_min = 0               # skip the first ranks if they hold many unlabelled positives
relative_margin = 0.0       # e.g. 0.05 drops candidates within 5 % of the positive's score
# adaptive = 1.0            # drops candidates more than a standard deviation above the query's mean
# verdicts = "relabel/verdicts.jsonl" # what `hone relabel` wrote; every refresh respects it
sampler = {{ name = "uniform" }}  # or top, log_rank, simans, simans_laplace, hardness

# [audit]                   # keeps what training sees of every pair, for `hone audit`; docs/auditing.md
# planted = 0.05            # this share learns a wrong positive, so that `hone audit` knows how those look

# [batches]
# name = "b3"               # batches of queries that are hard for each other, planned with each set; or "ngame"

[refresh]
trigger = "steps:{every}"       # mark a checkpoint so often; or "0-1000:500,1000-:1000", "checkpoint" (each),
                            # "staleness:0.3", "once", "never"
adopt = "ready"             # or "scheduled": exactly `lag` steps after the checkpoint, so runs repeat to the bit
lag = {lag}
# method = "partial"        # encode `share` of the passages and map the others; each `full_every`-th is full
#                           # or "rescore": encode the candidates alone and score them anew, without a search
# share = 0.2
# full_every = 5
max_staleness = 1000
on_stale = "warn"           # or "wait", "stop"

[index]
factory = "auto"            # or any FAISS factory string, with
# search = {{ nprobe = 32 }}  # what it is searched by: nprobe (IVF), efSearch (HNSW), k_factor (Refine)
target_recall = 0.95
# max_memory_mb = 500       # the most that the index may take; "auto" then compresses more
# rerank_depth = 20         # hits of dev queries by which the gate judges a ranker; 0: it does not
# slices = ["language"]     # fields of the dev queries' metadata: the gate looks at each value by itself
engine = "auto"             # what encodes: torch or openvino; the run says which it took, and why
lexical = true              # an index of the words too, so that a server can search by them
precision = "auto"          # of encoding; "fp32" is exact everywhere, "int8" needs openvino
# query_precision = "int8"  # queries alone, quicker one by one; needs the extra onnx and a CPU
"""


def write_run_file(data: Path, out: Path, model: str) -> dict[str, Any]:
    """Write ``out`` for the BEIR folder ``data`` and return the estimates in it.

    Raises InputError if ``out`` exists or ``data`` lacks a part.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; choose another name with --out")
    passages, sample = _passages(data)
    queries = len({query for _, query, _, relevance in read_qrels(find_file(data, "qrels/train.tsv")) if relevance > 0})
    if queries == 0:
        raise InputError(f"{data}/qrels/train.tsv: no relevant pair to train on")
    carved = _carved_share(data, queries)
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    length, dimensions, weights, rate = _measure(model, sample)
    step_seconds = STEP_FACTOR * BATCH * 2.2 / rate
    rebuild_seconds = passages / rate
    max_steps = max(30, min(600, round(3 * queries / BATCH)))
    every = max(10, min(max_steps // 3, round(2 * rebuild_seconds / step_seconds)))
    refreshes = max_steps // every + 1
    seconds = max_steps * step_seconds + refreshes * rebuild_seconds
    copies = GENERATIONS_KEPT + 3 * CHECKPOINTS_KEPT  # a checkpoint has two moments of each weight besides
    disk_mb = round((passages * dimensions * 4 * 2 * GENERATIONS_KEPT + weights * 4 * copies) / 1e6)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(
        out,
        TEMPLATE.format(
            name=out.name,
            rate=rate,
            step_seconds=step_seconds,
            minutes=seconds / 60,
            disk_mb=disk_mb,
            path=_quoted(os.path.relpath(data, out.parent)),
            dev=f"train:{carved}" if carved else "dev",
            dev_note="            # this share of train, carved off by positive passage" if carved else "",
            model=_quoted(model),
            query_max_length=min(QUERY_LENGTH, length),
            passage_max_length=length,
            max_steps=max_steps,
            batch=max(1, min(BATCH, queries // 2 if carved else queries)),
            warmup=max(1, max_steps // 10),
            every=every,
            depth=min(200, passages),
            lag=max(1, every // 2),
        ).encode(),
    )
    return {"passages": passages, "train_queries": queries, "seconds": round(seconds), "disk_mb": disk_mb}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _carved_share(data: Path, queries: int) -> float:
    """Return how much of train dev must be carved off: 0 where there is a dev split, more where queries are few."""
    try:
        find_file(data, "qrels/dev.tsv")
    except InputError:
        return 0.1 if queries >= MANY_QUERIES else 0.3
    return 0.0


def _passages(data: Path) -> tuple[int, list[str]]:
    lines = read_passages(data, pass_over)
    sample = [passage_text(title, text) for _, _, title, text in islice(lines, SAMPLE_PASSAGES)]
    if not sample:
        raise InputError(f"{data / 'corpus.jsonl'}: no passages")
    return len(sample) + sum(1 for _ in lines), sample


def _measure(model: str, sample: list[str]) -> tuple[int, int, int, float]:
    """Return the longest passage that ``model`` reads, its dimensions and weights, and the passages a second."""
    opened = create_encoder(ModelConfig(name=model))
    length = min(PASSAGE_LENGTH, opened.config.passage_max_length or PASSAGE_LENGTH)
    opened.config = replace(opened.config, passage_max_length=length)
    encoder = ModelEncoder(opened, "auto")
    encoder.encode_passages(sample[:8])
    started = time.monotonic()
    encoder.encode_passages(sample)
    weights = sum(one.numel() for one in opened.parameters())  # of tied towers once
    return length, opened.dimensions, weights, len(sample) / (time.monotonic() - started)
