"""Writes a BEIR folder with a summary of its making, in one step that shows it whole or not at all.

Does not know where the texts come from.
"""

import filecmp
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retriever.beir_writer import write_qrels
from retriever.durable import publish_folder, remove_folder, sha256_file
from retriever.errors import InputError

SUMMARY_FILE = "dataset.json"


def check_target(out: Path, kind: str) -> None:
    """Raise InputError unless ``out`` is absent, empty, or a folder of ``kind`` with nothing else in it."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder")
    present = _files(out)
    if not present:
        return
    if SUMMARY_FILE not in present:
        raise InputError(f"{out}: not empty and holds no {SUMMARY_FILE}; name another folder")
    try:
        facts = json.loads((out / SUMMARY_FILE).read_bytes())
        known = {SUMMARY_FILE, *facts["sha256"]}
        found = facts["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out / SUMMARY_FILE}: not the summary of a data set; name another folder") from error
    if found != kind:
        raise InputError(f"{out}: holds a data set of kind {found!r}, not {kind!r}; name another folder")
    if strangers := sorted(present - known):
        raise InputError(
            f"{out / strangers[0]}: no file of the data set around it, so it would be lost; move it or name "
            "another folder"
        )


def publish(
    out: Path,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Sequence[tuple[str, str]]],
    facts: Mapping[str, Any],
) -> None:
    """Write id → text of passages and queries, and (query id, passage id) by split, all sorted by id.

    ``dataset.json`` holds ``facts`` and the SHA-256 of every other file. ``out`` is replaced, or left
    untouched if all its bytes are those already.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        (stage / "qrels").mkdir(parents=True)
        passages = ({"_id": name, "title": "", "text": text} for name, text in sorted(corpus.items()))
        _write(stage / "corpus.jsonl", map(_json, passages))
        asked = ({"_id": name, "text": text} for name, text in sorted(queries.items()))
        _write(stage / "queries.jsonl", map(_json, asked))
        for split, pairs in qrels.items():
            write_qrels(stage / "qrels" / f"{split}.tsv", ((query, passage, 1) for query, passage in sorted(pairs)))
        digests = {name: sha256_file(stage / name) for name in sorted(_files(stage))}
        _write(stage / SUMMARY_FILE, [json.dumps({**facts, "sha256": digests}, indent=2)])
        if not _same(stage, out):
            if out.exists():
                remove_folder(out)
            publish_folder(stage, out)
    finally:
        if stage.exists():
            shutil.rmtree(stage)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _same(one: Path, other: Path) -> bool:
    names = sorted(_files(one))
    return other.exists() and filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def _json(record: Mapping[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
