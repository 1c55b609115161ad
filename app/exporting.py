"""A store's results in other tools' formats: the model for sentence-transformers, negatives for three trainers.

Does not know how either was made.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from app.composition import Run
from miner.publish import open_checked_set
from miner.stored_pool import StoredPool
from retriever.artifacts import Artifact
from retriever.checkpoint import model_folder
from retriever.encoder import saved_settings
from retriever.errors import InputError
from retriever.negatives import Verdict
from retriever.teacher_scores import open_teacher_scores

CHUNK = 1024


@dataclass(frozen=True)
class Row:
    """A query row, the corpus rows of its positives and of its negatives, and a teacher's scores of both, if any."""

    query: int
    positives: list[int]
    negatives: list[int]
    positive_scores: list[float] | None = None
    negative_scores: list[float] | None = None


def export_model(artifact: Artifact, out: Path) -> str | None:
    """Copy the model of a checkpoint or generation to ``out``, which sentence-transformers loads.

    With untied towers ``out`` holds query/ and passage/, a model each. Returns what its user must know to get the
    same vectors, None where there is nothing to know. Raises InputError if ``out`` exists.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; choose another folder")
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


def export_negatives(run: Run, artifact: Artifact, out: Path, file_format: str, count: int) -> int:
    """Write the training queries with ``count`` drawn negatives each as JSON lines; return the number of lines.

    ``file_format`` is a key of FORMATS. The draw is that of training step 0. Queries without an eligible negative
    are left out. Of a set with a teacher's scores only negatives that have one are drawn, and the scores go along where
    the format has a place for them. Raises InputError for an unknown format, an existing ``out`` and a count beyond the
    set's depth.
    """
    if file_format not in FORMATS:
        raise InputError(f"--format {file_format}: choose one of {', '.join(FORMATS)}")
    if out.exists():
        raise InputError(f"{out}: exists already; choose another name")
    written = 0
    with appearing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in _rows(run, artifact, count):
            written += FORMATS[file_format](run, row, file, count)
    return written


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Give a place beside ``out`` to write to; it becomes ``out`` if the block succeeds and is removed if not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise


def _rows(run: Run, artifact: Artifact, count: int) -> Iterator[Row]:
    pool = open_checked_set(artifact, run.corpus, run.train)
    depth = pool.passages.shape[1]
    if count > depth:
        raise InputError(f"--count {count}: negative set {artifact.number} holds {depth} candidates a query")
    config, taught = run.config, open_teacher_scores(artifact.path, pool)
    if taught is not None:
        pool = replace(pool, verdicts=np.where(np.isnan(taught.candidates), np.uint8(Verdict.FILTERED), pool.verdicts))
    source = StoredPool(pool, artifact.number, config.negatives.sampler, count, config.seed, 1)
    for start in range(0, len(run.train), CHUNK):
        queries = np.arange(start, min(start + CHUNK, len(run.train)), dtype=np.int32)
        drawn = source.draw(queries, 0)
        for query, rows, kept in zip(queries.tolist(), drawn.rows, drawn.mask, strict=True):
            if not kept.any():
                continue
            positives, negatives = run.train.positives(query), rows[kept]
            scores: list[list[float]] | list[None] = [None, None]
            if taught is not None:
                line = np.array([query], np.int32)
                scores = [taught.of_batch(line, found)[0].tolist() for found in (positives, negatives)]
            yield Row(query, positives.tolist(), negatives.tolist(), *scores)


def _line(file: TextIO, record: dict[str, Any]) -> int:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return 1


def _sentence_transformers(run: Run, row: Row, file: TextIO, count: int) -> int:
    """Write a line a positive: anchor, positive, negative_1 … negative_n. Columns must agree, so all n or no line.

    With a teacher also ``label``: its scores of the positive and of each negative, as MarginMSELoss and
    DistillKLDivLoss read them.
    """
    if len(row.negatives) < count:
        return 0
    texts = run.corpus.texts(row.negatives)
    columns = {f"negative_{place}": text for place, text in enumerate(texts, 1)}
    lines = 0
    for place, text in enumerate(run.corpus.texts(row.positives)):
        record: dict[str, Any] = {"anchor": run.train.texts[row.query], "positive": text, **columns}
        if row.positive_scores is not None and row.negative_scores is not None:
            record["label"] = [row.positive_scores[place], *row.negative_scores]
        lines += _line(file, record)
    return lines


def _flag_embedding(run: Run, row: Row, file: TextIO, count: int) -> int:
    """Write a line a query; with a teacher also pos_scores and neg_scores, which knowledge_distillation reads."""
    positives, negatives = run.corpus.texts(row.positives), run.corpus.texts(row.negatives)
    record: dict[str, Any] = {"query": run.train.texts[row.query], "pos": positives, "neg": negatives}
    if row.positive_scores is not None:
        record |= {"pos_scores": row.positive_scores, "neg_scores": row.negative_scores}
    return _line(file, record)


def _tevatron(run: Run, row: Row, file: TextIO, count: int) -> int:
    def passages(rows: list[int]) -> list[dict[str, str]]:
        return [{"docid": run.corpus.id(r), "title": "", "text": run.corpus.text(r)} for r in rows]

    record = {"query_id": run.train.ids[row.query], "query": run.train.texts[row.query]}
    both = {"positive_passages": passages(row.positives), "negative_passages": passages(row.negatives)}
    return _line(file, {**record, **both})


FORMATS: dict[str, Callable[[Run, Row, TextIO, int], int]] = {
    "sentence-transformers": _sentence_transformers,
    "flagembedding": _flag_embedding,
    "tevatron": _tevatron,
}
