"""A teacher's scores of a negative set: each pair is scored once, whatever set it turns up in.

Does not know torch, nor what is learned from the scores.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from indexer.encode import advance
from miner.mining import MiningTask
from retriever.durable import keep_only, sha256_json, write_atomic
from retriever.errors import StoreError
from retriever.negatives import NegativeSet
from retriever.protocols import FloatArray, IntArray, Progress, Ranker, silent
from retriever.store import Store
from retriever.teacher_scores import create_teacher_scores

BLOCK_QUERIES = 64
"""Queries whose pairs are scored, held and kept together: what a kill costs at most."""
Keys = NDArray[np.int64]
"""Pairs as query row · 2³² + passage row."""


@dataclass(frozen=True)
class PoolTeacher:
    """``ranker`` scores the positives and the best ``depth`` candidates that may be drawn, None: all of them.

    ``settings`` tell the set's reader which teacher it was; ``progress`` counts the pairs that are scored.
    """

    ranker: Ranker
    settings: dict[str, Any] = field(default_factory=dict)
    depth: int | None = None
    progress: Progress = silent


def score_pools(
    folder: Path, pool: NegativeSet, task: MiningTask, teacher: PoolTeacher, cache: Path, warn: Callable[[str], None]
) -> dict[str, Any]:
    """Write teacher.npy and teacher_positives.npy of the set ``pool`` into ``folder``; return facts of them.

    Scores are kept in ``cache`` by teacher, corpus and queries, a block of queries at a time, so that an interrupted
    refresh goes on where it was and a later one scores only what is new; memory is bounded by a block. A block that
    was altered is said through ``warn`` and scored anew. The facts name the folder as "cache", which keeps it from
    ``drop_unused_scores``. Raises StoreError for a score that is not finite.
    """
    found = create_teacher_scores(folder, pool)
    texts = sha256_json(list(task.queries.texts))  # other judgements of the same texts are no other pairs
    key = {"teacher": teacher.ranker.fingerprint, "corpus": task.corpus.sha256, "queries": texts}
    kept = cache / sha256_json(key)
    kept.mkdir(parents=True, exist_ok=True)
    blocks = [slice(start, start + BLOCK_QUERIES) for start in range(0, len(pool.queries), BLOCK_QUERIES)]
    wanted, total = 0, 0
    for number, lines in enumerate(blocks):
        pairs = _wanted(pool, lines, teacher.depth)
        wanted += len(pairs)
        total += len(np.setdiff1d(pairs, _read(_path(kept, number), warn)[0]))
    done = 0
    for number, lines in enumerate(blocks):
        pairs = _wanted(pool, lines, teacher.depth)
        keys, scores = _read(_path(kept, number), warn)
        missing = np.setdiff1d(pairs, keys)
        if len(missing):
            fresh = _scored(missing, task, teacher.ranker, partial(advance, teacher.progress, done, total))
            order = np.argsort(np.concatenate([keys, missing]))
            keys, scores = np.concatenate([keys, missing])[order], np.concatenate([scores, fresh])[order]
            _write(_path(kept, number), keys, scores)
            done += len(missing)
        for rows, target in ((pool.passages, found.candidates), (pool.positives, found.positives)):
            asked = _keys(pool.queries[lines], rows[lines])
            here = np.isin(asked, pairs)
            target[lines][here] = scores[np.searchsorted(keys, asked[here])]
    teacher.progress(done, total)
    found.flush()
    return {
        **teacher.settings,
        "fingerprint": teacher.ranker.fingerprint,
        "cache": kept.name,
        "depth": teacher.depth,
        "pairs": wanted,
        "scored": total,
        "reused": wanted - total,
    }


def drop_unused_scores(store: Store) -> list[str]:
    """Delete the cached scores that no negative set on disk was made with, and return their folders' names.

    A run goes on with the scores that its sets name; those of another teacher, corpus or queries go with the last set
    that has them. Nothing goes while a set cannot be read, since scoring again may take hours. What a kill left half
    removed or half written goes, too. Raises BusyError while another process mines.
    """
    with store.negatives.writer():
        try:
            sets = [store.negatives.at(number) for number in store.negatives.numbers()]
        except StoreError:  # its reader reports it
            return []
        return keep_only(store.teacher, {(one.facts.get("teacher") or {}).get("cache") for one in sets})


def _keys(queries: IntArray, passages: IntArray) -> Keys:
    """Return [q, n] for query rows [q] and passage rows [q, n]; a pad is no pair of the query, and none of another."""
    pairs: Keys = np.where(passages >= 0, queries[:, None].astype(np.int64) << 32 | passages.astype(np.int64), -1)
    return pairs


def _wanted(pool: NegativeSet, lines: slice, depth: int | None) -> Keys:
    """Return the pairs of a block that have to be scored, each once, ascending."""
    block = pool.lines(lines)
    drawn = block.may_be_drawn
    if depth is not None:
        drawn &= np.cumsum(drawn, axis=1) <= depth
    candidates = _keys(block.queries, block.passages)[drawn]
    positives = _keys(block.queries, block.positives)[block.positives >= 0]
    return np.unique(np.concatenate([candidates, positives]))


def _scored(pairs: Keys, task: MiningTask, ranker: Ranker, progress: Progress) -> FloatArray:
    """Return float32 [n] of ``pairs`` [n]."""
    queries, passages = pairs >> 32, (pairs & 0xFFFFFFFF).astype(np.int32)
    scores = ranker.score([task.queries.texts[row] for row in queries], task.corpus.texts(passages), progress)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        query, passage = task.queries.ids[int(queries[wrong[0]])], task.corpus.id(int(passages[wrong[0]]))
        raise StoreError(f"[teacher]: its score of passage {passage!r} for query {query!r} is {scores[wrong[0]]}")
    return scores


def _path(folder: Path, block: int) -> Path:
    return folder / f"{block:05d}.safetensors"


def _write(path: Path, keys: Keys, scores: FloatArray) -> None:
    write_atomic(path, save({"pairs": keys, "scores": scores}, {"sha256": _digest(keys, scores)}))


def _read(path: Path, warn: Callable[[str], None]) -> tuple[Keys, FloatArray]:
    """Return the pairs of a block that are kept, ascending, and their scores; none where the file was altered."""
    if path.exists():
        try:
            with safe_open(path, "np") as file:
                keys, scores = file.get_tensor("pairs"), file.get_tensor("scores")
                if (file.metadata() or {}).get("sha256") == _digest(keys, scores):
                    return keys, scores
        except (OSError, SafetensorError):
            pass
        warn(f"{path}: altered since it was written; its pairs are scored anew")
        path.unlink()
    return np.empty(0, np.int64), np.empty(0, np.float32)


def _digest(keys: Keys, scores: FloatArray) -> str:
    return hashlib.sha256(keys.tobytes() + scores.tobytes()).hexdigest()
