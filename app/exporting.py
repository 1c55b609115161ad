"""A store's results in other tools' formats: the model for sentence-transformers, negatives for three trainers.

Does not know how either was made.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.composition import Run, splits, with_positives, with_verdicts
from app.config import data_folder
from app.trainer_formats import FORMATS, Example, line
from miner.publish import open_checked_set
from miner.stored_pool import StoredPool
from miner.verdicts import StoredVerdicts, read_verdicts
from retriever.artifacts import Artifact
from retriever.checkpoint import model_folder
from retriever.durable import appearing
from retriever.encoder import saved_settings
from retriever.errors import InputError
from retriever.ingest import load_query_set
from retriever.negatives import NegativeSet, Verdict
from retriever.teacher_scores import open_teacher_scores

CHUNK = 1024


def check_new(out: Path) -> None:
    """Raise InputError if ``out`` exists."""
    if out.exists():
        raise InputError(f"{out}: exists already; choose another name")


def export_model(artifact: Artifact, out: Path) -> str | None:
    """Copy the model of a checkpoint or generation to ``out``, which sentence-transformers loads.

    With untied towers ``out`` holds query/ and passage/, a model each. Returns what its user must know to get the
    same vectors, None where there is nothing to know. Raises InputError if ``out`` exists.
    """
    check_new(out)
    artifact.verify()
    with appearing(out) as temporary:
        shutil.copytree(model_folder(artifact), temporary)
    config = saved_settings(out)
    if not config.tied or config.query_max_length == config.passage_max_length:
        return None
    return (
        f"sentence-transformers cuts both sides of one model at one length, here that of passages "
        f"({config.passage_max_length} tokens): set model.max_seq_length = {config.query_max_length} to encode queries"
    )


def as_mined(run: Run, path: Path, artifact: Artifact, *, skip_missing: bool) -> Run:
    """Return the ``run`` of the run.toml at ``path`` with the training queries that a negative set was mined for.

    What was judged since stays judged. Raises InputError if its verdicts of that time are gone, or other data changed.
    """
    folder, split = data_folder(run.config, path), splits(run.config)[0]
    loaded = load_query_set(folder, split, run.corpus, skip_missing=skip_missing, warn=lambda _: None)
    queries = with_positives(loaded, lambda _: None)
    train, _ = with_verdicts(run.config, path.parent, run.corpus, queries, lambda _: None, artifact)
    open_checked_set(artifact, run.corpus, train)
    config = run.config.negatives
    now = None if config.verdicts is None else path.parent / config.verdicts
    judged = None if now is None else read_verdicts(now, run.corpus, train, lambda _: None, config.on_relevant)
    return replace(run, train=train, judged=judged)


def export_negatives(run: Run, artifact: Artifact, out: Path, file_format: str, count: int) -> int:
    """Write the training queries with ``count`` drawn negatives each as JSON lines; return the number of lines.

    ``file_format`` is a key of FORMATS. The draw is that of training step 0, but around what was judged relevant since
    the set was mined. Queries without an eligible negative are left out. Of a set with a teacher's scores only
    negatives that have one are drawn, and the scores go along where the format has a place for them. Raises InputError
    for an unknown format, an existing ``out`` and a count beyond the set's depth.
    """
    if file_format not in FORMATS:
        raise InputError(f"--format {file_format}: choose one of {', '.join(FORMATS)}")
    check_new(out)
    written = 0
    with appearing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for example in _examples(run, artifact, count):
            records = FORMATS[file_format](run.corpus, run.train, example, count)
            file.writelines(map(line, records))
            written += len(records)
    return written


def _respected(judged: StoredVerdicts, pool: NegativeSet) -> NDArray[np.uint8]:
    """Return the verdicts of ``pool`` with what was ``judged`` relevant since: training masks it, a file cannot."""
    verdicts = np.array(pool.verdicts)
    for start in range(0, len(verdicts), CHUNK):
        rows = slice(start, start + CHUNK)
        now = judged.respected(verdicts[rows], pool.queries[rows], pool.passages[rows])
        verdicts[rows] = np.where(now == Verdict.JUDGED_RELEVANT, now, verdicts[rows])
    return verdicts


def _examples(run: Run, artifact: Artifact, count: int) -> Iterator[Example]:
    pool = open_checked_set(artifact, run.corpus, run.train)
    depth = pool.passages.shape[1]
    if count > depth:
        raise InputError(f"--count {count}: negative set {artifact.number} holds {depth} candidates a query")
    if run.judged is not None:
        pool = replace(pool, verdicts=_respected(run.judged, pool))
    config, taught = run.config, open_teacher_scores(artifact.path, pool)
    if taught is not None:
        pool = replace(pool, verdicts=np.where(np.isnan(taught.candidates), np.uint8(Verdict.FILTERED), pool.verdicts))
    config.negatives.check_drawn(count)
    wanted = config.negatives.wanted(count, artifact.facts["sources"])
    source = StoredPool(pool, artifact.number, config.negatives.sampler, wanted, config.seed, 1)
    for start in range(0, len(run.train), CHUNK):
        queries = np.arange(start, min(start + CHUNK, len(run.train)), dtype=np.int32)
        drawn = source.draw(queries, 0)
        for query, rows, kept in zip(queries.tolist(), drawn.rows, drawn.mask, strict=True):
            if not kept.any():
                continue
            positives, negatives = run.train.positives(query), rows[kept]
            scores: list[list[float]] | list[None] = [None, None]
            if taught is not None:
                one = np.array([query], np.int32)
                scores = [taught.of_batch(one, found)[0].tolist() for found in (positives, negatives)]
            yield Example(query, positives.tolist(), negatives.tolist(), *scores)
